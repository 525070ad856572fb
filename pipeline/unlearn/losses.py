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
    forget_cap: float | None,
) -> torch.Tensor:
    """retain_weight x CE(retain) - forget_weight x CE(forget) (TOFU, arXiv 2401.06121, "gradient difference").

    With ``forget_cap`` (nats per token) the tokens of forget rows whose mean loss is at or above it weigh nothing; the
    divisor stays the number of all forget tokens, so that the pull weakens as rows reach the cap.
    """
    ascend = is_forget
    if forget_cap is not None:
        means = row_means(-log_probs.detach(), row, int(row.max()) + 1)
        ascend = is_forget & (means < forget_cap)[row]
    forget = negative_log_likelihood(log_probs[ascend], tokens[0])
    retain = negative_log_likelihood(log_probs[~is_forget], tokens[1])
    return retain_weight * retain - forget_weight * forget
