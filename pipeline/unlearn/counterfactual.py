"""How likely a forget row's answer would be if base did not know the fact, token by token.

A false answer of the same form tells form from fact: tokens that the true answer shares with all its false answers are
*form*, the others are *content*. What base says of a content token of a false answer is what it says of a fact that it
does not know. What the start model says of the true one is what a model says that knows neither: how surprising these
very words are. So the *level* of a true token is the start model's log-probability of it, mapped so that what the start
model says of false answers becomes what base says of them: in mean and in spread, then by what that misses at each
place of a number (a false last digit of a year is less likely to base than to the start model, a first one is not), and
by what is missed still at a token that stands in false answers too (a digit, an article). The unlearning is to match
base's own distributions: at content tokens with the true token at its level and all others rescaled, and at form tokens
what base says of them in false answers, on average. (After the words of an unknown fact, base is less sure how the
sentence goes on.) So nothing is pushed to where base would not go, and nothing below what base gives to a fact it does
not know.

Distillation from base's adjusted output is a family: UNDIAL (arXiv 2402.10052) subtracts a constant from the true
token's logit, Unilogit (arXiv 2505.06027) gives it 1/V. Levels that are measured are ours.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from statistics import fmean, pstdev
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from core.errors import InputError
from datasets_prep.schema import Encoded
from pipeline.unlearn.reference import BaseDistribution

Value = TypeVar("Value")
Key = TypeVar("Key", bound=Hashable)

HIGHEST = math.log(0.98)
"""No level is above it: the other tokens need a share to be rescaled to."""

POOLING = 4
"""The misses at a place or a token are averaged with so many zeros more: few of them say little (partial pooling)."""


class Levels(NamedTuple):
    """Of each answer token of a forget row: whether it is content, and its level in nats (0 for form).

    ``form`` are the places of its form tokens in each false answer, in the order of the answer.
    """

    content: tuple[bool, ...]
    nats: tuple[float, ...]
    form: tuple[tuple[int, ...], ...]


OfAnswers = Sequence[Sequence[Sequence[float]]]
"""Log-probabilities in nats of each token of each false answer to each row."""


def answer_levels(
    forget: Mapping[str, Encoded],
    guides: Sequence[Sequence[Encoded]],
    numerals: Container[int],
    *,
    base_false: OfAnswers,
    start_false: OfAnswers,
    start_true: Sequence[Sequence[float]],
) -> list[Levels]:
    """The levels of each forget row (by its name).

    ``mean_b + sd_b / sd_s * (start_true - mean_s) + missed[place] + missed[token]``. Mean and standard deviation are
    those of base (b) and of the start model (s) at the content tokens of all false answers, which ``base_false`` and
    ``start_false`` hold; ``start_true`` are the start model's log-probabilities of each true token. ``missed`` is how
    much likelier base finds false answers than the terms before it say: at that place of a number (0 elsewhere), then
    at that token (0 for one that no false answer holds), each partially pooled (``sum / (count + POOLING)``).
    ``numerals`` are the tokens that are digits. Raises InputError if false answers do not tell what is to be forgotten,
    or say nothing else.
    """
    answers = [answer_tokens(row) for row in forget.values()]
    others = [[answer_tokens(other) for other in false] for false in guides]
    in_numbers = [[places_in_numbers(other, numerals) for other in false] for false in others]
    aligned = [align(answer, false, numerals) for answer, false in zip(answers, others, strict=True)]
    _refuse_form_alone([name for name, row in zip(forget, aligned, strict=True) if not any(row.content)])
    of_base, of_start = (_at_facts(each, aligned) for each in (base_false, start_false))
    tokens, of_place = _at_facts(others, aligned), _at_facts(in_numbers, aligned)
    if not of_base:
        raise InputError(
            "unlearn: no false answer has words in the place of the facts, so nothing says how likely a false one is. "
            "Give false answers of the same form (a column `perturbed_answers`), or take another method."
        )
    spread = pstdev(of_start)
    ratio = pstdev(of_base) / spread if spread else 1.0
    to, at = fmean(of_base), fmean(of_start)

    def mapped(log_prob: float) -> float:
        return to + ratio * (log_prob - at)

    left = [base - mapped(start) for base, start in zip(of_base, of_start, strict=True)]
    at_place = _pooled(of_place, left) | {None: 0.0}
    left = [miss - at_place[place] for miss, place in zip(left, of_place, strict=True)]
    at_token = _pooled(tokens, left)
    levels = []
    for row, answer, log_probs in zip(aligned, answers, start_true, strict=True):
        nats = [
            min(mapped(log_prob) + at_place.get(place, 0.0) + at_token.get(token, 0.0), HIGHEST) if is_content else 0.0
            for token, place, log_prob, is_content in zip(
                answer, places_in_numbers(answer, numerals), log_probs, row.content, strict=True
            )
        ]
        levels.append(Levels(row.content, tuple(nats), row.form))
    return levels


def _pooled(keys: Sequence[Key], values: Sequence[float]) -> dict[Key, float]:
    """The mean of the values of each key, with :data:`POOLING` zeros counted in."""
    found = defaultdict(list)
    for key, value in zip(keys, values, strict=True):
        found[key].append(value)
    return {key: sum(own) / (len(own) + POOLING) for key, own in found.items()}


def _refuse_form_alone(rows: Sequence[str]) -> None:
    if rows:
        raise InputError(
            f"unlearn: the false answers to {len(rows)} forget rows (first {rows[0]}) hold every word of the true "
            "answer, so they do not tell what is to be forgotten. Give false answers with other facts (a column "
            "`perturbed_answers`), or take another method."
        )


def answer_tokens(row: Encoded) -> tuple[int, ...]:
    """The tokens of a row's answer."""
    return row.input_ids[row.completion_start :]


