"""What the unlearn stage leaves for others beside the model: `selection.json`, `pairing.jsonl`, and its facts.

The facts of the stage before it, which asks base about the neighbourhood of the given rows, are here too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from core.artifacts import Versioned, read_file, read_lines, write_file
from core.strict import Strict

SELECTION = "selection.json"
PAIRING = "pairing.jsonl"
REMEDY = "Run the unlearn stage again."


class ReadRows(Strict):
    """``row_id``s by split."""

    forget: list[str]
    retain: list[str]


class CheckpointSelection(Versioned):
    """The content of `selection.json`: the rule that chose the checkpoint, in words, and the rows that it read."""

    version: Literal[1] = 1
    rule: str
    read: ReadRows

    def rows(self, split: str) -> frozenset[str]:
        """The rows of ``split`` that the rule read; of other splits than forget and retain it reads none."""
        return frozenset({"forget": self.read.forget, "retain": self.read.retain}.get(split, []))


class PairedRows(Strict):
    """A line of `pairing.jsonl`: the ``row_id``s of a forget row (None: the method trains on none) and its retain rows.

    For methods that do so, ``refusal`` is what was trained on in the place of the forget row's answer, ``alternate``
    the place among its false answers in `guides.jsonl`, from 0, of the one that was trained on beside it.
    """

    epoch: int
    forget: str | None
    retain: list[str]
    refusal: str | None = None
    alternate: int | None = None


class NeighbourFacts(Strict):
    """Questions that base was asked, the answers that were kept to be rehearsed, and why the others were not.

    ``continued`` is the number of forget answers that base went on with in other words, which are rehearsed too.
    ``of_unrehearsed`` are the ``row_id``s of unrehearsed rows whose question was formed too, and its answer kept.
    """

    asked: int
    kept: int
    empty: int
    stating_a_forgotten_fact: int
    continued: int
    of_unrehearsed: list[str]


class UnlearnSeeds(Strict):
    """Where the random numbers of an unlearning come from; None where a method draws no refusals."""

    pairing: int
    training: int
    refusals: int | None


class Bounds(Strict):
    """Of a stopping rule, in nats per answer token: the highest retain loss, and the level of the last check."""

    retain_loss: float
    forget_loss: float | None


class DualFacts(Strict):
    """Of a retain weight that followed the retain loss: the bound of that loss, and the weight at the end."""

    retain_bound: float
    last_weight: float


class UnlearnFacts(Versioned):
    """What the unlearn stage says of its run.

    ``levels`` are the named levels that it measured and ``forget_cap`` the number that the cap came to, in nats per
    answer token; ``stopped`` says why the run ended after ``steps`` steps, ``kept_step`` is the one that is released.
    """

    version: Literal[1] = 1
    levels: dict[str, float]
    forget_cap: float | None
    pairing_sha256: str
    seeds: UnlearnSeeds
    stopped: str
    steps: int
    kept_step: int
    bounds: Bounds | None
    dual: DualFacts | None

    def numbers(self) -> list[float]:
        """Every measured value."""
        measured = [self.forget_cap]
        measured += [self.bounds.retain_loss, self.bounds.forget_loss] if self.bounds else []
        measured += [self.dual.retain_bound, self.dual.last_weight] if self.dual else []
        return [*self.levels.values(), *(number for number in measured if number is not None)]


def write_selection(unlearn: Path, selection: CheckpointSelection) -> None:
    """Write `selection.json` into the artifact ``unlearn``."""
    write_file(unlearn / SELECTION, selection)


def read_selection(unlearn: Path) -> CheckpointSelection | None:
    """What chose the checkpoint, or None where the artifact does not say. Raises ArtifactError."""
    file = unlearn / SELECTION
    return read_file(file, CheckpointSelection, REMEDY) if file.is_file() else None


def pairing_bytes(pairs: Iterable[PairedRows]) -> bytes:
    """The content of `pairing.jsonl`, without ``refusal`` and ``alternate`` where there is none."""
    lines = (
        pair.model_dump(exclude={name for name in ("refusal", "alternate") if getattr(pair, name) is None})
        for pair in pairs
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def read_pairing(unlearn: Path) -> list[PairedRows]:
    """What was trained on, in order. Raises ArtifactError."""
    return read_lines(unlearn / PAIRING, PairedRows, REMEDY)
