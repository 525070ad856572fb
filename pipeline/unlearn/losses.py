"""Losses on the log-probabilities of answer tokens, one function each.

``log_probs`` has shape (N,), ``is_forget`` is a boolean of shape (N,), ``row`` the row index of each token.
``tokens`` is the number of forget and of retain tokens in the whole optimizer step, over all micro-batches and ranks,
so that the sum of the losses of all micro-batches is the loss of the step, however it is split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.unlearn.completion import row_means

if TYPE_CHECKING:
    import torch


def negative_log_likelihood(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy: minus the sum of ``log_probs`` over ``tokens``, nats per token."""
    return -log_probs.sum() / tokens.clamp(min=1)


def gradient_difference(
    log_probs: torch.Tensor,
    is_forget: torch.Tensor,
    row: torch.Tensor,
    tokens: tuple[torch.Tensor, torch.Tensor],
    *,
    forget_weight: float,
    retain_weight: float,
    caps: torch.Tensor | None,
) -> torch.Tensor:
    """retain_weight x CE(retain) - forget_weight x CE(forget) (TOFU, arXiv 2401.06121, "gradient difference").

    With ``caps`` (nats per token, shape (rows,)) the tokens of forget rows whose mean loss is at or above their cap
    weigh nothing; the divisor stays the number of all forget tokens, so that the pull weakens as rows reach their
    caps.
    """
    ascend = is_forget
    if caps is not None:
        means = row_means(-log_probs.detach(), row, len(caps))
        ascend = is_forget & (means < caps)[row]
    forget = negative_log_likelihood(log_probs[ascend], tokens[0])
    retain = negative_log_likelihood(log_probs[~is_forget], tokens[1])
    return retain_weight * retain - forget_weight * forget
