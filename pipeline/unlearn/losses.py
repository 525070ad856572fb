"""Losses on the log-probabilities of answer tokens, one function each; every one is minimised.

``log_probs`` has shape (N,), ``row`` is the row index of each token. ``tokens`` and ``rows`` are counts of the whole
optimizer step, over all micro-batches and ranks. So the losses of the micro-batches add up to the loss of the step,
however it is split.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import huber_loss, logsigmoid

from pipeline.train.packed import negative_log_likelihood, row_means

TOKENS = 16  # whose distributions are compared at a time: they fit the processor's cache

PULL_DELTA = 2.0
"""Nats from its level at which the pull on a token stops to grow, so that those far above do not decide the step."""


def gradient_ascent(
    log_probs: torch.Tensor, row: torch.Tensor, tokens: torch.Tensor, *, caps: torch.Tensor | None
) -> torch.Tensor:
    """Minus the cross-entropy of the forget answers (TOFU, arXiv 2401.06121, "gradient ascent").

    ``caps`` has shape (rows,), in nats per token. A row whose mean loss is at or above its cap has no weight. The
    divisor stays the number of all forget tokens, so the ascent weakens as rows reach their caps.
    """
    return -negative_log_likelihood(_below(caps, log_probs, row), tokens)


def weighted_gradient_ascent(
    log_probs: torch.Tensor, row: torch.Tensor, tokens: torch.Tensor, *, beta: float, caps: torch.Tensor | None
) -> torch.Tensor:
    """WGA (arXiv 2502.19301): minus the mean of p^beta x cross-entropy, p each token's probability, not differentiated.

    The ascent on a token ends as its probability goes to 0. ``caps`` as in :func:`gradient_ascent`.
    """
    log_probs = _below(caps, log_probs, row)
    weights = (beta * log_probs.detach()).exp()
    return -negative_log_likelihood(weights * log_probs, tokens)


def _below(caps: torch.Tensor | None, log_probs: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """The log-probabilities of rows whose mean loss is below their caps."""
    if caps is None:
        return log_probs
    means = row_means(-log_probs.detach(), row, len(caps))
    return log_probs[(means < caps)[row]]


def negative_preference(
    log_probs: torch.Tensor, row: torch.Tensor, rows: torch.Tensor, *, reference: torch.Tensor, beta: float
) -> torch.Tensor:
    """NPO (arXiv 2404.05868): -(2 / beta) x mean over rows of log sigmoid(-beta x log(p / p_base)).

    ``reference`` of shape (R,) is log p_base of each row's answer, summed over its tokens; ``row`` indexes it.
    """
    ratios = row_sums(log_probs, row, len(reference)) - reference
    return _preference(-beta * ratios, rows, beta)


def alternate_preference(
    log_probs: torch.Tensor, row: torch.Tensor, rows: torch.Tensor, *, reference: torch.Tensor, beta: float
) -> torch.Tensor:
    """AltPO (arXiv 2409.13474): -(2 / beta) x mean over rows of log sigmoid(beta x log((q / q_base) / (p / p_base))).

    p is the probability of a row's answer and q that of an alternative answer to its question; it is DPO's preference
    for the alternative, times 2. The tokens are those of R answers, then of their alternatives in the same order;
    ``reference`` of shape (2 R,) is log p_base and log q_base, summed over the tokens; ``row`` indexes it.

    There the alternatives are sampled from the model itself. Ours are the false answers that the data have for the
    unlearning: what base says about somebody else it knows by heart, so its own samples are no plausible alternatives.
    """
    ratios = row_sums(log_probs, row, len(reference)) - reference
    here = len(reference) // 2
    return _preference(beta * (ratios[here:] - ratios[:here]), rows, beta)


def simple_negative_preference(
    log_probs: torch.Tensor, row: torch.Tensor, rows: torch.Tensor, *, here: int, beta: float, gamma: float
) -> torch.Tensor:
    """SimNPO (arXiv 2410.07163): -(2 / beta) x mean over rows of log sigmoid(-beta x mean log-probability - gamma).

    ``here`` is the number of rows in this micro-batch.
    """
    return _preference(-beta * row_means(log_probs, row, here) - gamma, rows, beta)


def _preference(margins: torch.Tensor, rows: torch.Tensor, beta: float) -> torch.Tensor:
    return -(2 / beta) * logsigmoid(margins).sum() / rows.clamp(min=1)


def kl_from_base(logits: torch.Tensor, base_logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """KL(base || model) summed over the N answer tokens, over ``tokens``; both logits are (N, V), float32.

    Only answer tokens count: an average over prompts and padding, as in other code, is mostly not about answers.
    """
    divergence: torch.Tensor = _Divergence.apply(logits, base_logits)  # type: ignore[no-untyped-call]
    return divergence / tokens.clamp(min=1)


class _Divergence(torch.autograd.Function):
    """The sum of KL(base || model) over N tokens, from both logits (N, V).

    Its gradient, softmax(logits) - softmax(base_logits), is made with it, a few tokens at a time; nothing else of that
    size is made or kept. Autograd's own way takes twice as long or more on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, base_logits: torch.Tensor) -> torch.Tensor:
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for part, of_model, of_base in zip(*(t.split(TOKENS) for t in (gradient, logits, base_logits)), strict=True):
            base, model = of_base.log_softmax(dim=1), of_model.log_softmax(dim=1)
            shares = base.exp()
            total += torch.dot(shares.flatten(), base.sub_(model).flatten())
            torch.sub(model.exp_(), shares, out=part)
        ctx.save_for_backward(gradient)
        return total.to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None


def pull_to_levels(
    log_probs: torch.Tensor, levels: torch.Tensor, row: torch.Tensor, rows: torch.Tensor, *, here: int
) -> torch.Tensor:
    """Mean over ``rows`` of each row's mean of the Huber losses of (log-probability - level) of its content tokens.

    ``log_probs``, ``levels`` and ``row`` (N,) are of content tokens alone, ``here`` is the number of rows that ``row``
    counts; a row without content pulls nothing. KL alone stalls: it hardly sees a token that the target makes unlikely,
    whether it is still above its level or already far below.
    """
    counts = row_sums(torch.ones_like(log_probs), row, here).clamp(min=1)
    apart = huber_loss(log_probs, levels, reduction="none", delta=PULL_DELTA)
    return (row_sums(apart, row, here) / counts).sum() / rows.clamp(min=1)


def row_sums(values: torch.Tensor, row: torch.Tensor, rows: int) -> torch.Tensor:
    """Sum of ``values`` (N,) over the tokens of each row, shape (rows,)."""
    return values.new_zeros(rows).index_add(0, row, values)
