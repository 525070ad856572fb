"""The unlearn stage: from base and a forget request to the model that will be released."""

from __future__ import annotations

import gc
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel

from datasets_prep.chat import encode_rows
from datasets_prep.schema import Encoded, Row, read_rows
from pipeline.errors import InputError, TrainingError
from pipeline.progress import report
from pipeline.unlearn.completion import row_losses
from pipeline.unlearn.config import Level, StopRule, UnlearnConfig
from pipeline.unlearn.fit import CHECKPOINTS, fit, load, mean, save_for_release, training_arguments
from pipeline.unlearn.guards import EndOfAscent, Levels, Watch
from pipeline.unlearn.pairing import Pair, pair_rows
from pipeline.unlearn.trainer import GDTrainer, pair_dataset


def run(config: UnlearnConfig, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Unlearn the forget rows of ``inputs["data"]`` from ``inputs["base"]``; ``inputs["gold"]`` gives levels, if used.

    Writes ``model/``, ``log.jsonl`` and ``pairing.jsonl``. Raises TrainingError where a guard stops the run or no
    checkpoint satisfies the rule.
    """
    arguments = training_arguments(config.args, config.precision, out, num_train_epochs=1)
    rows = {split: read_rows(inputs["data"] / f"{split}.jsonl") for split in ("forget", "retain", "holdout")}
    model, tokenizer = load(inputs["base"] / "model")
    encoded = {split: encode_rows(tokenizer, rows[split]) for split in rows}
    pairs = pair_rows(
        len(rows["forget"]),
        len(rows["retain"]),
        epochs=config.epochs,
        retain_per_forget=config.retain_rows_per_forget_row,
        seed=config.pairing_seed,
    )
    _write_pairing(out / "pairing.jsonl", pairs, rows["forget"], rows["retain"])
    report("measuring the levels")
    levels = _named_levels(config, inputs, model, encoded)
    cap = _level(config.forget_cap, levels) if config.forget_cap is not None else None
    trainer = GDTrainer(
        model,
        args=arguments,
        train_dataset=pair_dataset(pairs, encoded["forget"], encoded["retain"]),
        processing_class=tokenizer,
        callbacks=[Watch("unlearn")],
        forget_weight=config.forget_weight,
        retain_weight=config.retain_weight,
        forget_cap=cap,
    )
    facts: dict[str, Any] = {"levels": levels, "forget_cap": cap}
    if config.stop is None:
        fit(trainer, out)
        facts |= {
            "stopped": "all epochs done",
            "steps": trainer.state.global_step,
            "kept_step": trainer.state.global_step,
        }
    else:
        facts |= _fit_with_stop(trainer, model, config, config.stop, levels, encoded, out)
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
    out: Path,
) -> dict[str, Any]:
    chosen = random.Random(config.pairing_seed).sample(
        range(len(encoded["retain"])), min(stop.retain_rows, len(encoded["retain"]))
    )
    retain_rows = [encoded["retain"][i] for i in sorted(chosen)]
    base_retain = mean(row_losses(model, retain_rows))
    bounds = Levels(forget=_level(stop.forget_loss, levels), retain=base_retain + stop.retain_loss_above_base)

    def measure() -> tuple[float, float]:
        return mean(row_losses(model, encoded["forget"])), mean(row_losses(model, retain_rows))

    end = EndOfAscent(measure, bounds, stop.every, out / "kept" / "model.safetensors")
    trainer.add_callback(end)
    fit(trainer, out)
    kept_step = end.kept_step(trainer.state.log_history)
    if config.keep == "closest":
        if kept_step is None:
            raise TrainingError(
                f"unlearn: no checked step kept the retain loss within {bounds.retain:.3f} nats per token "
                f"({end.reason}). Lower the learning rate or raise unlearn.retain_weight."
            )
        missing, unexpected = model.load_state_dict(load_file(end.kept), strict=False)
        tied = set(getattr(model, "_tied_weights_keys", None) or [])
        if unexpected or set(missing) - tied:
            raise RuntimeError(f"the kept checkpoint does not fit its model: {unexpected} {missing}")
    return {
        "stopped": end.reason,
        "steps": trainer.state.global_step,
        "kept_step": kept_step if config.keep == "closest" else trainer.state.global_step,
        "bounds": {"forget_loss": bounds.forget, "retain_loss": bounds.retain},
    }


def _named_levels(
    config: UnlearnConfig, inputs: Mapping[str, Path], base: Any, encoded: dict[str, list[Encoded]]
) -> dict[str, float]:
    """The levels that the recipe names, measured: mean loss per answer token, averaged over rows."""
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


def _level(level: Level, levels: dict[str, float]) -> float:
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
