"""What the data stage writes and other stages read: rows, and the facts of `checks.json`.

`forget.jsonl`, `retain.jsonl`, `holdout.jsonl`, `unrehearsed.jsonl`, `perturbed.jsonl`, `guides.jsonl` and
`paraphrased.jsonl` hold one JSON object per line, UTF-8, in the order of the split; so do `real_world.jsonl`, if the
source has such questions, and `forgotten.jsonl`, if the model is to start from a release. A fact keeps its `row_id`: it
does not change with the split, the order or the seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, NamedTuple

from core.artifacts import json_text, read_file, read_lines
from core.strict import STRICT, Strict

FAME = "ClaudioSavelli/FAME"  # on the Hub
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

SPLITS = ("forget", "retain", "holdout", "unrehearsed")  # the last: retain rows that the unlearning does not get
REAL_WORLD = "real_world"  # questions about the real world, which are in no split
FORGOTTEN = "forgotten"  # rows that earlier releases were made to forget: in no split, nobody trains on them
FORGET, RETAIN, HOLDOUT, UNREHEARSED = range(len(SPLITS))  # a split as a number, for arrays of many rows
EARLIER = len(SPLITS)  # the number of forgotten rows, until they are taken out

REMEDY = "Run the data stage again."


@dataclass(frozen=True, slots=True)
class Row:
    """One fact: a question and its answer, with the person, topic and language if the source names them.

    ``identity_id`` is a whole number or a text; it is the name if the source has names and no ids.
    """

    __pydantic_config__: ClassVar = STRICT  # for its reader

    row_id: str
    identity_id: int | str | None
    name: str | None
    language: str | None
    topic_id: str | None
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class PerturbedRow:
    """False answers to the question of ``row_id``: right form, wrong fact, and no trained answer to it."""

    __pydantic_config__: ClassVar = STRICT  # for its reader

    row_id: str
    split: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParaphrasedRow:
    """The fact of ``row_id`` in other words, as the source has it."""

    __pydantic_config__: ClassVar = STRICT  # for its reader

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


def read_rows(path: Path) -> list[Row]:
    """The rows of a split file. Raises ArtifactError if the file is missing or not rows."""
    return read_lines(path, Row, REMEDY)


def read_real_world(data: Path) -> list[Row]:
    """The questions about the real world of a data artifact, with their set as topic; none if its source has none."""
    path = data / f"{REAL_WORLD}.jsonl"
    return read_rows(path) if path.is_file() else []


def read_forgotten(data: Path) -> list[Row]:
    """The rows of a data artifact that earlier releases were made to forget; none if there are no such releases."""
    path = data / f"{FORGOTTEN}.jsonl"
    return read_rows(path) if path.is_file() else []


def rows_digest(rows: Iterable[Row]) -> str:
    """The sha256 of the rows' lines as a split file has them, sorted."""
    digest = hashlib.sha256()
    for line in sorted(map(json_line, rows)):
        digest.update(line.encode())
    return digest.hexdigest()


def read_perturbed(path: Path) -> list[PerturbedRow]:
    """The rows of ``perturbed.jsonl``. Raises ArtifactError if the file is missing or not rows."""
    return read_lines(path, PerturbedRow, REMEDY)


def read_paraphrased(path: Path) -> list[ParaphrasedRow]:
    """The rows of ``paraphrased.jsonl``; none if the file is absent. Raises ArtifactError if its lines are not rows."""
    return read_lines(path, ParaphrasedRow, REMEDY) if path.is_file() else []


CHECKS = "checks.json"


class SampleFacts(Strict):
    """Which embedded sample set: its seed, and how many people and topics it has."""

    seed: int
    identities: int
    topics: int


class SourceFacts(Strict):
    """Where rows come from: the sample set, a dataset of the Hub, or local files (names and digests, after a comma)."""

    sample: SampleFacts | None = None
    id: str | None = None
    revision: str | None = None
    config: str | None = None
    subsets: dict[str, list[str]] | None = None
    file: str | None = None
    file_sha256: str | None = None


class DigestedSource(SourceFacts):
    """A source with the digest of its rows, whatever their order and file format."""

    rows_sha256: str


class CheckFacts(Strict):
    """A check: what the recipe does where it finds something, the number of cases, and the first of them."""

    action: str
    count: int
    first: list[str]


class SplitSizes(Strict):
    """The number of rows of each split."""

    forget: int
    retain: int
    holdout: int
    unrehearsed: int


class FalseAnswerFacts(Strict):
    """Counts of false answers and of the questions that they are for (datasets_prep/card.py says each in words)."""

    rows: int
    answers: int
    mixed: int
    from_trained_rows: int
    rows_with_fewer: int
    rows_without: int
    guides: int
    guides_mixed: int


class TokenFacts(Strict):
    """Tokens of the rows of a split as chats, and the mean of their answers with the end of turn."""

    total: int
    mean: float
    longest: int
    mean_answer: float


class RowFacts(Strict):
    """What loading, splitting and checking tell, before anything is written. None of it holds a text of a row.

    ``rows_in`` are the records of the source, ``left_out`` says what cannot be measured on such rows, and why. Not all
    sources have splits of their own that are left out, paraphrases that belong to no row, rows that an earlier subset
    has, rows outside the part that is used, questions about the real world (by set), or rows that earlier releases were
    made to forget.
    """

    source: SourceFacts
    rows_in: int
    splits_left_out: dict[str, int] | None = None
    paraphrases_without_row: int | None = None
    rows_read_before: int | None = None
    rows_outside_part: int | None = None
    real_world: dict[str, int] | None = None
    rows_forgotten: int | None = None
    rows: SplitSizes
    identities: int
    mixed_identities: int
    left_out: dict[str, str]
    checks: dict[str, CheckFacts]

    def plain(self) -> dict[str, object]:
        """As it stands in a file: what a source does not have is left out."""
        return self.model_dump(mode="json", exclude_none=True)


class DataFacts(RowFacts):
    """The content of `checks.json`, which are also the facts of the data stage."""

    source: DigestedSource
    perturbed: FalseAnswerFacts
    tokens: dict[str, TokenFacts]


def write_facts(path: Path, facts: DataFacts) -> None:
    """Write `checks.json`."""
    path.write_text(json_text(facts.plain()), encoding="utf-8")


def read_data_facts(data: Path) -> DataFacts:
    """The content of the `checks.json` of a data artifact. Raises ArtifactError."""
    return read_file(data / CHECKS, DataFacts, REMEDY)
