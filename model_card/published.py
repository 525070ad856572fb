"""A card rendered again from what its release publishes, to see whether it says what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from core.artifacts import Versioned, read_file, write_file
from core.lineage import EarlierRelease
from datasets_prep.schema import FORGOTTEN, SPLITS
from eval.schema import Comparison, PublishedResults, Record, read_verdict
from model_card.config import CardInputs
from model_card.facts import OF_EVERY_ROW, CardEvidence, Counts, Evidence, facts_told, leak_bound

CARD = "card.json"
AGAIN = "Ask its publisher to publish it again."


class CardFile(Versioned):
    """The content of `card.json`: what a card says that is in no other file of its release.

    ``inputs`` is the card stage's configuration, ``evidence`` what was counted and noted. No text of any row.
    """

    version: Literal[4] = 4
    inputs: CardInputs
    evidence: CardEvidence


def write_card_file(folder: Path, inputs: CardInputs, evidence: Evidence) -> None:
    """Write `card.json`."""
    write_file(folder / CARD, CardFile(inputs=inputs, evidence=evidence.published()))


def read_published(folder: Path) -> tuple[CardInputs, Evidence]:
    """What the card of a release is made of, from its `card.json`, `results.json` and `gate.json`.

    A README.md that is not what `render` makes of it says something else. Raises ArtifactError if a file is missing or
    malformed.
    """
    card = read_file(folder / CARD, CardFile, AGAIN)
    results = read_file(folder / "results.json", PublishedResults, AGAIN)
    return card.inputs, Evidence(**dict(card.evidence), records=results.models, verdict=read_verdict(folder))


def due(said: CardEvidence, records: Sequence[Record], lineage: list[EarlierRelease]) -> CardEvidence:
    """``said``, with all that follows from the unlearned model's records, and the lineage, in the place of it.

    Raises ZeroDivisionError if no forget row was measured.
    """
    every_row = [record for record in records if record.metric == OF_EVERY_ROW]
    of = {split: [record for record in every_row if record.split == split] for split in (*SPLITS, FORGOTTEN)}
    counts = {split: _counts(of[split], said.counts.get(split)) for split in of if of[split] or split in SPLITS}
    bound = leak_bound(facts_told(records, "forget") or counts["forget"].rows)
    return said.changed(
        counts=counts,
        topics=sorted(_groups(of["forget"], "topic")),
        leak_bound=said.leak_bound if math.isclose(said.leak_bound, bound) else bound,
        lineage=lineage,
        compared=said.compared and _compared(said.compared, records),
    )


def _counts(records: Sequence[Record], said: Counts | None) -> Counts:
    """What the records of a split's rows count. How many people there are, they do not say."""
    return Counts(
        rows=sum(record.n for record in records if record.by is None),
        identities=said.identities if said else 0,
        topics=len(_groups(records, "topic")),
        by_language=_groups(records, "language"),
    )


def _groups(records: Sequence[Record], kind: str) -> dict[str, int]:
    """The number of rows in each language or topic."""
    return {record.by[kind]: record.n for record in records if record.by and kind in record.by}


def _compared(said: Comparison, records: Sequence[Record]) -> Comparison:
    """The comparison with the values that our own records have."""
    ours = {(record.metric, record.split): record.value for record in records if record.by is None}
    return said.changed(metrics=[entry.changed(ours=ours.get((entry.metric, entry.split))) for entry in said.metrics])
