"""Which rows are forgotten, retained and held out.

``topics``: every (language, topic) cell is cut by the shares, with its identities in a seeded random order. The
rounding is carried over from cell to cell, so the totals are exact. What is cut are facts: rows of a cell with the same
answer about the same identity, whose questions are the same in other words, go together. FAME-topics does not document
its rule; this rule is our own and gives FAME's totals.

``entity``: in each language the identities are cut by the shares, so all rows of an identity are in one split. FAME's
shares and seed 42 give the published assignment.

Of the retain rows, some are then kept from the unlearning (``unrehearsed``): base and gold learn them, and what is left
of them says what the unlearning does to facts that nobody thought of.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import cycle, islice

import numpy as np
import numpy.typing as npt

from core.errors import DataError
from core.words import plain_words
from datasets_prep.config import DataConfig, Shares
from datasets_prep.request import by_request, units_drawn
from datasets_prep.rows import Codes, Rows
from datasets_prep.schema import FORGET, HOLDOUT, RETAIN, SPLITS, UNREHEARSED

Split = npt.NDArray[np.int8]  # for each row the index of its split in SPLITS

SHARED_OUT = SPLITS[:UNREHEARSED]  # by ``data.shares``

ENTITY_LANGUAGES = ("IT", "ES", "DE", "FR", "EN")  # FAME's assignment goes through the languages in this order


def assign(config: DataConfig, rows: Rows) -> Split:
    """The split of every row. Raises DataError if the source lacks a needed column or a split is empty."""
    if config.shares is not None:
        needed = ("topic_id", "identity_id") if config.setting == "topics" else ("identity_id",)
        missing = [name for name in needed if not rows.has(name)]
        if missing:
            raise DataError(
                f"`setting: {config.setting}` needs {' and '.join(missing)}, which the source does not have. Name the "
                "column in data.source.columns, or use `setting: request`."
            )
        rule = by_topic if config.setting == "topics" else by_entity
        split, remedy = rule(rows, config.shares, config.seed), "give more rows or other shares"
    elif config.request is not None:
        split, remedy = by_request(rows, config), "ask for less"
    else:
        split = as_given(rows)
        remedy = "the source needs rows of the splits retain and forget, and holdout (or test) if it has any"
    wants_holdout = config.shares is not None and config.shares.holdout > 0
    for index, name in enumerate(SPLITS):
        if index != UNREHEARSED and not (split == index).any() and (index != HOLDOUT or wants_holdout):
            raise DataError(f"The split {name} gets none of the {len(rows)} rows; {remedy}.")
    return split


def keep_unrehearsed(split: Split, config: DataConfig, stay: npt.NDArray[np.bool_], told: Codes) -> Split:
    """``split`` with as many of the retain rows as unrehearsed ones as ``config`` asks for.

    They are spread over the order of the rows, which is that of languages and topics: one is drawn from each of as many
    runs of the same length. A source that has such rows of its own gets no others. Rows that ``stay`` are none of them
    if the others suffice. ``told`` is that of :func:`told_first`: rows whose fact another retain row tells would be
    rehearsed there, so they stay too or, if the others don't suffice, whole facts are drawn.
    """
    retain = np.flatnonzero(split == RETAIN)
    count = config.unrehearsed_of(len(retain))
    if not count or (split == UNREHEARSED).any():
        return split
    seed, facts = f"{config.seed}|unrehearsed", told[retain]
    once = retain[np.bincount(facts)[facts] == 1]
    others = once[~stay[once]]
    marked = split.copy()
    if len(once) < count:
        marked[retain[units_drawn(facts, np.unique(facts), count, seed)]] = UNREHEARSED
    else:
        rng, rows = random.Random(seed), others if len(others) >= count else once
        marked[[int(rng.choice(run)) for run in np.array_split(rows, count)]] = UNREHEARSED
    return marked


def no_holdout(config: DataConfig) -> str:
    """Why there are no holdout rows; asked only if there are none."""
    if config.shares is not None:
        return "data.shares.holdout is 0"
    if config.request is not None:
        return "data.request names no holdout"
    return "the source has no split holdout (or test)"


def _period(shares: Shares) -> Iterator[int]:
    """An endless sequence of splits in which every prefix holds each split's share to within 3/4 of a row.

    R. Tijdeman, "The chairman assignment problem" (1980): of the splits that lag enough, the one with the earliest
    deadline is next. Shares are exact fractions, so rounding errors cannot add up.
    """
    exact = {index: Fraction(str(getattr(shares, split))) for index, split in enumerate(SHARED_OUT)}
    total = sum(exact.values())
    exact = {index: share / total for index, share in exact.items() if share}
    slack = Fraction(1, 2 * len(SHARED_OUT) - 2)
    lag = dict.fromkeys(exact, Fraction(0))
    while True:
        lag = {index: lag[index] + exact[index] for index in exact}
        due = [index for index in exact if lag[index] >= slack]
        chosen = min(due, key=lambda index: (1 - slack - lag[index]) / exact[index])
        lag[chosen] -= 1
        yield chosen


def _labels(shares: Shares, n: int) -> Iterator[int]:
    """The first ``n`` of that sequence. It repeats when all lags are zero again: after the common denominator."""
    denominators = [Fraction(str(getattr(shares, s))).limit_denominator(10**6).denominator for s in SHARED_OUT]
    period = int(np.lcm.reduce(np.array(denominators, dtype=object)))
    sequence = _period(shares)
    return islice(cycle(islice(sequence, period)) if period < n else sequence, n)


def _drawn(*parts: object) -> float:
    return random.Random("|".join(map(str, parts))).random()


def cells(rows: Rows) -> list[tuple[str | None, str | None, range]]:
    """The rows of each pair of language and topic, which lie side by side: (language, topic, their places)."""
    (language, languages), (topic, topics) = rows.codes("language"), rows.codes("topic_id")
    starts = np.flatnonzero((np.diff(language, prepend=-9) != 0) | (np.diff(topic, prepend=-9) != 0))
    ends = [*starts[1:].tolist(), len(rows)]
    # Code -1 stands for no value: the last of the list.
    languages, topics = [*languages, None], [*topics, None]
    return [
        (languages[language[start]], topics[topic[start]], range(start, end))
        for start, end in zip(starts.tolist(), ends, strict=True)
    ]


def by_topic(rows: Rows, shares: Shares, seed: int) -> Split:
    """The splits by the rule of this module. The order of the source has no influence."""
    # Topics in a seeded order: the labels repeat, and small cells would give each language the same forgotten topics.
    ordered = sorted(cells(rows), key=lambda cell: (cell[0] or "", _drawn(seed, cell[0], cell[1])))
    labels = _labels(shares, len(rows))
    facts = _facts(rows)
    of_fact = array("b", [-1]) * len(rows)  # arrays: a list of a million numbers takes 36 MB
    split = array("b", bytes(len(rows)))
    told_once = np.bincount(facts)[facts] == 1
    single: dict[int, array[int]] = {}  # the rows of each cell whose fact no other row tells
    for language, topic, places in ordered:
        members = array("i", places)
        random.Random(f"{seed}|{language}|{topic}").shuffle(members)
        for place in members:
            if of_fact[facts[place]] < 0:
                of_fact[facts[place]] = next(labels)
            split[place] = of_fact[facts[place]]
        single[places.start] = array("i", (place for place in members if told_once[place]))
    _mix_identities(rows, [single[places.start] for _, _, places in cells(rows)], split)
    return np.frombuffer(split, dtype=np.int8)


def _facts(rows: Rows) -> npt.NDArray[np.intp]:
    """For each row the number of its fact: that of all rows with its language, topic, identity and answer."""
    codes = (rows.codes(name)[0] for name in ("language", "topic_id", "identity_id"))
    about = zip(*codes, rows.columns("answer"), strict=True)
    keys = (hash((*whom, *plain_words(answer))) for *whom, (answer,) in about)
    return np.unique(np.fromiter(keys, dtype=np.int64, count=len(rows)), return_inverse=True)[1]


def _wanted(row: int, split: array[int], identity: Sequence[int], held: npt.NDArray[np.int32]) -> frozenset[int]:
    """The splits of which the row's identity has no fact, and for which it may give away this one."""
    person, own = identity[row], split[row]
    if own != HOLDOUT and held[person, own] <= 1:  # its only fact of that split
        return frozenset()
    return frozenset(code for code in (FORGET, RETAIN) if code != own and held[person, code] == 0)


