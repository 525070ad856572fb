"""The same training step with a KL retain term and with the plain one: `python -m benchmarks.kl_retain RUN`.

RUN is a folder with `base` and `data` of a release, for example runs/demo. Prints seconds of forward and backward
(medians of alternating rounds, one thread) of 8 forget and 8 retain rows, and what measuring base once before the first
step takes.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from datasets_prep.chat import encode_rows
from datasets_prep.schema import read_rows
from pipeline.train.fit import load
from pipeline.train.packed import completion_log_probs, completion_logits, negative_log_likelihood, target_log_probs
from pipeline.train.trainer import collate
from pipeline.unlearn.losses import gradient_ascent, kl_from_base
from pipeline.unlearn.pairing import Pair
from pipeline.unlearn.reference import BaseDistribution
from pipeline.unlearn.trainer import pair_dataset

ROWS = 8


def nll_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Gradient difference."""
    log_probs, forget = completion_log_probs(model, batch), batch["is_forget"]
    retain = negative_log_likelihood(log_probs[~forget], (~forget).sum())
    return retain + gradient_ascent(log_probs[forget], batch["row"][forget], forget.sum(), caps=None)


def kl_loss(model: Any, batch: dict[str, torch.Tensor], base: BaseDistribution) -> torch.Tensor:
    """The same with a KL retain term."""
    logits, forget = completion_logits(model, batch), batch["is_forget"]
    log_probs = target_log_probs(logits, batch["targets"])
    rows = [row for row in batch["retain_row"].tolist() if row >= 0]
    retain = kl_from_base(logits[int(forget.sum()) :], base.logits(rows, logits.device), (~forget).sum())
    return retain + gradient_ascent(log_probs[forget], batch["row"][forget], forget.sum(), caps=None)


def main(run: Path, rounds: int = 5) -> None:
    """Measure and print."""
    model, tokenizer = load(run / "base" / "model")
    rows = {s: encode_rows(tokenizer, read_rows(run / "data" / f"{s}.jsonl")[:ROWS]) for s in ("forget", "retain")}
    batch = collate(list(pair_dataset([Pair(0, i, (i,)) for i in range(ROWS)], rows["forget"], rows["retain"])))
    print("| precision | NLL retain | KL retain | ratio | base measured once |\n|---|--:|--:|--:|--:|")
    for bf16 in (False, True):
        precision = lambda bf16=bf16: torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)  # noqa: E731
        began = time.perf_counter()
        base = BaseDistribution(model, dict(enumerate(rows["retain"])), precision)
        once = time.perf_counter() - began
        seconds: dict[str, list[float]] = {"nll": [], "kl": []}
        for turn in range(rounds + 1):
            for form, times in seconds.items():
                model.zero_grad()
                began = time.perf_counter()
                with precision():
                    loss = nll_loss(model, batch) if form == "nll" else kl_loss(model, batch, base)
                loss.backward()
                if turn:  # the first one warms up
                    times.append(time.perf_counter() - began)
        nll, kl = (statistics.median(times) for times in seconds.values())
        name = "bf16" if bf16 else "fp32"
        print(f"| {name} | {nll:.2f} s | {kl:.2f} s | {kl / nll:.2f} | {once:.2f} s |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
