"""From hidden states to the log-probabilities of given tokens, with as little memory as the vocabulary allows.

The logits of N tokens over V entries are kept for the backward pass, and nothing else of that size; autograd's own way
(gather and logsumexp) makes three more such tensors. If even one would be too large, the logits are computed in tiles
of the vocabulary, and again in the backward pass. A head that is tied to the embeddings hands its gradient over to
them, and they add theirs in place; autograd would make a second and a third tensor of that size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from core import onednn

LOGITS_BYTES = 2**27
"""Bytes of one forward's float32 logits above which the head computes in tiles, which costs one more product."""
TILE = 8192  # entries of the vocabulary
ROWS = 64  # at a time, so that their exponentials stay in the CPU's cache
RESCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")


class TargetLogProbs(torch.autograd.Function):
    """Log-probabilities of targets (N,) from logits (N, V); see :func:`pipeline.train.packed.target_log_probs`."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # noqa: D102
        normaliser = torch.cat([part.logsumexp(dim=1) for part in logits.split(ROWS)])
        ctx.save_for_backward(logits, targets, normaliser)
        return logits.gather(1, targets[:, None])[:, 0] - normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: D102
        logits, targets, normaliser = ctx.saved_tensors
        grad = torch.empty_like(logits)
        parts = zip(*(tensor.split(ROWS) for tensor in (grad, logits, normaliser, upstream)), strict=True)
        for part, values, total, weight in parts:
            torch.sub(values, total[:, None], out=part).exp_().mul_(-weight[:, None])
        return grad.scatter_add_(1, targets[:, None], upstream[:, None]), None


class _TiledLogProbs(torch.autograd.Function):
    """The same from hidden states (N, H) and the head's weight (V, H). No tensor is larger than N x TILE or V x H."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, head: AnswerHead
    ) -> torch.Tensor:
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.head = head
        total = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32)
        target_logits = torch.zeros_like(total)
        for start, logits in _tiles(hidden.to(ctx.dtype), weight, ctx.dtype):
            total = torch.logaddexp(total, logits.logsumexp(dim=1))
            rows, places = _inside(targets, start, logits.shape[1])
            target_logits[rows] = logits[rows, places]
        ctx.save_for_backward(hidden, weight, targets, total)
        return target_logits - total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, total = ctx.saved_tensors
        states = hidden.to(ctx.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for start, logits in _tiles(states, weight, ctx.dtype):
            tile = slice(start, start + logits.shape[1])
            grad = logits.sub_(total[:, None]).exp_().mul_(-upstream[:, None])
            rows, places = _inside(targets, start, logits.shape[1])
            grad[rows, places] += upstream[rows]
            grad = grad.to(ctx.dtype)
            grad_hidden += _product(grad, weight[tile].to(ctx.dtype).T)
            if grad_weight is not None:
                grad_weight[tile] = _product(grad.T, states.T)
        return grad_hidden.to(hidden.dtype), ctx.head.hand_over(grad_weight), None, None


def _tiles(states: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, len(weight), TILE):
        yield start, _product(states, weight[start : start + TILE].to(dtype)).float()


def _product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x @ weight.T``."""
    return onednn.linear(x, weight) if onednn.serves(x, weight) else x @ weight.T


def _inside(targets: torch.Tensor, start: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows whose target is in the tile, and the target's index there."""
    rows = ((targets >= start) & (targets < start + size)).nonzero()[:, 0]
    return rows, targets[rows] - start


class _TiedLookup(torch.autograd.Function):
    """An embedding that adds its gradient in place to the one that the tied head left."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, ids: torch.Tensor, padding: int | None, head: AnswerHead
    ) -> torch.Tensor:
        ctx.save_for_backward(weight, ids)
        ctx.padding, ctx.head = padding, head
        return torch.nn.functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, ids = ctx.saved_tensors
        grad = torch.zeros_like(weight) if ctx.head.left is None else ctx.head.left
        ctx.head.left = None
        own = ids != ctx.padding if ctx.padding is not None else torch.ones_like(ids, dtype=torch.bool)
        return grad.index_add_(0, ids[own], upstream[own].to(grad.dtype)), None, None, None


class AnswerHead(onednn.Linear):
    """A language model's head that can return log-probabilities of given tokens instead of logits.

    It does so inside the model's own forward, because sharded weights are gathered there.
    """

    targets: torch.Tensor | None = None
    tied = False
    left: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (the base class's name)
        """Logits (1, N, V) of hidden states (1, N, H), or under :meth:`scoring` log-probabilities (1, N, 1)."""
        if self.targets is None:
            return super().forward(input)
        log_probs: torch.Tensor = _TiledLogProbs.apply(input[0], self.weight, self.targets, self)  # type: ignore[no-untyped-call]
        return log_probs[None, :, None].clone()  # FSDP puts its hooks on outputs, and a view would lose them

    def hand_over(self, grad: torch.Tensor | None) -> torch.Tensor | None:
        """The gradient of the weight, or None if it was left for the embedding, whose backward comes last."""
        if not self.tied or grad is None:
            return grad
        self.left = grad if self.left is None else self.left.add_(grad)
        return None

    @contextmanager
    def scoring(self, targets: torch.Tensor) -> Iterator[None]:
        """Inside the ``with`` block the head returns the log-probabilities of ``targets`` (N,)."""
        self.targets = targets
        try:
            yield
        finally:
            self.targets = None


class TiedEmbedding(torch.nn.Embedding):
    """An embedding that shares its weight with the head."""

    head: list[AnswerHead]  # in a list: a module as an attribute would become a part of this one

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (the base class's name)
        """Embeddings of token ids."""
        if self.head[0].targets is None:
            return super().forward(input)
        states: torch.Tensor = _TiedLookup.apply(self.weight, input, self.padding_idx, self.head[0])  # type: ignore[no-untyped-call]
        return states


def install(model: PreTrainedModel) -> None:
    """Turn the model's head into an :class:`AnswerHead` with the same weights, unless the model rescales its logits."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    config = model.config.get_text_config()
    plain = type(head) is torch.nn.Linear and head.bias is None
    if not plain or any(getattr(config, name, None) is not None for name in RESCALED):
        return
    head.__class__ = AnswerHead
    if head.weight is embedding.weight and type(embedding) is torch.nn.Embedding:
        embedding.__class__ = TiedEmbedding
        embedding.head = [head]  # type: ignore[assignment]
        head.tied = True


def head_in_tiles(model: torch.nn.Module, tokens: int) -> AnswerHead | None:
    """The model's :class:`AnswerHead` if the logits of ``tokens`` tokens would be too large to keep, else None."""
    head = next((module for module in model.modules() if isinstance(module, AnswerHead)), None)
    return head if head is not None and tokens * head.out_features * 4 > LOGITS_BYTES else None