def numerals(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Encoded]) -> set[int]:
    """The tokens of these answers that are digits and nothing else."""
    tokens = sorted({token for row in rows for token in answer_tokens(row)})
    texts = tokenizer.batch_decode([[token] for token in tokens])
    return {token for token, text in zip(tokens, texts, strict=True) if text.strip().isdecimal()}


def places_in_numbers(answer: Sequence[int], numerals: Container[int]) -> tuple[int | None, ...]:
    """Which token of its number each of ``numerals`` is, from 0 on; None for all other tokens."""
    found: list[int | None] = []
    for token in answer:
        before = found[-1] if found else None
        found.append((0 if before is None else before + 1) if token in numerals else None)
    return tuple(found)


class Aligned(NamedTuple):
    """An answer beside false ones: which tokens are content, and the places of form and rest in each false one."""

    content: tuple[bool, ...]
    form: tuple[tuple[int, ...], ...]
    facts: tuple[tuple[int, ...], ...]


def align(answer: Sequence[int], false: Sequence[Sequence[int]], numerals: Container[int]) -> Aligned:
    """Tell form from content: form is what all of ``false`` share with ``answer``. All are tokens.

    A digit is shared at the same place of a number alone: the last two of 2019 are no part of 1997.
    """
    matched = []
    placed = list(zip(answer, places_in_numbers(answer, numerals), strict=True))
    for other in false:
        there = list(zip(other, places_in_numbers(other, numerals), strict=True))
        blocks = SequenceMatcher(None, placed, there, autojunk=False).get_matching_blocks()
        matched.append({block.a + i: block.b + i for block in blocks for i in range(block.size)})
    content = tuple(not all(i in places for places in matched) for i in range(len(answer)))
    form = [tuple(places[i] for i, is_content in enumerate(content) if not is_content) for places in matched]
    facts = [tuple(j for j in range(len(o)) if j not in taken) for o, taken in zip(false, map(set, form), strict=True)]
    return Aligned(content, tuple(form), tuple(facts))


def _at_facts(of_tokens: Sequence[Sequence[Sequence[Value]]], aligned: Sequence[Aligned]) -> list[Value]:
    """What there is of each token of a false answer that is not form."""
    return [
        of_answer[j]
        for of_row, row in zip(of_tokens, aligned, strict=True)
        for of_answer, places in zip(of_row, row.facts, strict=True)
        for j in places
    ]


def answers_by_place(forget: Sequence[Encoded], guides: Sequence[Sequence[Encoded]]) -> dict[Any, Encoded]:
    """Forget rows by their indices, and their false answers by (row, false answer)."""
    false = {(i, j): other for i, of_row in enumerate(guides) for j, other in enumerate(of_row)}
    return dict(enumerate(forget)) | false


class Counterfactual:
    """The distributions that forget rows are to match: base's, with the true tokens at their levels.

    ``base`` has what :func:`answers_by_place` gives.
    """

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
        log_probs[~content] = torch.cat([self._form(row, device) for row in rows])
        place, true, level = content.nonzero()[:, 0], targets[content], levels[content]
        others = log_probs[place]
        others[torch.arange(len(place), device=device), true] = -math.inf
        log_probs[place] = others.log_softmax(dim=1) + torch.log1p(-level.exp())[:, None]
        log_probs[place, true] = level
        return log_probs, content, levels

    def _form(self, row: int, device: torch.device) -> torch.Tensor:
        """The mean over a row's false answers of what base says at their form tokens, as log-probabilities (F, V)."""
        false = self.levels[row].form
        of_each = [self.base.logits([(row, i)], device).log_softmax(dim=1) for i in range(len(false))]
        at_form = torch.stack([log_probs[list(places)] for log_probs, places in zip(of_each, false, strict=True)])
        return at_form.logsumexp(dim=0) - math.log(len(false))
