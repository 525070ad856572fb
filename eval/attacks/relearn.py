"""Relearning: a few steps of plain fine-tuning, with which an attacker tries to bring forgotten facts back."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from core import onednn
from core.errors import DataError, ModelError
from core.progress import report
from datasets_prep.schema import Encoded
from eval.config import Relearn
from pipeline.train.packed import completion_log_probs, pack


def divided(row_ids: Sequence[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """The rows to relearn (``share`` of them, at least one) and the rows to probe.

    They are the same for every model and whatever the order of ``row_ids``. Raises DataError if no row is left to
    probe.
    """
    count = max(1, round(share * len(row_ids)))
    if count >= len(row_ids):
        raise DataError(
            f"Relearning {share:g} of {len(row_ids)} forget rows leaves none to probe. Lower relearn.forget_share, or "
            "give more forget rows."
        )
    taught = drawn(row_ids, count, seed)
    return taught, sorted(set(row_ids) - set(taught))


def drawn(row_ids: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` rows, or all if there are fewer, drawn by the seed, whatever their order."""
    return sorted(random.Random(f"{seed}|relearn").sample(sorted(row_ids), min(count, len(row_ids))))


def relearned(model: PreTrainedModel, rows: Sequence[Encoded], config: Relearn, seed: int) -> PreTrainedModel:
    """A float32 copy of ``model`` after ``config.steps`` steps of AdamW on the answers of ``rows``, shuffled per epoch.

    Every attacked model sees the same rows in the same order. Raises ModelError if the loss is not finite.
    """
    treated = copy.deepcopy(model).float().train()
    onednn.install(treated)
    treated.requires_grad_(True)
    optimizer = torch.optim.AdamW(treated.parameters(), lr=config.learning_rate, weight_decay=0.0)
    for step, batch in enumerate(_batches(rows, config, seed), start=1):
        packed = {name: tensor.to(treated.device) for name, tensor in pack(batch).items()}
        loss = -completion_log_probs(treated, packed).mean()
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"Relearning diverged at step {step}: the loss is not finite. Lower relearn.learning_rate."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report("relearning", step, config.steps, loss=float(loss.detach()))
    treated.requires_grad_(False)
    return treated.eval()


def _batches(rows: Sequence[Encoded], config: Relearn, seed: int) -> list[list[Encoded]]:
    deck: list[Encoded] = []
    shuffle = random.Random(f"{seed}|batches")
    size = min(config.batch_rows, len(rows))
    while len(deck) < config.steps * size:
        deck += shuffle.sample(list(rows), len(rows))
    return [deck[i * size : (i + 1) * size] for i in range(config.steps)]
