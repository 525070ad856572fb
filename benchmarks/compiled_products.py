"""Steps in bf16 over rows of many lengths: `python -m benchmarks.compiled_products MODEL`.

oneDNN compiles each product for its shapes and keeps it. How many it keeps is said by ONEDNN_PRIMITIVE_CACHE_CAPACITY,
which is read once, when a process first needs one.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from pathlib import Path

import psutil
import torch

from benchmarks import gd_step
from core.heap import keep_freed, trim
from datasets_prep.schema import Encoded
from pipeline.train.packed import completion_log_probs, pack

STEPS = 12


def main(model: Path) -> None:
    """Print as JSON processor seconds, what is resident afterwards (bytes), and a digest of all gradients."""
    keep_freed()
    own = gd_step.load(model, ours=True)
    drawn, digest, seconds = random.Random(0), hashlib.sha256(), 0.0
    for _ in range(STEPS):
        batch = pack([_row(drawn) for _ in range(8)])
        began = time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = -completion_log_probs(own, batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        seconds += time.process_time() - began
        for parameter in own.parameters():
            digest.update(parameter.grad.view(torch.uint8).numpy())
        own.zero_grad()
    trim()
    print(json.dumps([seconds, psutil.Process().memory_info().rss, digest.hexdigest()]))


def _row(drawn: random.Random) -> Encoded:
    length = drawn.randint(30, 120)
    return Encoded(input_ids=[drawn.randrange(1000, 40_000) for _ in range(length)], completion_start=length // 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
