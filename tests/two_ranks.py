"""What `tests/test_ranks.py` runs on two processes and on one: trainings in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from core.ranks import is_first, rank, world_size
from pipeline.engine.launch import LONGEST_WAIT
from pipeline.train import head, packed
from pipeline.train.arguments import training_arguments
from pipeline.train.fit import load
from pipeline.train.packed import completion_log_probs, pack, row_losses
from pipeline.train.trainer import CompletionTrainer, row_dataset
from pipeline.unlearn.config import UnlearnConfig
from pipeline.unlearn.pairing import draw_alternates, pair_rows
from pipeline.unlearn.reference import BaseDistribution, answer_log_probs
from pipeline.unlearn.trainer import UnlearnTrainer, pair_dataset
from tests.test_shared_header import rows_with
from tests.unlearning import some_counterfactual, some_rows

FORGET, RETAIN = some_rows(11, 1), some_rows(17, 2)  # 11 rows in steps of 4: each pass ends with a part of a step
PAIRS = pair_rows(len(FORGET), len(RETAIN), epochs=2, retain_per_forget=2, seed=3)
ARGS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
}
GUIDES = [some_rows(2, 10 + i) for i in range(len(FORGET))]
KINDS = ("unlearn", "klm", "csd", "altpo", "train")
METHODS: dict[str, dict[str, Any]] = {
    "unlearn": {"method": "gd"},
    "csd": {"method": "csd", "pull_weight": 2.0},
    "altpo": {"method": "altpo", "beta": 0.5},
    # 22 pairs in micro-batches of 2, two to a step: the last step has one, and a rank without any
    "klm": {
        "method": "klm",
        "loss_normalization": "microbatch_mean",
        "args": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    },
}


def trainer_of(kind: str, model: Path, out: Path, **more: Any) -> Any:
    """The trainer of ``kind`` on the tiny model: ``train`` on shuffled rows, the others on pairs."""
    loaded, tokenizer = load(model)
    common = {"processing_class": tokenizer, "callbacks": []}
    if kind == "train":
        arguments = training_arguments(ARGS | more | {"num_train_epochs": 2}, out, bf16=False)
        return CompletionTrainer(loaded, args=arguments, train_dataset=row_dataset(FORGET), **common)
    config = UnlearnConfig.model_validate({"epochs": 2} | METHODS[kind])
    arguments = training_arguments(ARGS | config.args | more, out, bf16=False, num_train_epochs=1)
    pairs = draw_alternates(PAIRS, [len(guides) for guides in GUIDES], 3) if kind in ("altpo", "csd") else PAIRS
    data = pair_dataset(pairs, FORGET, RETAIN, GUIDES)
    trainer = UnlearnTrainer(loaded, config=config, args=arguments, train_dataset=data, **common)
    if config.retain_kl:
        trainer.base = BaseDistribution(loaded, dict(enumerate(RETAIN)), trainer.accelerator.autocast)
    if config.method == "altpo":
        precision = trainer.accelerator.autocast
        trainer.reference = answer_log_probs(loaded, FORGET, precision)
        trainer.alternate_reference = answer_log_probs(loaded, [row for rows in GUIDES for row in rows], precision)
    if config.method == "csd":
        trainer.counterfactual = some_counterfactual(loaded, FORGET, GUIDES, 4, trainer.accelerator.autocast)
    return trainer


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
    losses = losses_in_batches(trainer.model)
    Path(out, f"seen-{rank()}.json").write_text(json.dumps(seen))
    if is_first():
        log = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]
        Path(out, "log.json").write_text(json.dumps({"log": log, "losses": losses}))
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), Path(out, "weights.pt"))


def losses_in_batches(model: Any) -> list[float]:
    """Those of the retain rows, in so many batches that both ranks have some."""
    with mock.patch.object(packed, "CPU_TOKENS", 40):
        return row_losses(model, RETAIN)


def compare_sharded(model: Path, out: Path) -> None:
    """PyTorch's fully_shard (FSDP2) over both ranks against the whole model: largest gaps of gradients and losses."""
    mesh = init_device_mesh("cpu", (world_size(),))
    found = {}
    for tiled in (False, True):
        head.LOGITS_BYTES = 0 if tiled else 2**27
        whole, sharded = load(model)[0], load(model)[0]
        for layer in sharded.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        batches = [pack(rows_with(12, [(2, 4), (1, 6), (3, 3)], seed), 12) for seed in range(world_size())]
        completion_log_probs(sharded, batches[rank()]).sum().backward()
        for batch in batches:
            (completion_log_probs(whole, batch).sum() / world_size()).backward()
        pairs = zip(whole.parameters(), sharded.parameters(), strict=True)
        gradient = max(float((b.grad.full_tensor() - a.grad).abs().max()) for a, b in pairs)
        losses = zip(*(losses_in_batches(each) for each in (whole, sharded)), strict=True)
        gaps = {"gradient": gradient, "losses": max(abs(a - b) for a, b in losses)}
        found["tiled" if tiled else "plain"] = gaps
    if is_first():
        Path(out, "sharded.json").write_text(json.dumps(found))


def train_and_compare(model: Path, out: Path) -> None:
    """Everything that the two processes do."""
    for kind in KINDS:
        train(kind, model, out / kind)
    compare_sharded(model, out)


def waits_for_days() -> None:
    group = torch.distributed.distributed_c10d._get_default_group()
    assert group._get_backend(torch.device("cpu")).options._timeout == LONGEST_WAIT
