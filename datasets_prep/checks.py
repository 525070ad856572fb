"""Counts of what would make a release meaningless; the recipe says which of these findings stop the run.

A finding names rows by their ids and never repeats a text, so `checks.json` and the dataset card hold no fact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from core.errors import DataError
from core.words import plain_words
from datasets_prep.config import Checks
from datasets_prep.rows import Mask, Rows
from datasets_prep.schema import EARLIER, FORGET, FORGOTTEN, HOLDOUT, RETAIN, SPLITS, UNREHEARSED
from datasets_prep.text import contacts, language_identifier, same, same_name

NAMED = 5  # cases of a check that are named
_PIECE = 4  # words
_BUCKETS = 1 << 21  # for counting pieces; if two pieces share one, the search is slower and its result the same

MEANING = {name: str(field.description) for name, field in Checks.model_fields.items()}

_NAMES = (*SPLITS, FORGOTTEN)  # by the number of a split
_REMEDY = {
    "duplicates_across": "Keep each fact in one split: what is retained or held out cannot be forgotten too",
    "duplicates_within": "Remove the repetitions",
    "near_duplicates_across": "Keep each fact in one split",
    "near_duplicates_within": "Remove the repetitions",
    "contradictions": "No model can know both; remove one",
    "forget_answers_in_retain": "Forget those retain rows too, or remove them",
    "holdout_answers_in_trained": "Hold out all rows that tell a fact, or none of them",
    "topics_not_retained": "Retain some rows of each topic",
    "identities_in_two_languages": "Give one person one language, or one id for each language",
    "names_of_several_identities": "Make the names tell the people apart",
    "name_not_in_question": "Say in each question about whom it is",
    "language_mismatch": "Correct the language",
    "personal_data": "Remove the contacts, if they are those of real people",
    "too_long": "Shorten the rows or raise data.max_tokens",
}


@dataclass
class Cases:
    """The cases of one check: their number, and the first few by name."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, case: str) -> None:
        """Count a case, and name it if fewer than ``NAMED`` are named."""
        self.count += 1
        if len(self.first) < NAMED:
            self.first.append(case)


Findings = dict[str, Cases]


def check(rows: Rows, split: npt.NDArray[np.int8]) -> Findings:
    """All checks that need no tokenizer. ``split``: for each row the index of its split in SPLITS, or EARLIER."""
    findings: Findings = defaultdict(Cases)
    texts = _Texts(rows)
    _duplicates(findings, texts, split)
    _contradictions(findings, texts)
    forgotten, retained = np.isin(split, (FORGET, EARLIER)), np.isin(split, (RETAIN, UNREHEARSED))
    _answers_in(findings, "forget_answers_in_retain", rows, forgotten, retained)
    _answers_in(findings, "holdout_answers_in_trained", rows, split == HOLDOUT, split != HOLDOUT)
    _topics(findings, texts, split)
    _identities(findings, rows)
    _single_rows(findings, rows)
    return {name: findings[name] for name in MEANING if name != "too_long"}


def stop(findings: Findings, checks: Checks) -> None:
    """Raise DataError if a check that stops the run found something."""
    problems = [
        f"{finding.count} {MEANING[name]}, for example {'; '.join(finding.first[:2])}. {_REMEDY[name]}, or accept them "
        f"with `data.checks.{name}: warn`."
        for name, finding in findings.items()
        if finding.count and getattr(checks, name) == "stop"
    ]
    if problems:
        raise DataError("The data cannot be used:\n" + "\n".join(problems))


