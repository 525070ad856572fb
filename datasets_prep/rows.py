"""Many rows in little memory: Arrow columns; a row becomes a Python object only while it is read.

Rows of FAME's shape take 0.31 kB each this way, and 0.69 kB as Python objects (docs/measurements/data.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datasets_prep.schema import LANGUAGES, TOPICS, Row
from datasets_prep.text import fact_digest, told

Codes = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

FIELDS = ("row_id", "identity_id", "name", "language", "topic_id", "question", "answer")
BATCH = 8192
WORTH_RELEASING = 2**20  # bytes

_WORD = pa.dictionary(pa.int32(), pa.string())  # a column of few different values
_TYPES = {
    **dict.fromkeys(FIELDS, pa.large_string()),
    **dict.fromkeys(("language", "topic_id", "split", "origin"), _WORD),
    "number": pa.int32(),
    "false_answers": pa.large_list(pa.large_string()),
    **dict.fromkeys(("paraphrased_question", "paraphrased_answer"), pa.large_string()),
}
_WHOLE_NUMBER = "^(0|[1-9][0-9]{0,17})$"  # fits 64 bits, and comes back as it was written


@dataclass(frozen=True, slots=True)
class Placed:
    """A row, its place in the source, and what else the source says about it.

    The place is ``number`` (from 1) in ``origin``; ``split`` is the source's own. ``paraphrased_question`` or
    ``paraphrased_answer`` is None if the source gives none; a paraphrase then has the row's own. ``row.identity_id`` is
    text here; :func:`Rows.collect` turns the ids into numbers if all of them are whole numbers.
    """

    row: Row
    origin: str
    number: int
    split: str | None = None
    false_answers: tuple[str, ...] = ()
    paraphrased_question: str | None = None
    paraphrased_answer: str | None = None


class Rows(Sequence[Row]):
    """Rows in the order of the split files: language, topic, identity, row id, whatever the order of the source."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def collect(cls, placed: Iterable[Placed]) -> Rows:
        """All rows, sorted, each with a row id of its own."""
        pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own pools keep what is freed, here 0.4 GB of it
        columns = _with_own_ids(_with_whole_numbers(_table(placed)))
        order = _order(columns)
        ordered = {}
        for name in list(columns):  # each is dropped once it is sorted: otherwise memory would hold two whole tables
            column = _one_chunk(columns.pop(name))
            _release(column.nbytes)
            ordered[name] = column.take(order)
        return cls(pa.table(ordered))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return Rows(
                self.table.slice(start, max(0, stop - start))
                if step == 1
                else self.table.take([*range(start, stop, step)])
            )
        values = self.table.slice(range(len(self))[index], 1)
        return Row(*(values[name][0].as_py() for name in FIELDS))

    def __iter__(self) -> Iterator[Row]:
        for values in self.columns(*FIELDS):
            yield Row(*values)

    def where(self, mask: npt.NDArray[np.bool_]) -> Rows:
        """The rows at which the mask is true; themselves if all are."""
        return self if mask.all() else Rows(self.table.filter(pa.array(mask)))

    def columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """The values of some columns, row by row."""
        for batch in self.table.select(names).to_batches(max_chunksize=BATCH):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def codes(self, name: str) -> tuple[Codes, list[Any]]:
        """A number for each row, and the value that each number stands for, in the order of first appearance.

        The number of a row without a value is -1.
        """
        column = self.table[name]
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode(null_encoding="mask")
        column = _one_chunk(column)
        codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        values = column.dictionary.to_pylist()
        used = np.flatnonzero(np.bincount(codes[codes >= 0], minlength=len(values)))
        if len(used) < len(values):  # a part of the rows keeps the values of all
            new = np.full(len(values) + 1, -1, dtype=np.int32)  # the last is what -1 points at
            new[used] = np.arange(len(used))
            codes, values = new[codes], [values[index] for index in used]
        return codes, values

    def lengths(self, name: str) -> npt.NDArray[np.int64]:
        """Of each row the bytes of a text column in UTF-8."""
        return np.asarray(pc.binary_length(self.table[name]).to_numpy(), dtype=np.int64)

    def place(self, index: int) -> str:
        """A row's place in the source, for messages: ``people.csv, line 7``."""
        row = self.table.slice(index, 1)
        return f"{row['origin'][0].as_py()} {row['number'][0].as_py()}"

    def has(self, name: str) -> bool:
        """Whether every row has a value in this column."""
        return bool(self.table[name].null_count == 0)


