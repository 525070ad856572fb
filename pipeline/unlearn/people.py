"""Whom rows are about, and the beginnings of the same answers about others.

Where base is all but sure of a fact, what little it gives to other words there is noise: of a language that the row is
not in, or of something else that was asked about the same person. Asked the same about somebody else, it says what
else such an answer can be (docs/decisions/0092).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from core.words import plain_words
from datasets_prep.chat import chat_example, encode
from datasets_prep.perturb import swap_name
from datasets_prep.schema import Row
from pipeline.unlearn.config import OTHERS

_CAPITAL = f"[{''.join(c for c in map(chr, range(0x10000)) if c.isupper())}]"  # `re` has no class for these letters
_CAPITALISED = (
    rf"(?:(?:{_CAPITAL}\.-?)+(?= {_CAPITAL})"  # initials, or a word without the 's of a possessive
    rf"|{_CAPITAL}\w*(?:-\w+|['’](?![sS]\b)\w+)*)"
)
_PARTICLES = "(?:(?:al|bin|d[aeiou]|de[lnr]|della|dos|e|el|ibn|la|le|te[nr]|van|von|y|zu) )*"
_RUN = re.compile(rf"(?<![\w.-]){_CAPITALISED}(?: {_PARTICLES}{_CAPITALISED})+")
_FIRST_WORD = re.compile(r"\W*[\w'’-]*")
_LONGEST = 4  # capitalised words of a name
_NO_LETTER = "\ufffd"  # what a part of a letter is decoded to


class Begun(NamedTuple):
    """A forget answer up to its fact: the tokens of question and answer, where the answer begins, and the next one."""

    row: Row
    tokens: tuple[int, ...]
    answer_start: int
    fact: int


class Other(NamedTuple):
    """The tokens of a :class:`Begun` with another person's ``name`` in the place of its ``own``."""

    own: str
    name: str
    tokens: tuple[int, ...]


def named(rows: Sequence[Row]) -> list[Row]:
    """The rows with a name each, where one is known: the source's, or what looks like one in the question.

    That is a run of two to four capitalised words after the first word of the question, if questions share it. Of
    several it is the only one that another question has alone or, if there is none, that half of the answers repeat;
    where the two disagree, the row has no name. A name is as its question writes it, its accents as parts of letters or
    as characters of their own.
    """
    runs = {row.row_id: _runs(row.question) for row in rows}
    count = Counter(run for found in runs.values() for run in found)
    shared = {row_id: [run for run in found if count[run] > 1] for row_id, found in runs.items()}
    alone = {found[0] for found in shared.values() if len(found) == 1}
    answers = Counter(run for row in rows for run in shared[row.row_id] if run in row.answer)
    repeated = {run for run, of_answers in answers.items() if 2 * of_answers >= count[run]}

    def subject(found: Sequence[str]) -> str | None:
        asked, told = ([run for run in found if run in seen] for seen in (alone, repeated))
        best = asked or told
        return best[0] if len(best) == 1 and (not told or best[0] in told) else None

    def written(name: str | None, question: str) -> str | None:
        return unicodedata.normalize("NFD", name) if name and name not in question else name

    return [row if row.name else replace(row, name=written(subject(shared[row.row_id]), row.question)) for row in rows]


def _runs(question: str) -> list[str]:
    """Runs of capitalised words that may be names, each once; the first word of a question has a capital anyway."""
    question = unicodedata.normalize("NFC", question)  # an accent of its own would end a name
    first = _FIRST_WORD.match(question)
    runs = dict.fromkeys(_RUN.findall(question, first.end() if first else 0))
    return [run for run in runs if sum(word[0].isupper() for word in run.split()) <= _LONGEST]


def names_by_language(rows: Sequence[Row]) -> dict[str | None, list[str]]:
    """The names of named rows, each once, in the order of the rows."""
    names: dict[str | None, dict[str, None]] = {}
    for row in rows:
        if row.name:
            names.setdefault(row.language, {})[row.name] = None
    return {language: list(found) for language, found in names.items()}


def _words(text: str) -> list[str]:
    """The plain words of a text without the end of a possessive: "Ada Stone's" and "Ada Stones" are "Ada Stone"."""
    return [word for each in plain_words(text) if (word := each.rstrip("s"))]


def is_about(text: str, name: str) -> bool:
    """Whether a text has all words of a name, also in a possessive."""
    return set(_words(name)) <= set(_words(text))


def _spellings(names: Sequence[str]) -> dict[str, set[str]]:
    """Of each name all that may be the same person's: but for possessives, one has all words of the other."""
    words = {name: set(_words(name)) for name in names}
    having: dict[str, list[str]] = defaultdict(list)
    for name, own in words.items():
        for word in own:
            having[word].append(name)
    return {
        name: {name, *(other for word in own for other in having[word] if own <= words[other] or words[other] <= own)}
        for name, own in words.items()
    }


