"""The `gate` stage: compare what the evaluations measured with what the recipe demands.

A gate passes on evidence only. It fails if its value is missing or not finite, was measured on too few rows or on other
weights, or belongs to another version of the metric. A recipe without gates does not pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from core.artifacts import read_facts
from core.digests import checkpoint_folder, weights_sha256
from core.markdown import counted
from core.unlearning import NeighbourFacts, read_selection
from eval.catalog import CATALOG, is_of, label
from eval.config import Bound, Condition, Gate, GateConfig, Reference
from eval.records import against_holdout
from eval.schema import (
    FACTS,
    FEW,
    GateFacts,
    JudgedGate,
    OnOtherRows,
    OnPart,
    Record,
    Verdict,
    evaluations,
    find_record,
    read_measured,
    read_records,
    write_verdict,
)
from eval.statistics import power
from eval.verdicts.confirm import ROWS, OtherRows

Results = Mapping[str, Sequence[Record]]
"""The records of :data:`eval.schema.MODELS`, as far as they were measured."""
SHARES = {
    name
    for name, metric in CATALOG.items()
    if metric.family in ("answer", "choice", "membership", "ks") or name in ("fluency", "rouge_l_recall")
}
"""Metrics whose values go from 0 to 1, and no further."""


class NoEvidence(Exception):  # noqa: N818  # it never leaves this file
    """Why a gate cannot be judged."""


def run(config: GateConfig, inputs: Mapping[str, Path], out: Path) -> GateFacts:
    """Judge every gate and write ``gate.json`` into ``out``, whatever the verdict. Raises as :func:`judge`."""
    verdict = judge(config, inputs)
    write_verdict(out, verdict)
    return GateFacts(passed=verdict.passed, failed=[gate.name for gate in verdict.failed()], why=verdict.why)


def judge(config: GateConfig, inputs: Mapping[str, Path]) -> Verdict:
    """The content of ``gate.json``: every gate with what was measured, its verdict and its power.

    ``inputs`` are ``eval-unlearned``, ``unlearn``, ``neighbours`` if the unlearning rehearsed any, ``eval-base``,
    ``eval-gold`` and ``eval-start`` if gates refer to them. Raises ArtifactError if a file exists and cannot be read,
    and ModelError if the unlearn stage left no weights.
    """
    digest = weights_sha256(checkpoint_folder(inputs["unlearn"]))
    measured_in = evaluations(inputs)
    results = {model: _results(folder) for model, folder in measured_in.items()}
    measured = read_measured(measured_in["unlearned"]) if "unlearned" in measured_in else None
    problem = None
    if measured != digest:
        problem = "The evaluation does not say that it measured these weights. Run it again."
    selection = read_selection(inputs["unlearn"])
    others = OtherRows(selection, measured_in, config.eval) if selection else None
    asked = read_facts(inputs["neighbours"], NeighbourFacts).of_unrehearsed if "neighbours" in inputs else ()
    gates = [_with_parts(gate, judge_gate(gate, results, problem), others, asked) for gate in config.gates]
    failed = [gate.name for gate in gates if not gate.passed]
    return Verdict(
        passed=bool(gates) and not failed,
        why=_why(len(gates), failed),
        weights_sha256=digest,
        selection=others.sentence() if others else None,
        gates=gates,
    )


def _results(evaluation: Path) -> list[Record]:
    file = evaluation / "results.json"
    return read_records(file) if file.is_file() else []


def _why(gates: int, failed: list[str]) -> str:
    if not gates:
        return "The recipe has no gates, so there is no evidence to pass on."
    if failed:
        return f"{len(failed)} of {gates} gates failed: {', '.join(failed)}."
    return "The one gate passed." if gates == 1 else f"All {gates} gates passed."


def judge_gate(gate: Condition, results: Results, problem: str | None = None) -> JudgedGate:
    """One gate's entry of gate.json; its ``why`` is the verdict in one sentence.

    ``problem``, if given, says why no measurement counts. ``at_least`` and ``at_most`` are the bounds as numbers, None
    if there is no such bound or no evidence for it.
    """
    verdict = _unmeasured(gate)
    try:
        record = _evidence(gate, results.get("unlearned", ()), gate.split, "the unlearned model")
        verdict = verdict.changed(measured=record.value, ci_low=record.ci_low, ci_high=record.ci_high, n=record.n)
        verdict = verdict.changed(certifiable_alone=record.told >= FACTS)
        references = [(reference, _reference_record(gate, reference, results)) for reference in gate.references]
        seen, sentence = power.power_of(gate, record, references)
        verdict = verdict.changed(smallest_difference=seen, power=sentence)
        verdict = verdict.changed(at_least=_number(gate, gate.at_least, results))
        verdict = verdict.changed(at_most=_number(gate, gate.at_most, results))
        _check_rows(gate, record, gate.split, "the unlearned model")
        _check_bounds(gate, verdict.at_least, verdict.at_most)
        if problem:
            raise NoEvidence(problem)  # noqa: TRY301
    except NoEvidence as reason:
        return verdict.changed(why=str(reason))
    passed, why = compare(gate, record, verdict.at_least, verdict.at_most)
    return verdict.changed(passed=passed, why=why)


def _unmeasured(gate: Condition) -> JudgedGate:
    return JudgedGate(
        metric=gate.metric,
        split=gate.split,
        rule=rule(gate),
        measured=None,
        ci_low=None,
        ci_high=None,
        at_least=None,
        at_most=None,
        n=0,
        min_n=gate.min_n,
        passed=False,
        why="",
        reason=gate.reason,
        limits=_limits(gate),
        certifiable_alone=False,
        smallest_difference=None,
        power="Nothing was measured.",
        confirmed=None,
        parts=[],
    )


def _limits(gate: Condition) -> str | None:
    """What the verdict cannot show because it rests on holdout rows and not on gold, if it does."""
    of = {reference.of for reference in gate.references}
    metric = CATALOG.get(gate.metric)
    compares = metric is not None and metric.needs_holdout and not metric.needs_gold
    if compares and "start" in of:
        return against_holdout.LIMITS_OF_START
    return against_holdout.LIMITS if "holdout" in of or (compares and "gold" not in of) else None


def _evidence(gate: Condition, records: Sequence[Record], split: str, model: str) -> Record:
    """The record of the gate's metric, usable; raises NoEvidence otherwise."""
    record = find_record(list(records), gate.metric, split)
    name = _capital(gate.metric)
    if record is None:
        raise NoEvidence(f"{name} on {split} was not measured for {model}.")
    version = CATALOG[gate.metric].version if gate.metric in CATALOG else record.version
    if record.version != version:
        raise NoEvidence(
            f"{name} of {model} was measured by version {record.version} of its definition, "
            f"and the gate is for version {version}."
        )
    numbers = (record.value, record.ci_low, record.ci_high)
    finite = all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    if not finite or not isinstance(record.n, int):
        raise NoEvidence(f"{name} on {split} of {model} is not a finite number.")
    if record.ci_low > record.ci_high:
        raise NoEvidence(f"{name} on {split} of {model} has an interval whose lower end is above its upper end.")
    return record


