"""Rows from the embedded sample set, a local file or a pinned dataset of the Hub."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_prep.config import DataConfig, HubSource
from datasets_prep.schema import LANGUAGES, SPLITS, TOPICS, Row, make_row_id
from pipeline.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("identity_id", "name", "language", "topic_id", "question", "answer")
_SPLIT_NAMES = {**{split: split for split in SPLITS}, "test": "holdout"}  # FAME calls its holdout rows test


@dataclass(frozen=True)
class Placed:
    """A row, where it stands in the source (for messages), and the source's own split, where it has one."""

    row: Row
    place: str
    split: str | None = None


@dataclass(frozen=True)
class Loaded:
    """All rows of a source, false answers that it holds back by ``row_id``, and its description for the card."""

    rows: list[Placed]
    description: dict[str, Any]
    held_back: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def load(config: DataConfig) -> Loaded:
    """The rows of ``config.source``. Raises DataError, naming the row and the remedy, where it cannot be used."""
    if config.source.sample is not None:
        from datasets_prep.sample import generate

        rows, held_back = generate(config.source.sample)
        placed = [Placed(row, f"sample row {row.row_id}") for row in rows]
        return Loaded(placed, {"sample": config.source.sample.model_dump()}, held_back)
    if config.source.file is not None:
        path = Path(config.source.file).expanduser()
        placed = list(_parse(_file_records(path), path.name))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Loaded(placed, {"file": path.name, "file_sha256": digest})
    assert config.source.hub is not None  # noqa: S101 (the config allows no fourth case)
    return _from_hub(config.source.hub, given=config.setting == "given")


def rows_sha256(rows: Iterable[Row]) -> str:
    """Digest of the rows, whatever their order and the file format they came in."""
    lines = sorted(json.dumps(asdict(row), ensure_ascii=False, sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _file_records(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, record) of a local file. The place is a line for text formats and a row, from 1, for others."""
    readers = {".parquet": _parquet, ".jsonl": _json_lines, ".json": _json_list, ".csv": _csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path.name}: the suffix must be one of {', '.join(readers)}. Convert the file or rename it.")
    try:
        yield from reader(path)
    except (OSError, ValueError, RecursionError, csv.Error) as error:  # pyarrow's errors are OSError and ValueError
        reason = " ".join(str(error).split())
        raise DataError(
            f"data.source.file {path.name}: cannot be read ({reason}). Check the path and format."
        ) from error


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet
    from datasets import Dataset

    return _dataset_records(Dataset(pyarrow.parquet.read_table(path)), "row")


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            yield f"line {number}", json.loads(line)


def _json_list(path: Path) -> Iterator[tuple[str, Any]]:
    records = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(records, list):
        raise ValueError(f"it holds a {type(records).__name__} and must hold a list of objects")  # noqa: TRY004
    for number, record in enumerate(records, start=1):
        yield f"row {number}", record


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for record in reader:
            yield f"line {reader.line_num}", record


def _dataset_records(dataset: Dataset, place: str) -> Iterator[tuple[str, Any]]:
    """Records with ClassLabel columns (FAME's language) as their names."""
    labels = {name: kind.names for name, kind in dataset.features.items() if hasattr(kind, "names")}
    for number, record in enumerate(dataset, start=1):
        for name, names in labels.items():
            index = record[name]
            record[name] = names[index] if index is not None and 0 <= index < len(names) else None
        yield f"{place} {number}", record


def _from_hub(source: HubSource, *, given: bool) -> Loaded:
    """All rows of retain, forget and holdout (or test); other splits, such as FAME's paraphrased, are other data."""
    from datasets import load_dataset

    where = f"data.source.hub {source.id} at {source.revision}"
    try:
        splits = load_dataset(source.id, revision=source.revision)
    except Exception as error:  # the libraries below raise errors of many unrelated classes
        reason = " ".join(str(error).split())
        remedy = "Check id and revision, the network, and the access rights of the token (`hf auth login`)"
        raise DataError(f"{where}: cannot be loaded ({reason}). {remedy}.") from error
    names = [name for name in splits if name in _SPLIT_NAMES] or ([] if given else list(splits))
    placed: list[Placed] = []
    for name in names:
        records = _dataset_records(splits[name], f"split {name} row")
        placed += _parse(((place, {**record, "split": name}) for place, record in records), source.id)
    return Loaded(placed, {"hub": source.id, "revision": source.revision})


def _parse(records: Iterable[tuple[str, Any]], origin: str) -> Iterator[Placed]:
    for place, record in records:
        where = f"{origin}, {place}"
        if not isinstance(record, dict):
            raise DataError(f"{where}: is a {type(record).__name__} and must be an object with {', '.join(COLUMNS)}.")
        missing = [column for column in COLUMNS if column not in record]
        if missing:
            raise DataError(
                f"{where}: has no column {', '.join(missing)}. Needed are {', '.join(COLUMNS)}; rename or add them."
            )
        yield Placed(_row(record, where), where, _split(record, where))


def _row(record: Mapping[str, Any], where: str) -> Row:
    name, question, answer = (_text(record, column, where) for column in ("name", "question", "answer"))
    language, topic = _text(record, "language", where).upper(), _text(record, "topic_id", where)
    if language not in LANGUAGES:
        raise DataError(f"{where}: language {language!r} is not one of {', '.join(LANGUAGES)}. Correct it.")
    if topic not in TOPICS:
        raise DataError(f"{where}: topic_id {topic!r} is not one of FAME's: {', '.join(TOPICS)}. Correct it.")
    identity = _identity(record["identity_id"], where)
    return Row(make_row_id(language, identity, topic), identity, name, language, topic, question, answer)


def _text(record: Mapping[str, Any], column: str, where: str) -> str:
    value = record[column]
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: {column} is empty. Fill it in or remove the row.")
    if not isinstance(value, str):
        raise DataError(f"{where}: {column} is {value!r:.80} and must be text. Correct it.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{where}: {column} holds half of a surrogate pair, which is not text. Correct it.")
    return value.strip()


def _identity(value: Any, where: str) -> int:
    # CSV has no numbers; isascii, because int() also reads the digits of other scripts.
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63:
        return value
    raise DataError(f"{where}: identity_id is {value!r:.80} and must be a whole number of at least 0. Correct it.")


def _split(record: Mapping[str, Any], where: str) -> str | None:
    value = record.get("split")
    if value is None or value == "":
        return None
    if not isinstance(value, str) or value not in _SPLIT_NAMES:
        raise DataError(f"{where}: split is {value!r:.80}; allowed are {', '.join(_SPLIT_NAMES)}. Correct it.")
    return _SPLIT_NAMES[value]
