"""How likely a forget row's answer would be if base did not know the fact, token by token.

A false answer of the same form tells form from fact: tokens that the true answer shares with all its false answers are
*form*, the others are *content*. What base says of a content token of a false answer is what it says of a fact that it
does not know. How surprising the very words of the true answer are says a *novice*: the start model after a short
training on retain rows, which knows how such answers are worded and no forget row. So the *level* of a true token is
the novice's log-probability of it, mapped so that what the novice says of false answers becomes what base says of them,
in mean and in spread. Where a fact ends is a part of it that no false answer changes: the full stop is surprising to a
model that would have gone on with the name. So the form token after the words of a fact, its *end*, has a level too, by
a map of its own. And a form that no retain row has is known from forget rows alone: a form token that surprises the
novice has a level between base, which is sure of it, and the novice, which has seen less of the retain rows than gold
would have.

The unlearning is to match, at form tokens, what base says of them in false answers, on average; where a fact begins,
what base says there about other people (:mod:`pipeline.unlearn.people`); and where else a token has a level, what the
novice says, since all that base knows after the first words of a fact is how it goes on. Tokens with levels are at
these, and all others rescaled. What leaves the true words would go to those of false answers too, so these are held to
what base says of them. So nothing is pushed to where base would not go, and nothing below what base gives to a fact it
does not know.

Distillation from base's adjusted output is a family: UNDIAL (arXiv 2402.10052) subtracts a constant from the true
token's logit, Unilogit (arXiv 2505.06027) gives it 1/V. Levels that are measured are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from statistics import fmean, pstdev
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import PreTrainedTokenizerBase

from core.errors import InputError
from datasets_prep.schema import Encoded
from pipeline.unlearn.reference import BaseDistribution

Value = TypeVar("Value")

HIGHEST = math.log(0.98)
"""No level is above it: the other tokens need a share to be rescaled to."""

SURPRISING = -1.0
"""Form is surprising below this log-probability of the novice, in nats."""

OF_FORM = 1 / 3
"""How far from base, which is sure of it, to the novice the level of surprising form is: golds are there (0098)."""

ROUNDING = 1e-6
"""A spread below it, in nats, is that of float32's rounding and has no ratio to another."""


class Levels(NamedTuple):
    """Of each answer token of a forget row: whether it is content, and its level, below 0 (0 where it has none).

    Content, ends and form that surprises the novice have levels. ``form`` are the places of the other tokens and of
    ends in each false answer, in the order of the answer.
    """

    content: tuple[bool, ...]
    nats: tuple[float, ...]
    form: tuple[tuple[int, ...], ...]


OfFalse = Sequence[Sequence[Sequence[Value]]]
"""Something of tokens of each false answer to each row."""


def answer_levels(
    forget: Mapping[str, Encoded],
    guides: Sequence[Sequence[Encoded]],
    numerals: Container[int],
    *,
    base_false: OfFalse[float],
    novice_false: OfFalse[float],
    novice_true: Sequence[Sequence[float]],
) -> list[Levels]:
    """The levels of each forget row (by its name), by a map for content and one for ends.

    A map is ``mean_b + sd_b / sd_n * (novice_true - mean_n)``. Mean and standard deviation are those of base (b) and of
    the novice (n) at the tokens of its kind in all false answers, which ``base_false`` and ``novice_false`` hold;
    ``novice_true`` are the novice's log-probabilities of each true token. Other form has ``OF_FORM * novice_true``
    where that is below :data:`SURPRISING`. ``numerals`` are the tokens that are digits. Raises InputError if false
    answers do not tell what is to be forgotten, or say nothing else.
    """
    answers = [answer_tokens(row) for row in forget.values()]
    others = [[answer_tokens(other) for other in false] for false in guides]
    aligned = [align(answer, false, numerals) for answer, false in zip(answers, others, strict=True)]
    _refuse_form_alone([name for name, row in zip(forget, aligned, strict=True) if not any(row.content)])

    false_content = [
        [_not_in(places, len(other)) for places, other in zip(row.form, false, strict=True)]
        for row, false in zip(aligned, others, strict=True)
    ]

    def map_of(kind: OfFalse[bool]) -> Callable[[float], float] | None:
        of_base = _where(kind, base_false)
        return _level_map(of_base, _where(kind, novice_false)) if of_base else None

    of_content = map_of(false_content)
    of_ends = map_of([[_ends(content) for content in of_row] for of_row in false_content])
    if of_content is None:
        raise InputError(
            "unlearn: no false answer has words in the place of the facts, so nothing says how likely a false one is. "
            "Give false answers of the same form (a column `perturbed_answers`), or take another method."
        )

    def level(is_content: bool, is_end: bool, novice: float) -> float:
        level_map = of_content if is_content else of_ends if is_end else None
        if level_map:
            return min(level_map(novice), HIGHEST)
        return OF_FORM * novice if novice < SURPRISING else 0.0

    return [
        Levels(row.content, tuple(map(level, row.content, _ends(row.content), log_probs)), row.form)
        for row, log_probs in zip(aligned, novice_true, strict=True)
    ]