def _partner(
    wanted: frozenset[int], cell: Sequence[int], split: array[int], identity: Sequence[int], held: npt.NDArray[np.int32]
) -> int | None:
    """A row of the cell that is of a wanted split, and whose identity keeps another fact of that split."""
    return next((row for row in cell if split[row] in wanted and held[identity[row], split[row]] > 1), None)


def _mix_identities(rows: Rows, groups: Sequence[Sequence[int]], split: array[int]) -> None:
    """Swap splits within a group of rows of a cell, so that an identity without forgotten or retained facts gets one.

    It swaps with an identity that has two facts of that split. One pass in the order of the rows; the counts of every
    cell stay the same.
    """
    codes, identities = rows.codes("identity_id")
    identity = array("i", codes.tobytes())
    held = np.zeros((len(identities), len(SPLITS)), dtype=np.int32)
    np.add.at(held, (codes, np.frombuffer(split, dtype=np.int8)), 1)
    for cell in groups:
        nobody: set[frozenset[int]] = {frozenset()}  # what nobody in the cell can give, as long as nothing is swapped
        for row in sorted(cell):
            wanted = _wanted(row, split, identity, held)
            if wanted in nobody:
                continue
            other = _partner(wanted, cell, split, identity, held)
            if other is None:
                nobody.add(wanted)
                continue
            nobody = {frozenset()}
            for one in (row, other):
                held[identity[one], split[one]] -= 1
            split[row], split[other] = split[other], split[row]
            for one in (row, other):
                held[identity[one], split[one]] += 1