def _check_rows(gate: Condition, record: Record, split: str, model: str) -> None:
    if record.told < gate.min_n:
        rows = counted(record.n, "row") + ("" if record.facts is None else f" that tell {counted(record.told, 'fact')}")
        raise NoEvidence(f"{_capital(gate.metric)} on {split} of {model} rests on {rows}; the gate needs {gate.min_n}.")


def _check_bounds(gate: Condition, at_least: float | None, at_most: float | None) -> None:
    if (
        gate.references
        and gate.metric in SHARES
        and (at_least is None or at_least <= 0)
        and (at_most is None or at_most >= 1)
    ):
        raise NoEvidence(
            "The measured bounds allow every value that there is, so the gate shows nothing. Give more rows."
        )
    if at_least is not None and at_most is not None and at_least > at_most:
        raise NoEvidence(f"The measured bounds cross: no value is at least {at_least:.4g} and at most {at_most:.4g}.")


def _reference_record(gate: Condition, reference: Reference, results: Results) -> Record:
    if reference.of == "holdout":
        model, split, records = "the unlearned model", "holdout", results.get("unlearned", ())
    else:
        model, split, records = f"the {reference.of} model", gate.split, results.get(reference.of, ())
    record = _evidence(gate, records, split, model)
    _check_rows(gate, record, split, model)
    if gate.metric not in CATALOG:
        _check_questions(gate, _evidence(gate, results.get("unlearned", ()), gate.split, "the unlearned model"), record)
    return record


