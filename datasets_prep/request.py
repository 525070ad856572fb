"""Rows that the recipe selects: those to be forgotten (``setting: request``), or the part that is used (``part``)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import DataError
from datasets_prep.config import DataConfig, Part, Request, Selection
from datasets_prep.files import read_file
from datasets_prep.rows import Mask, Rows, told_first
from datasets_prep.schema import EARLIER, FORGET, HOLDOUT, RETAIN
from datasets_prep.text import same, same_name

_NAMED = 5  # cases that a message names


def of_part(rows: Rows, part: Part) -> Rows:
    """The rows of ``part``. Raises DataError if a value of it matches no row, or no row meets all of its keys."""
    mask = np.ones(len(rows), dtype=np.bool_)
    for name, values, fold in (("topic_id", part.topics, str), ("language", part.languages, str.upper)):
        if values is not None:
            mask &= _in_columns(rows, {name: fold}, values, f"data.part.{name.removesuffix('_id')}s")
    if part.identities is not None:
        mask &= _first_identities(rows, part.identities)
    if not mask.any():
        raise DataError("data.part: no row meets all of its keys together. Correct it, or remove it.")
    return Rows(rows.table.filter(pa.array(mask)))


def _first_identities(rows: Rows, count: int) -> Mask:
    """The rows of the first ``count`` identities of each language."""
    if not rows.has("identity_id"):
        raise DataError("data.part.identities: the source has no identities. Name their column, or remove the key.")
    language, languages = rows.codes("language")
    identity, _ = rows.codes("identity_id")
    by_id = np.argsort(np.asarray(pc.rank(rows.table["identity_id"], tiebreaker="first")))
    mask = np.zeros(len(rows), dtype=np.bool_)
    for code in range(-1, len(languages)):
        of_language = by_id[language[by_id] == code]
        chosen = list(dict.fromkeys(identity[of_language].tolist()))[:count]
        mask |= np.isin(identity, chosen) & (language == code)
    return mask


def by_request(rows: Rows, config: DataConfig) -> npt.NDArray[np.int8]:
    """The split of every row, as indices into SPLITS; EARLIER stands for the rows that are forgotten already.

    Raises DataError if a value of a selection matches no row, if the request matches all rows or only forgotten ones,
    or if holdout overlaps with forget or forgotten.
    """
    request = config.request
    assert isinstance(request, Request)  # noqa: S101 (the config requires it)
    forget = _selected(rows, request.forget, config, "data.request.forget")
    if forget.all():
        raise DataError(
            f"data.request.forget matches all {len(rows)} rows, so nothing would be retained. Give rows to keep: "
            "without them a model that forgot cannot be told from one that was destroyed."
        )
    split = np.where(forget, FORGET, RETAIN).astype(np.int8)
    if request.forgotten is not None:
        split[_selected(rows, request.forgotten, config, "data.request.forgotten")] = EARLIER
        if not (split == FORGET).any():
            raise DataError(
                f"data.request.forget matches {int(forget.sum())} rows, and all of them are in data.request.forgotten: "
                "they were forgotten before. Ask for other rows."
            )
    if request.holdout is not None:
        split[_holdout(rows, request.holdout, split, config)] = HOLDOUT
    return split


def _holdout(
    rows: Rows, requested: Sequence[Selection] | float, split: npt.NDArray[np.int8], config: DataConfig
) -> Mask:
    if isinstance(requested, float):
        return _drawn(rows, requested, split == RETAIN, config.seed)
    held = _selected(rows, requested, config, "data.request.holdout")
    for name, code in (("forget", FORGET), ("forgotten", EARLIER)):
        both = held & (split == code)
        if both.any():
            raise DataError(
                f"data.request: {int(both.sum())} rows are in {name} and in holdout, for example "
                f"{rows.place(int(both.argmax()))}. A holdout row must never be trained on. Remove it from one of the "
                "two."
            )
    return held


def _drawn(rows: Rows, share: float, free: Mask, seed: int) -> Mask:
    """A share of the free rows: whole identities that have only free rows or, if these miss it by half, whole facts.

    A fact is told by one row or, in other words, by several. Where facts miss the share too, single rows are drawn.
    """
    goal = round(share * int(free.sum()))
    held = np.zeros(len(rows), dtype=np.bool_)
    if rows.has("identity_id"):
        identity, _ = rows.codes("identity_id")
        whole = np.setdiff1d(identity[free], identity[~free])  # a request for a topic touches everybody
        if int(np.isin(identity, whole).sum()) > goal:
            held = units_drawn(identity, whole, goal, f"{seed}|holdout")
    for units in (told_first(rows), np.arange(len(rows), dtype=np.int32)):
        if abs(int(held.sum()) - goal) > goal / 2:
            whole = np.setdiff1d(units[free], units[~free])
            held = units_drawn(units, whole, goal, f"{seed}|holdout")
    if not held.any() or int(held.sum()) == int(free.sum()):
        raise DataError(
            f"data.request.holdout: a share of {share:g} of the {int(free.sum())} rows that are not forgotten leaves "
            "no rows for holdout or for retain. Give another share or selections, or remove the key."
        )
    return held


def units_drawn(units: npt.NDArray[np.int32], candidates: npt.NDArray[Any], goal: int, seed: str) -> Mask:
    """Rows of randomly drawn units, about as many as the goal: one that would lead further away is not taken."""
    order = candidates.tolist()
    random.Random(seed).shuffle(order)
    sizes = np.bincount(units, minlength=int(units.max()) + 1)
    held = []
    for unit in order:
        if sizes[unit] < 2 * goal:
            held.append(unit)
            goal -= int(sizes[unit])
    return np.isin(units, held)


def _selected(rows: Rows, selections: Sequence[Selection], config: DataConfig, key: str) -> Mask:
    selected = np.zeros(len(rows), dtype=np.bool_)
    for index, selection in enumerate(selections):
        path = f"{key}[{index}]"
        mask = _matches(rows, selection, config, path)
        if not mask.any():
            raise DataError(f"{path}: no row meets all of its keys together. Correct it, or make two selections.")
        selected |= mask
    return selected


def _matches(rows: Rows, selection: Selection, config: DataConfig, path: str) -> Mask:
    """The rows that meet every key of one selection. Each single value must match at least one row."""
    mask = np.ones(len(rows), dtype=np.bool_)
    if selection.identities is not None:
        columns: dict[str, Callable[[str], str]] = {"identity_id": str, "name": same_name}
        mask &= _in_columns(rows, columns, selection.identities, f"{path}.identities")
    for name, values, fold in (
        ("topic_id", selection.topics, str),
        ("language", selection.languages, str.upper),
        ("row_id", selection.rows, str),
    ):
        if values is not None:
            mask &= _in_columns(rows, {name: fold}, values, f"{path}.{name.removesuffix('_id')}s")
    if selection.file is not None:
        mask &= _in_file(rows, selection.file, config, f"{path}.file")
    return mask


def _in_columns(rows: Rows, columns: Mapping[str, Callable[[str], str]], requested: Sequence[Any], path: str) -> Mask:
    """The rows with a requested value in one of the columns, as the column's function folds both."""
    folds = {name: fold for name, fold in columns.items() if rows.has(name)}
    if not folds:
        raise DataError(f"{path}: the source has no such column. Name it in data.source.columns, or select by `file`.")
    missing = {str(value).strip() for value in requested}
    mask, source_texts = np.zeros(len(rows), dtype=np.bool_), set[str]()
    wanted = {name: {fold(text) for text in missing} for name, fold in folds.items()}
    for name, fold in folds.items():
        codes, values = rows.codes(name)
        texts = [fold(str(value)) for value in values]
        known = set(texts)
        mask |= np.array([text in wanted[name] for text in texts], dtype=np.bool_)[codes]
        missing -= {text for text in missing if fold(text) in known}
        source_texts.update(map(str, values))
    if missing:
        from difflib import get_close_matches

        near = get_close_matches(min(missing), sorted(source_texts)[:10_000], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        if "row_id" in columns:
            hint += (
                " Where no column `row_id` gives them, ids hang on the rows' language too; `data inspect` shows them."
            )
        raise DataError(f"{path}: {_named(sorted(missing))} is in no row of the source.{hint} Correct it or remove it.")
    return mask


Listed = tuple[str, str | None, tuple[Any, Any]]
"""A row of a file that lists rows: its place there, its id if it has one, and its question and answer."""


def _listed(name: str, config: DataConfig, path: str) -> list[Listed]:
    """The rows that a file lists. Its columns are called as the source's, or as ours in the files of an earlier run.

    Raises DataError if one names no row, or there are none.
    """
    columns = config.source.columns
    by_id = columns.row_id or "row_id"
    names = ((by_id, "row_id"), (columns.question, "question"), (columns.answer, "answer"))
    listed: list[Listed] = []
    for unit, number, record in read_file(name, path):
        place = f"{unit} {number}"
        if not isinstance(record, dict):
            raise DataError(f"{place}: is a {type(record).__name__} and must be an object.")
        row_id, *texts = (record.get(theirs, record.get(ours)) for theirs, ours in names)
        given_id = row_id.strip() if isinstance(row_id, str) and row_id.strip() else None
        said = texts[0], texts[1]
        if given_id is None and _fact(said) is None:
            raise DataError(
                f"{place}: names no row. Give {by_id}, or {columns.question} and {columns.answer}, as text."
            )
        listed.append((place, given_id, said))
    if not listed:
        raise DataError(f"{path}: the file has no rows. Give the rows to forget.")
    return listed


def _fact(said: tuple[Any, Any]) -> tuple[str, str] | None:
    question, answer = said
    return (same(question), same(answer)) if isinstance(question, str) and isinstance(answer, str) else None


def _in_file(rows: Rows, name: str, config: DataConfig, path: str) -> Mask:
    """The rows that a file lists, matched by row id if a row has the file's, else by question and answer.

    Raises DataError if an id is that of a row with another question or answer: ids of another export may count other
    rows.
    """
    listed = _listed(name, config, path)
    ids = {given_id for _, given_id, _ in listed}
    there = {row_id: texts for row_id, *texts in rows.columns("row_id", "question", "answer") if row_id in ids}
    for place, given_id, texts in listed:
        if given_id in there:
            _refuse_another(place, config.source.columns.row_id or "row_id", texts, there[given_id])
    # A row that shares its id by now with a new row of the source has another one.
    keys: list[Any] = [given_id if given_id in there else _fact(said) or given_id for _, given_id, said in listed]
    wanted, has_facts = set(keys), any(isinstance(key, tuple) for key in keys)
    mask = np.zeros(len(rows), dtype=np.bool_)
    matched: set[Any] = set()
    for index, (row_id, question, answer) in enumerate(rows.columns("row_id", "question", "answer")):
        found = wanted.intersection([row_id, (same(question), same(answer))] if has_facts else [row_id])
        mask[index] = bool(found)
        matched |= found
    if missing := [place for (place, _, _), key in zip(listed, keys, strict=True) if key not in matched]:
        remedy = "Write each row as the source has it, word for word"
        if path.startswith("data.request.forgotten"):
            remedy += (
                "; what was deleted there has to be in it for this run, which measures it and trains on none of it"
            )
        raise DataError(f"{path}: {len(missing)} of its rows are not in the source: {_named(missing)}. {remedy}.")
    return mask


def as_released(forgotten: Rows, config: DataConfig) -> Rows:
    """The forgotten rows with the ids that the files of ``data.request.forgotten`` give them.

    A row that shares its id by now with a new row of the source has another one, and the release that was made to
    forget it knows it by the first.
    """
    own, earlier = {row_id for (row_id,) in forgotten.columns("row_id")}, dict[Any, str]()
    selections = (config.request and config.request.forgotten) or []
    for index, selection in enumerate(selections):
        if selection.file is not None:
            listed = _listed(selection.file, config, f"data.request.forgotten[{index}].file")
            earlier |= {_fact(said): given_id for _, given_id, said in listed if given_id and given_id not in own}
    if not earlier:
        return forgotten
    rows = forgotten.columns("row_id", "question", "answer")
    ids = [earlier.get((same(question), same(answer)), row_id) for row_id, question, answer in rows]
    place = forgotten.table.column_names.index("row_id")
    return Rows(forgotten.table.set_column(place, "row_id", pa.array(ids, forgotten.table["row_id"].type)))


def _refuse_another(place: str, by_id: str, listed: Sequence[Any], own: Sequence[str]) -> None:
    """Raise DataError if a text that is listed with the id of a row is not that row's own."""
    for what, text, other in zip(("question", "answer"), listed, own, strict=True):
        if isinstance(text, str) and text.strip() and same(text) != same(other):
            asked = f": it asks {text!r:.120}, and that row {other!r:.120}" if what == "question" else ""
            raise DataError(
                f"{place}: has the {by_id} of a row with another {what}{asked}. Remove the column {by_id}, or correct "
                "it."
            )


def _named(values: Sequence[str]) -> str:
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return ", ".join(map(repr, values[:_NAMED])) + more
