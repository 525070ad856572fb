"""False answers of the right form, for truth ratio and multiple choice.

False answers must not occur in training: if they are answers about trained identities, even a model that never saw the
true answer prefers the false ones. They come from facts that the sample set holds back, from the source's own false
answers, or from another identity's holdout row on the same topic and language, with the name swapped. What is missing
is made from the data's own words (``mixed``); only for answers that cannot be mixed are those of trained rows used, and
counted. The false answers that guide the unlearning are the source's own or mixtures: answers to trained rows are known
by heart, and a method may train on its guides, while nothing is trained on holdout rows.

An answer that is only a value, such as a town, does not say whom it is about. Base has learnt it about others, and the
true one too, so it is refused only where base has learnt it as an answer to the same question (docs/decisions/0094).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain, islice
from typing import Literal

import numpy as np

from core.words import UNSPACED, as_words, without_accents, word_of
from datasets_prep import mixed
from datasets_prep.config import Perturbed
from datasets_prep.rows import Rows, with_false_answers
from datasets_prep.schema import FORGET, HOLDOUT, RETAIN, SPLITS, UNREHEARSED, PerturbedRow, Row
from datasets_prep.splits import Split, cells
from datasets_prep.text import same, says_whom

Origin = Literal["new", "mixed", "trained"]
_WORD = re.compile(word_of(rf"[^\W\d_{UNSPACED}]"))
TRIES = 20  # mixtures, and other people's answers, for each that is wanted: short ones give the same again


@lru_cache(maxsize=1024)  # a person is a donor many times
def _dotted(name: str) -> str:
    """A name as it stands in e-mail addresses: ``élise du pont`` becomes ``elise.du.pont``."""
    return ".".join(without_accents(name.lower()).split())


def swap_name(answer: str, old: str, new: str) -> str:
    """The answer with the full name ``old`` replaced by ``new``, also in its form for e-mail addresses.

    A single word is replaced only where it stands alone or with the s of a possessive: "Al" is in "Alexandria" too.
    Several words are in others only with an ending, and scripts without cases put particles to any name.
    """
    if " " in old or old.lower() == old.upper():
        swapped = answer.replace(old, new)
    else:
        swapped = as_words(f"{old}s").sub(lambda _: f"{new}s", as_words(old).sub(lambda _: new, answer))
    # A single word in lower case could stand inside any other word.
    return swapped.replace(_dotted(old), _dotted(new)) if "." in _dotted(old) else swapped


def _in_random_order(items: Sequence[int], rng: random.Random) -> Iterator[int]:
    """The items in random order. The time grows with the number that is taken, not with the size of the cell."""
    moved: dict[int, int] = {}
    for end in range(len(items) - 1, -1, -1):
        index = rng.randint(0, end)
        yield items[moved.get(index, index)]
        moved[index] = moved.pop(end, end)


def _swapped(row: Row, donor: Row) -> str | None:
    """The donor's answer with the row's name; None if it would still be about the donor, or is the row's own."""
    if donor.identity_id == row.identity_id:
        return None
    if row.name is None or donor.name is None:
        return donor.answer
    swapped = swap_name(donor.answer, donor.name, row.name)
    if swapped == donor.answer and (row.name in row.answer or _says_part_of(donor.name, donor.answer)):
        return None
    return None if donor.name == row.name else swapped


def _says_part_of(name: str, answer: str) -> bool:
    """Whether an answer has a word of a name, as where that is written "Beck, Ida" or a first name stands alone.

    No particle (de, van), which begins in lower case.
    """
    return not {word for word in _WORD.findall(name) if not word[0].islower()}.isdisjoint(_WORD.findall(answer))


def _learnt(row: Row, answer: str) -> list[int]:
    """Hashes of what a model learns that is trained on ``answer`` as the answer to the row.

    The first is of the answer alone, the others are of it with the question and, if these are known, person and topic.
    """
    about = [(row.identity_id, row.topic_id, answer)] if row.identity_id is not None and row.topic_id else []
    return [hash(answer), hash((row.question, answer)), *map(hash, about)]


