"""What would make a release meaningless stops here; what is merely worth knowing is counted for ``checks.json``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from datasets_prep.schema import SPLITS, Row
from datasets_prep.sources import Placed
from pipeline.errors import DataError


def _same(text: str) -> str:
    """Texts that differ in nothing but case and spacing are the same question or answer."""
    return " ".join(text.split()).casefold()


def check_source(rows: Sequence[Placed], *, given: bool, allow_contradictions: bool) -> dict[str, int]:
    """Counts of what is odd in the source.

    Raises DataError for no rows, missing or unequal splits where they are ``given``, duplicated rows and, unless
    ``allow_contradictions``, for one question with two answers.
    """
    if not rows:
        raise DataError("The source has no rows. Give a file or dataset that has some.")
    if given:
        _check_given(rows)
    _check_duplicates(rows)
    contradictions = _contradictions(rows)
    if contradictions and not allow_contradictions:
        first, second = contradictions[0]
        raise DataError(
            f"{second.place}: asks the same question as {first.place} and answers it differently "
            f"({len(contradictions)} such rows in all), so no model can know both. Remove one, or accept them with "
            "`data.allow_contradictions: true`."
        )
    identities: dict[str, set[int]] = defaultdict(set)
    for placed in rows:
        identities[placed.row.name].add(placed.row.identity_id)
    return {
        "rows": len(rows),
        "contradictions": len(contradictions),
        "names_of_several_identities": sum(len(ids) > 1 for ids in identities.values()),
        "questions_without_name": sum(placed.row.name not in placed.row.question for placed in rows),
        "answers_without_name": sum(placed.row.name not in placed.row.answer for placed in rows),
    }


def _check_given(rows: Sequence[Placed]) -> None:
    """Every row has a split, and no fact is on both sides of the border."""
    facts: dict[str, dict[tuple[str, str], Placed]] = {split: {} for split in SPLITS}
    for placed in rows:
        if placed.split is None:
            raise DataError(
                f"{placed.place}: has no split, and `setting: given` takes the source's own. Add a column `split` with "
                "retain, forget and holdout, or use `setting: topics`."
            )
        facts[placed.split].setdefault((_same(placed.row.question), _same(placed.row.answer)), placed)
    forget, retain = facts["forget"], facts["retain"]
    if forget and forget.keys() == retain.keys():
        raise DataError(
            f"{next(iter(forget.values())).place}: the forget set equals the retain set ({len(forget)} facts, this is "
            "the first), and the same rows cannot be forgotten and retained. Give different splits."
        )
    for one, other in (("forget", "retain"), ("forget", "holdout"), ("retain", "holdout")):
        shared = [placed for fact, placed in facts[one].items() if fact in facts[other]]
        if shared:
            raise DataError(
                f"{shared[0].place}: this fact is in {one} and also in {other} ({len(shared)} such facts in all). "
                "Keep each fact in one split."
            )


def _check_duplicates(rows: Sequence[Placed]) -> None:
    facts: dict[tuple[str, str], Placed] = {}
    row_ids: dict[str, Placed] = {}
    for placed in rows:
        row = placed.row
        first = facts.setdefault((_same(row.question), _same(row.answer)), placed)
        if first is not placed:
            raise DataError(
                f"{placed.place}: repeats the question and the answer of {first.place}. Remove one of them."
            )
        first = row_ids.setdefault(row.row_id, placed)
        if first is not placed:
            raise DataError(
                f"{placed.place}: identity {row.identity_id} has a fact on {row.topic_id} in {row.language} already "
                f"({first.place}). Keep one for each identity, language and topic."
            )


def _contradictions(rows: Sequence[Placed]) -> list[tuple[Placed, Placed]]:
    """(first, later) for every later row that asks an earlier question; equal answers were refused before."""
    asked: dict[str, Placed] = {}
    pairs = [(asked.setdefault(_same(placed.row.question), placed), placed) for placed in rows]
    return [(first, placed) for first, placed in pairs if first is not placed]


def check_splits(splits: Mapping[str, Sequence[Row]]) -> dict[str, int]:
    """Counts of forget rows whose question, or whose answer, is also that of a retain row."""
    retained = {_same(row.question) for row in splits["retain"]}
    answers = {_same(row.answer) for row in splits["retain"]}
    return {
        "forget_questions_in_retain": sum(_same(row.question) in retained for row in splits["forget"]),
        "forget_answers_in_retain": sum(_same(row.answer) in answers for row in splits["forget"]),
    }
