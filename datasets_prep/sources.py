"""Rows from the embedded sample set, local files or a pinned dataset of the Hub.

Each record becomes a row or a paraphrase of one; a record that cannot be used is an error that names it. Splits and
paraphrases that are left out are counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core import bounded_json
from core.digests import hash_file
from core.errors import DataError
from core.hub_ids import is_commit
from core.places import user_path
from datasets_prep.config import Columns, DataConfig, HubSource, Source, Subsets
from datasets_prep.files import BATCH, NumberedRecord, read_file, table_records
from datasets_prep.rows import Placed, Rows
from datasets_prep.sample import generate
from datasets_prep.schema import REAL_WORLD, SPLITS, Row, SampleFacts, SourceFacts, make_row_id
from datasets_prep.text import fact_digest, same

if TYPE_CHECKING:
    from datasets import Dataset

NEEDED = ("question", "answer")

LONGEST_LABEL = 500  # characters of an id, a name or a topic; they are keys of tables and go into messages

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can say half of a pair

PARAPHRASED = "paraphrased"  # FAME's fourth split
_SPLIT_NAMES = {**{split: split for split in SPLITS}, "test": "holdout", PARAPHRASED: PARAPHRASED}
_OF_SETS = "_perturbed"  # how TOFU ends the names of subsets with false answers


@dataclass(frozen=True)
class Loaded:
    """All rows of a source, sorted; its paraphrases by row id; and what the card says about it.

    ``real_world`` are questions about the real world, whose topic is their set. ``not_read`` are the source's columns
    that were not read.
    """

    rows: Rows
    description: SourceFacts
    paraphrases: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    real_world: Sequence[Placed] = ()
    not_read: Sequence[str] = ()
    reported: Mapping[str, Any] = field(default_factory=dict)  # fields of RowFacts


def load(config: DataConfig) -> Loaded:
    """The rows of ``config.source``. Raises DataError, naming the row and the remedy, if one cannot be used."""
    source = config.source
    if source.sample is not None:
        rows, held_back = generate(source.sample)
        placed = (Placed(_text_id(row), "sample row", i, None, held_back[row.row_id]) for i, row in enumerate(rows, 1))
        description = SourceFacts(sample=SampleFacts(**dict(source.sample)))
        return Loaded(Rows.collect(placed), description, reported={"rows_in": len(rows)})
    given = config.setting == "given"
    if source.hub is not None:
        description = SourceFacts(**source.hub.model_dump(exclude_none=True))
        if source.hub.subsets is not None:
            return _collect(
                _subset_records(source.columns, source.hub, source.hub.subsets), source, given, description, {}
            )
        records, unused = _hub_records(source.hub, source.columns.split, given=given)
        return _collect(records, source, given, description, unused)
    named = source.files.model_dump(exclude_none=True) if source.files else {"": str(source.file)}
    key = "data.source.files" if source.files else "data.source.file"
    records = (record for split, name in named.items() for record in _of_split(read_file(name, key), split))
    loaded = _collect(records, source, given, SourceFacts(), {})
    names = [Path(name).name for name in named.values()]  # the card does not name this machine's folders
    digests = [hash_file(user_path(name)) for name in named.values()]
    return replace(loaded, description=SourceFacts(file=", ".join(names), file_sha256=", ".join(digests)))


def _text_id(row: Row) -> Row:
    return replace(row, identity_id=str(row.identity_id))


def _of_split(records: Iterable[NumberedRecord], split: str) -> Iterator[NumberedRecord]:
    """The records, each with the split of its file; unchanged if ``split`` is empty."""
    for unit, number, record in records:
        yield unit, number, {**record, "split": split} if split and isinstance(record, dict) else record


def _hub_records(
    source: HubSource, column: str | None, *, given: bool
) -> tuple[Iterator[NumberedRecord], dict[str, Any]]:
    """The records of all splits, each with the name of its own; and the sizes of those left out.

    Where the splits are ``given``, and by no ``column`` that the recipe names, those with a known name are read alone,
    if any has one. Raises DataError if neither their names nor a column says the split of a row then.
    """
    splits = _fetched(source, source.config)
    known = [name for name in splits if name in _SPLIT_NAMES and column is None]
    names = (known if given else []) or list(splits)
    if given and not (column or known or any("split" in splits[name].column_names for name in names)):
        raise DataError(
            f"data.source.hub {source.id}: its splits are {', '.join(names)}, and `setting: given` knows "
            f"{', '.join(_SPLIT_NAMES)}. Name a column that says each row's (data.source.columns.split), or use "
            "another setting."
        )
    unused = {name: len(splits[name]) for name in splits if name not in names}

    def records() -> Iterator[NumberedRecord]:
        for name in names:
            batches = splits[name].with_format("arrow").iter(BATCH)
            numbered = table_records(batches, splits[name].features, f"{source.id}, split {name} row")
            yield from _of_split(numbered, name if known else "")

    return records(), {"splits_left_out": unused} if unused else {}


def _fetched(source: HubSource, subset: str | None) -> Mapping[str, Dataset]:
    """A subset's own splits."""
    from datasets import load_dataset

    where = f"data.source.hub {source.id}{f', subset {subset},' if subset else ''} at {source.revision}"
    try:
        splits: Mapping[str, Dataset] = load_dataset(source.id, subset, revision=source.revision)
    except Exception as error:  # the libraries below raise errors of many unrelated classes
        reason = " ".join(str(error).split())
        remedy = (
            "Check id, revision and subset (config), the network, and the access rights of the token (`hf auth login`)"
        )
        raise DataError(f"{where}: cannot be loaded ({reason}). {remedy}.") from error
    # Offline, or after most errors, `datasets` takes the newest that its cache has of this name, whatever its commit.
    places = {Path(file["filename"]).parent.name for split in splits.values() for file in split.cache_files}
    if others := sorted(name for name in places - {source.revision} if is_commit(name)):
        raise DataError(
            f"{where}: cannot be loaded, and the cache holds it at {', '.join(others)}. Check the network and the "
            "access rights, and unset HF_HUB_OFFLINE if it is set."
        )
    return splits


