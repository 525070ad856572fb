"""Local files as records, each with the number of its line or row for error messages.

The text formats are read line by line with the standard library, because `datasets` guesses types per block and cannot
say which line is wrong. Parquet and Arrow come in batches, with the features that `datasets` stores in them.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import bounded_json
from core.errors import DataError, ReleaseError
from core.places import user_path

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

NumberedRecord = tuple[str, int, Any]  # the unit ("people.csv, line"), its number from 1, and the record

BATCH = 8192
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_file(name: str, key: str) -> Iterator[NumberedRecord]:
    """The records of a file. Raises DataError, naming the recipe's ``key`` or the line, if it cannot be read."""
    path = user_path(name)
    reader = READERS.get(path.suffix.lower())
    if path.suffix.lower() == ".tsv":
        raise DataError(f"{path.name}: is separated by tabs, and only commas are read. Save it with commas, as .csv.")
    if reader is None:
        raise DataError(f"{path.name}: the suffix must be one of {', '.join(READERS)}. Convert the file or rename it.")
    if path.exists() and not path.is_file():
        raise DataError(f"{key} {path.name}: is no file but a folder or a pipe. Name a file with rows.")
    try:
        yield from reader(path)
    except ReleaseError:
        raise
    except Exception as error:  # damaged files make the libraries raise almost anything
        reason = " ".join(str(error).split())
        raise DataError(f"{key} {path.name}: cannot be read ({reason}). Check the path and format.") from error


def table_records(
    batches: Iterable[pa.Table | pa.RecordBatch], features: Features, unit: str
) -> Iterator[NumberedRecord]:
    """Records of Arrow batches, with ClassLabel columns (FAME's language) as their names."""
    labels = {name: kind.names for name, kind in features.items() if hasattr(kind, "names")}
    number = 0
    for batch in batches:
        batch.validate(full=True)  # offsets that lead outside a damaged batch would end the process
        for record in batch.to_pylist():
            number += 1
            for name, names in labels.items():
                index = record[name]
                record[name] = names[index] if index is not None and 0 <= index < len(names) else None
            yield unit, number, record


def _labels(schema: pa.Schema, file: str) -> Features:
    """The ClassLabel columns, by the metadata that `datasets` stores; it does not know every type of Arrow's.

    Raises DataError if a column is there twice.
    """
    import pyarrow as pa
    from datasets import ClassLabel, Features

    _refuse_twice(schema.names, file)
    stored = bounded_json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    kinds = (stored.get("info") or {}).get("features") or {}
    labels = Features()
    for column in schema:
        kind = kinds.get(column.name)
        if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and pa.types.is_integer(column.type):
            labels[column.name] = ClassLabel(names=kind["names"])
    return labels


def _refuse_twice(names: Sequence[str], where: str) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{where}: has the column {', '.join(twice):.200} twice. Rename one.")


def _parquet(path: Path) -> Iterator[NumberedRecord]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        features = _labels(file.schema_arrow, path.name)
        yield from table_records(file.iter_batches(BATCH, use_threads=False), features, f"{path.name}, row")


def _arrow(path: Path) -> Iterator[NumberedRecord]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        try:  # `datasets` writes streams; other programs also write the file format
            reader = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
            yield from table_records(batches, _labels(file.schema, path.name), f"{path.name}, row")
        else:
            yield from table_records(reader, _labels(reader.schema, path.name), f"{path.name}, row")


def _utf8(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}). Save the file as UTF-8."
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without the byte order mark that some editors write."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            yield number, _utf8(content, f"{path.name}, line {number}")


def _json_lines(path: Path) -> Iterator[NumberedRecord]:
    for number, line in _lines(path):
        if line.strip():
            yield f"{path.name}, line", number, _json(line, f"{path.name}, line {number}")


def _json_list(path: Path) -> Iterator[NumberedRecord]:
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    records = _json(_utf8(content, path.name), path.name)
    if isinstance(records, dict):
        raise ValueError(  # noqa: TRY004
            f"it holds an object with the keys {', '.join(map(repr, records))[:120]} and must hold a list of objects; "
            "a file with one object per line is JSON Lines, `.jsonl`"
        )
    if not isinstance(records, list):
        raise ValueError(f"it holds a {type(records).__name__} and must hold a list of objects")  # noqa: TRY004
    for number, record in enumerate(records, start=1):
        yield f"{path.name}, row", number, record


def _json(text: str, where: str) -> Any:
    def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            _refuse_twice([key for key, _ in pairs], where)
        return found

    try:
        return bounded_json.loads(text, unambiguous)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON ({error}). Correct it.") from error


def _csv(path: Path) -> Iterator[NumberedRecord]:
    _, header = next(_lines(path), (1, ""))
    if "," not in header and (found := next((name for sign, name in _SEPARATORS.items() if sign in header), None)):
        raise DataError(f"{path.name}: is separated by {found}, and only commas are read. Save it with commas.")
    if header and (not header.strip() or header.startswith("sep=")):
        said = f"is {header.strip()!r}" if header.strip() else "is empty"
        raise DataError(f"{path.name}: the first line names the columns, and here it {said}. Remove that line.")
    read = 1  # the reader counts only lines that it could take

    def lines() -> Iterator[str]:
        nonlocal read
        for number, line in _lines(path):
            read = number
            yield line

    try:
        yield from _csv_records(csv.DictReader(lines(), strict=True), path.name)
    except csv.Error as error:
        if "new-line character" in str(error):
            raise DataError(
                f"{path.name}, line {read}: has a carriage return where no line ends. Save the file with the line ends "
                "of Linux or Windows (LF or CRLF)."
            ) from error
        raise DataError(
            f"{path.name}, line {read}: {error}. Look for a quote that is not closed, in this line or one "
            f"before it; a cell may have {csv.field_size_limit():,} characters."
        ) from error


def _csv_records(reader: csv.DictReader[str], file: str) -> Iterator[NumberedRecord]:
    names = reader.fieldnames or []
    if "" in names:
        raise DataError(
            f"{file}, line 1: {names.count('')} of the {len(names)} columns have no name. Name or remove them."
        )
    _refuse_twice(names, f"{file}, line 1")
    for record in reader:
        where = f"{file}, line {reader.line_num}"
        if None in record:
            raise DataError(f"{where}: has more cells than the {len(names)} columns. Put texts with commas in quotes.")
        if None in record.values():
            raise DataError(f"{where}: has fewer cells than the {len(names)} columns. Add the missing cells.")
        yield f"{file}, line", reader.line_num, record


READERS = {".parquet": _parquet, ".arrow": _arrow, ".jsonl": _json_lines, ".json": _json_list, ".csv": _csv}
"""By the suffix of a file."""