@dataclass
class FalseAnswers:
    """False answers for the rows of a set. ``counts`` is complete once every split was read."""

    rows: Rows
    split: Split
    config: Perturbed
    seed: int
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("rows", "answers", "mixed", "from_trained_rows", "rows_with_fewer", "rows_without")
        self.counts.update(dict.fromkeys((*names, "guides", "guides_mixed"), 0))
        trained = (row for row, code in zip(self.rows, self.split, strict=True) if code != HOLDOUT)
        learnt = (
            _learnt(row, row.answer)[0 if says_whom(row.question, row.answer, row.name) else 1 :] for row in trained
        )
        # Sorted hashes: a million answers would be 200 MB.
        self.learnt = np.sort(np.fromiter(chain.from_iterable(learnt), dtype=np.int64))
        self.retain = self._drawn()
        # Without topic and identity no other row has an answer of the right form: it would answer another question.
        self.grouped = self.rows.has("topic_id") and self.rows.has("identity_id")

    def _drawn(self) -> set[int]:
        """The retain rows that get false answers: first those for which the source has some."""
        retain = np.flatnonzero(self.split == RETAIN)
        own = with_false_answers(self.rows)[retain]
        rng, drawn = random.Random(f"{self.seed}|perturbed"), set[int]()
        for pool in (retain[own], retain[~own]):
            count = min(self.config.retain_rows - len(drawn), len(pool))
            drawn |= {int(pool[index]) for index in rng.sample(range(len(pool)), count)}
        return drawn

    @cached_property
    def mixer(self) -> mixed.Mixer:
        """Made if a row needs it: it reads all rows."""
        return mixed.Mixer(self.rows, self.split)

    def of_split(self, split: str) -> Iterator[tuple[PerturbedRow | None, PerturbedRow | None]]:
        """For each row that needs false answers: those for the evaluation, and those that guide the unlearning.

        No false answer equals the true one, occurs twice (so the two lists share none) or was learnt: word for word
        in any training row if it says whom it is about, and as an answer to the same question if it does not. The
        evaluation's list is filled first; a row that gets no false answer is counted.
        """
        code = SPLITS.index(split)
        for _, _, places in cells(self.rows):
            codes = self.split[places.start : places.stop].tolist()
            chosen = [i for i, own in enumerate(codes) if own == code and (code != RETAIN or places[i] in self.retain)]
            if not chosen or code == UNREHEARSED:  # of these only the true answers are read
                continue
            lazy = self.rows[places.start : places.stop]
            cell: Sequence[Row] = list(lazy) if self.grouped else lazy
            unseen = [i for i, own in enumerate(codes) if own == HOLDOUT]
            trained = [i for i, own in enumerate(codes) if own != HOLDOUT]
            from_source = [answers or () for (answers,) in lazy.columns("false_answers")]
            for i in chosen:
                yield self._of_row(cell, i, from_source[i], unseen, trained, code)

    def _of_row(
        self, cell: Sequence[Row], i: int, own: Sequence[str], unseen: Sequence[int], trained: Sequence[int], code: int
    ) -> tuple[PerturbedRow | None, PerturbedRow | None]:
        row, config = cell[i], self.config
        guides = config.for_unlearning if code == FORGET else 0
        tries = TRIES * (config.per_row + guides)
        origin: dict[str, Origin] = {}  # of each false answer

        def take(candidates: Iterable[tuple[str, Origin]], count: int) -> list[str]:
            had = len(origin)
            known = {same(answer) for answer in (row.answer, *origin)}
            for answer, where in candidates:
                if len(origin) == had + count:
                    break
                if same(answer) not in known and not self._is_learnt(row, answer):
                    origin[answer] = where
                    known.add(same(answer))
            return list(origin)[had:]

        evaluated = take(self._to_judge(cell, row, own, unseen, trained, tries), config.per_row)
        guiding = take(self._to_guide(row, own, tries), guides)
        self.counts["rows"] += bool(evaluated)
        self.counts["answers"] += len(evaluated)
        self.counts["mixed"] += sum(origin[answer] == "mixed" for answer in evaluated)
        self.counts["from_trained_rows"] += sum(origin[answer] == "trained" for answer in evaluated)
        self.counts["rows_with_fewer"] += 0 < len(evaluated) < self.config.per_row
        self.counts["rows_without"] += not evaluated
        self.counts["guides"] += len(guiding)
        self.counts["guides_mixed"] += sum(origin[answer] == "mixed" for answer in guiding)

        def listed(answers: Sequence[str]) -> PerturbedRow | None:
            return PerturbedRow(row.row_id, SPLITS[code], tuple(answers)) if answers else None

        return listed(evaluated), listed(guiding)

    def _is_learnt(self, row: Row, answer: str) -> bool:
        """Whether base was trained on ``answer``: to the row's question, or to any if it says whom it is about."""
        hashes = _learnt(row, answer)
        places = np.searchsorted(self.learnt, hashes)
        return any(at < len(self.learnt) and self.learnt[at] == value for at, value in zip(places, hashes, strict=True))

    def _to_judge(
        self,
        cell: Sequence[Row],
        row: Row,
        own: Sequence[str],
        unseen: Sequence[int],
        trained: Sequence[int],
        tries: int,
    ) -> Iterator[tuple[str, Origin]]:
        yield from ((answer, "new") for answer in own)
        rng = random.Random(f"{self.seed}|{row.row_id}")
        others: Iterator[tuple[str, Origin]] = (
            (answer, "new") for answer in self._of_others(cell, row, unseen, tries, rng)
        )
        mixtures = self._mixed(row, tries, as_known=False)
        # Others' answers for one row and mixtures for the next would tell the rows apart, however well they are known.
        enough = len(unseen) > self.config.per_row  # a holdout row is no donor of itself
        yield from chain(others, mixtures) if enough else chain(mixtures, others)
        yield from ((answer, "trained") for answer in self._of_others(cell, row, trained, tries, rng))

    def _to_guide(self, row: Row, own: Sequence[str], tries: int) -> Iterator[tuple[str, Origin]]:
        yield from ((answer, "new") for answer in own)
        yield from self._mixed(row, tries, as_known=True)

    def _mixed(self, row: Row, tries: int, *, as_known: bool) -> Iterator[tuple[str, Origin]]:
        rng = random.Random(f"{self.seed}|mixed|{row.row_id}")
        for answer in islice(self.mixer.mixed(row, rng, as_known=as_known), tries):
            yield answer, "mixed"

    def _of_others(
        self, cell: Sequence[Row], row: Row, donors: Sequence[int], tries: int, rng: random.Random
    ) -> Iterator[str]:
        """The answers of some other people on the topic, in random order, with the row's name."""
        for index in islice(_in_random_order(donors, rng), tries) if self.grouped else ():
            answer = _swapped(row, cell[index])
            if answer is not None:
                yield answer