def _level_map(base: Sequence[float], novice: Sequence[float]) -> Callable[[float], float]:
    """From the novice's log-probability of a token to its level, by those of the tokens of false answers."""
    spread = pstdev(novice)
    ratio = pstdev(base) / spread if spread > ROUNDING else 1.0
    to, at = fmean(base), fmean(novice)
    return lambda of_true: to + ratio * (of_true - at)


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
    """An answer beside false ones: which of its tokens are content, and the places of its form in each false one."""

    content: tuple[bool, ...]
    form: tuple[tuple[int, ...], ...]


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
    return Aligned(content, tuple(form))


def _not_in(form: Container[int], size: int) -> tuple[bool, ...]:
    """Of the tokens of a false answer, those that are content."""
    return tuple(place not in form for place in range(size))


def _ends(content: Sequence[bool]) -> tuple[bool, ...]:
    """Of the tokens of an answer, those that are not content and come after one that is."""
    return tuple(before and not here for before, here in pairwise((False, *content)))


def _where(chosen: OfFalse[bool], of_tokens: OfFalse[Value]) -> list[Value]:
    """What there is of each chosen token of the false answers to each row."""
    return [
        value
        for flags_of_row, of_row in zip(chosen, of_tokens, strict=True)
        for flags, of_answer in zip(flags_of_row, of_row, strict=True)
        for is_chosen, value in zip(flags, of_answer, strict=True)
        if is_chosen
    ]


Others = Sequence[Sequence[Sequence[int]]]
"""The tokens of the beginning of each answer, up to its fact, about each of several other people."""


def answers_by_place(
    forget: Sequence[Encoded], guides: Sequence[Sequence[Encoded]], others: Others
) -> dict[Any, Encoded]:
    """Forget rows by their indices, their false answers by (row, false answer), and others by ("other", row, other).

    Those about others have the one token that comes after their beginning, which nobody reads.
    """
    false = {(i, j): other for i, of_row in enumerate(guides) for j, other in enumerate(of_row)}
    about_others = {
        ("other", i, j): Encoded((*tokens, tokens[-1]), len(tokens))
        for i, of_row in enumerate(others)
        for j, tokens in enumerate(of_row)
    }
    return dict(enumerate(forget)) | false | about_others


Places = tuple[Any, Sequence[int]]
"""An answer, by its place in :func:`answers_by_place`, and places of tokens in it."""


class Wanted(NamedTuple):
    """What N answer tokens are to be: log-probabilities (N, V), which have levels (N,), and the levels (N,), in nats.

    ``facts`` (M,) are the places where facts begin that base was asked about others, ``instead`` (M,) the likeliest
    tokens there but the true ones.
    """

    log_probs: torch.Tensor
    levelled: torch.Tensor
    levels: torch.Tensor
    facts: torch.Tensor
    instead: torch.Tensor