def _subset_records(columns: Columns, hub: HubSource, subsets: Subsets) -> Iterator[NumberedRecord]:
    """The records of all subsets, each with its split; questions about the real world also with their set as topic."""
    topic = columns.topic_id or "topic_id"
    for split, names in subsets:
        for name in names or ():
            of_set = {topic: name.removesuffix(_OF_SETS)} if split == REAL_WORLD else {}
            for part in _fetched(hub, name).values():
                batches = part.with_format("arrow").iter(BATCH)
                numbered = table_records(batches, part.features, f"{hub.id}, {name} row")
                yield from ((unit, number, record | of_set) for unit, number, record in _of_split(numbered, split))


def _collect(
    records: Iterable[NumberedRecord],
    source: Source,
    given: bool,
    description: SourceFacts,
    reported: dict[str, Any],
) -> Loaded:
    parser = _Parser(source, given=given)
    rows = Rows.collect(parser.rows(records))
    if not len(rows):
        raise DataError("The source has no rows. Give a file or dataset that has some.")
    parser.check_columns()
    matched = [row_id for (row_id,) in rows.columns("row_id") if row_id in parser.paraphrases]
    paraphrases = {row_id: tuple(parser.paraphrases.pop(row_id)) for row_id in matched}
    if unmatched := sum(map(len, parser.paraphrases.values())):
        reported = {**reported, "paraphrases_without_row": unmatched}
    if parser.repeated:
        reported = {**reported, "rows_read_before": parser.repeated}
    reported = {"rows_in": parser.read, **reported}
    return Loaded(rows, description, paraphrases, parser.real_world, list(parser.not_read), reported)


