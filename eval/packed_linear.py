"""Linear layers on oneDNN, for float32 forwards without gradients on a processor.

PyTorch hands float32 products to MKL, which has its fast kernels for Intel's processors only; oneDNN, which PyTorch
has with it, takes less than half the time on others (docs/measurements/time-and-memory.md). Both sum in float32, and
results agree to rounding. Weights are packed once for many forwards, and must not change meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psutil
import torch


@contextmanager
def packed(model: torch.nn.Module) -> Iterator[None]:
    """Within it the model's linear layers run on oneDNN, where that is possible; gradients are not.

    Left alone are layers that are no plain float32 ones on the processor (quantized, sharded, on a GPU), and all of
    them where the packed copies would take more than half of the free memory. Under autocast they run as ever.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and _is_plain(layer)]
    size = sum(layer.weight.nbytes for layer in layers)
    if not torch.backends.mkldnn.is_available() or size > psutil.virtual_memory().available / 2:
        layers = []
    for layer in layers:
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
        layer.forward = partial(_product, layer, weight)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(layer: torch.nn.Linear) -> bool:
    return (
        type(layer) is torch.nn.Linear  # subclasses compute something else
        and "forward" not in vars(layer)  # packed already, or somebody's hook
        and type(layer.weight.data) is torch.Tensor
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
    )


def _product(layer: torch.nn.Linear, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    if torch.is_autocast_enabled("cpu"):
        return torch.nn.functional.linear(x, layer.weight, layer.bias)
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
    return found