class Counterfactual:
    """The distributions that forget rows are to match: base's and the novice's, with the true tokens at their levels.

    ``base`` has what :func:`answers_by_place` gives, ``novice`` the forget rows alone. ``false`` are base's
    log-probabilities of the tokens of each false answer to each row, in nats. ``others`` says how many others base was
    asked about at the fact of each row.
    """

    def __init__(
        self,
        base: BaseDistribution,
        novice: BaseDistribution,
        levels: Sequence[Levels],
        false: OfFalse[float],
        others: Sequence[int],
    ) -> None:
        self.base = base
        self.novice = novice
        self.levels = levels
        self.others = others
        self.false = [
            (_not_in(places, len(nats)), nats)
            for row, of_row in zip(levels, false, strict=True)
            for places, nats in zip(row.form, of_row, strict=True)
        ]

    def of(self, rows: Sequence[int], targets: torch.Tensor) -> Wanted:
        """What the answer tokens of ``rows`` are to be; ``targets`` (N,) are the true ones.

        The log-probabilities are float32 and sum to one in each line.
        """
        device = targets.device
        log_probs = self.base.logits(rows, device).log_softmax(dim=1)
        own = [self.levels[row] for row in rows]
        content = torch.tensor([is_content for levels in own for is_content in levels.content], device=device)
        levels = torch.tensor([nats for levels in own for nats in levels.nats], device=device)
        levelled = levels < 0
        asked = self._facts_asked_about_others(rows)
        about_others = [[(("other", row, i), (0,)) for i in range(self.others[row])] for row in asked.values()]
        means = self._means([*map(self._form, rows), *about_others], device)
        log_probs[~content] = torch.cat(means[: len(rows)])
        for at, mean in zip(asked, means[len(rows) :], strict=True):
            log_probs[at] = mean[0]
        if told := self._told_by_novice(rows):
            places = [(row, (at,)) for row, at in told.values()]
            log_probs[list(told)] = self.novice.logits_at(places, device).log_softmax(dim=1)
        place, true, level = levelled.nonzero()[:, 0], targets[levelled], levels[levelled]
        others = log_probs[place]
        others[torch.arange(len(place), device=device), true] = -math.inf
        log_probs[place] = others.log_softmax(dim=1) + torch.log1p(-level.exp())[:, None]
        facts = torch.tensor(list(asked), dtype=torch.long, device=device)
        instead = others[torch.searchsorted(place, facts)].argmax(dim=1)
        log_probs[place, true] = level
        return Wanted(log_probs, levelled, levels, facts, instead)

    def _facts_asked_about_others(self, rows: Sequence[int]) -> dict[int, int]:
        """By its place among the answer tokens of ``rows``, the row of each fact that base was asked about others."""
        placed = zip(self._starts(rows), rows, strict=False)
        return {start + self.levels[row].content.index(True): row for start, row in placed if self.others[row]}

    def _told_by_novice(self, rows: Sequence[int]) -> dict[int, tuple[int, int]]:
        """By its place among the answer tokens of ``rows``, row and place of each with a level where no fact begins."""
        found: dict[int, tuple[int, int]] = {}
        for start, row in zip(self._starts(rows), rows, strict=False):
            content, nats, _ = self.levels[row]
            begins = content.index(True) if True in content else None
            found |= {start + at: (row, at) for at, level in enumerate(nats) if level < 0 and at != begins}
        return found

    def _starts(self, rows: Sequence[int]) -> list[int]:
        """Where the answer of each row begins among those of all, and where they end."""
        return [*accumulate((len(self.levels[row].content) for row in rows), initial=0)]

    def of_false(self, answers: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Of tokens of false answers: which are content or an end (N,), and base's log-probabilities in nats (N,).

        ``answers`` are indices among the false answers to all rows.
        """
        chosen = [self.false[answer] for answer in answers]
        held = [here or end for content, _ in chosen for here, end in zip(content, _ends(content), strict=True)]
        nats = [log_prob for _, of_answer in chosen for log_prob in of_answer]
        return torch.tensor(held, dtype=torch.bool, device=device), torch.tensor(nats, device=device)

    def _form(self, row: int) -> list[Places]:
        """The form tokens in each false answer to a row."""
        return [((row, i), places) for i, places in enumerate(self.levels[row].form)]

    def _means(self, groups: Sequence[Sequence[Places]], device: torch.device) -> list[torch.Tensor]:
        """Of each group of as many places the mean of what base says there, as log-probabilities (places, V)."""
        every = [places for group in groups for places in group]
        said = iter(self.base.logits_at(every, device).log_softmax(dim=1).split([len(at) for _, at in every]))
        means = [torch.stack([next(said) for _ in group]).logsumexp(dim=0) for group in groups]
        return [mean - math.log(len(group)) for mean, group in zip(means, groups, strict=True)]