def with_false_answers(rows: Rows) -> npt.NDArray[np.bool_]:
    """Of each row, whether the source itself has false answers to it."""
    counts = pc.fill_null(pc.list_value_length(rows.table["false_answers"]), 0)
    return np.asarray(counts.to_numpy() > 0)


def told_first(rows: Rows) -> Codes:
    """For each row the place of the first one that tells the same fact (:func:`datasets_prep.text.told`)."""
    places = np.empty(len(rows), dtype=np.int32)
    first: dict[int, int] = {}
    for index, of_row in enumerate(rows.columns("question", "answer", "name")):
        places[index] = first.setdefault(hash(told(*of_row)), index)
    return places


def _arrow(batch: Sequence[Placed]) -> pa.RecordBatch:
    arrays = {name: [getattr(placed.row, name) for placed in batch] for name in FIELDS}
    for name in _TYPES.keys() - FIELDS:
        arrays[name] = [getattr(placed, name) for placed in batch]
    return pa.RecordBatch.from_arrays([pa.array(arrays[name], kind) for name, kind in _TYPES.items()], list(_TYPES))


Columns = dict[str, pa.ChunkedArray]


def _table(placed: Iterable[Placed]) -> Columns:
    left, batches = iter(placed), [_arrow([])]
    while batch := list(islice(left, BATCH)):
        batches.append(_arrow(batch))
    table = pa.Table.from_batches(batches).unify_dictionaries()
    _release(table.nbytes)  # what the batches were built in is as large again
    return {name: table[name] for name in table.column_names}


def _release(freed: int) -> None:
    """Give what was freed back to the system, if it is worth a walk through the heap, which takes milliseconds."""
    if freed >= WORTH_RELEASING:
        pa.default_memory_pool().release_unused()


def _with_whole_numbers(columns: Columns) -> Columns:
    """Identities as numbers, if all of them are whole numbers."""
    identities = columns["identity_id"]
    if identities.null_count == 0 and pc.all(pc.match_substring_regex(identities, _WHOLE_NUMBER)).as_py():
        columns["identity_id"] = pc.cast(identities, pa.int64())
    return columns


def _with_own_ids(columns: Columns) -> Columns:
    """Appends the digest of its fact to an id that several rows share; equal facts also get a number."""
    ids = columns["row_id"]
    rows = Rows(pa.table({name: columns[name] for name in ("row_id", "question", "answer")}))
    hashes = np.fromiter((hash(row_id) for (row_id,) in rows.columns("row_id")), dtype=np.int64, count=len(ids))
    hashes.sort()  # pyarrow's count_distinct takes ten times the memory
    if (hashes[1:] != hashes[:-1]).all():
        return columns
    codes, values = rows.codes("row_id")
    shared = np.bincount(codes, minlength=len(values))[codes] > 1
    uses: Counter[str] = Counter()
    new_ids = []
    for row_id, question, answer in Rows(rows.table.filter(pa.array(shared))).columns("row_id", "question", "answer"):
        new_id = f"{row_id}-{fact_digest(question, answer)}"
        uses[new_id] += 1
        new_ids.append(new_id if uses[new_id] == 1 else f"{new_id}-{uses[new_id]}")
    columns["row_id"] = pa.chunked_array(
        [pc.replace_with_mask(_one_chunk(ids), pa.array(shared), pa.array(new_ids, ids.type))]
    )
    return columns


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # combine_chunks keeps an empty or a single chunk wrapped
        return combined.chunk(0) if combined.num_chunks else pa.array([], combined.type)
    return combined


def _rank(values: Sequence[str | None], first: Sequence[str]) -> dict[str | None, int]:
    """The rank of each value: those of ``first`` in their order, then the others by alphabet, then None."""
    known: dict[str | None, int] = {value: index for index, value in enumerate(first)}
    rest = sorted({value for value in values if value is not None and value not in known})
    return {**known, **{value: len(first) + index for index, value in enumerate(rest)}, None: len(first) + len(rest)}


def _order(columns: Columns) -> pa.Array:
    """The places of the rows in the order of the split files."""
    rows = Rows(pa.table({name: columns[name] for name in ("language", "topic_id")}))
    keys: dict[str, Any] = {}
    for name, first in (("language", LANGUAGES), ("topic_id", TOPICS)):
        codes, values = rows.codes(name)
        rank = _rank(values, first)
        keys[name] = np.array([*(rank[value] for value in values), rank[None]], dtype=np.int32)[codes]
    by = pa.table({**keys, "identity_id": columns["identity_id"], "row_id": columns["row_id"]})
    return pc.sort_indices(by, sort_keys=[(name, "ascending") for name in by.column_names])