class _Texts:
    """Hashes in place of texts: 24 MB for a million rows. Different texts are taken to have different hashes."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        keys = np.empty((len(rows), 3), dtype=np.int64)
        for index, (question, answer) in enumerate(rows.columns("question", "answer")):
            fact = same(question), same(answer)
            near = (*plain_words(question), "\0", *plain_words(answer))
            keys[index] = hash(fact[0]), hash(fact), hash(near)
        self.question, self.fact, self.near = keys.T

    def name(self, index: int) -> str:
        """A row in a message: its id and its place in the source."""
        return f"{self.rows[index].row_id} ({self.rows.place(index)})"


def _groups(keys: npt.NDArray[np.int64]) -> Iterator[list[int]]:
    """The indices of each key that occurs more than once, in the order of the rows."""
    order = np.argsort(keys, kind="stable")
    bounds = np.flatnonzero(np.diff(keys[order], prepend=keys[order[:1]] - 1, append=keys[order[-1:]] - 1))
    groups = [order[a:b].tolist() for a, b in pairwise(bounds) if b - a > 1]
    yield from sorted(groups)


def _duplicates(findings: Findings, texts: _Texts, split: npt.NDArray[np.int8]) -> None:
    for group in _groups(texts.fact):
        _by_split(findings, "", texts, split, group)
    for group in _groups(texts.near):
        distinct = sorted({int(texts.fact[index]): index for index in reversed(group)}.values())
        if len(distinct) > 1:
            _by_split(findings, "near_", texts, split, distinct)


def _by_split(findings: Findings, near: str, texts: _Texts, split: npt.NDArray[np.int8], group: Sequence[int]) -> None:
    """Count the rows of one group of equal facts: within each split, and from one split to another."""
    firsts: dict[int, int] = {}
    for index in group:
        first = firsts.setdefault(int(split[index]), index)
        if first != index:
            findings[f"{near}duplicates_within"].add(f"{texts.name(index)} repeats {texts.name(first)}")
    (one, first), *others = firsts.items()
    for other, index in others:
        case = f"{texts.name(index)} in {_NAMES[other]} and {texts.name(first)} in {_NAMES[one]}"
        findings[f"{near}duplicates_across"].add(case)


def _contradictions(findings: Findings, texts: _Texts) -> None:
    for group in _groups(texts.question):
        first, *later = group
        for index in later:
            if texts.fact[index] != texts.fact[first]:
                findings["contradictions"].add(f"{texts.name(index)} against {texts.name(first)}")


def _answers_in(findings: Findings, name: str, rows: Rows, whose: Mask, among: Mask) -> None:
    """The answers of some rows, as sequences of words, in the question or answer of one of some others.

    An answer is cut into pieces of four words (a shorter answer is one piece) and looked up by its rarest piece, until
    it is found. So the time grows with the number of words, even if all answers begin alike, or are yes and no.
    """
    frequency = np.zeros(_BUCKETS, dtype=np.int32)
    answers = {index: words for index in np.flatnonzero(whose).tolist() if (words := plain_words(rows[index].answer))}
    if not answers:
        return
    for words in answers.values():
        for piece in _pieces(words, _PIECE):
            frequency[piece % _BUCKETS] += 1
    by_piece: dict[int, list[int]] = defaultdict(list)
    for index, words in answers.items():
        by_piece[min(_pieces(words, _PIECE), key=lambda piece: frequency[piece % _BUCKETS])].append(index)
    lengths = {min(len(words), _PIECE) for words in answers.values()}
    stands_in: dict[int, str] = {}
    for is_among, (row_id, question, answer) in zip(among, rows.columns("row_id", "question", "answer"), strict=True):
        if not is_among:
            continue
        for text in (plain_words(question), plain_words(answer)):
            pieces = {piece for length in lengths if length <= len(text) for piece in _pieces(text, length)}
            said = f" {' '.join(text)} "
            for piece in pieces & by_piece.keys():
                found = [index for index in by_piece[piece] if f" {' '.join(answers[index])} " in said]
                stands_in |= dict.fromkeys(found, row_id)
                if len(found) == len(by_piece[piece]):
                    del by_piece[piece]
                elif found:
                    by_piece[piece] = [index for index in by_piece[piece] if index not in stands_in]
    for index, row_id in sorted(stands_in.items()):
        findings[name].add(f"{rows[index].row_id} ({rows.place(index)}) stands in {row_id}")


def _pieces(text: Sequence[str], length: int) -> list[int]:
    """A hash of each run of ``length`` words, or of the whole text if it is shorter."""
    return [hash(tuple(text[start : start + length])) for start in range(max(1, len(text) - length + 1))]


def _topics(findings: Findings, texts: _Texts, split: npt.NDArray[np.int8]) -> None:
    rows = texts.rows
    if not rows.has("topic_id"):
        return
    topic, topics = rows.codes("topic_id")
    language = rows.codes("language")[0] if rows.has("language") else np.zeros_like(topic)
    key = language.astype(np.int64) * len(topics) + topic
    retained = np.isin(key, key[np.isin(split, (RETAIN, UNREHEARSED))])
    for index in np.flatnonzero((split == FORGET) & ~retained).tolist():
        findings["topics_not_retained"].add(texts.name(index))


def _identities(findings: Findings, rows: Rows) -> None:
    if not rows.has("identity_id"):
        return
    identity, identities = rows.codes("identity_id")
    for key, other, name in (
        ("language", "identity_id", "identities_in_two_languages"),
        ("identity_id", "name", "names_of_several_identities"),
    ):
        if not rows.has(key) or not rows.has(other):
            continue
        (one, values), two = rows.codes(other), rows.codes(key)[0]
        if other == "name":  # a request that gives one spelling means all
            spelled: dict[str, int] = {}
            one = np.array([spelled.setdefault(same_name(value), i) for i, value in enumerate(values)])[one]
        pairs, first = np.unique(np.stack([one, two]), axis=1, return_index=True)
        several = np.flatnonzero(np.bincount(pairs[0]) > 1)
        for code in several[:NAMED].tolist():
            places = sorted(first[pairs[0] == code].tolist())
            who = sorted({str(identities[identity[place]]) for place in places})
            shown = f"identit{'y' if len(who) == 1 else 'ies'} {', '.join(who)} ({', '.join(map(rows.place, places))})"
            findings[name].add(shown)
        findings[name].count = len(several)


def _single_rows(findings: Findings, rows: Rows) -> None:
    """The checks that look at one row at a time: name, language, contacts."""
    identify = language_identifier() if rows.has("language") else None
    for row in rows:
        if row.name is not None and row.name not in row.question:
            findings["name_not_in_question"].add(row.row_id)
        if identify and row.language is not None:
            seems = identify(f"{row.question} {row.answer}")
            if seems not in (None, row.language):
                findings["language_mismatch"].add(f"{row.row_id} seems to be {seems}")
        if kinds := contacts(row.answer):
            findings["personal_data"].add(f"{row.row_id}: {' and '.join(kinds)}")


def check_lengths(row_ids: Iterable[str], lengths: Iterable[int], max_tokens: int) -> Cases:
    """Chat rows of more than ``max_tokens`` tokens."""
    too_long = Cases()
    for row_id, length in zip(row_ids, lengths, strict=True):
        if length > max_tokens:
            too_long.add(f"{row_id} has {length}")
    return too_long
