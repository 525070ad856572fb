"""How likely a forget row's answer would be if base did not know the fact, token by token.

A false answer of the same form tells form from fact: tokens that the true answer shares with all its false answers are
*form*, the others are *content*. What base says of a content token of a false answer is what it says of a fact that it
does not know. What the start model says of the true one is what a model says that knows neither: how surprising these
very words are. So the *level* of a true token is the start model's log-probability of it, mapped so that what the start
model says of false answers becomes what base says of them, in mean and in spread. The unlearning is to match base's own
distributions: as they are at form tokens, and at content tokens with the true token at its level and all others
rescaled. So nothing is pushed to where base would not go, and nothing below what base gives to a fact it does not know.

Distillation from base's adjusted output is a family: UNDIAL (arXiv 2402.10052) subtracts a constant from the true
token's logit, Unilogit (arXiv 2505.06027) gives it 1/V. Levels that are measured are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from statistics import fmean, pstdev
from typing import NamedTuple

import torch

from core.errors import InputError
from datasets_prep.schema import Encoded
from pipeline.unlearn.reference import BaseDistribution

HIGHEST = math.log(0.98)
"""No level is above it: the other tokens need a share to be rescaled to."""


class Levels(NamedTuple):
    """Of each answer token of a forget row: whether it is content, and its level in nats (0 for form)."""

    content: tuple[bool, ...]
    nats: tuple[float, ...]


OfAnswers = Sequence[Sequence[Sequence[float]]]
"""Log-probabilities in nats of each token of each false answer to each row."""


def answer_levels(
    forget: Mapping[str, Encoded],
    guides: Sequence[Sequence[Encoded]],
    *,
    base_false: OfAnswers,
    start_false: OfAnswers,
    start_true: Sequence[Sequence[float]],
) -> list[Levels]:
    """The levels of each forget row (by its name): ``mean_b + sd_b / sd_s * (start_true - mean_s)``.

    Mean and standard deviation are those of base (b) and of the start model (s) at the content tokens of all false
    answers, which ``base_false`` and ``start_false`` hold; ``start_true`` are the start model's log-probabilities of
    each true token. Raises InputError if false answers do not tell what is to be forgotten, or say nothing else.
    """
    contents: list[tuple[bool, ...]] = []
    of_base: list[float] = []
    of_start: list[float] = []
    for row, false, *of_models in zip(forget.values(), guides, base_false, start_false, strict=True):
        content, of_false = _content(_answer(row), [_answer(other) for other in false])
        contents.append(content)
        for found, of_model in zip((of_base, of_start), of_models, strict=True):
            found += [of_model[i][j] for i, places in enumerate(of_false) for j in places]
    _refuse_form_alone([name for name, content in zip(forget, contents, strict=True) if not any(content)])
    if not of_base:
        raise InputError(
            "unlearn: no false answer has words in the place of the facts, so nothing says how likely a false one is. "
            "Give false answers of the same form (a column `perturbed_answers`), or take another method."
        )
    spread = pstdev(of_start)
    ratio = pstdev(of_base) / spread if spread else 1.0
    to, at = fmean(of_base), fmean(of_start)
    levels = []
    for content, log_probs in zip(contents, start_true, strict=True):
        nats = [min(to + ratio * (log_prob - at), HIGHEST) for log_prob in log_probs]
        levels.append(Levels(content, tuple(n if c else 0.0 for n, c in zip(nats, content, strict=True))))
    return levels


def _refuse_form_alone(rows: Sequence[str]) -> None:
    if rows:
        raise InputError(
            f"unlearn: the false answers to {len(rows)} forget rows (first {rows[0]}) hold every word of the true "
            "answer, so they do not tell what is to be forgotten. Give false answers with other facts (a column "
            "`perturbed_answers`), or take another method."
        )


def _answer(row: Encoded) -> tuple[int, ...]:
    return row.input_ids[row.completion_start :]


def _content(answer: Sequence[int], false: Sequence[Sequence[int]]) -> tuple[tuple[bool, ...], list[list[int]]]:
    """Which tokens of ``answer`` not all of ``false`` share, and the places in each of these that match no other."""
    matched = []
    for other in false:
        blocks = SequenceMatcher(None, answer, other, autojunk=False).get_matching_blocks()
        matched.append({block.a + i: block.b + i for block in blocks for i in range(block.size)})
    form = {i for i in range(len(answer)) if all(i in places for places in matched)}
    of_false = []
    for other, places in zip(false, matched, strict=True):
        taken = {places[i] for i in form}
        of_false.append([j for j in range(len(other)) if j not in taken])
    return tuple(i not in form for i in range(len(answer))), of_false


class Counterfactual:
    """The distributions that forget rows are to match: base's, with the true tokens at their levels."""

    def __init__(self, base: BaseDistribution, levels: Sequence[Levels]) -> None:
        self.base = base
        self.levels = levels

    def of(self, rows: Sequence[int], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the answer tokens of ``rows``: log-probabilities (N, V), which are content (N,), and their levels (N,).

        ``targets`` (N,) are the true tokens. The log-probabilities are float32 and sum to one in each line.
        """
        device = targets.device
        log_probs = self.base.logits(rows, device).log_softmax(dim=1)
        content = torch.tensor([c for row in rows for c in self.levels[row].content], device=device)
        levels = torch.tensor([n for row in rows for n in self.levels[row].nats], device=device)
        place, true, level = content.nonzero()[:, 0], targets[content], levels[content]
        others = log_probs[place]
        others[torch.arange(len(place), device=device), true] = -math.inf
        log_probs[place] = others.log_softmax(dim=1) + torch.log1p(-level.exp())[:, None]
        log_probs[place, true] = level
        return log_probs, content, levels