def _check_questions(gate: Condition, ours: Record, other: Record) -> None:
    """A suite is lm-eval's, and its questions are the Hub's: of what was measured earlier, both may have been others.

    A table that somebody else measured (`gate replay`) may not say on how many questions.
    """
    of_ours, of_other = (f"version {record.version} on {record.n} questions" for record in (ours, other))
    if ours.version != other.version or (ours.n and other.n and ours.n != other.n):
        raise NoEvidence(
            f"{_capital(gate.metric)} on {gate.split} is not of the same questions: the unlearned model has {of_ours}, "
            f"and the model that it is compared with {of_other}. Delete the older evaluation to have it made again."
        )


def _number(gate: Condition, bound: Bound | None, results: Results) -> float | None:
    if not isinstance(bound, Reference):
        return bound
    record = _reference_record(gate, bound, results)
    if bound.bound != "value" and record.told == 1:
        raise NoEvidence(
            f"{_capital(gate.metric)} of {bound.of} is of one fact, and the interval of one fact allows nearly every "
            "value. Compare with its value (bound: value), or give more rows."
        )
    number = float(getattr(record, bound.bound)) * bound.times + bound.plus
    if not math.isfinite(number):
        raise NoEvidence(f"The bound that {bound.of} sets for {gate.metric} is not a finite number.")
    return number


def compare(gate: Condition, record: Record, at_least: float | None, at_most: float | None) -> tuple[bool, str]:
    """The verdict, and a sentence with the numbers that decided it."""
    lower, upper = {
        "point": (record.value, record.value),
        "interval": (min(record.value, record.ci_low), max(record.value, record.ci_high)),
        "overlap": (record.ci_high, record.ci_low),
    }[gate.must_hold]
    digits = _digits(((lower, at_least), (upper, at_most)))
    what = f"{_capital(gate.metric)} on {gate.split} is {record.value:.{digits}g}"
    if gate.must_hold != "point":
        what += f" (95 % interval {record.ci_low:.{digits}g} to {record.ci_high:.{digits}g})"
    part, whole = "; part of the interval is", "; all of the interval is"
    broken = {"point": ", which is", "interval": part, "overlap": whole}[gate.must_hold]
    if at_least is not None and not lower >= at_least:
        return False, f"{what}{broken} below {at_least:.{digits}g}."
    if at_most is not None and not upper <= at_most:
        return False, f"{what}{broken} above {at_most:.{digits}g}."
    kept = {"point": ", which is", "interval": whole, "overlap": part}[gate.must_hold]
    numbers = ["" if bound is None else f"{bound:.{digits}g}" for bound in (at_least, at_most)]
    if gate.must_hold == "overlap" and numbers[0] == numbers[1]:
        kept = "; the interval contains"
    return True, f"{what}{kept} {_sides(*numbers)}."


def _digits(pairs: Iterable[tuple[float, float | None]]) -> int:
    """As many significant digits, four at least, as show that a value is not its bound; 17 show any difference."""
    differ = [(value, bound) for value, bound in pairs if bound is not None and value != bound]
    return next(n for n in range(4, 18) if n == 17 or all(f"{a:.{n}g}" != f"{b:.{n}g}" for a, b in differ))


def _sides(at_least: str, at_most: str) -> str:
    """Both bounds in words; empty if there is none."""
    if at_least == at_most:
        return at_least
    sides = (("at least", at_least), ("at most", at_most))
    return " and ".join(f"{side} {bound}" for side, bound in sides if bound)


def _with_parts(gate: Gate, verdict: JudgedGate, others: OtherRows | None, asked: Collection[str]) -> JudgedGate:
    """The verdict with its confirmation on rows that chose nothing, and the values on parts of the unrehearsed rows."""
    if others is None:
        return verdict
    return _confirmed(gate, verdict, others).changed(parts=_parts(gate, others, asked))


