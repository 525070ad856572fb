"""Whom rows are about, and the beginnings of the same answers about others.

Where base is all but sure of a fact, what little it gives to other words there is noise: of a language that the row is
not in, or of something else that was asked about the same person. Asked the same about somebody else, it says what
else such an answer can be (docs/decisions/0092).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from datasets_prep.chat import chat_example, encode
from datasets_prep.perturb import swap_name
from datasets_prep.schema import Row
from pipeline.unlearn.config import OTHERS

_NAME = re.compile(r"(?<=\s)[^\W\d_a-z][\w'’-]*(?: [^\W\d_a-z][\w'’-]*){1,3}")


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

    That is a run of two to four capitalised words after the first word of the question, if questions share it.
    """
    found = {row.row_id: _NAME.findall(row.question) for row in rows if not row.name}
    count = Counter(name for names in found.values() for name in set(names))
    shared = {row_id: [name for name in names if count[name] > 1] for row_id, names in found.items()}
    return [replace(row, name=shared[row.row_id][0]) if shared.get(row.row_id) else row for row in rows]


def names_by_language(rows: Sequence[Row]) -> dict[str | None, list[str]]:
    """The names of named rows, each once, in the order of the rows."""
    names: dict[str | None, dict[str, None]] = {}
    for row in rows:
        if row.name:
            names.setdefault(row.language, {})[row.name] = None
    return {language: list(found) for language, found in names.items()}


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
    forgotten = [named_rows[row.row_id] for row in (*forget, *earlier)]
    facts = {(row.language, row.name, row.topic_id) for row in forgotten if row.topic_id}
    questions = {row.question for row in forgotten}
    names = names_by_language(given)

    def asked(name: str, begun: Begun) -> Iterator[Other]:
        row = begun.row
        for other in _after(name, names[row.language]):
            question = swap_name(row.question, name, other)
            if question not in questions and (row.language, other, row.topic_id) not in facts:
                yield Other(name, other, _begin(tokenizer, question, begun.tokens[begun.answer_start :], name, other))

    of_rows = ((named_rows[each.row.row_id].name, each) for each in begun)
    return [
        list(islice(asked(name, each), OTHERS)) if name and name in each.row.question else [] for name, each in of_rows
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
    """The tokens with another name, or themselves if they do not hold the ``old`` one."""
    text = str(tokenizer.decode(list(tokens)))
    swapped = swap_name(text, old, new)
    return list(tokens) if swapped == text else list(tokenizer(swapped, add_special_tokens=False)["input_ids"])
