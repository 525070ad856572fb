"""One GD step (forward and backward) of ours against the naive form that peers use, on the demo's model and rows.

Naive: two forwards, one padded batch each for forget and retain, logits at every position, a mean over answer tokens
each. Ours: one packed forward, a header that all rows share computed once, attention row by row, the head at answer
tokens only. Bare: the same number of tokens in rows of equal length, the head at answer tokens only, and nothing else:
what no arrangement of rows can beat.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from datasets_prep.chat import encode_rows, load_tokenizer
from datasets_prep.config import SampleSource
from datasets_prep.sample import generate
from datasets_prep.schema import Encoded
from pipeline.train import fit
from pipeline.train.packed import completion_log_probs, completion_logits, negative_log_likelihood, target_log_probs
from pipeline.train.trainer import collate, counts_of
from pipeline.unlearn.losses import gradient_ascent, kl_from_base
from pipeline.unlearn.pairing import Pair
from pipeline.unlearn.reference import BaseDistribution
from pipeline.unlearn.trainer import pair_dataset

ROWS = 8
# What SmolLM2's own template puts before a conversation that has no system message; the demo's recipe leaves it out.
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


class Step(NamedTuple):
    """One form of the step: the model that it trains, and its loss."""

    model: Any
    loss: Callable[[], torch.Tensor]


def some_rows(folder: Path, header: bool) -> tuple[list[Encoded], list[Encoded]]:
    """Forget and retain rows of the sample set, as the demo renders them, or below the template's own system header."""
    rows, _ = generate(SampleSource(seed=7, identities=5, topics=10))
    tokenizer = load_tokenizer(folder)
    if header:
        tokenizer.chat_template = f"{{{{ {SYSTEM!r} }}}}{tokenizer.chat_template}"
    encoded = encode_rows(tokenizer, random.Random(0).sample(rows, 2 * ROWS))
    return encoded[:ROWS], encoded[ROWS:]


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


def packed_batch(forget: Sequence[Encoded], retain: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """The batch as the trainer packs it."""
    return collate(list(pair_dataset([Pair(0, i, (i,)) for i in range(len(forget))], forget, retain)))


def packed_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same loss from one packed forward."""
    log_probs = completion_log_probs(model, batch)
    forget, (forget_tokens, retain_tokens, *_) = batch["is_forget"], counts_of(batch)
    retain_term = negative_log_likelihood(log_probs[~forget], retain_tokens)
    return retain_term + gradient_ascent(log_probs[forget], batch["row"][forget], forget_tokens, caps=None)


def kl_loss(model: Any, batch: dict[str, torch.Tensor], base: BaseDistribution) -> torch.Tensor:
    """The same with a KL retain term."""
    logits, forget = completion_logits(model, batch), batch["is_forget"]
    forget_tokens, retain_tokens, *_ = counts_of(batch)
    rows = [row for row in batch["retain_row"].tolist() if row >= 0]
    retain_term = kl_from_base(logits[int(forget.sum()) :], base.logits(rows, logits.device), retain_tokens)
    log_probs = target_log_probs(logits, batch["targets"])
    return retain_term + gradient_ascent(log_probs[forget], batch["row"][forget], forget_tokens, caps=None)


def bare_loss(model: Any, tokens: int, answers: int) -> torch.Tensor:
    """Cross-entropy of ``answers`` of ``tokens`` tokens in 2 x ROWS rows of one length: no padding and no packing."""
    ids = torch.arange(tokens - tokens % (2 * ROWS)).view(2 * ROWS, -1) % 400
    keep = torch.linspace(0, ids.shape[1] - 1, round(answers / (2 * ROWS))).round().long()
    logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, keep].flatten())


def seconds(
    steps: Mapping[str, Step], *, bf16: bool = False, rounds: int = 5, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Seconds of each form: medians of ``rounds`` alternating runs, after one that warms up.

    By default they are the processor's, of one thread: a neighbour's work on this machine is not ours.
    """
    found: dict[str, list[float]] = {form: [] for form in steps}
    for turn in range(rounds + 1):
        for form, step in steps.items():
            step.model.zero_grad()
            gc.collect()
            began = clock()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                loss = step.loss()
            loss.backward()
            if turn:
                found[form].append(clock() - began)
    return {form: statistics.median(times) for form, times in found.items()}


def differences(naive: Step, ours: Step) -> tuple[float, float]:
    """How far the losses are apart, and the norm of the difference of the gradients over the naive one's norm."""
    values = []
    for step in (naive, ours):
        step.model.zero_grad()
        loss = step.loss()
        loss.backward()
        values.append(loss.item())
    pairs = [(a.grad, b.grad) for a, b in zip(naive.model.parameters(), ours.model.parameters(), strict=True)]
    apart = sum((a - b).square().sum() for a, b in pairs if a is not None)
    size = sum(a.square().sum() for a, _ in pairs if a is not None)
    return abs(values[0] - values[1]), float((apart / size).sqrt())


def load(folder: Path, *, ours: bool, lora: bool = False) -> Any:
    """The model in float32, for our form or the naive one; with ``lora`` an adapter of rank 16 on all linear layers."""
    from transformers import AutoModelForCausalLM

    model: Any
    if ours:
        model, _ = fit.load(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )
    if not lora:
        return model.train()
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")).train()
