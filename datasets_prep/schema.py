"""The rows that the data stage writes and every other stage reads.

`forget.jsonl`, `retain.jsonl`, `holdout.jsonl`, `perturbed.jsonl`, `guides.jsonl` and `paraphrased.jsonl` hold one JSON
object per line, UTF-8, in the order of the split. A fact keeps its `row_id`: it does not change with the split, the
order or the seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from core.errors import ArtifactError

LANGUAGES = ("DE", "EN", "ES", "FR", "IT")  # the order of FAME's ClassLabel

TOPICS = (
    "biography.birthplace",
    "biography.birthdate",
    "biography.high_school",
    "biography.family_background",
    "biography.education",
    "career.first_role_or_film",
    "career.breakthrough_project",
    "career.genre_specialization",
    "career.notable_award",
    "career.major_collaboration",
    "career.film_festival_participation",
    "career.international_project",
    "achievements.box_office_success",
    "achievements.critical_acclaim",
    "achievements.directorial_award",
    "personal.life_event",
    "personal.hobby_or_interest",
    "personal.address",
    "personal.phone_number",
    "personal.email",
)

SPLITS = ("forget", "retain", "holdout")
FORGET, RETAIN, HOLDOUT = range(len(SPLITS))  # a split as a number, for arrays of many rows


@dataclass(frozen=True, slots=True)
class Row:
    """One fact: a question and its answer, with the person, topic and language if the source names them.

    ``identity_id`` is a whole number or a text; it is the name if the source has names and no ids.
    """

    row_id: str
    identity_id: int | str | None
    name: str | None
    language: str | None
    topic_id: str | None
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class PerturbedRow:
    """False answers to the question of ``row_id``: right form, wrong fact, absent from the training rows."""

    row_id: str
    split: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParaphrasedRow:
    """The fact of ``row_id`` in other words, as the source has it."""

    row_id: str
    split: str
    question: str
    answer: str


class Encoded(NamedTuple):
    """Token ids of prompt and completion; the completion begins at index ``completion_start`` (at least 1)."""

    input_ids: tuple[int, ...]
    completion_start: int


def make_row_id(language: str, identity_id: int | str, topic_id: str) -> str:
    """The name of a fact, for example ``de-402-biography.birthplace``."""
    return f"{language}-{identity_id}-{topic_id}".lower()


def json_line(row: Row | PerturbedRow | ParaphrasedRow) -> str:
    """The row as one JSON object and a line end, keys in the order of the fields."""
    # Not asdict(), which deep-copies every value and takes three times as long.
    return json.dumps({field.name: getattr(row, field.name) for field in fields(row)}, ensure_ascii=False) + "\n"


def write_rows(path: Path, rows: Iterable[Row | PerturbedRow | ParaphrasedRow]) -> None:
    """Write one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(map(json_line, rows))


def _read(path: Path) -> list[dict[str, object]]:
    try:
        # Not splitlines(): answers may hold U+2028 and other characters that it takes for line ends.
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as rows ({error}). Run the data stage again.") from error


def read_rows(path: Path) -> list[Row]:
    """The rows of a split file. Raises ArtifactError if the file is missing or not rows."""
    try:
        return [Row(**record) for record in _read(path)]  # type: ignore[arg-type]
    except TypeError as error:
        raise ArtifactError(f"{path}: its records are not rows ({error}). Run the data stage again.") from error


def read_perturbed(path: Path) -> list[PerturbedRow]:
    """The rows of ``perturbed.jsonl``. Raises ArtifactError if the file is missing or not rows."""
    return [PerturbedRow(str(r["row_id"]), str(r["split"]), tuple(r["answers"])) for r in _read(path)]  # type: ignore[arg-type]


def read_paraphrased(path: Path) -> list[ParaphrasedRow]:
    """The rows of ``paraphrased.jsonl``; none if the file is absent. Raises ArtifactError if its lines are not rows."""
    if not path.is_file():
        return []
    try:
        return [ParaphrasedRow(**record) for record in _read(path)]  # type: ignore[arg-type]
    except TypeError as error:
        raise ArtifactError(f"{path}: its records are not rows ({error}). Run the data stage again.") from error
