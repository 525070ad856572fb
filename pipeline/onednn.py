"""The product of a linear layer on oneDNN, for float32 on a processor and without gradients.

PyTorch hands float32 products to MKL, which has its fast kernels for Intel's processors only; oneDNN, which PyTorch
has with it, takes about half the time on others (docs/measurements/time-and-memory.md). Both sum in float32, and
results agree to rounding.
"""

from __future__ import annotations

import torch


def serves(*tensors: torch.Tensor) -> bool:
    """Whether oneDNN takes the product of these: plain float32 tensors on the processor, outside autocast."""
    return (
        torch.backends.mkldnn.is_available()
        and all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in tensors)  # not the share of a sharded one
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``, for tensors that it :func:`serves`; ``weight`` may be packed by :func:`pack`."""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A copy of ``weight`` in the layout that oneDNN is fastest with."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed
