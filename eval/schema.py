"""The files that evaluations, gates and comparisons write for others to read.

An evaluation writes three files. `results.json` is a list of records, `weights.json` names the weights that were
measured, and `samples.jsonl` has the measurements of each row, with forget answers and generations; it stays on this
machine and is never published. The gate stage writes `gate.json`, a comparison `compare.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from core.artifacts import Versioned, read_file, read_lines, write_file
from core.strict import Strict
from eval.catalog import Metric

EVALUATE = "Run the evaluation again."


MODELS = ("start", "base", "gold", "unlearned")
"""The models that a release evaluates, in the order of every table. There may be no start model and no gold."""

Z_95 = NormalDist().inv_cdf(0.975)
"""Half the width of a two-sided 95 % interval, in standard errors."""
ALPHA = 0.05
"""The p-value below which a test tells two things apart."""
FACTS = 100
"""A cell of fewer facts cannot be certified on its own."""
FEW = 10
"""Rows below which resamples vary too little, of one row not at all: a part or group of fewer has no interval."""


@dataclass(frozen=True)
class Record:
    """One measured value.

    ``value`` is the point estimate over ``n`` rows, ``ci_low`` and ``ci_high`` are its 95 % interval. If the rows tell
    some facts in several wordings, ``facts`` is how many facts they tell. ``version`` is that of the metric's
    definition in this project. ``by`` narrows the rows, for example ``{"language": "DE"}``.
    ``note`` says in words how the value was made, if that depends on the data.
    """

    metric: str
    split: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    higher_is_better: bool | None
    version: int
    by: dict[str, str] | None = None
    note: str | None = None
    facts: int | None = None

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)  # a gate refuses what is not finite

    @classmethod
    def of(
        cls,
        metric: Metric,
        split: str,
        value: float,
        interval: tuple[float, float],
        n: int,
        by: dict[str, str] | None = None,
        note: str | None = None,
        facts: int | None = None,
    ) -> Record:
        """The record of a metric of the catalogue, with the direction and version of its entry."""
        better = metric.higher_is_better(split)
        return cls(metric.name, split, value, *interval, n, better, metric.version, by, note, facts)

    @property
    def told(self) -> int:
        """How many facts the rows tell."""
        return self.n if self.facts is None else self.facts

    @property
    def standard_error(self) -> float:
        """The standard error that the 95 % interval stands for."""
        return (self.ci_high - self.ci_low) / (2 * Z_95)

    def plain(self) -> dict[str, Any]:
        """The record as it is written to a file: without ``by``, ``note`` and ``facts`` if it has none."""
        # Not asdict(), which copies every value.
        optional = ("by", "note", "facts")
        return {key: value for key, value in vars(self).items() if value is not None or key not in optional}


def write_records(path: Path, records: list[Record]) -> None:
    """Write ``results.json``; a value that is not finite is a bug and raises ValueError."""
    rows = [record.plain() for record in records]
    path.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_records(path: Path) -> list[Record]:
    """The records of a ``results.json``. Raises ArtifactError if the file is missing or malformed.

    A value that is not finite is read unchanged, so that a gate can say so.
    """
    return read_file(path, list[Record], EVALUATE)


def evaluations(artifacts: Mapping[str, Path]) -> dict[str, Path]:
    """The evaluations among the artifacts of a release (`eval-base`), by model, in the order of :data:`MODELS`."""
    return {model: artifacts[f"eval-{model}"] for model in MODELS if f"eval-{model}" in artifacts}


def find_record(records: list[Record], metric: str, split: str) -> Record | None:
    """The record of ``metric`` on all rows of ``split``, or None if it was not measured."""
    return next((r for r in records if r.metric == metric and r.split == split and r.by is None), None)


class PublishedResults(Versioned):
    """The content of the `results.json` of a release: the records of all models."""

    version: Literal[2] = 2
    models: dict[str, list[Record]]

    def plain(self) -> dict[str, Any]:
        """As it is written to the file, each record as an evaluation writes it."""
        models = {model: [record.plain() for record in records] for model, records in self.models.items()}
        return {"version": self.version, "models": models}


class EvaluationFacts(Strict):
    """The facts of an evaluation.

    They are the digest of the measured weights, the number of rows, on how many rows the truth ratio uses a paraphrase
    and on how many the answer, a few values for people, and what could not be measured, with the reason.
    """

    weights_sha256: str
    rows: int
    truth_ratio_of: dict[str, int]
    values: dict[str, float]
    left_out: dict[str, str]


MEASURED = "weights.json"


class MeasuredWeights(Strict):
    """The content of `weights.json`."""

    weights_sha256: str


def write_measured(evaluation: Path, digest: str) -> None:
    """Write into an evaluation's artifact which weights it measured."""
    content = MeasuredWeights(weights_sha256=digest)
    (evaluation / MEASURED).write_text(json.dumps(content.model_dump()) + "\n", encoding="utf-8")