def _confirmed(gate: Gate, verdict: JudgedGate, others: OtherRows) -> JudgedGate:
    """The verdict, judged again on the rows that did not choose the checkpoint. If these rows fail, the gate fails."""
    if not any(others.selection.rows(split) for split in gate.split.split("+")):
        says = "No row of the split was used to choose the checkpoint."
        return verdict.changed(confirmed=OnOtherRows.unjudged(verdict.n, says))
    if is_of(gate.metric, "utility", "relative"):  # of several splits or models: no record is of one split's rows
        says = f"Not confirmed: {label(gate.metric)} is not a metric of one split's rows."
        return verdict.changed(confirmed=OnOtherRows.unjudged(None, says))
    records = others.records(gate, others.selection.rows(gate.split))
    record = find_record(records.get("unlearned", []), gate.metric, gate.split)
    rows, told = (record.n, record.told) if record else (0, 0)
    if told < ROWS:
        left = counted(told, "row" if told == rows else "fact")
        says = f"Not confirmed: {left} {'is' if told == 1 else 'are'} left without those that chose the checkpoint."
        return verdict.changed(confirmed=OnOtherRows.unjudged(rows, says))
    again = judge_gate(gate.model_copy(update={"min_n": min(gate.min_n, ROWS)}), records)
    says = f"On the {rows} rows that did not choose the checkpoint: {again.why}"
    confirmed = OnOtherRows(
        n=rows,
        says=says,
        measured=again.measured,
        ci_low=again.ci_low,
        ci_high=again.ci_high,
        at_least=again.at_least,
        at_most=again.at_most,
        passed=again.passed,
    )
    if verdict.passed and not again.passed:
        return verdict.changed(
            confirmed=confirmed, passed=False, why=f"{verdict.why} Other rows do not confirm it. {says}"
        )
    return verdict.changed(confirmed=confirmed)


def _parts(gate: Gate, others: OtherRows, asked: Collection[str]) -> list[OnPart]:
    """The metric on the unrehearsed rows whose question the method put to base, and on the others."""
    if gate.split != "unrehearsed" or not asked:
        return []
    rest = others.row_ids(gate.split) - frozenset(asked)
    parts = ((rest, "whose question the method put to base"), (asked, "about which it did not ask"))
    return [part for left_out, which in parts if (part := _part(gate, others, left_out, which))]


def _part(gate: Gate, others: OtherRows, left_out: Collection[str], which: str) -> OnPart | None:
    by_model = {
        model: find_record(of_model, gate.metric, gate.split)
        for model, of_model in others.records(gate, left_out).items()
    }
    ours = by_model.pop("unlearned", None)
    if ours is None:
        return None
    low, high = (ours.ci_low, ours.ci_high) if ours.told >= FEW else (None, None)
    value = f"{ours.value:.4g}"
    value += f" (95 % interval {low:.4g} to {high:.4g})" if low is not None else " (too few for an interval)"
    references = {model: record.value for model, record in sorted(by_model.items()) if record}
    value += "".join(f"; {model} has {of_model:.4g} there" for model, of_model in references.items())
    on = "the one row" if ours.n == 1 else f"the {ours.n} rows"
    says = f"On {on} {which}, it is {value}. This does not decide the verdict."
    return OnPart(n=ours.n, says=says, measured=ours.value, ci_low=low, ci_high=high, references=references)


def rule(gate: Condition) -> str:
    """The gate in words, for example ``at most gold's upper 95 % bound + 0.05``."""
    which = {"point": "", "interval": "all of the 95 % interval ", "overlap": "some of the 95 % interval "}
    lower, upper = _bound_in_words(gate.at_least), _bound_in_words(gate.at_most)
    if lower == upper and gate.must_hold == "overlap":
        return f"95 % interval contains {lower}"
    return which[gate.must_hold] + _sides(lower, upper)


def _bound_in_words(bound: Bound | None) -> str:
    if bound is None:
        return ""
    if not isinstance(bound, Reference):
        return f"{bound:g}"
    end = {"value": "value", "ci_low": "lower 95 % bound", "ci_high": "upper 95 % bound"}[bound.bound]
    times = f"{bound.times:g} x " if bound.times != 1 else ""
    plus = f" {'+' if bound.plus > 0 else '-'} {abs(bound.plus):g}" if bound.plus else ""
    return f"{times}{bound.of}'s {end}{plus}"


def _capital(metric: str) -> str:
    """The metric's name at the beginning of a sentence."""
    name = label(metric)
    return name[0].upper() + name[1:]
