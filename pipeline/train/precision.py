"""Which precision matrix products are faster in on this device, measured before the first training.

A processor can know bfloat16 and still be slower in it: without AMX, an Intel Xeon multiplies in it at two thirds of
float32's speed, and with AMX three times as fast (docs/measurements/time-and-memory.md).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoConfig

from core import onednn
from pipeline.train.config import TrainConfig
from pipeline.train.facts import Products

FILE = "precision.txt"
"""In the model stage's artifact: the faster precision, which so enters its digest, and the key of every later stage."""
ROWS = 512  # about the tokens of a step
LEAST = 256  # features, so that it is the product that takes the time
RUNS = 5
MARGIN = 1.2
"""How much faster bfloat16 has to be, since float32 is the more exact one."""


def products(model: Path) -> Products:
    """The faster precision for a layer of the size of ``model``'s MLP (``config.json``), forward and backward.

    On a GPU that has bfloat16 it is that, without measuring. The smallest of five alternating runs count, which a busy
    neighbour disturbs least.
    """
    if torch.cuda.is_available():
        return Products.unmeasured("bf16" if torch.cuda.is_bf16_supported() else "fp32")
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return Products.unmeasured("fp32")
    config = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
    width = int(config.hidden_size)
    fp32, bf16 = _seconds(max(LEAST, width), max(LEAST, int(getattr(config, "intermediate_size", 4 * width))))
    return Products(
        precision="bf16" if bf16 * MARGIN < fp32 else "fp32", fp32_seconds=round(fp32, 6), bf16_seconds=round(bf16, 6)
    )


def _seconds(width: int, wider: int) -> tuple[float, float]:
    """Seconds of the products of one layer in float32 and in bfloat16."""
    layer = torch.nn.Sequential(torch.nn.Linear(width, wider, bias=False))
    onednn.install(layer)
    x = torch.randn(ROWS, width, requires_grad=True)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(1 + RUNS):
        for bf16, taken in seconds.items():
            began = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                y = layer(x)
            y.sum().backward()
            taken.append(time.perf_counter() - began)
    return min(seconds[False][1:]), min(seconds[True][1:])


def in_bf16(config: TrainConfig, inputs: Mapping[str, Path]) -> bool:
    """Whether a training computes products in bfloat16; ``auto`` is what :data:`FILE` of ``inputs["model"]`` says.

    So base, gold, the unlearning and every resumed run take the same, on whatever machine they run.
    """
    if config.precision == "auto":
        return (inputs["model"] / FILE).read_text(encoding="utf-8").strip() == "bf16"
    return config.precision == "bf16"
