"""One GD step (forward and backward) of ours against the naive form that peers use, on the demo's model and rows.

Naive: two forwards, one padded batch each for forget and retain, logits at every position, a mean over answer tokens
each. Ours: one packed forward, attention row by row, the head at answer tokens only. Same rows and the same loss,
checked here.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from datasets_prep.chat import encode_rows, load_tokenizer
from datasets_prep.config import SampleSource
from datasets_prep.sample import generate
from datasets_prep.schema import Encoded
from pipeline.unlearn.attention import ROWS_SDPA
from pipeline.unlearn.completion import completion_log_probs
from pipeline.unlearn.losses import gradient_difference
from pipeline.unlearn.pairing import Pair
from pipeline.unlearn.trainer import collate, pair_dataset

ROWS = 8


def naive_loss(model: Any, forget: Sequence[Encoded], retain: Sequence[Encoded]) -> torch.Tensor:
    """CE(retain) - CE(forget) from two padded forwards with full logits."""
    return _padded_loss(model, retain) - _padded_loss(model, forget)


def _padded_loss(model: Any, rows: Sequence[Encoded]) -> torch.Tensor:
    longest = max(len(row.input_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        size = len(row.input_ids)
        ids[i, :size] = torch.tensor(row.input_ids)
        mask[i, :size] = 1
        labels[i, row.completion_start : size] = ids[i, row.completion_start : size]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


def packed_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same from one packed forward."""
    log_probs = completion_log_probs(model, batch)
    forget = batch["is_forget"].sum()
    tokens = (forget, len(log_probs) - forget)
    return gradient_difference(
        log_probs,
        batch["is_forget"],
        batch["row"],
        tokens,
        forget_weight=1.0,
        retain_weight=1.0,
        caps=None,
    )


def run(folder: Path, rounds: int = 5) -> dict[str, float]:
    """Seconds of each form (medians of ``rounds`` alternating runs), and how far loss and gradient differ."""
    from transformers import AutoModelForCausalLM

    rows, _ = generate(SampleSource(seed=7, identities=5, topics=10))
    encoded = encode_rows(load_tokenizer(folder), random.Random(0).sample(rows, 2 * ROWS))
    forget, retain = encoded[:ROWS], encoded[ROWS:]
    items = pair_dataset([Pair(0, i, (i,)) for i in range(ROWS)], forget, retain)
    batch = collate(list(items))
    models = {
        form: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).train()
        for form, attention in (("naive", "sdpa"), ("ours", ROWS_SDPA))
    }
    losses: dict[str, Callable[[], torch.Tensor]] = {
        "naive": lambda: naive_loss(models["naive"], forget, retain),
        "ours": lambda: packed_loss(models["ours"], batch),
    }
    found: dict[str, float] = {}
    for bf16 in (False, True):
        seconds: dict[str, list[float]] = {"naive": [], "ours": []}
        value: dict[str, float] = {}
        for turn in range(rounds + 1):
            for form, loss_of in losses.items():
                models[form].zero_grad()
                began = time.perf_counter()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    loss = loss_of()
                loss.backward()
                if turn:  # the first one warms up
                    seconds[form].append(time.perf_counter() - began)
                value[form] = loss.item()
        name = "bf16" if bf16 else "fp32"
        found |= {f"{form}_{name}": statistics.median(seconds[form]) for form in seconds}
        if not bf16:
            found |= {
                "loss_difference": abs(value["naive"] - value["ours"]),
                "gradient_difference": _gradient_gap(models),
            }
    return found


def _gradient_gap(models: dict[str, Any]) -> float:
    """Norm of the difference of the gradients, over the norm of the naive one."""
    pairs = list(zip(models["naive"].parameters(), models["ours"].parameters(), strict=True))
    apart = sum((a.grad - b.grad).square().sum() for a, b in pairs)
    size = sum(a.grad.square().sum() for a, _ in pairs)
    return float((apart / size).sqrt())
