"""The levels that the forget loss is compared with: gold's loss, base's on holdout rows, that of false answers.

All are mean losses in nats per answer token; `pipeline.unlearn.config.Level` says what each one is.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.errors import InputError
from datasets_prep.chat import chat_example, encode
from datasets_prep.schema import Encoded, Row
from pipeline.train.fit import load
from pipeline.train.packed import row_losses
from pipeline.unlearn.config import AboveLevel, Level, UnlearnConfig
from pipeline.unlearn.false_answers import false_answers


def fixed_levels(
    config: UnlearnConfig, inputs: Mapping[str, Path], base: Any, encoded: Mapping[str, list[Encoded]]
) -> dict[str, float]:
    """The named levels that do not change during training. Raises InputError if there is no model or row for one."""
    levels = {}
    if "holdout" in config.named_levels:
        if not encoded["holdout"]:
            raise InputError("unlearn: the level `holdout` needs holdout rows, but the data have none. Use a number.")
        levels["holdout"] = fmean(row_losses(base, encoded["holdout"]))
    if "gold" in config.named_levels:
        if "gold" not in inputs:
            raise InputError("unlearn: the level `gold` needs a gold model, but the recipe has none. Use `holdout`.")
        gold: Any = load(inputs["gold"] / "model", config.frozen)[0]
        gold = gold if config.frozen == "nf4" else gold.to(base.device)  # which is where it was loaded
        levels["gold"] = fmean(row_losses(gold, encoded["forget"]))
        del gold
        gc.collect()
    return levels


def number(level: Level, named: Mapping[str, float]) -> float:
    """``level`` in nats per answer token; ``named`` has the value of each named level."""
    if isinstance(level, AboveLevel):
        return named[level.of] + level.plus
    return named[level] if isinstance(level, str) else level


def read_guides(
    config: UnlearnConfig, data: Path, forget: list[Row], tokenizer: PreTrainedTokenizerBase
) -> list[list[Encoded]]:
    """The tokens of :func:`false_answers`, each with its question."""
    of_rows = zip(forget, false_answers(config, data, forget), strict=False)  # of no row, where nothing reads them
    return [[encode(tokenizer, chat_example(tokenizer, row.question, a)) for a in answers] for row, answers in of_rows]


def mean_by_row(model: Any, guides: list[list[Encoded]]) -> list[float]:
    """The mean loss of each row's false answers."""
    losses = iter(row_losses(model, [row for rows in guides for row in rows]))
    return [fmean([next(losses) for _ in rows]) for rows in guides]
