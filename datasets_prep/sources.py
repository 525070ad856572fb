"""Rows from the embedded sample set, local files or a pinned dataset of the Hub.

No row is dropped: each becomes a row, a paraphrase of one, or an error that names it. What a source has beside them is
reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.digests import hash_file
from core.errors import DataError
from datasets_prep.config import Columns, DataConfig, HubSource, Source
from datasets_prep.files import BATCH, Record, read_file, table_records
from datasets_prep.rows import Placed, Rows
from datasets_prep.sample import generate
from datasets_prep.schema import SPLITS, Row, make_row_id
from datasets_prep.text import fact_digest

NEEDED = ("question", "answer")
OPTIONAL = ("row_id", "identity_id", "name", "language", "topic_id", "split")

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can say half of a pair

PARAPHRASED = "paraphrased"  # FAME's fourth split
_SPLIT_NAMES = {**{split: split for split in SPLITS}, "test": "holdout", PARAPHRASED: PARAPHRASED}


@dataclass(frozen=True)
class Loaded:
    """All rows of a source, sorted; its paraphrases by row id; and what the card says of it."""

    rows: Rows
    description: dict[str, Any]
    paraphrases: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    reported: Mapping[str, Any] = field(default_factory=dict)


def load(config: DataConfig) -> Loaded:
    """The rows of ``config.source``. Raises DataError, naming the row and the remedy, if it cannot be used."""
    source = config.source
    if source.sample is not None:
        rows, held_back = generate(source.sample)
        placed = (Placed(_text_id(row), "sample row", i, None, held_back[row.row_id]) for i, row in enumerate(rows, 1))
        return Loaded(Rows.collect(placed), {"sample": source.sample.model_dump()}, reported={"rows_in": len(rows)})
    given = config.setting == "given"
    if source.hub is not None:
        records, unused = _hub_records(source.hub, given=given)
        return _collect(records, source, given, source.hub.model_dump(exclude_none=True), unused)
    named = source.files.model_dump(exclude_none=True) if source.files else {"": str(source.file)}
    key = "data.source.files" if source.files else "data.source.file"
    records = (record for split, name in named.items() for record in _of_split(read_file(name, key), split))
    loaded = _collect(records, source, given, {}, {})
    names = [Path(name).name for name in named.values()]  # a card says nothing of this machine's folders
    digests = [hash_file(Path(name).expanduser()) for name in named.values()]
    return replace(loaded, description={"file": ", ".join(names), "file_sha256": ", ".join(digests)})


def _text_id(row: Row) -> Row:
    return replace(row, identity_id=str(row.identity_id))


def _of_split(records: Iterable[Record], split: str) -> Iterator[Record]:
    """The records, with the split of their file where there is one a split."""
    for unit, number, record in records:
        yield unit, number, {**record, "split": split} if split and isinstance(record, dict) else record


def _hub_records(source: HubSource, *, given: bool) -> tuple[Iterator[Record], dict[str, Any]]:
    """The records of all splits that we know, or of all there are; and the sizes of the splits left out."""
    from datasets import load_dataset

    where = f"data.source.hub {source.id} at {source.revision}"
    try:
        splits = load_dataset(source.id, source.config, revision=source.revision)
    except Exception as error:  # the libraries below raise errors of many unrelated classes
        reason = " ".join(str(error).split())
        remedy = "Check id and revision, the network, and the access rights of the token (`hf auth login`)"
        raise DataError(f"{where}: cannot be loaded ({reason}). {remedy}.") from error
    names = [name for name in splits if name in _SPLIT_NAMES] or ([] if given else list(splits))
    unused = {name: len(splits[name]) for name in splits if name not in names}

    def records() -> Iterator[Record]:
        for name in names:
            batches = splits[name].with_format("arrow").iter(BATCH)
            found = table_records(batches, splits[name].features, f"{source.id}, split {name} row")
            yield from _of_split(found, name if name in _SPLIT_NAMES else "")

    return records(), {"splits_left_out": unused} if unused else {}


def _collect(
    records: Iterable[Record], source: Source, given: bool, description: dict[str, Any], reported: dict[str, Any]
) -> Loaded:
    parser = _Parser(source, given=given)
    rows = Rows.collect(parser.rows(records))
    if not len(rows):
        raise DataError("The source has no rows. Give a file or dataset that has some.")
    found = [row_id for (row_id,) in rows.columns("row_id") if row_id in parser.paraphrases]
    paraphrases = {row_id: tuple(parser.paraphrases.pop(row_id)) for row_id in found}
    if unmatched := sum(map(len, parser.paraphrases.values())):
        reported = {**reported, "paraphrases_without_row": unmatched}
    return Loaded(rows, description, paraphrases, {"rows_in": parser.read, **reported})


class _Parser:
    """Records in, rows out; remembers the paraphrases of FAME's own split, which belong to rows of the others."""

    def __init__(self, source: Source, *, given: bool) -> None:
        self.columns, self.language, self.given = source.columns, source.language, given
        self.read = 0
        self.paraphrases: dict[str, list[tuple[str, str]]] = {}
        self.theirs: dict[str, str] = {}  # our name of a column to the source's, for those that it has
        self.identity_kind: type | None = None
        self.ids: set[str] = set()

    def rows(self, records: Iterable[Record]) -> Iterator[Placed]:
        """The rows in the order of the source. Raises DataError naming the record that is not one."""
        for unit, number, record in records:
            where = f"{unit} {number}"
            if not isinstance(record, dict):
                raise DataError(
                    f"{where}: is a {type(record).__name__} and must be an object with question and answer."
                )
            if not self.read:
                self.theirs = _columns(self.columns, record, where)
            self.read += 1
            placed = self._placed(record, unit, number, where)
            if placed.split == PARAPHRASED:
                row = placed.row
                self.paraphrases.setdefault(row.row_id, []).append((row.question, row.answer))
            else:
                yield placed

    def _placed(self, record: dict[str, Any], unit: str, number: int, where: str) -> Placed:
        values = self._values(record, where)
        text = {name: _text(values[name], self.theirs[name], where) for name in NEEDED}
        given = {
            name: _text(values[name], self.theirs[name], where)
            for name in ("row_id", "name", "topic_id")
            if name in values
        }
        language = self._language(values, where)
        identity = self._identity(values["identity_id"], where) if "identity_id" in values else given.get("name")
        topic = given.get("topic_id")
        row_id = self._row_id(given.get("row_id"), where) or (
            make_row_id(language, identity, topic)
            if language and identity and topic
            else fact_digest(text["question"], text["answer"])
        )
        row = Row(row_id, identity, given.get("name"), language, topic, **text)
        return Placed(
            row,
            unit,
            number,
            self._split(values.get("split"), where),
            _texts(values.get("perturbed_answers"), self.theirs.get("perturbed_answers", ""), where),
            *(
                _text(values[name], self.theirs[name], where) if values.get(name) is not None else None
                for name in ("paraphrased_question", "paraphrased_answer")
            ),
        )

    def _values(self, record: dict[str, Any], where: str) -> dict[str, Any]:
        """The record under our names; every record must have the columns of the first."""
        missing = [theirs for theirs in self.theirs.values() if theirs not in record]
        if missing:
            raise DataError(f"{where}: has no column {', '.join(missing)}, and the first row has. Add what is missing.")
        late = [name for name in OPTIONAL if name not in self.theirs and name in record]
        if late:
            raise DataError(f"{where}: has the column {', '.join(late)}, and the first row has not. Add it everywhere.")
        return {ours: record[theirs] for ours, theirs in self.theirs.items()}

    def _language(self, values: Mapping[str, Any], where: str) -> str | None:
        if "language" not in values:
            return self.language.upper() if self.language else None
        language = _text(values["language"], self.theirs["language"], where).upper()
        if not (len(language) == 2 and language.isascii() and language.isalpha()):
            raise DataError(f"{where}: language is {language!r:.40} and must be a code of two letters (ISO 639-1).")
        return language

    def _identity(self, value: Any, where: str) -> str:
        """The id as text. Whole numbers and texts in one source would make of one identity two."""
        if (
            isinstance(value, bool)
            or not isinstance(value, int | str)
            or (isinstance(value, int) and not 0 <= value < 10**18)
        ):
            raise DataError(
                f"{where}: identity_id is {value!r:.80} and must be text or a whole number of at least 0. Correct it."
            )
        if self.identity_kind not in (None, type(value)):
            raise DataError(
                f"{where}: identity_id is {value!r:.80}, a {type(value).__name__}, and in earlier rows it is "
                f"{'a whole number' if self.identity_kind is int else 'text'}. Write all in one way."
            )
        self.identity_kind = type(value)
        return _text(value, self.theirs["identity_id"], where) if isinstance(value, str) else str(value)

    def _row_id(self, value: str | None, where: str) -> str | None:
        if value in self.ids:
            raise DataError(f"{where}: row_id {value!r:.80} stands in an earlier row. Give each row an id of its own.")
        if value is not None:
            self.ids.add(value)
        return value

    def _split(self, value: Any, where: str) -> str | None:
        if value is None or value == "":
            if self.given:
                raise DataError(
                    f"{where}: has no split, and `setting: given` takes the source's own. Add a column `split` with "
                    "retain, forget and holdout, or give `files`, or use another setting."
                )
            return None
        if isinstance(value, str) and value in _SPLIT_NAMES:
            return _SPLIT_NAMES[value]
        if self.given:
            raise DataError(f"{where}: split is {value!r:.80}; allowed are {', '.join(_SPLIT_NAMES)}. Correct it.")
        return None  # the source's own splits, for example train, mean nothing to the other settings


