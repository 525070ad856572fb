"""False answers made from the data's own words, for questions that have no others.

A false answer must have the form of the true one and be new to base: answers of trained rows are known by heart, and
say nothing about how likely an unknown fact is. So each word of the fact is exchanged for a word of the same kind, each
from another retained row, some of which are asked the same and some anything else. Words that base has learnt in this
place are too likely and all others too unlikely, as are words that are new to it, made of the halves of two. For truth
ratios there are some of each. What guides an unlearning has words that are as known as those of the fact: where
retained rows have a word in the same place, another one from there, where they have it elsewhere, one from anywhere,
and where they have it nowhere, a new one. What base says of these, beside the start model, is what it says of facts
that it never saw (docs/measurements/unlearning.md). Words that other answers share are the form and stay.

Facts in scripts without spaces are not mixed: nothing says where a word ends, and characters of others make no word.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator

from core.words import UNSPACED, word_of
from datasets_prep.rows import Rows
from datasets_prep.schema import RETAIN, UNREHEARSED, Row
from datasets_prep.splits import Split

COMMON = 4
"""A word that more answers of a language have is part of their form, if there are too few like them to tell."""
ALIKE = 3
"""Other answers to questions of the same kind that tell form from fact."""
NEW = 0.3
"""Share of words that are made of two others, for truth ratios. With it and ``IN_PLACE``, base finds mixtures as likely
as facts that it never saw: calibrated on the demo's data, docs/measurements/unlearning.md."""
IN_PLACE = 0.5
"""Share of words from answers to the same question, where there are any."""
SHORT = 3
"""Letters of a small word, such as an article."""
YEAR = 4
"""Digits of numbers that mean something, such as a year, and are taken from others; longer ones are drawn."""
DRAWS = 50
"""Words that are drawn for one place before it keeps its own: a scan of all words would take minutes at 10,000 rows."""
# An address is letters, digits and signs; of a script without spaces each character is a part.
_PARTS = re.compile(rf"[{UNSPACED}]|" + word_of(rf"[^\W\d_{UNSPACED}]") + r"|\d+|[\W_]+")
_UNSPACED = re.compile(f"[{UNSPACED}]")

Group = tuple[str | None, str | None]  # language and kind of question