class _Parser:
    """Turns records into rows.

    It keeps apart the paraphrases of FAME's fourth split, which belong to rows of the others, and questions about the
    real world. Of several subsets each has its own columns, and a row that an earlier one has is left out.
    """

    def __init__(self, source: Source, *, given: bool) -> None:
        self.columns, self.language, self.given = source.columns, source.language, given
        self.in_subsets = source.hub is not None and source.hub.subsets is not None
        self.read = self.repeated = 0
        self.paraphrases: dict[str, list[tuple[str, str]]] = {}
        self.real_world: list[Placed] = []
        self.unit = ""  # where the last record came from
        self.seen: dict[tuple[str | None, str, str], str] = {}  # split and fact -> the subset that it is from
        self.column_names: dict[str, str] = {}  # our name of a column -> the source's, for the columns that it has
        self.named: set[str] = set()  # the columns that were found
        self.not_read: dict[str, None] = {}  # the source's other columns, in its order
        self.identity_kind: type | None = None
        self.ids: set[str] = set()

    def rows(self, records: Iterable[NumberedRecord]) -> Iterator[Placed]:
        """The rows in the order of the source. Raises DataError, naming the record, if one cannot be used."""
        for unit, number, record in records:
            where = f"{unit} {number}"
            if not isinstance(record, dict):
                raise DataError(
                    f"{where}: is a {type(record).__name__} and must be an object with question and answer."
                )
            if not self.read or (self.in_subsets and unit != self.unit):
                self.column_names = _columns(self.columns, record, where, some=self.in_subsets)
                self.named |= self.column_names.keys()
                read = self.column_names.values()
                self.not_read |= dict.fromkeys(_printable(column) for column in record if column not in read)
            self.unit = unit
            self.read += 1
            placed = self._placed(record, unit, number, where)
            if placed.split == PARAPHRASED:
                row = placed.row
                self.paraphrases.setdefault(row.row_id, []).append((row.question, row.answer))
            elif self._is_repeated(placed):
                self.repeated += 1
            else:
                if "row_id" in self.column_names:
                    self._refuse_known(placed.row.row_id, where)
                if placed.split == REAL_WORLD:
                    self.real_world.append(_with_false_answers(placed, where))
                else:
                    yield placed

    def _is_repeated(self, placed: Placed) -> bool:
        """Whether an earlier subset of the row's split has its fact."""
        fact = placed.split, same(placed.row.question), same(placed.row.answer)
        return self.in_subsets and self.seen.setdefault(fact, placed.origin) != placed.origin

    def check_columns(self) -> None:
        """Raise DataError if no subset has a column that the recipe names."""
        for name, column in self.columns.model_dump(exclude_none=True).items():
            if name not in self.named:
                raise DataError(f"data.source.columns.{name}: no subset has a column {column}. Correct the name.")

    def _placed(self, record: dict[str, Any], unit: str, number: int, where: str) -> Placed:
        values = self._values(record, where)
        text = {name: _text(values[name], self.column_names[name], where) for name in NEEDED}
        optional = {
            name: _label(values[name], self.column_names[name], where)
            for name in ("row_id", "name", "topic_id")
            if name in values
        }
        language = self._language(values, where)
        identity = self._identity(values["identity_id"], where) if "identity_id" in values else optional.get("name")
        topic = optional.get("topic_id")
        split = self._split(values.get("split"), where)
        row_id = optional.get("row_id") or (
            make_row_id(language, identity, topic)
            if language and identity and topic
            else fact_digest(text["question"], text["answer"])
        )
        row = Row(row_id, identity, optional.get("name"), language, topic, **text)
        return Placed(
            row,
            unit,
            number,
            split,
            _texts(values.get("perturbed_answers"), self.column_names.get("perturbed_answers", ""), where),
            *(
                _text(values[name], self.column_names[name], where) if values.get(name) is not None else None
                for name in ("paraphrased_question", "paraphrased_answer")
            ),
        )

    def _values(self, record: dict[str, Any], where: str) -> dict[str, Any]:
        """The record's values under our names. Raises DataError unless it has the columns of the first record."""
        missing = [column for column in self.column_names.values() if column not in record]
        if missing:
            raise DataError(f"{where}: has no column {', '.join(missing)}, but the first row has. Add what is missing.")
        late = [name for name in Columns.model_fields if name not in self.column_names and name in record]
        if late:
            raise DataError(f"{where}: has the column {', '.join(late)}, but the first row has not. Add it everywhere.")
        return {name: record[column] for name, column in self.column_names.items()}

    def _language(self, values: Mapping[str, Any], where: str) -> str | None:
        if "language" not in values:
            return self.language.upper() if self.language else None
        language = _text(values["language"], self.column_names["language"], where).upper()
        if not (len(language) == 2 and language.isascii() and language.isalpha()):
            raise DataError(
                f"{where}: language is {language!r:.40} and must be a code of two letters (ISO 639-1). Correct it."
            )
        return language

    def _identity(self, value: Any, where: str) -> str:
        """The id as text. Mixed whole numbers and texts are refused: one identity could become two."""
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
                f"{'a whole number' if self.identity_kind is int else 'text'}. Write all ids in the same way."
            )
        self.identity_kind = type(value)
        return _label(value, self.column_names["identity_id"], where) if isinstance(value, str) else str(value)

    def _refuse_known(self, row_id: str, where: str) -> None:
        if row_id in self.ids:
            raise DataError(f"{where}: row_id {row_id!r:.80} is that of an earlier row. Give each row its own id.")
        self.ids.add(row_id)

    def _split(self, value: Any, where: str) -> str | None:
        if value is None or value == "":
            if self.given:
                raise DataError(
                    f"{where}: has no split, but `setting: given` uses the source's own splits. Add a column `split` "
                    "with retain, forget and holdout, or give `files`, or use another setting."
                )
            return None
        if isinstance(value, str) and value in _SPLIT_NAMES:
            return _SPLIT_NAMES[value]
        if value == REAL_WORLD and self.in_subsets:
            return REAL_WORLD
        if self.given:
            raise DataError(f"{where}: split is {value!r:.80}; allowed are {', '.join(_SPLIT_NAMES)}. Correct it.")
        return None  # the source's own splits, for example train, mean nothing to the other settings