def _columns(columns: Columns, record: Mapping[str, Any], where: str) -> dict[str, str]:
    """Our names of the columns that the source has, to its own. Raises DataError if a needed one is missing."""
    theirs: dict[str, str] = {}
    for ours, name in columns.model_dump().items():
        if (name or ours) in record:
            theirs[ours] = name or ours
        elif name and (ours not in NEEDED or name != ours):
            raise DataError(
                f"{where}: has no column {name}, which data.source.columns.{ours} names. It has {_listed(record)}."
            )
    missing = [name for name in NEEDED if name not in theirs]
    if missing and set(record) <= {"text", "id", "split"} and "text" in record:
        raise DataError(
            f"{where}: is running text. What is forgotten here are facts, each a question with its answer, because "
            "only they can be asked for afterwards; write the text's facts as questions and answers."
        )
    if missing:
        raise DataError(
            f"{where}: has no column {', '.join(missing)}. It has {_listed(record)}; say which is which with "
            "data.source.columns, for example `columns: {question: …, answer: …}`."
        )
    return theirs


def _listed(record: Mapping[str, Any]) -> str:
    return ", ".join(map(str, record))[:200] or "no columns"


def _text(value: Any, column: str, where: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: {column} is empty. Fill it in or remove the row.")
    if not isinstance(value, str):
        raise DataError(f"{where}: {column} is {value!r:.80} and must be text. Correct it.")
    if not value.isascii() and _SURROGATE.search(value):
        raise DataError(f"{where}: {column} holds half of a surrogate pair, which is not text. Correct it.")
    return value.strip()


def _texts(value: Any, column: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{where}: {column} is {value!r:.80} and must be a list of texts. Correct it.")
    return tuple(_text(item, column, where) for item in value)
