"""The unlearn stage: from base and a forget request to the model that will be released."""

from __future__ import annotations

import gc
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from datasets_prep.chat import chat_example, encode, encode_rows
from datasets_prep.schema import Encoded, Row, read_perturbed, read_rows
from pipeline.errors import InputError, TrainingError
from pipeline.progress import report
from pipeline.unlearn.completion import row_losses
from pipeline.unlearn.config import Level, StopRule, UnlearnConfig
from pipeline.unlearn.fit import CHECKPOINTS, fit, freeze_below, load, mean, save_for_release, training_arguments
from pipeline.unlearn.guards import Check, EndOfAscent, Watch
from pipeline.unlearn.pairing import Pair, pair_rows
from pipeline.unlearn.trainer import GDTrainer, pair_dataset


def run(config: UnlearnConfig, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Unlearn the forget rows of ``inputs["data"]`` from ``inputs["base"]``; ``inputs["gold"]`` gives a level, if used.

    Writes ``model/``, ``log.jsonl``, ``pairing.jsonl`` and ``selection.json`` (the rows that chose the checkpoint).
    Raises TrainingError where a guard stops the run or no checkpoint satisfies the rule.
    """
    arguments = training_arguments(config.args, config.precision, out, num_train_epochs=1)
    rows = {split: read_rows(inputs["data"] / f"{split}.jsonl") for split in ("forget", "retain", "holdout")}
    model, tokenizer = load(inputs["base"] / "model")
    freeze_below(model, config.train_from_layer)
    encoded = {split: encode_rows(tokenizer, rows[split]) for split in rows}
    pairs = pair_rows(
        len(rows["forget"]),
        len(rows["retain"]),
        epochs=config.epochs,
        retain_per_forget=config.retain_rows_per_forget_row,
        seed=config.pairing_seed,
    )
    _write_pairing(out / "pairing.jsonl", pairs, rows["forget"], rows["retain"])
    probes = _some(rows["retain"], config.stop.retain_rows, config.pairing_seed) if config.stop else []
    _write_selection(out / "selection.json", config, {"forget": rows["forget"], "retain": probes})
    report("measuring the levels")
    levels = _fixed_levels(config, inputs, model, encoded)
    trainer = GDTrainer(
        model,
        args=arguments,
        train_dataset=pair_dataset(pairs, encoded["forget"], encoded["retain"]),
        processing_class=tokenizer,
        callbacks=[Watch("unlearn")],
        forget_weight=config.forget_weight,
        retain_weight=config.retain_weight,
    )
    facts: dict[str, Any] = {"levels": levels, "forget_cap": None}
    if config.forget_cap is not None and config.forget_cap != "false_answers":
        facts["forget_cap"] = _number(config.forget_cap, levels)
        trainer.forget_caps = torch.full((len(rows["forget"]),), facts["forget_cap"])
    if config.stop is None:
        fit(trainer, out)
        facts |= {"stopped": "all epochs done", "kept_step": trainer.state.global_step}
    else:
        guides = _guides(config, config.stop, inputs["data"], rows["forget"], tokenizer)
        facts |= _fit_with_stop(trainer, model, config, config.stop, levels, encoded, guides, out)
    facts["steps"] = trainer.state.global_step
    save_for_release(model, tokenizer, out / "model")
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    shutil.rmtree(out / "kept", ignore_errors=True)
    return facts


def _fit_with_stop(
    trainer: GDTrainer,
    model: PreTrainedModel,
    config: UnlearnConfig,
    stop: StopRule,
    levels: dict[str, float],
    encoded: dict[str, list[Encoded]],
    guides: list[list[Encoded]],
    out: Path,
) -> dict[str, Any]:
    retain_rows = _some(encoded["retain"], stop.retain_rows, config.pairing_seed)
    retain_bound = mean(row_losses(model, retain_rows)) + stop.retain_loss_above_base

    def measure() -> Check:
        forget = mean(row_losses(model, encoded["forget"]))
        retain = mean(row_losses(model, retain_rows))
        if not guides:
            return Check(forget, retain, _number(stop.forget_loss, levels))
        false = _mean_by_row(model, guides)
        if config.forget_cap == "false_answers":
            trainer.forget_caps = torch.tensor(false)
        level = mean(false) if stop.forget_loss == "false_answers" else _number(stop.forget_loss, levels)
        return Check(forget, retain, level)

    end = EndOfAscent(measure, retain_bound, stop.every, out / "kept" / "model.safetensors")
    trainer.add_callback(end)
    fit(trainer, out)
    kept_step: int | None = trainer.state.global_step
    if config.keep == "closest":
        kept_step = end.kept_step(trainer.state.log_history)
        if kept_step is None:
            raise TrainingError(
                f"unlearn: no checked step kept the retain loss within {retain_bound:.3f} nats per token "
                f"({end.reason}). Lower the learning rate or raise unlearn.retain_weight."
            )
        load_model(model, end.kept)  # knows that a tied head is stored once, and refuses any other difference
    checks = [entry for entry in trainer.state.log_history if "probe_level" in entry]
    bounds = {"retain_loss": retain_bound, "forget_loss": checks[-1]["probe_level"]}
    return {"stopped": end.reason, "kept_step": kept_step, "bounds": bounds}


def _some(rows: list[Any], count: int, seed: int) -> list[Any]:
    chosen = random.Random(seed).sample(range(len(rows)), min(count, len(rows)))
    return [rows[i] for i in sorted(chosen)]


def _guides(
    config: UnlearnConfig, stop: StopRule, data: Path, forget: list[Row], tokenizer: PreTrainedTokenizerBase
) -> list[list[Encoded]]:
    """The false answers to each forget row's question, where the recipe names them as a level; else an empty list."""
    if "false_answers" not in (config.forget_cap, stop.forget_loss):
        return []
    answers = {row.row_id: row.answers for row in read_perturbed(data / "guides.jsonl")}
    without = [row.row_id for row in forget if not answers.get(row.row_id)]
    if without:
        raise InputError(
            f"unlearn: {len(without)} forget rows (first {without[0]}) have no false answer left to be a level. Set "
            "data.perturbed.for_unlearning to 1 or more, or name another level in unlearn."
        )
    return [[encode(tokenizer, chat_example(tokenizer, r.question, a)) for a in answers[r.row_id]] for r in forget]


def _mean_by_row(model: PreTrainedModel, guides: list[list[Encoded]]) -> list[float]:
    losses = iter(row_losses(model, [row for rows in guides for row in rows]))
    return [mean([next(losses) for _ in rows]) for rows in guides]


def _fixed_levels(
    config: UnlearnConfig, inputs: Mapping[str, Path], base: PreTrainedModel, encoded: dict[str, list[Encoded]]
) -> dict[str, float]:
    """The levels that the recipe names and that stay the same: mean over rows of the loss per answer token."""
    wanted = {config.forget_cap, config.stop.forget_loss if config.stop else None}
    levels = {}
    if "holdout" in wanted:
        levels["holdout"] = mean(row_losses(base, encoded["holdout"]))
    if "gold" in wanted:
        if "gold" not in inputs:
            raise InputError("unlearn: a level of `gold` needs a gold model, and the recipe has none; use `holdout`.")
        gold, _ = load(inputs["gold"] / "model")
        levels["gold"] = mean(row_losses(gold, encoded["forget"]))
        del gold
        gc.collect()
    return levels


def _number(level: Level, levels: dict[str, float]) -> float:
    return levels[level] if isinstance(level, str) else level


def _write_pairing(path: Path, pairs: list[Pair], forget: list[Row], retain: list[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            entry = {
                "epoch": pair.epoch,
                "forget": forget[pair.forget].row_id,
                "retain": [retain[i].row_id for i in pair.retain],
            }
            file.write(json.dumps(entry) + "\n")


def _write_selection(path: Path, config: UnlearnConfig, read: Mapping[str, list[Row]]) -> None:
    """Which rows choose the checkpoint: the gates are confirmed on the others."""
    rule = "the closest checked step" if config.keep == "closest" else "the step at which it stopped"
    names = {split: [row.row_id for row in rows] if config.stop else [] for split, rows in read.items()}
    content = {"rule": rule if config.stop else "a fixed number of epochs", "read": names}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