def read_measured(evaluation: Path) -> str | None:
    """The digest of the weights that an evaluation measured, or None without such a file. Raises ArtifactError."""
    file = evaluation / MEASURED
    return read_file(file, MeasuredWeights, EVALUATE).weights_sha256 if file.is_file() else None


PROMPTS = "prompts.json"


class OtherPrompts(Versioned):
    """The content of `prompts.json`, which is there if a checkpoint's chat template is not base's.

    ``rows`` of the ``compared`` ones get other tokens. ``own`` and ``base`` are how each template asks "Who?".
    """

    version: Literal[1] = 1
    rows: int
    compared: int
    own: str
    base: str

    def says(self) -> str:
        """The difference in a sentence."""
        return (
            f"asked with its checkpoint's own chat template, which gives {self.rows} of {self.compared} rows other "
            f"tokens than base's: {self.own!r} where base has {self.base!r}"
        )


def write_other_prompts(evaluation: Path, prompts: OtherPrompts) -> None:
    """Write `prompts.json` into an evaluation's artifact."""
    write_file(evaluation / PROMPTS, prompts)


def read_other_prompts(evaluation: Path) -> OtherPrompts | None:
    """The difference between an evaluation's prompts and base's, or None if there is none. Raises ArtifactError."""
    file = evaluation / PROMPTS
    return read_file(file, OtherPrompts, EVALUATE) if file.is_file() else None


SAMPLES_NOTE = (
    "Measurements of single rows, with answers of the forget set: this file stays on this machine, never publish it."
)


