"""What `tests/test_ranks.py` runs under `accelerate launch` and in one process: trainings in float32."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.unlearn.completion import row_losses
from pipeline.unlearn.config import UnlearnConfig
from pipeline.unlearn.fit import load, training_arguments
from pipeline.unlearn.pairing import pair_rows
from pipeline.unlearn.ranks import is_first, rank
from pipeline.unlearn.trainer import CompletionTrainer, UnlearnTrainer, pair_dataset, row_dataset
from tests.unlearning import some_rows

FORGET, RETAIN = some_rows(11, 1), some_rows(17, 2)  # 11 rows in steps of 4: each pass ends with a part of a step
PAIRS = pair_rows(len(FORGET), len(RETAIN), epochs=2, retain_per_forget=2, seed=3)
ARGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
}


def trainer_of(kind: str, model: Path, out: Path, **more: Any) -> Any:
    """The trainer of ``kind`` on the tiny model: ``unlearn`` on pairs, ``train`` on shuffled rows for two epochs."""
    loaded, tokenizer = load(model)
    common = {"processing_class": tokenizer, "callbacks": []}
    if kind == "train":
        arguments = training_arguments(ARGS | more | {"num_train_epochs": 2}, "fp32", out)
        return CompletionTrainer(loaded, args=arguments, train_dataset=row_dataset(FORGET), **common)
    config = UnlearnConfig(method="gd", epochs=2)
    arguments = training_arguments(ARGS | more, "fp32", out, num_train_epochs=1)
    data = pair_dataset(PAIRS, FORGET, RETAIN)
    return UnlearnTrainer(loaded, config=config, args=arguments, train_dataset=data, **common)


def train(kind: str, model: Path, out: Path) -> None:
    """Train; every rank writes what it saw, the first one the weights, the log and the rows' losses."""
    trainer = trainer_of(kind, model, out)
    seen: list[list[list[list[int]]]] = []
    collate = trainer.data_collator

    def noting(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seen.append([item["input_ids"] for item in items])
        return collate(items)

    trainer.data_collator = noting
    trainer.train()
    losses = row_losses(trainer.model, RETAIN, batch_tokens=40)
    Path(out, f"seen-{rank()}.json").write_text(json.dumps(seen))
    if is_first():
        log = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
        Path(out, "log.json").write_text(json.dumps({"log": log, "losses": losses}))
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), Path(out, "weights.pt"))


if __name__ == "__main__":
    for each in ("unlearn", "train"):
        train(each, Path(sys.argv[1]), Path(sys.argv[2]) / each)
