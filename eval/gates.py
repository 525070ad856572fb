"""The `gate` stage: compare what the evaluations measured with what the recipe demands.

A gate passes on evidence only. A value that is missing, not finite, from too few rows, of another version of the
metric, or measured on other weights fails it, and a recipe without gates does not pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.config import ALL_METRICS, Gate, Reference
from eval.schema import Record, find_record, read_records
from eval.weights import checkpoint_folder, read_measured, weights_sha256


class NoEvidence(Exception):  # noqa: N818  # it never leaves this file
    """Why a gate cannot be judged."""


def run(config: Sequence[Gate], inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Judge every gate and write ``gate.json`` into ``out``, whatever the verdict.

    ``inputs`` are ``eval-unlearned``, ``unlearn`` and, where gates refer to them, ``eval-base`` and ``eval-gold``.
    Returns the facts ``passed``, ``failed`` (names of gates) and ``why``. Raises ArtifactError where a file that is
    there cannot be read, and ModelError where the unlearn stage left no weights.
    """
    digest = weights_sha256(checkpoint_folder(inputs["unlearn"]))
    results = {name: _results(inputs.get(f"eval-{name}")) for name in ("base", "gold", "unlearned")}
    measured = read_measured(inputs["eval-unlearned"]) if "eval-unlearned" in inputs else None
    same_weights = measured == digest
    gates = [_judge(gate, results, same_weights) for gate in config]
    failed = [f"{gate['metric']} on {gate['split']}" for gate in gates if not gate["passed"]]
    passed = bool(gates) and not failed
    verdict = {"passed": passed, "why": _why(gates, failed), "weights_sha256": digest, "gates": gates}
    text = json.dumps(verdict, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "gate.json").write_text(text + "\n", encoding="utf-8")
    return {"passed": passed, "failed": failed, "why": verdict["why"]}


def _results(evaluation: Path | None) -> list[Record]:
    if evaluation is None or not (evaluation / "results.json").is_file():
        return []
    return read_records(evaluation / "results.json")


def _why(gates: list[dict[str, Any]], failed: list[str]) -> str:
    if not gates:
        return "The recipe has no gates, and nothing passes without evidence."
    if failed:
        return f"{len(failed)} of {len(gates)} gates failed: {', '.join(failed)}."
    return f"All {len(gates)} gates passed."


def _judge(gate: Gate, results: Mapping[str, list[Record]], same_weights: bool) -> dict[str, Any]:
    """One gate's entry of gate.json."""
    verdict: dict[str, Any] = {
        "metric": gate.metric,
        "split": gate.split,
        "rule": _rule(gate),
        "measured": None,
        "threshold": None,
        "n": 0,
        "min_n": gate.min_n,
        "passed": False,
        "why": "",
        "reason": gate.reason,
    }
    try:
        record = _evidence(gate, results["unlearned"], "the unlearned model")
        verdict |= {"measured": _finite(record.value), "n": record.n}
        threshold = _threshold(gate, results)
        verdict["threshold"] = threshold
        _check_rows(gate, record, "the unlearned model")
        if not same_weights:
            raise NoEvidence("The evaluation does not say that it measured these weights; evaluate them again.")  # noqa: TRY301
    except NoEvidence as problem:
        return verdict | {"why": str(problem)}
    return verdict | _compare(gate, record.value, threshold)


def _evidence(gate: Gate, records: list[Record], model: str) -> Record:
    """The record of the gate's metric, usable; raises NoEvidence otherwise."""
    record = find_record(records, gate.metric, gate.split)
    if record is None:
        raise NoEvidence(f"{_capital(gate.metric)} on {gate.split} was not measured for {model}.")
    version = ALL_METRICS[gate.metric].version
    if record.version != version:
        raise NoEvidence(
            f"{_capital(gate.metric)} of {model} was measured by version {record.version} of its definition, "
            f"the gate is for version {version}."
        )
    numbers = (record.value, record.ci_low, record.ci_high, record.n)
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        raise NoEvidence(f"{_capital(gate.metric)} on {gate.split} of {model} is not a finite number.")
    return record


def _check_rows(gate: Gate, record: Record, model: str) -> None:
    if record.n < gate.min_n:
        raise NoEvidence(
            f"{_capital(gate.metric)} on {gate.split} of {model} rests on {record.n} rows; the gate wants {gate.min_n}."
        )


def _threshold(gate: Gate, results: Mapping[str, list[Record]]) -> float:
    bound = gate.bound
    if not isinstance(bound, Reference):
        return bound
    model = f"the {bound.of} model"
    record = _evidence(gate, results[bound.of], model)
    _check_rows(gate, record, model)
    threshold = float(getattr(record, bound.bound)) * bound.times + bound.plus
    if not math.isfinite(threshold):
        raise NoEvidence(f"The bound that {model} sets for {gate.metric} is not a finite number.")
    return threshold


def _compare(gate: Gate, value: float, threshold: float) -> dict[str, Any]:
    lower = gate.at_least is not None
    passed = value >= threshold if lower else value <= threshold
    relation = ("is at least" if lower else "is at most") if passed else ("is below" if lower else "is above")
    name = _capital(gate.metric)
    return {"passed": passed, "why": f"{name} on {gate.split} is {value:.4g}, which {relation} {threshold:.4g}."}


def _rule(gate: Gate) -> str:
    """The gate in words, for example ``at most gold's upper 95 % bound + 0.05``."""
    side = "at least" if gate.at_least is not None else "at most"
    bound = gate.bound
    if not isinstance(bound, Reference):
        return f"{side} {bound:g}"
    end = {"value": "value", "ci_low": "lower 95 % bound", "ci_high": "upper 95 % bound"}[bound.bound]
    times = f"{bound.times:g} x " if bound.times != 1 else ""
    plus = f" {'+' if bound.plus > 0 else '-'} {abs(bound.plus):g}" if bound.plus else ""
    return f"{side} {times}{bound.of}'s {end}{plus}"


def _finite(value: float) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _capital(metric: str) -> str:
    return metric.replace("_", " ").capitalize()
