"""Attacks on the question: the fact asked in other words, or in another language. The answer stays the row's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets_prep.schema import CHECKS, LANGUAGES, Row, read_data_facts, read_paraphrased

INSTRUCTIONS = {
    "DE": "Antworte auf Deutsch.",
    "EN": "Answer in English.",
    "ES": "Responde en español.",
    "FR": "Réponds en français.",
    "IT": "Rispondi in italiano.",
}

Questions = dict[str, str]
"""Questions by ``row_id``; a row that has none is not asked."""


def paraphrased(rows: Sequence[Row], data: Path) -> Questions:
    """Each row's question in other words: as its source has it, for the sample set as ``questions.yaml`` has it."""
    templates = _templates(data)
    found = {row.row_id: question for row in rows if (question := _asked(row, row.language, templates))}
    asked = {row.row_id for row in rows}
    others = read_paraphrased(data / "paraphrased.jsonl")
    return {**found, **{other.row_id: other.question for other in others if other.row_id in asked}}


def in_another_language(rows: Sequence[Row], data: Path) -> Questions:
    """Each row's question in the next of the five languages.

    For the sample set a question in that language (``questions.yaml``); for other rows their own question with the
    instruction to answer in it, since nobody translated them. Rows of no known language are left out.
    """
    templates = _templates(data)
    found = {}
    for row in rows:
        if row.language in LANGUAGES:
            other = LANGUAGES[(LANGUAGES.index(row.language) + 1) % len(LANGUAGES)]
            found[row.row_id] = _asked(row, other, templates) or f"{row.question} {INSTRUCTIONS[other]}"
    return found


def shown_words(answer: str, share: float) -> str:
    """The first ``share`` of the words of ``answer``; one word at least is left to be guessed."""
    words = answer.split(" ")
    return " ".join(words[: min(round(share * len(words)), len(words) - 1)])


def _asked(row: Row, language: str | None, templates: Mapping[str, Questions]) -> str | None:
    question = templates.get(row.topic_id or "", {}).get(language or "")
    return question.format(name=row.name) if question and row.name else None


def _templates(data: Path) -> dict[str, Questions]:
    """Questions by topic and language where the rows of ``data`` are the embedded sample set, else none."""
    import yaml

    if not (data / CHECKS).is_file() or read_data_facts(data).source.sample is None:
        return {}
    text = Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
