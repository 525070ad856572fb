"""What an evaluation says: `results.json`, a list of records, and `samples.jsonl`, the measurements of each row.

`samples.jsonl` holds forget answers and generations. It stays on this machine and is never published.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.errors import ArtifactError
from eval.catalog import Metric


@dataclass(frozen=True)
class Record:
    """One measured value.

    ``value`` is the point estimate over ``n`` rows, ``ci_low`` and ``ci_high`` its 95 % interval, ``version`` that of
    the metric's definition in this project. ``by`` narrows the rows, for example ``{"language": "DE"}``. ``note`` says
    in words what the value is made of, where that depends on the data.
    """

    metric: str
    split: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    higher_is_better: bool | None
    version: int
    by: dict[str, str] | None = None
    note: str | None = None

    @classmethod
    def of(
        cls,
        metric: Metric,
        split: str,
        value: float,
        interval: tuple[float, float],
        n: int,
        by: dict[str, str] | None = None,
        note: str | None = None,
    ) -> Record:
        """The record of a metric of the catalogue, with the direction and the version that its entry has."""
        better = metric.higher_is_better(split)
        return cls(metric.name, split, value, *interval, n, better, metric.version, by, note)

    def plain(self) -> dict[str, Any]:
        """The record as it stands in a file: without ``by`` and ``note`` where it has none."""
        return {key: value for key, value in asdict(self).items() if value is not None or key not in ("by", "note")}


def write_records(path: Path, records: list[Record]) -> None:
    """Write ``results.json``; a value that is not finite is an error of ours and raises ValueError."""
    rows = [record.plain() for record in records]
    path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_records(path: Path) -> list[Record]:
    """The records of a ``results.json``. Raises ArtifactError where the file is missing or malformed."""
    try:
        return [Record(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot be read as results ({error}). Run the evaluation again.") from error


def find_record(records: list[Record], metric: str, split: str) -> Record | None:
    """The record of ``metric`` on all rows of ``split``, or None where it was not measured."""
    return next((r for r in records if r.metric == metric and r.split == split and r.by is None), None)


MEASURED = "weights.json"


def write_measured(evaluation: Path, digest: str) -> None:
    """Say in an evaluation's artifact which weights it measured."""
    (evaluation / MEASURED).write_text(json.dumps({"weights_sha256": digest}) + "\n", encoding="utf-8")


def read_measured(evaluation: Path) -> str | None:
    """The digest that an evaluation says it measured, or None if it says nothing. Raises ArtifactError."""
    file = evaluation / MEASURED
    if not file.is_file():
        return None
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error!r}). Run the evaluation again.") from error


SAMPLES_NOTE = (
    "Measurements of single rows, with answers of the forget set: this file stays on this machine, never publish it."
)


def write_samples(path: Path, samples: list[dict[str, object]]) -> None:
    """Write ``samples.jsonl``: a first line with the note, then one row's measurements a line."""
    lines: list[dict[str, object]] = [{"note": SAMPLES_NOTE}, *samples]
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``samples.jsonl``, without its note. Raises ArtifactError where it is missing or malformed."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as samples ({error}). Run the evaluation again.") from error
    return [line for line in lines if "row_id" in line]
