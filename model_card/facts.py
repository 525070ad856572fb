"""The evidence of a card: everything that a card says about results is read from artifacts here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.artifacts import read_facts, read_manifest
from core.errors import ArtifactError
from core.lineage import EarlierRelease, Lineage
from core.unlearning import NeighbourFacts, UnlearnFacts, read_pairing
from core.words import is_searched
from datasets_prep.schema import FORGOTTEN, SPLITS, Row, read_forgotten, read_perturbed, read_rows
from eval.schema import (
    JudgedGate,
    OtherPrompts,
    Record,
    find_record,
    read_other_prompts,
    read_records,
    read_verdict,
)
from model_card.suites import SuiteData, read_suites

MODELS = ("base", "gold", "unlearned")  # the order of the columns


@dataclass(frozen=True)
class Counts:
    """How many rows, different people and topics a split has (0: the source does not say), and rows by language."""

    rows: int
    identities: int
    topics: int
    by_language: dict[str, int]


@dataclass(frozen=True)
class Step:
    """Losses of one logged optimizer step, in nats per answer token; None for rows that the method does not train on.

    ``refusal_loss`` is the loss of the refusals that replace forget answers. ``level`` is what a check compared the
    forget loss with.
    """

    step: int
    forget_loss: float | None
    retain_loss: float | None
    refusal_loss: float | None = None
    level: float | None = None

    def numbers(self) -> list[float]:
        """The losses that were measured."""
        return [v for v in (self.forget_loss, self.retain_loss, self.refusal_loss) if v is not None]


@dataclass(frozen=True)
class Evidence:
    """What the artifacts say. ``rows`` are only there to check that no card repeats them.

    ``steps`` are losses on the rows of training steps, ``checks`` those of the stopping rule on all its rows.
    ``rehearsed`` is the number of retain rows that the unlearning's schedule names, ``neighbours`` what base was
    asked beside them, ``suites`` the data by task, ``gold_prompts`` how gold's prompts differ from base's, if they do.
    ``lineage`` are the releases that this one follows; what they forgot are the rows ``forgotten``.
    """

    records: dict[str, list[Record]]
    gold_prompts: OtherPrompts | None
    passed: bool
    weights_sha256: str
    selection: str | None
    gates: list[JudgedGate]
    counts: dict[str, Counts]
    perturbed: int
    rows: dict[str, list[Row]]
    steps: list[Step]
    checks: list[Step]
    ascent: UnlearnFacts
    rehearsed: int
    neighbours: NeighbourFacts | None
    lineage: list[EarlierRelease]
    suites: dict[str, SuiteData]
    packages: dict[str, str]
    commit: str | None
    dirty: bool
    device: str

    def record(self, model: str, metric: str, split: str) -> Record | None:
        """The overall record of ``metric`` on ``split`` for ``model``, or None if it was not measured."""
        return find_record(self.records.get(model, []), metric, split)

    def languages(self) -> list[str]:
        """Codes of all languages of the data, in alphabetical order."""
        return sorted({language for counts in self.counts.values() for language in counts.by_language})

    def not_searched(self) -> int:
        """How many answers that were to be forgotten are too short for the search of the published files."""
        return sum(not is_searched(row.answer) for row in self.secret_rows())

    def secret_rows(self) -> list[Row]:
        """The rows whose answers nobody may read: those of this request and of the ones before it."""
        return [*self.rows["forget"], *self.rows.get(FORGOTTEN, [])]

    def topics(self) -> list[str]:
        """The topics of the forget rows, in alphabetical order."""
        return sorted({row.topic_id for row in self.rows["forget"] if row.topic_id})


def collect(inputs: Mapping[str, Path]) -> Evidence:
    """Read the artifacts; ``eval-gold`` and ``neighbours`` may be absent, and ``base`` is there if it is a release.

    Raises ArtifactError if one is missing or malformed.
    """
    records = {
        model: read_records(inputs[f"eval-{model}"] / "results.json") for model in MODELS if f"eval-{model}" in inputs
    }
    verdict = read_verdict(inputs["gate"])
    rows = {split: read_rows(inputs["data"] / f"{split}.jsonl") for split in SPLITS}
    if forgotten := read_forgotten(inputs["data"]):
        rows[FORGOTTEN] = forgotten
    log = list(_log(inputs["unlearn"] / "log.jsonl"))
    manifest = read_manifest(inputs["unlearn"])
    return Evidence(
        records=records,
        gold_prompts=read_other_prompts(inputs["eval-gold"]) if "eval-gold" in inputs else None,
        passed=verdict.passed,
        weights_sha256=verdict.weights_sha256,
        selection=verdict.selection,
        gates=verdict.gates,
        counts={split: _counts(rows[split]) for split in rows},
        perturbed=sum(len(row.answers) for row in read_perturbed(inputs["data"] / "perturbed.jsonl")),
        rows=rows,
        steps=_losses(log, ""),
        checks=_losses(log, "probe_"),
        ascent=read_facts(inputs["unlearn"], UnlearnFacts),
        rehearsed=len({row.row_id for row in rows["retain"]} & _paired(inputs["unlearn"])),
        neighbours=read_facts(inputs["neighbours"], NeighbourFacts) if "neighbours" in inputs else None,
        lineage=read_facts(inputs["base"], Lineage).releases if "base" in inputs else [],
        suites=read_suites(inputs["eval-unlearned"] / "lm_eval"),
        packages=manifest.packages,
        commit=manifest.git.commit,
        dirty=manifest.git.dirty,
        device=manifest.device,
    )


def _paired(unlearn: Path) -> set[str]:
    """All rows that the schedule names beside forget rows."""
    return {row for pair in read_pairing(unlearn) for row in pair.retain}


def _log(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield dict(json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path}: cannot be read as a training log ({error}). Run the unlearn stage again."
        ) from error


def _losses(log: list[dict[str, Any]], prefix: str) -> list[Step]:
    names = ("forget_loss", "retain_loss", "refusal_loss", "level")
    logged = [(int(entry["step"]), {name: entry.get(f"{prefix}{name}") for name in names}) for entry in log]
    return [Step(step, **losses) for step, losses in logged if any(loss is not None for loss in losses.values())]


def _counts(rows: list[Row]) -> Counts:
    languages = sorted({row.language for row in rows if row.language})
    return Counts(
        rows=len(rows),
        identities=len({row.identity_id for row in rows} - {None}),
        topics=len({row.topic_id for row in rows} - {None}),
        by_language={language: sum(row.language == language for row in rows) for language in languages},
    )