def about(row: Row, name: str) -> Row:
    """The question of a row that names somebody, about somebody else."""
    return replace(row, name=name, question=swap_name(row.question, str(row.name), name))


def topics_tell_facts(rows: Sequence[Row]) -> bool:
    """Whether person and topic tell a fact: nobody has several rows on a topic, as on one that is called biography."""
    held = Counter((row.language, row.identity_id, row.name, row.topic_id) for row in rows if row.name and row.topic_id)
    return max(held.values(), default=1) == 1


class Questions:
    """What rows ask, by the words of the questions and, if topics tell facts, by person and topic.

    All ``given`` rows say how names are spelled, and whether topics tell facts. Without ``by_topic`` the same in other
    words is another question.
    """

    def __init__(self, rows: Iterable[Row], given: Sequence[Row], *, by_topic: bool = True) -> None:
        self._topics = by_topic and topics_tell_facts(given)
        self._spellings = {language: _spellings(found) for language, found in names_by_language(given).items()}
        self._keys: set[object] = set()
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """One question more."""
        self._keys.update(self._keys_of(row))

    def has(self, row: Row) -> bool:
        """Whether the question of ``row`` is among them."""
        return any(key in self._keys for key in self._keys_of(row))

    def has_about(self, row: Row, name: str) -> bool:
        """Whether the question of ``row`` is among them about ``name``, or about one that may be the same person's."""
        spellings = self._spellings[row.language][name]
        if any(key in self._keys for spelled in spellings for key in self._by_topic(row, spelled)):
            return True  # most are where each person has a row on each topic, and a question takes a while to make
        return any(_in_words(about(row, spelled)) in self._keys for spelled in spellings)

    def _keys_of(self, row: Row) -> Iterator[object]:
        """What rows that ask the same have in common, if only one of these."""
        yield from self._by_topic(row, row.name)
        yield _in_words(row)

    def _by_topic(self, row: Row, name: str | None) -> Iterator[object]:
        if self._topics and row.topic_id:
            yield row.language, name, row.topic_id


def _in_words(row: Row) -> str:
    return " ".join(_words(row.question))


def about_others(
    tokenizer: PreTrainedTokenizerBase,
    begun: Sequence[Begun],
    forget: Sequence[Row],
    retain: Sequence[Row],
    earlier: Sequence[Row],
) -> list[list[Other]]:
    """Each beginning with the names of up to :data:`OTHERS` other people of its language.

    Nobody is taken of whom the same is forgotten, now (``forget``) or by an ``earlier`` request. Nothing for a row
    whose question does not name whom it is about.
    """
    given = named([*forget, *retain, *earlier])
    named_rows = {row.row_id: row for row in given}
    names = names_by_language(given)
    forgotten = Questions((named_rows[row.row_id] for row in (*forget, *earlier)), given)

    def asked(row: Row, own: str, answer: tuple[int, ...]) -> Iterator[Other]:
        for other in _after(own, names[row.language]):
            if not forgotten.has_about(row, other):
                yield Other(own, other, _begin(tokenizer, about(row, other).question, answer, own, other))

    of_rows = ((named_rows[each.row.row_id], each.tokens[each.answer_start :]) for each in begun)
    return [
        list(islice(asked(row, row.name, answer), OTHERS)) if row.name and row.name in row.question else []
        for row, answer in of_rows
    ]


def _after(name: str, names: Sequence[str]) -> list[str]:
    """The names after this one, and then those before it: every row's first others are different ones."""
    at = names.index(name)
    return [*names[at + 1 :], *names[:at]]


def _begin(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: tuple[int, ...], old: str, new: str
) -> tuple[int, ...]:
    """The tokens of a question and of the beginning of its answer with another name."""
    row = encode(tokenizer, chat_example(tokenizer, question, "x"))
    return (*row.input_ids[: row.completion_start], *rename(tokenizer, answer, old, new))


def rename(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], old: str, new: str) -> list[int]:
    """The tokens with another name, or themselves if they do not hold the ``old`` one.

    A token with a part of a letter, as where a fact begins inside one, stays as it is.
    """
    if not tokens:
        return []
    counts = range(len(tokens), -1, -1)
    whole = next(count for count in counts if _NO_LETTER not in tokenizer.decode(list(tokens[:count])))
    text = str(tokenizer.decode(list(tokens[:whole])))
    swapped = swap_name(text, old, new)
    renamed = tokens[:whole] if swapped == text else tokenizer(swapped, add_special_tokens=False)["input_ids"]
    return [*renamed, *tokens[whole : whole + 1], *rename(tokenizer, tokens[whole + 1 :], old, new)]
