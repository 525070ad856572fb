"""What other models and other answers say, measured before the training: levels of the forget loss, and of its tokens.

Levels of the loss are means in nats per answer token; `pipeline.unlearn.config.Level` says what each one is. Those of
tokens are for csd (`pipeline.unlearn.counterfactual`).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.errors import InputError
from datasets_prep.chat import chat_example, encode, encode_rows
from datasets_prep.schema import Encoded, Row
from pipeline.train.fit import load
from pipeline.train.packed import row_losses, token_log_probs
from pipeline.unlearn.config import AboveLevel, Level, UnlearnConfig
from pipeline.unlearn.false_answers import false_answers


def fixed_levels(
    config: UnlearnConfig, inputs: Mapping[str, Path], base: Any, encoded: Mapping[str, list[Encoded]]
) -> dict[str, float]:
    """The named levels that do not change during training. Raises InputError if there is no model for one."""
    levels = {}
    if "holdout" in config.named_levels:
        levels["holdout"] = fmean(row_losses(base, encoded["holdout"]))
    if "gold" in config.named_levels:
        if "gold" not in inputs:
            raise InputError("unlearn: the level `gold` needs a gold model, but the recipe has none. Use `holdout`.")
        gold, _ = _load_beside(base, inputs["gold"] / "model", config)
        levels["gold"] = fmean(row_losses(gold, encoded["forget"]))
        del gold
        gc.collect()
    return levels


def false_log_probs(model: Any, guides: Sequence[Sequence[Encoded]]) -> list[list[list[float]]]:
    """Log-probabilities in nats of each token of each row's false answers."""
    log_probs = iter(token_log_probs(model, [row for rows in guides for row in rows]))
    return [[next(log_probs) for _ in rows] for rows in guides]


def load_novice(
    config: UnlearnConfig, novice: Path, base: Any, forget: Sequence[Row], encoded: Sequence[Encoded]
) -> PreTrainedModel:
    """The novice in the folder ``novice``, in base's precision on base's device. Nothing of it is trained.

    Raises InputError if its tokenizer has other tokens for the true answers than base's, which ``encoded`` holds.
    """
    model, tokenizer = _load_beside(base, novice, config)
    for row, of_base in zip(encode_rows(tokenizer, forget), encoded, strict=True):
        if row.input_ids[row.completion_start :] != of_base.input_ids[of_base.completion_start :]:
            raise InputError(
                "unlearn: csd asks the novice, which is trained from the start model, how likely true answers are, and "
                "its tokenizer splits them into other tokens than that of base. Give the model that base was trained "
                "from in the section `model`, or take another method."
            )
    return cast("PreTrainedModel", model.requires_grad_(False))


def _load_beside(base: Any, folder: Path, config: UnlearnConfig) -> tuple[Any, PreTrainedTokenizerBase]:
    """Another model in base's precision on base's device, where one of 4 bits is loaded at once."""
    model, tokenizer = load(folder, config.frozen)
    placed: Any = model if config.frozen == "nf4" else cast("Any", model).to(base.device)
    return placed, tokenizer


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
