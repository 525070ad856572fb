"""Relearning: a few steps of plain fine-tuning, with which an attacker tries to bring forgotten facts back."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from core import onednn
from core.errors import DataError, ModelError
from core.markdown import counted
from core.progress import report
from datasets_prep.schema import Encoded
from eval.config import Relearn, relearned
from pipeline.train.packed import completion_log_probs, pack


def divided(
    row_ids: Sequence[str], share: float, seed: int, told_before: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """The rows to relearn (``share`` of the facts that they tell, at least one) and the rows to probe.

    ``told_before`` has the row that told its fact first, for each row that tells it again: whoever relearns a fact is
    not asked for it in other words. They are the same for every model and whatever the order of ``row_ids``. Raises
    DataError if no row is left to probe.
    """
    first = {row: (told_before or {}).get(row, row) for row in row_ids}
    facts = sorted(set(first.values()))
    count = relearned(len(facts), share)
    if count >= len(facts):
        rows = counted(len(row_ids), "forget row")
        told = "" if len(facts) == len(row_ids) else f", which tell {counted(len(facts), 'fact')},"
        raise DataError(
            f"Relearning {share:g} of {rows}{told} leaves none to probe. Lower relearn.forget_share, or give more "
            "forget rows."
        )
    taught = set(drawn(facts, count, seed))
    return (
        sorted(row for row, fact in first.items() if fact in taught),
        sorted(row for row, fact in first.items() if fact not in taught),
    )


def drawn(row_ids: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` rows, or all if there are fewer, drawn by the seed, whatever their order."""
    return sorted(random.Random(f"{seed}|relearn").sample(sorted(row_ids), min(count, len(row_ids))))


def relearn(model: PreTrainedModel, rows: Sequence[Encoded], config: Relearn, seed: int) -> None:
    """Take ``config.steps`` steps of AdamW in float32 on the answers of ``rows``, which are shuffled per epoch.

    ``model`` itself is changed: its weights, or with ``config.rank`` the adapters that it gets. Every attacked model
    sees the same rows in the same order, without dropout. Raises ModelError if the loss is not finite.
    """
    if config.rank:
        _add_adapters(model, config.rank, seed)
    else:
        model.float().requires_grad_(True)
    model.eval()  # dropout would make two readings differ
    onednn.install(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [_step_in_backward(parameter, config.learning_rate) for parameter in trained]
    try:
        for step, batch in enumerate(_batches(rows, config, seed), start=1):
            packed = {name: tensor.to(model.device) for name, tensor in pack(batch).items()}
            loss = -completion_log_probs(model, packed).mean()
            if not bool(torch.isfinite(loss)):
                raise ModelError(
                    f"Relearning diverged at step {step}: the loss is not finite. Lower relearn.learning_rate."
                )
            loss.backward()
            report("relearning", step, config.steps, loss=float(loss.detach()))
    finally:
        for hook in hooks:
            hook.remove()  # the moments go with it
    model.requires_grad_(False)


def _add_adapters(model: PreTrainedModel, rank: int, seed: int) -> None:
    """Float32 adapters in the model's linear layers, the only weights to be trained; the same first values for all."""
    from peft import LoraConfig, get_peft_model  # only for this form of the attack

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def _step_in_backward(parameter: torch.nn.Parameter, learning_rate: float) -> RemovableHandle:
    """AdamW steps a parameter as soon as its gradient is whole, so that no two gradients are in memory.

    Parameters don't depend on each other in AdamW without clipping: the steps are those of one optimizer for all.
    """
    optimizer = torch.optim.AdamW([parameter], lr=learning_rate, weight_decay=0.0)

    def step(_: torch.Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    return parameter.register_post_accumulate_grad_hook(step)


def _batches(rows: Sequence[Encoded], config: Relearn, seed: int) -> list[list[Encoded]]:
    deck: list[Encoded] = []
    shuffle = random.Random(f"{seed}|batches")
    size = min(config.batch_rows, len(rows))
    while len(deck) < config.steps * size:
        deck += shuffle.sample(list(rows), len(rows))
    return [deck[i * size : (i + 1) * size] for i in range(config.steps)]