def write_samples(path: Path, samples: list[dict[str, object]]) -> None:
    """Write ``samples.jsonl``: a first line with the note, then one line for each row."""
    lines: list[dict[str, object]] = [{"note": SAMPLES_NOTE}, *samples]
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``samples.jsonl``, without its note. Raises ArtifactError if it is missing or malformed."""
    lines = read_lines(path, dict[str, Any], "Run the evaluation again.")
    return [line for line in lines if "row_id" in line]


class OnOtherRows(Strict):
    """A gate judged once more, on the rows of its split that did not choose the checkpoint.

    ``n`` is their number (None if the metric is not measured on rows of one split), ``says`` the outcome in a sentence.
    The other fields are as in :class:`JudgedGate`, None if these rows were not judged.
    """

    n: int | None
    says: str
    measured: float | None
    ci_low: float | None
    ci_high: float | None
    at_least: float | None
    at_most: float | None
    passed: bool | None

    @classmethod
    def unjudged(cls, n: int | None, says: str) -> OnOtherRows:
        """Without a verdict; ``says`` is the reason."""
        return cls(n=n, says=says, measured=None, ci_low=None, ci_high=None, at_least=None, at_most=None, passed=None)


class OnPart(Strict):
    """The metric on a part of the gate's rows; ``says`` names the part. It decides nothing.

    ``references`` has the value of each model that the gate refers to. A few rows have no interval: resampling one row
    gives one of no width.
    """

    n: int
    says: str
    measured: float
    ci_low: float | None
    ci_high: float | None
    references: dict[str, float]


class JudgedGate(Strict):
    """A gate of the recipe with what was measured and the verdict.

    ``rule`` is the gate in words, ``why`` the verdict in a sentence, and ``reason`` the recipe's reason for the bound.
    ``measured`` is the value over ``n`` rows, with its 95 % interval; ``at_least`` and ``at_most`` are the bounds as
    numbers. Each of these is None if there is none. ``limits`` says what the verdict cannot show without gold.
    ``parts`` are of the unrehearsed rows: those whose question the method put to base, and the others.
    ``smallest_difference`` is the smallest true difference that so many rows show in 80 % of samples; ``power`` says it
    in a sentence.
    """

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
    confirmed: OnOtherRows | None
    parts: list[OnPart]

    @property
    def name(self) -> str:
        """Metric and split, for messages."""
        return f"{self.metric} on {self.split}"

    def rule_of(self, side: Literal["at least", "at most"]) -> str:
        """What the rule says of one side, empty if nothing. A rule that names no side is the same for both."""
        if "at least " not in self.rule and "at most " not in self.rule:
            return self.rule
        return self.rule.partition(f"{side} ")[2].partition(" and at most ")[0]

    def numbers(self) -> list[float]:
        """Every number of the gate that was measured."""
        names = ("measured", "ci_low", "ci_high", "at_least", "at_most")
        parts = [dict(part) for part in (self, self.confirmed, *self.parts) if part is not None]
        numbers = [part.get(name) for part in parts for name in names]
        numbers += [value for part in self.parts for value in part.references.values()]
        return [number for number in (*numbers, self.smallest_difference) if number is not None]


GATE = "gate.json"


class Verdict(Versioned):
    """The content of `gate.json`: whether all gates passed, the weights, the rows that chose them, and every gate."""

    version: Literal[1] = 1
    passed: bool
    why: str
    weights_sha256: str
    selection: str | None
    gates: list[JudgedGate]

    def failed(self) -> list[JudgedGate]:
        """The gates that did not pass."""
        return [gate for gate in self.gates if not gate.passed]


class GateFacts(Strict):
    """The verdict in short: which gates failed, and why."""

    passed: bool
    failed: list[str]
    why: str


def write_verdict(gate: Path, verdict: Verdict) -> None:
    """Write `gate.json` into the artifact ``gate``."""
    write_file(gate / GATE, verdict)


def read_verdict(gate: Path) -> Verdict:
    """The verdict in the artifact ``gate``. Raises ArtifactError."""
    return read_file(gate / GATE, Verdict, "Run the gate stage again.")


class ComparedMetric(Strict):
    """A metric of two checkpoints on one split: both values, their difference with its 95 % interval, and the verdict.

    ``paired`` says whether they were compared row by row. What could not be computed is None.
    """

    metric: str
    split: str
    ours: float | None
    theirs: float | None
    n: int
    paired: bool
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    margin: float | None
    p_value: float | None
    smallest_margin: float | None
    verdict: Literal["equivalent", "different", "not shown", "not compared"]


COMPARE = "compare.json"


class Comparison(Versioned):
    """The content of `compare.json`."""

    version: Literal[1] = 1
    metrics: list[ComparedMetric]


class ComparisonFacts(Strict):
    """The metrics that were shown to be equivalent, and those shown to be different."""

    equivalent: list[str]
    different: list[str]


def write_comparison(compare: Path, comparison: Comparison) -> None:
    """Write `compare.json` into the artifact ``compare``."""
    write_file(compare / COMPARE, comparison)


def read_comparison(compare: Path) -> Comparison:
    """The comparison in the artifact ``compare``. Raises ArtifactError."""
    return read_file(compare / COMPARE, Comparison, "Run the command again.")
