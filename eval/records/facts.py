"""Rows that tell one fact in several wordings: no evidence of other facts, so intervals and tests count facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets_prep.schema import FORGOTTEN, SPLITS, Row, read_forgotten, read_perturbed, read_rows
from datasets_prep.text import told
from eval.statistics.formulas import Floats
from eval.statistics.intervals import Strata, Told, by_fact, independent

FACT = "fact"
"""Where a sample whose fact another row told before it has the ``row_id`` of the first one."""

Sample = Mapping[str, Any]


def told_before(rows: Sequence[Row]) -> dict[str, str]:
    """The ``row_id`` of the first of the ``rows`` that tells a fact, by that of each other one that tells it."""
    first: dict[tuple[str, ...], str] = {}
    told_by = {row.row_id: first.setdefault(told(row.question, row.answer, row.name), row.row_id) for row in rows}
    return {row_id: before for row_id, before in told_by.items() if row_id != before}


def count_facts(data: Path) -> tuple[Counter[str], Counter[str]]:
    """Of each split of the data artifact how many facts have false answers, and how many its rows tell."""
    splits = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS} | {FORGOTTEN: read_forgotten(data)}
    fact_of_row = {(split, row.row_id): row.row_id for split, rows in splits.items() for row in rows}
    fact_of_row |= {(split, row): first for split, rows in splits.items() for row, first in told_before(rows).items()}
    facts = {(split, fact) for (split, _), fact in fact_of_row.items()}
    false = {
        (row.split, fact_of_row.get((row.split, row.row_id), row.row_id))
        for row in read_perturbed(data / "perturbed.jsonl")
    }
    return Counter(split for split, _ in false), Counter(split for split, _ in facts)


def fact_of(sample: Sample) -> str:
    """What names the fact of a row, among the rows of its split."""
    return str(sample.get(FACT, sample["row_id"]))


def strata_of(samples: Collection[Sample]) -> Strata:
    """The language of each row, and its fact if several rows tell one."""
    languages = [sample["language"] for sample in samples]
    return list(map(Told, map(fact_of, samples), languages)) if _tell_one(samples) else languages


def number_of_facts(*sets: Collection[Sample]) -> int | None:
    """The facts of the set that has the fewest; None if each row tells its own."""
    if not any(map(_tell_one, sets)):
        return None
    return min(independent(len(samples), strata_of(samples)) for samples in sets)


def truth_ratios(samples: Collection[Sample]) -> Floats:
    """The truth ratio of each fact, the geometric mean of those of its rows."""
    ratios = np.array([sample["truth_ratio"] for sample in samples], dtype=np.float64)
    if not _tell_one(samples):
        return ratios
    return np.exp(by_fact(np.log(np.maximum(ratios, np.finfo(np.float64).tiny)), strata_of(samples)))


def _tell_one(samples: Collection[Sample]) -> bool:
    """Whether several of the rows tell one fact."""
    return any(FACT in sample for sample in samples) and len(set(map(fact_of, samples))) < len(samples)
