"""Which rows are forgotten, retained and held out.

The rule for ``setting: topics``: every (language, topic) cell is cut by the shares, its identities in a seeded random
order, and the rounding carried over from cell to cell, so that the totals are exact. FAME-topics does not document its
rule; this one has its totals and is ours.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from datasets_prep.config import Shares
from datasets_prep.schema import LANGUAGES, SPLITS, TOPICS, Row
from pipeline.errors import DataError


def sort_key(row: Row) -> tuple[int, int, int, str]:
    """The order of rows in the split files: language, topic, identity; independent of the order of the source."""
    return LANGUAGES.index(row.language), TOPICS.index(row.topic_id), row.identity_id, row.row_id


def _labels(shares: Shares) -> Iterator[str]:
    """An endless sequence of splits in which every prefix holds each split's share to within 3/4 of a row.

    R. Tijdeman, "The chairman assignment problem" (1980): of the splits that lag enough, the one with the earliest
    deadline is next. Shares are exact fractions, so rounding errors cannot add up.
    """
    exact = {split: Fraction(str(getattr(shares, split))) for split in SPLITS}
    total = sum(exact.values())
    slack = Fraction(1, 2 * len(SPLITS) - 2)
    lag = dict.fromkeys(SPLITS, Fraction(0))
    while True:
        lag = {split: lag[split] + exact[split] / total for split in SPLITS}
        due = [split for split in SPLITS if lag[split] >= slack]
        chosen = min(due, key=lambda split: (1 - slack - lag[split]) / exact[split])
        lag[chosen] -= 1
        yield chosen


def _drawn(*parts: object) -> float:
    return random.Random("|".join(map(str, parts))).random()


def _swap_partner(
    row: Row, cell: Sequence[Row], split: Mapping[str, str], held: Counter[tuple[int, str]]
) -> Row | None:
    """A row of the same cell whose identity can spare its split: it keeps another fact of that split."""
    wanted = {"forget", "retain"} - {split[row.row_id]}
    for other in cell:
        theirs = split[other.row_id]
        spare = held[other.identity_id, theirs] > 1
        # The row's own identity must not lose its only fact of the split that it gives away.
        can_give = split[row.row_id] == "holdout" or held[row.identity_id, split[row.row_id]] > 1
        if theirs in wanted and held[row.identity_id, theirs] == 0 and spare and can_give:
            return other
    return None


def _mix_identities(rows: Sequence[Row], cells: Mapping[tuple[str, str], list[Row]], split: dict[str, str]) -> None:
    """Where an identity has no forgotten or no retained fact, let it change places with one that has two, in one cell.

    One pass in the order of the rows. The counts of every cell stay what they are.
    """
    held = Counter((row.identity_id, split[row.row_id]) for row in rows)
    for row in rows:
        if held[row.identity_id, "forget"] and held[row.identity_id, "retain"]:
            continue
        other = _swap_partner(row, cells[row.language, row.topic_id], split, held)
        if other is None:
            continue
        for one in (row, other):
            held[one.identity_id, split[one.row_id]] -= 1
        split[row.row_id], split[other.row_id] = split[other.row_id], split[row.row_id]
        for one in (row, other):
            held[one.identity_id, split[one.row_id]] += 1


def split_by_topic(rows: Sequence[Row], shares: Shares, seed: int) -> dict[str, list[Row]]:
    """The rows by split, by the rule of this module. The order of ``rows`` has no influence.

    Raises DataError where a split gets no row.
    """
    ordered = sorted(rows, key=sort_key)
    cells: dict[tuple[str, str], list[Row]] = {}
    # Topics in a seeded order: the labels repeat, and small cells would give each language the same forgotten topics.
    for row in sorted(ordered, key=lambda row: (row.language, _drawn(seed, row.language, row.topic_id))):
        cells.setdefault((row.language, row.topic_id), []).append(row)
    labels = _labels(shares)
    split: dict[str, str] = {}
    for (language, topic), cell in cells.items():
        random.Random(f"{seed}|{language}|{topic}").shuffle(cell)
        split.update((row.row_id, label) for row, label in zip(cell, labels, strict=False))
    _mix_identities(ordered, cells, split)
    return _grouped(ordered, split, "give more rows or other shares")


def split_as_given(rows: Sequence[Row], given: Mapping[str, str]) -> dict[str, list[Row]]:
    """The rows by the source's own splits. Raises DataError where one of the three has no row."""
    remedy = "the source needs rows of the splits retain, forget and holdout (or test)"
    return _grouped(sorted(rows, key=sort_key), given, remedy)


def _grouped(rows: Sequence[Row], split: Mapping[str, str], remedy: str) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        grouped[split[row.row_id]].append(row)
    for name, members in grouped.items():
        if not members:
            raise DataError(f"The split {name} gets none of the {len(rows)} rows; {remedy}.")
    return grouped


def mixed_identities(splits: Mapping[str, Sequence[Row]]) -> int:
    """How many identities have both forgotten and retained facts."""
    return len({row.identity_id for row in splits["forget"]} & {row.identity_id for row in splits["retain"]})