class Mixer:
    """Exchanges the facts of answers for words of other rows' facts."""

    def __init__(self, rows: Rows, split: Split) -> None:
        self.with_word: dict[str | None, Counter[str]] = defaultdict(Counter)
        self.in_group: dict[Group, Counter[str]] = defaultdict(Counter)
        self.of_group: Counter[Group] = Counter()
        self.in_questions: Counter[str] = Counter()
        for question, topic, name in rows.columns("question", "topic_id", "name"):
            if not topic and not name:
                self.in_questions.update({word for word in _asked(question) if _has_no_cases(word)})
        for row in rows:
            words = _words(row.answer)
            self.with_word[row.language].update(words)
            self.of_group[self._group(row)] += 1
            self.in_group[self._group(row)].update(words)
        # Words of retained facts alone: forgotten ones must not come back, and holdout rows stay unseen.
        self.donors: dict[tuple[str | None, str], list[str]] = defaultdict(list)
        self.in_place: dict[tuple[Group, str], list[str]] = defaultdict(list)
        for row, code in zip(rows, split, strict=True):
            # A word of many answers is in memory once: a million answers have ten million words.
            for word in map(sys.intern, self.facts(row)) if code in (RETAIN, UNREHEARSED) else ():
                self.donors[row.language, _kind(word)].append(word)
                self.in_place[self._group(row), _kind(word)].append(word)
        self.known = {(language, word) for (language, _), words in self.donors.items() for word in words}
        self.known_here = {(group, word) for (group, _), words in self.in_place.items() for word in words}

    def _group(self, row: Row) -> Group:
        """The rows that are asked the same thing: of one topic or, if the source names none, by the words around names.

        Names are capitalised. In scripts without capitals they are what has a word of the row's name, perhaps with an
        ending, or if the source names nobody, what stands in no other question.
        """
        if row.topic_id:
            return row.language, row.topic_id
        names = (row.name or "").split()

        def is_of_name(word: str) -> bool:
            if not _has_no_cases(word):
                return word[0].isupper()
            return any(name in word for name in names) if names else self.in_questions[word] < 2

        return row.language, " ".join(word for word in _asked(row.question) if not is_of_name(word))

    def facts(self, row: Row) -> list[str]:
        """The words of the answer that neither its question nor most answers of its kind have, in their order.

        None if some of them are in a script without spaces.
        """
        asked, common, group = _words(row.question), self.with_word[row.language], self._group(row)
        others, in_group = self.of_group[group] - 1, self.in_group[group]

        def is_form(word: str) -> bool:
            shared = in_group[word] - 1
            alike = shared > 0 and 2 * shared >= others
            return word in asked or alike or (others < ALIKE and common[word] > COMMON)

        parts = [part for part in _PARTS.findall(row.answer) if part[0].isalnum() and not is_form(part.casefold())]
        return [] if any(map(_UNSPACED.match, parts)) else parts

    def mixed(self, row: Row, rng: random.Random, *, as_known: bool = False) -> Iterator[str]:
        """An endless sequence of false answers, whose words are drawn or, ``as_known``, as known as those of the fact.

        None if the answer has no words of its own, or nobody has others.
        """
        facts = set(self.facts(row))
        while facts:
            used, parts = set(facts), []
            for part in _PARTS.findall(row.answer):
                other = self._other(row, part, used, rng, self._shares(row, part, as_known)) if part in facts else part
                used.add(other)
                parts.append(other)
            mixed = "".join(parts)
            if mixed == row.answer:
                return
            yield mixed

    def _shares(self, row: Row, word: str, as_known: bool) -> tuple[float, float]:
        """The chance that the word for ``word`` is made of two, and that it comes from answers to the same question."""
        if not as_known:
            return NEW, IN_PLACE
        here, anywhere = (self._group(row), word) in self.known_here, (row.language, word) in self.known
        return float(not anywhere), 1.0 if here else 0.0 if anywhere else IN_PLACE

    def _other(self, row: Row, word: str, used: set[str], rng: random.Random, shares: tuple[float, float]) -> str:
        """A word in the place of ``word``: another of its kind, or one made of two; a number if there is none."""
        new, here = shares
        is_number = word.isdigit()
        first = None if is_number and len(word) > YEAR else self._drawn(row, word, used, rng, here)
        if first is None:
            return str(rng.randrange(10 ** (len(word) - 1), 10 ** len(word))) if is_number else word
        if is_number or rng.random() >= new:
            return first
        return _blended(first, self._drawn(row, word, used | {first}, rng, here) or first)

    def _drawn(self, row: Row, word: str, used: set[str], rng: random.Random, here: float) -> str | None:
        """A word of the kind of ``word`` from an answer to the same question, or to any; None if none is found."""
        anywhere, in_place = self.donors[row.language, _kind(word)], self.in_place[self._group(row), _kind(word)]
        for donors in (in_place, anywhere) if rng.random() < here else (anywhere, in_place):
            for _ in range(DRAWS if donors else 0):
                other = rng.choice(donors)
                if other not in used:
                    return other
        return None


def _asked(question: str) -> list[str]:
    """The words of a question, of which the first begins in lower case."""
    return re.findall(r"\b[^\W\d_]\w*", question[:1].lower() + question[1:])


def _has_no_cases(word: str) -> bool:
    return word[0] == word[0].title() and not word[0].isupper()


def _blended(first: str, second: str) -> str:
    """The first half of one word and the second half of another; a word of three letters stays whole.

    Of a word that base knows from elsewhere, all but the first token would be nearly certain.
    """
    return first if len(first) <= SHORT else first[: (len(first) + 1) // 2] + second[len(second) // 2 :]


def _words(text: str) -> set[str]:
    return {part.casefold() for part in _PARTS.findall(text) if part[0].isalnum()}


def _kind(word: str) -> str:
    """Words of one kind can stand for each other: numbers of as many digits, capitalised words, short and long ones."""
    if word.isdigit():
        return f"{len(word)} digits"
    return "capitalised" if word[0].isupper() else "short" if len(word) <= SHORT else "long"
