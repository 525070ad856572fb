"""The refusals with which method `po` replaces forget answers: "I don't know", in the language of the row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import yaml

from core.errors import InputError
from datasets_prep.schema import Row

FILE = Path(__file__).with_name("refusals.yaml")


def read_refusals() -> dict[str, list[str]]:
    """All refusals by language code."""
    refusals: dict[str, list[str]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return refusals


def draw_refusals(rows: Sequence[Row], seed: int) -> list[str]:
    """One refusal for each row, in its language, drawn from ``seed``.

    Raises InputError if a row has no language, or there are no refusals in its language.
    """
    refusals = read_refusals()
    other = [row for row in rows if row.language not in refusals]
    if other:
        raise InputError(
            f"unlearn: method po answers in the language of a row, but {len(other)} forget rows (first "
            f"{other[0].row_id}, language {other[0].language!r}) have none of {', '.join(sorted(refusals))}. Give "
            "the rows a language, or use another method."
        )
    rng = random.Random(seed)
    return [rng.choice(refusals[row.language or ""]) for row in rows]
