"""A card rendered again from what its release publishes, to see whether it says what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from core.artifacts import Versioned, read_file, write_file
from eval.schema import PublishedResults, read_verdict
from model_card.config import CardInputs
from model_card.facts import CardEvidence, Evidence
from model_card.render import render

CARD = "card.json"
AGAIN = "Ask its publisher to publish it again."


class CardFile(Versioned):
    """The content of `card.json`: what a card says that is in no other file of its release.

    ``inputs`` is the card stage's configuration, ``evidence`` what was counted and noted. No text of any row.
    """

    version: Literal[2] = 2
    inputs: CardInputs
    evidence: CardEvidence


def write_card_file(folder: Path, inputs: CardInputs, evidence: Evidence) -> None:
    """Write `card.json`."""
    write_file(folder / CARD, CardFile(inputs=inputs, evidence=evidence.published()))


def read_card_file(folder: Path) -> CardFile:
    """The `card.json` of a release. Raises ArtifactError."""
    return read_file(folder / CARD, CardFile, AGAIN)


def render_from_published(folder: Path) -> str:
    """The text of the README.md that belongs to a release's `card.json`, `results.json` and `gate.json`.

    A card that says anything else was not made from them. Whether ``inputs`` are those of `release.json` is for the
    caller to compare. Raises ArtifactError if a file is missing or malformed.
    """
    card = read_card_file(folder)
    results = read_file(folder / "results.json", PublishedResults, AGAIN)
    evidence = Evidence(**dict(card.evidence), records=results.models, verdict=read_verdict(folder))
    return render(card.inputs, evidence)
