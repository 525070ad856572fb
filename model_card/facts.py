"""The evidence of a card: all that is read from artifacts is read here, and a card says nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ArtifactError
from datasets_prep.schema import SPLITS, Row, read_perturbed, read_rows
from eval.schema import Record, find_record, read_records
from model_card.suites import SuiteData, read_suites

MODELS = ("base", "gold", "unlearned")  # the order of the columns


@dataclass(frozen=True)
class Gate:
    """One line of ``gate.json``."""

    metric: str
    split: str
    rule: str
    measured: float | None
    ci_low: float | None
    ci_high: float | None
    at_least: float | None
    at_most: float | None
    n: int
    min_n: int
    passed: bool
    why: str
    reason: str
    limits: str | None
    certifiable_alone: bool
    smallest_difference: float | None
    power: str
    confirmed: dict[str, Any] | None
    not_rehearsed: dict[str, Any] | None

    def numbers(self) -> list[float]:
        """Every measured value of it."""
        names = ("measured", "ci_low", "ci_high", "at_least", "at_most")
        parts = [vars(self), self.confirmed or {}, self.not_rehearsed or {}]
        found = [part.get(name) for part in parts for name in names]
        return [number for number in (*found, self.smallest_difference) if number is not None]


@dataclass(frozen=True)
class Counts:
    """How many rows, different people and topics a split has (0: the source does not say), and rows by language."""

    rows: int
    identities: int
    topics: int
    by_language: dict[str, int]


@dataclass(frozen=True)
class Step:
    """Losses of one logged optimizer step, in nats per answer token; None of rows that the method does not train on.

    ``refusal_loss`` is that of what stands in the place of forget answers, ``level`` what a check compared forget with.
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
class Ascent:
    """What the unlearn stage says of its run: levels and cap in nats per answer token, why it ended, what it kept.

    ``dual`` has the bound of the retain loss and the last weight, where the weight followed that loss.
    """

    levels: dict[str, float]
    forget_cap: float | None
    stopped: str | None
    steps: int | None
    kept_step: int | None
    bounds: dict[str, float]
    dual: dict[str, float]
    pairing_sha256: str | None

    def numbers(self) -> list[float]:
        """Every measured value."""
        cap = [] if self.forget_cap is None else [self.forget_cap]
        return [*self.levels.values(), *self.bounds.values(), *self.dual.values(), *cap]


@dataclass(frozen=True)
class Evidence:
    """What the artifacts say. ``rows`` are only there to check that no card repeats them.

    ``steps`` are losses on the rows of training steps, ``checks`` those of the stopping rule on all its rows.
    ``rehearsed`` is the number of retain rows that the unlearning's schedule names, ``suites`` the data by task.
    """

    records: dict[str, list[Record]]
    passed: bool
    weights_sha256: str
    selection: str | None
    gates: list[Gate]
    counts: dict[str, Counts]
    perturbed: int
    rows: dict[str, list[Row]]
    steps: list[Step]
    checks: list[Step]
    ascent: Ascent
    rehearsed: int
    suites: dict[str, SuiteData]
    packages: dict[str, str]
    commit: str | None
    dirty: bool
    device: str | None

    def record(self, model: str, metric: str, split: str) -> Record | None:
        """The overall record of ``metric`` on ``split`` for ``model``, or None where it was not measured."""
        return find_record(self.records.get(model, []), metric, split)

    def languages(self) -> list[str]:
        """Codes of all languages of the data, in alphabetical order."""
        return sorted({language for counts in self.counts.values() for language in counts.by_language})

    def topics(self) -> list[str]:
        """The topics of the forget rows, in alphabetical order."""
        return sorted({row.topic_id for row in self.rows["forget"] if row.topic_id})


def collect(inputs: Mapping[str, Path]) -> Evidence:
    """Read the artifacts. Raises ArtifactError where one is missing or malformed. ``eval-gold`` may be absent."""
    records = {
        model: read_records(inputs[f"eval-{model}"] / "results.json") for model in MODELS if f"eval-{model}" in inputs
    }
    gate = _json(inputs["gate"] / "gate.json")
    try:
        gates = [Gate(**line) for line in gate["gates"]]
        passed, weights, selection = bool(gate["passed"]), str(gate["weights_sha256"]), gate["selection"]
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{inputs['gate'] / 'gate.json'}: not a gate file ({error}). Run the gate stage again."
        ) from error
    rows = {split: read_rows(inputs["data"] / f"{split}.jsonl") for split in SPLITS}
    log = list(_log(inputs["unlearn"] / "log.jsonl"))
    manifest = inputs["unlearn"] / "manifest.json"
    made = _json(manifest) if manifest.exists() else {}
    return Evidence(
        records=records,
        passed=passed,
        weights_sha256=weights,
        selection=selection,
        gates=gates,
        counts={split: _counts(rows[split]) for split in SPLITS},
        perturbed=sum(len(row.answers) for row in read_perturbed(inputs["data"] / "perturbed.jsonl")),
        rows=rows,
        steps=_losses(log, ""),
        checks=_losses(log, "probe_"),
        ascent=_ascent(made.get("facts", {})),
        rehearsed=_rehearsed(inputs["unlearn"] / "pairing.jsonl"),
        suites=read_suites(inputs["eval-unlearned"] / "lm_eval"),
        packages=made.get("packages", {}),
        commit=made.get("git", {}).get("commit"),
        dirty=bool(made.get("git", {}).get("dirty")),
        device=made.get("device"),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). Run the stage that writes it again.") from error
    if not isinstance(value, dict):
        raise ArtifactError(
            f"{path}: holds a {type(value).__name__}, not an object. Run the stage that writes it again."
        )
    return value


def _log(path: Path) -> Iterator[dict[str, Any]]:
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield dict(json.loads(line))
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path}: cannot be read as a training log ({error}). Run the unlearn stage again."
        ) from error


def _rehearsed(path: Path) -> int:
    try:
        return len({row_id for pair in _log(path) for row_id in pair["retain"]})
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot be read as pairs ({error!r}). Run the unlearn stage again.") from error


def _losses(log: list[dict[str, Any]], prefix: str) -> list[Step]:
    names = ("forget_loss", "retain_loss", "refusal_loss", "level")
    found = [(int(entry["step"]), {name: entry.get(f"{prefix}{name}") for name in names}) for entry in log]
    return [Step(step, **losses) for step, losses in found if any(loss is not None for loss in losses.values())]


def _ascent(facts: Mapping[str, Any]) -> Ascent:
    return Ascent(
        levels=facts.get("levels", {}),
        forget_cap=facts.get("forget_cap"),
        stopped=facts.get("stopped"),
        steps=facts.get("steps"),
        kept_step=facts.get("kept_step"),
        bounds=facts.get("bounds", {}),
        dual=facts.get("dual", {}),
        pairing_sha256=facts.get("pairing_sha256"),
    )


def _counts(rows: list[Row]) -> Counts:
    languages = sorted({row.language for row in rows if row.language})
    return Counts(
        rows=len(rows),
        identities=len({row.identity_id for row in rows} - {None}),
        topics=len({row.topic_id for row in rows} - {None}),
        by_language={language: sum(row.language == language for row in rows) for language in languages},
    )