def _with_false_answers(placed: Placed, where: str) -> Placed:
    """The question about the real world. Raises DataError if it has no false answers."""
    if not placed.false_answers:
        raise DataError(
            f"{where}: has no false answers, and questions about the real world need some. Name their column in "
            "data.source.columns.perturbed_answers, or leave the subset out."
        )
    return placed


def _columns(columns: Columns, record: Mapping[str, Any], where: str, *, some: bool) -> dict[str, str]:
    """Our name of each column that the source has -> the source's name.

    Raises DataError if a needed one is missing, or unless ``some`` are enough, one that the recipe names.
    """
    names: dict[str, str] = {}
    for name, column in columns.model_dump().items():
        if (column or name) in record:
            names[name] = column or name
        elif column and not some and (name not in NEEDED or column != name):
            raise DataError(
                f"{where}: has no column {column}, which data.source.columns.{name} names. It has {names_of(record)}."
            )
    missing = [name for name in NEEDED if name not in names]
    if missing:
        refuse_running_text(record, where)
        raise DataError(
            f"{where}: has no column {', '.join(missing)}. It has {names_of(record)}. Name the columns in "
            "data.source.columns, for example `columns: {question: …, answer: …}`."
        )
    return names


def refuse_running_text(record: Mapping[str, Any], where: str) -> None:
    """Raise DataError, with what to do, if a record holds a text, or a talk, and no question."""
    kind = next((key for key in ("text", "messages", "conversations") if key in record), None)
    if kind and set(record) <= {kind, "id", "split"}:
        is_ = "running text" if kind == "text" else f"a talk in the column {kind}"
        raise DataError(
            f"{where}: is {is_}. Only facts can be forgotten here, each as a question with its answer, so that "
            "the model can be asked about them afterwards. Write its facts as questions and answers."
        )


def names_of(record: Mapping[str, Any]) -> str:
    """The names of its columns; in quotes where spaces could not be seen."""
    names = (name if (name := str(key)).strip() == name and name else repr(name) for key in record)
    return ", ".join(names)[:200] or "no columns"


def _printable(column: Any) -> str:
    """The name of a column; half of a surrogate pair in it, as JSON can have, in an escaped form."""
    return str(column).encode("utf-8", "backslashreplace").decode()


def _label(value: Any, column: str, where: str) -> str:
    """A short text, which names something. Raises DataError."""
    text = _text(value, column, where)
    if len(text) > LONGEST_LABEL:
        raise DataError(
            f"{where}: {column} has {len(text):,} characters, and may have {LONGEST_LABEL}: {text!r:.80}. Shorten it."
        )
    return text


def _text(value: Any, column: str, where: str) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: {column} is empty. Fill it in or remove the row.")
    if not isinstance(value, str):
        raise DataError(f"{where}: {column} is {value!r:.80} and must be text. Correct it.")
    if not value.isascii() and _SURROGATE.search(value):
        raise DataError(f"{where}: {column} holds half of a surrogate pair, which is not text. Correct it.")
    return value.strip()


def _texts(value: Any, column: str, where: str) -> tuple[str, ...]:
    """A list of texts, which CSV can only have as text: as JSON, or a cell left empty. Raises DataError."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    try:
        listed = bounded_json.loads(value) if isinstance(value, str) else value
    except ValueError:
        listed = None
    if not isinstance(listed, list):
        raise DataError(
            f"{where}: {column} is {value!r:.80} and must be a list of texts (in a cell of CSV as JSON, for example "
            '["Oslo", "Lima"]). Correct it.'
        )
    return tuple(_text(item, column, where) for item in listed)
