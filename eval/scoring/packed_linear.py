"""Linear layers on oneDNN, for float32 forwards without gradients on a CPU (see `core/onednn.py`).

Weights are packed once for many forwards and must not change in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psutil
import torch

from core import onednn


@contextmanager
def packed(model: torch.nn.Module) -> Iterator[None]:
    """Inside the ``with`` block the model's linear layers run on oneDNN, without gradients.

    Layers that are not plain float32 ones on the CPU (quantized, sharded, on a GPU) stay as they are, and so do all
    layers if the packed copies would take more than half of the free memory. Under autocast nothing changes either.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and _is_plain(layer)]
    size = sum(layer.weight.nbytes for layer in layers)
    if size > psutil.virtual_memory().available / 2:
        layers = []
    for layer in layers:
        weight = onednn.pack(layer.weight.detach())
        layer.forward = partial(_product, layer, weight)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(layer: torch.nn.Linear) -> bool:
    return (
        type(layer) in (torch.nn.Linear, onednn.Linear)  # other subclasses compute something else
        and "forward" not in vars(layer)  # packed already, or replaced by someone else
        and onednn.serves(layer.weight)
    )


def _product(layer: torch.nn.Linear, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if onednn.serves(x):
        return onednn.linear(x, weight, layer.bias)
    return torch.nn.functional.linear(x, layer.weight, layer.bias)
