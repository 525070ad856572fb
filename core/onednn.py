"""Linear layers on oneDNN, in float32 on a CPU.

PyTorch computes float32 matrix products with MKL, whose fast kernels are for Intel's processors only. On other
processors oneDNN, which PyTorch includes, takes about half the time (docs/measurements/time-and-memory.md). Both sum in
float32, and their results agree to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


def serves(*tensors: torch.Tensor) -> bool:
    """Whether oneDNN can multiply these: plain float32 tensors on the CPU, not empty, and no autocast."""
    return (
        torch.backends.mkldnn.is_available()
        and all(type(t) in (torch.Tensor, torch.nn.Parameter) for t in tensors)  # not a shard (DTensor)
        and all(t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() for t in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias`` without gradients, for tensors that :func:`serves` accepts.

    ``weight`` may be packed by :func:`pack`.
    """
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A copy of ``weight`` in the layout that oneDNN is fastest with."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


class _Product(torch.autograd.Function):
    """``x @ weight.T + bias`` with gradients, each of which is a product too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        inner, outer = x.reshape(-1, x.shape[-1]), upstream.reshape(-1, len(weight))
        return (
            linear(upstream, weight.T) if of_x else None,
            linear(outer.T, inner.T) if of_weight else None,
            outer.sum(0) if of_bias else None,
        )


class Linear(torch.nn.Linear):
    """A linear layer that runs on oneDNN, forward and backward, if :func:`serves` accepts its tensors."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (the base class's name)
        """As of the base class."""
        if not serves(input, self.weight):
            return super().forward(input)
        product: torch.Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product


def install(model: torch.nn.Module) -> None:
    """Turn every plain linear layer of ``model`` into a :class:`Linear` with the same weights."""
    for layer in model.modules():
        if type(layer) is torch.nn.Linear:
            layer.__class__ = Linear
