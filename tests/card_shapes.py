"""How many rows the data of a recipe have, of which people, languages and topics, and how its unlearning ended."""

from __future__ import annotations

from typing import NamedTuple

from core.unlearning import Bounds, UnlearnFacts
from datasets_prep.schema import TOPICS
from pipeline.recipe import Recipe
from tests.artifacts import unlearn_facts

PAIRING = "c2" * 32


class Shape(NamedTuple):
    """The rows of a recipe's data: of each split, their languages and topics, and how the unlearning ended."""

    rows: dict[str, int]
    people: int
    languages: tuple[str | None, ...]  # None: the rows do not say theirs
    topics: tuple[str, ...]
    ascent: UnlearnFacts
    device: str


SAMPLE = Shape(
    {"forget": 40, "retain": 140, "holdout": 50, "unrehearsed": 20},
    25,
    ("DE", "EN", "ES", "FR", "IT"),
    TOPICS,
    unlearn_facts(
        pairing_sha256=PAIRING, steps=36, kept_step=36, bounds=Bounds(forget_loss=2.9876, retain_loss=0.2591)
    ),
    "cpu (AMD EPYC 9B14, threads: 2)",
)
OWN = Shape(
    {"forget": 31, "retain": 99, "holdout": 50, "unrehearsed": 20},
    20,
    ("DE", "EN"),
    ("address", "birthplace", "education", "email", "phone number"),
    unlearn_facts(
        pairing_sha256=PAIRING,
        levels={"holdout": 2.6543},
        forget_cap=2.6543,
        stopped="forget loss 2.654 reached its level 2.654",
        steps=24,
        kept_step=18,
        bounds=Bounds(forget_loss=2.6543, retain_loss=0.2417),
    ),
    "cpu (AMD EPYC 9B14, threads: 2)",
)
FAME = SAMPLE._replace(
    rows={"forget": 3200, "retain": 11520, "holdout": 4000, "unrehearsed": 1280},
    people=1000,
    ascent=SAMPLE.ascent.changed(
        stopped="forget loss 2.110 reached its level 2.110",
        steps=220,
        kept_step=210,
        bounds=Bounds(forget_loss=2.1098, retain_loss=0.3012),
    ),
    device="NVIDIA H100 80GB HBM3",
)


def shape_of(recipe: Recipe) -> Shape:
    """The rows of the data that the recipe names."""
    source = recipe.data.source
    shape = SAMPLE if source.sample else FAME if source.hub else OWN
    earlier = {"forgotten": 2 * shape.rows["forget"]} if recipe.base.release else {}
    return shape._replace(rows={**shape.rows, **earlier})
