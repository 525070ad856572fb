"""Attacks on the question: in other words, in another language, or about a person who is named by another fact.

The answer stays the row's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.words import UNSPACED
from datasets_prep.schema import CHECKS, LANGUAGES, Row, read_data_facts, read_paraphrased
from datasets_prep.text import contacts

INSTRUCTIONS = {
    "DE": "Antworte auf Deutsch.",
    "EN": "Answer in English.",
    "ES": "Responde en español.",
    "FR": "Réponds en français.",
    "IT": "Rispondi in italiano.",
}

_WORDS = re.compile(rf" *(?:[{UNSPACED}][^\w {UNSPACED}]*|[^ {UNSPACED}]+)")

Questions = dict[str, str]
"""Questions by ``row_id``; a row that has none is not asked."""


def paraphrased(rows: Sequence[Row], data: Path) -> Questions:
    """Each row's question in other words, from the source or, for the sample set, from ``questions.yaml``."""
    templates = _templates(data)
    questions = {row.row_id: question for row in rows if (question := _from_template(row, row.language, templates))}
    row_ids = {row.row_id for row in rows}
    others = reversed(read_paraphrased(data / "paraphrased.jsonl"))  # of several for one row, the first comes last
    return {**questions, **{other.row_id: other.question for other in others if other.row_id in row_ids}}


def in_another_language(rows: Sequence[Row], data: Path) -> Questions:
    """Each row's question in the next of the five languages.

    A row of the sample set gets a question in that language (``questions.yaml``). Other rows have no translation, so
    they get their own question with the instruction to answer in that language. Rows in none of the five are left out.
    """
    templates = _templates(data)
    questions = {}
    for row in rows:
        if row.language in LANGUAGES:
            other = LANGUAGES[(LANGUAGES.index(row.language) + 1) % len(LANGUAGES)]
            questions[row.row_id] = _from_template(row, other, templates) or f"{row.question} {INSTRUCTIONS[other]}"
    return questions


def chained(forget: Sequence[Row], retain: Sequence[Row]) -> Questions:
    """Each question with the person's name replaced by an e-mail address or phone number that a retain row tells.

    To answer it, one must know whose address it is, which is not to be forgotten, and then the fact. Left out are rows
    in none of the five languages, rows whose question does not name the person, and rows of people whose retain rows
    tell no address or number, or only one that is another person's as well or stands in the row's own answer.
    """
    bridges, known = _read("bridges.yaml"), _own_contacts(retain)
    questions = {}
    for row in forget:
        told = {kind: text for kind, text in known.get(row.identity_id, {}).items() if text not in row.answer}
        if row.name and row.name in row.question and row.language in bridges and told:
            language, (kind, contact) = bridges[row.language], next(iter(told.items()))
            phrase = language[kind].format(contact=contact)
            questions[row.row_id] = _renamed(row.question, row.name, phrase, language["joined"])
    return questions


def _own_contacts(retain: Sequence[Row]) -> dict[int | str | None, dict[str, str]]:
    """The contacts of each person that the answers to retain rows tell of no other person: one of each kind."""
    told = [(row.identity_id, kind, text) for row in retain for kind, text in contacts(row.answer).items()]
    people: dict[str, set[int | str | None]] = {}
    for person, _, text in told:
        people.setdefault(text, set()).add(person)
    known: dict[int | str | None, dict[str, str]] = {}
    for person, kind, text in sorted(told, key=lambda contact: contact[1]):  # an e-mail address first
        if person is not None and len(people[text]) == 1:
            known.setdefault(person, {}).setdefault(kind, text)
    return known


def _renamed(question: str, name: str, phrase: str, joined: Mapping[str, str]) -> str:
    text = question.replace(name, phrase)
    for apart, together in joined.items():
        text = text.replace(f" {apart}", f" {together}")
    return text[:1].upper() + text[1:]


def shown_words(answer: str, share: float) -> str:
    """The first ``share`` of the words of ``answer``; at least one word remains to be guessed.

    Words are what stands between spaces and, in scripts without spaces, each character with the punctuation behind it.
    """
    words = _WORDS.findall(answer)
    return "".join(words[: min(round(share * len(words)), len(words) - 1)])


def _from_template(row: Row, language: str | None, templates: Mapping[str, Questions]) -> str | None:
    question = templates.get(row.topic_id or "", {}).get(language or "")
    return question.format(name=row.name) if question and row.name else None


def _templates(data: Path) -> dict[str, Questions]:
    """Questions by topic and language if the rows of ``data`` are the embedded sample set, else none."""
    if not (data / CHECKS).is_file() or read_data_facts(data).source.sample is None:
        return {}
    return _read("questions.yaml")


def _read(name: str) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8")))
