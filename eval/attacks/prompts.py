"""Attacks on the question: it is asked in other words, or in another language. The answer stays the row's own."""

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
    """Each row's question in other words, from the source or, for the sample set, from ``questions.yaml``."""
    templates = _templates(data)
    questions = {row.row_id: question for row in rows if (question := _from_template(row, row.language, templates))}
    row_ids = {row.row_id for row in rows}
    others = read_paraphrased(data / "paraphrased.jsonl")
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


def shown_words(answer: str, share: float) -> str:
    """The first ``share`` of the words of ``answer``; at least one word remains to be guessed."""
    words = answer.split(" ")
    return " ".join(words[: min(round(share * len(words)), len(words) - 1)])


def _from_template(row: Row, language: str | None, templates: Mapping[str, Questions]) -> str | None:
    question = templates.get(row.topic_id or "", {}).get(language or "")
    return question.format(name=row.name) if question and row.name else None


def _templates(data: Path) -> dict[str, Questions]:
    """Questions by topic and language if the rows of ``data`` are the embedded sample set, else none."""
    import yaml

    if not (data / CHECKS).is_file() or read_data_facts(data).source.sample is None:
        return {}
    text = Path(__file__).with_name("questions.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