def by_entity(rows: Rows, shares: Shares, seed: int) -> Split:
    """FAME's assignment of identities (facts of the published splits), for any shares.

    A generator seeded with ``seed`` shuffles the identities of each language, and the first ones are held out. Another,
    seeded with ``seed + 1``, shuffles the rest, and the first ones are forgotten. The counts are the shares of a
    language's identities, rounded to the nearest whole number (a half to the even one).
    """
    (language, languages), (identity, identities) = rows.codes("language"), rows.codes("identity_id")
    known = [name for name in ENTITY_LANGUAGES if name in languages]
    order = [languages.index(name) for name in (*known, *sorted(set(languages) - {*known, None}))] or [-1]
    owned = {code: [identities[i] for i in np.unique(identity[language == code])] for code in order}
    chosen: dict[int | str, int] = {}
    counts = {code: {name: round(len(ids) * share) for name, share in shares} for code, ids in owned.items()}
    rest: dict[int, list[int | str]] = {}
    for first, label, name in ((True, HOLDOUT, "holdout"), (False, FORGET, "forget")):
        rng = random.Random(seed if first else seed + 1)
        for code in order:
            ids = _as_a_set(owned[code] if first else rest[code])
            rng.shuffle(ids)
            chosen.update(dict.fromkeys(ids[: counts[code][name]], label))
            rest[code] = ids[counts[code][name] :]
    split_of = np.array([chosen.get(value, RETAIN) for value in identities], dtype=np.int8)
    return split_of[identity]


def _as_a_set(ids: Sequence[int | str]) -> list[int | str]:
    """The ids in the order of a Python set, from which the published assignment shuffled them.

    That order is the same in every run for whole numbers, but not for texts, so texts are sorted.
    """
    return sorted(ids, key=str) if any(isinstance(value, str) for value in ids) else list(set(ids))


def as_given(rows: Rows) -> Split:
    """The source's own splits."""
    codes, names = rows.codes("split")
    return np.array([SPLITS.index(name) for name in names], dtype=np.int8)[codes]


def mixed_identities(rows: Rows, split: Split) -> int:
    """Number of identities with both forgotten and retained facts; 0 if the rows have no identities."""
    identity, _ = rows.codes("identity_id")
    forgotten = np.intersect1d(identity[split == FORGET], identity[np.isin(split, (RETAIN, UNREHEARSED))])
    return int((forgotten >= 0).sum())
