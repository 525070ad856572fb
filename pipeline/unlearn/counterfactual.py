"""How likely a forget row's answer would be if base did not know the fact, token by token, as base itself says.

A false answer of the same form tells form from fact: tokens that the true answer shares with all its false answers are
*form*, the others are *content*. Base's log-probability of a content token of a false answer, after the false tokens
before it, is the *level* of the true answer's token in the same place. The unlearning is to match base's own
distributions: as they are at form tokens, and at content tokens with the true token at its level and all others
rescaled. So nothing is pushed to where base would not go, and nothing below what base gives to a fact it does not know.

Distillation from base's adjusted output is a family: UNDIAL (arXiv 2402.10052) subtracts a constant from the true
token's logit, Unilogit (arXiv 2505.06027) gives it 1/V. Levels that are measured are ours.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
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


def answer_levels(
    forget: Mapping[str, Encoded],
    guides: Sequence[Sequence[Encoded]],
    guide_log_probs: Sequence[Sequence[Sequence[float]]],
    *,
    seed: str,
) -> list[Levels]:
    """The levels of each forget row (by its name), from one of its false answers, drawn by ``seed``.

    One and not their mean: gold's rows differ from each other, and levels without that spread show. ``guide_log_probs``
    are base's, of each token of each false answer. A place that the drawn answer leaves empty gets the mean level of
    first or of later tokens of such places. Raises InputError if false answers do not tell what is to be forgotten.
    """
    rng = random.Random(seed)
    gaps: list[list[tuple[int, list[float]]]] = []  # of each row: where content begins, and the drawn answer's log p
    contents: list[list[bool]] = []
    for row, false, log_probs in zip(forget.values(), guides, guide_log_probs, strict=True):
        drawn = rng.randrange(len(false))
        form, paired = _form(_answer(row), [_answer(other) for other in false], drawn)
        contents.append([not is_form for is_form in form])
        gaps.append(_gaps(form, paired, log_probs[drawn]))
    _refuse_form_alone([name for name, content in zip(forget, contents, strict=True) if not any(content)])
    means = _means(gaps)
    levels = []
    for content, of_row in zip(contents, gaps, strict=True):
        nats = [0.0] * len(content)
        for start, values in of_row:
            length = next((i for i in range(start, len(content)) if not content[i]), len(content)) - start
            for i in range(length):
                level = values[min(i, len(values) - 1)] if values else means[min(i, 1)]
                nats[start + i] = min(level, HIGHEST)
        levels.append(Levels(tuple(content), tuple(nats)))
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


def _form(answer: Sequence[int], false: Sequence[Sequence[int]], drawn: int) -> tuple[list[bool], dict[int, int]]:
    """Which tokens all false answers share, and where these stand in the drawn one."""
    form = [True] * len(answer)
    paired: dict[int, int] = {}
    for number, other in enumerate(false):
        blocks = SequenceMatcher(None, answer, other, autojunk=False).get_matching_blocks()
        places = {block.a + i: block.b + i for block in blocks for i in range(block.size)}
        form = [is_form and i in places for i, is_form in enumerate(form)]
        paired = places if number == drawn else paired
    return form, paired


def _gaps(form: Sequence[bool], paired: dict[int, int], log_probs: Sequence[float]) -> list[tuple[int, list[float]]]:
    """Where content begins, and the log-probabilities of the drawn answer's tokens between the same form tokens."""
    found = []
    anchors = [-1, *(i for i, is_form in enumerate(form) if is_form), len(form)]
    for before, after in pairwise(anchors):
        if after - before > 1:
            start = paired[before] + 1 if before >= 0 else 0
            end = paired[after] if after < len(form) else len(log_probs)
            found.append((before + 1, list(log_probs[start:end])))
    return found


def _means(gaps: Sequence[Sequence[tuple[int, list[float]]]]) -> tuple[float, float]:
    """The mean log-probability of first and of later tokens of all gaps."""
    values = [values for of_row in gaps for _, values in of_row if values]
    if not values:
        raise InputError(
            "unlearn: no false answer has words in the place of the facts, so nothing says how likely a false one is. "
            "Give false answers of the same form (a column `perturbed_answers`), or take another method."
        )
    first = [of_gap[0] for of_gap in values]
    later = [value for of_gap in values for value in of_gap[1:]] or first
    return math.fsum(first) / len(first), math.fsum(later) / len(later)


class Counterfactual:
    """The distributions that forget rows are to match: base's, with the true tokens at their levels."""

    def __init__(self, base: BaseDistribution, levels: Sequence[Levels], temper: float) -> None:
        self.base = base
        self.levels = levels
        self.temper = temper

    def of(self, rows: Sequence[int], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the answer tokens of ``rows``: log-probabilities (N, V), which are content (N,), and their levels (N,).

        ``targets`` (N,) are the true tokens. The log-probabilities are float32 and sum to one in each line.
        """
        device = targets.device
        log_probs = self.base.logits(rows, device).log_softmax(dim=1)
        content = torch.tensor([c for row in rows for c in self.levels[row].content], device=device)
        levels = torch.tensor([n for row in rows for n in self.levels[row].nats], device=device)
        place, true, level = content.nonzero()[:, 0], targets[content], levels[content]
        others = self.temper * log_probs[place]
        others[torch.arange(len(place), device=device), true] = -math.inf
        log_probs[place] = others.log_softmax(dim=1) + torch.log1p(-level.exp())[:, None]
        log_probs[place, true] = level
        return log_probs, content, levels
