"""Whether a verdict follows from what is published with it: the recipe's gates, and the values of all models.

What was confirmed on other rows, and values on parts of rows, need measurements of single rows, which are never
published. Of these, only what their own numbers say is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from eval.config import Gate
from eval.schema import JudgedGate, OnOtherRows, Record, Verdict
from eval.verdicts.confirm import ROWS
from eval.verdicts.gates import Results, compare, judge_gate

_OF_THE_RECIPE = ("metric", "split", "rule", "min_n", "reason", "limits")
_OF_THE_RESULTS = (
    *("measured", "ci_low", "ci_high", "n", "at_least", "at_most"),
    *("certifiable_alone", "smallest_difference", "power", "why"),
)


def verdict_problems(verdict: Verdict, gates: Sequence[Gate], results: Results) -> list[str]:
    """What of a verdict does not follow from ``gates`` and ``results``, one sentence each; empty if all of it does."""
    if len(verdict.gates) != len(gates):
        return [f"It has {len(verdict.gates)} gates, and the recipe has {len(gates)}."]
    found = [text for gate, given in zip(gates, verdict.gates, strict=True) for text in _gate(gate, given, results)]
    if verdict.passed != (bool(gates) and not verdict.failed()):
        found.append(f"It says passed: {verdict.passed}, and {len(verdict.failed())} of its gates failed.")
    return found


def _gate(gate: Gate, given: JudgedGate, results: Results) -> Iterator[str]:
    again = judge_gate(gate, results)
    if again.passed and given.confirmed and given.confirmed.passed is False:
        again = again.changed(passed=False, why=given.why)
    for fields, source in ((_OF_THE_RECIPE, "the recipe"), (_OF_THE_RESULTS, "the recipe and the results")):
        for name in fields:
            said, follows = getattr(given, name), getattr(again, name)
            if not _same(said, follows):
                yield f"{given.name}: {name} is {said!r}, and by {source} it is {follows!r}."
    if given.passed != again.passed:
        yield f"{given.name}: passed is {given.passed}, and by its value and bounds it is {again.passed}."
    if given.confirmed:
        yield from (f"{given.name}: its confirmation {says}." for says in _confirmation(gate, given, given.confirmed))


def _confirmation(gate: Gate, given: JudgedGate, confirmed: OnOtherRows) -> Iterator[str]:
    """What is wrong with a confirmation by its own numbers, and by the bounds that are numbers of the recipe."""
    bounds = {name: getattr(confirmed, name) for name in ("at_least", "at_most")}
    numbers = (confirmed.measured, confirmed.ci_low, confirmed.ci_high)
    if confirmed.passed is None and any(number is not None for number in (*numbers, *bounds.values())):
        yield "has numbers, and says neither that it passed nor that it failed"
    if not confirmed.passed:  # a gate that it refutes has failed
        return
    for name, said in bounds.items():
        bound = getattr(gate, name)
        if said != bound if isinstance(bound, float | None) else said is None:
            yield f"has another {name} than the recipe"
    if confirmed.n is None or not ROWS <= confirmed.n <= given.n:
        yield f"passed on {confirmed.n} rows, and {ROWS} to {given.n} are needed"
    elif any(number is None for number in numbers):
        yield "has no interval"
    else:
        record = Record(gate.metric, gate.split, *numbers, confirmed.n, None, 0)  # type: ignore[arg-type]
        passed, why = compare(gate, record, **bounds)
        if not passed:
            yield "passed, and by its numbers it did not"
        elif not confirmed.says.endswith(why):
            yield f"says {confirmed.says!r}, and by its numbers {why!r}"


def _same(said: object, follows: object) -> bool:
    """Whether two values are equal; computed numbers may differ in their last digits between machines."""
    if isinstance(said, float) and isinstance(follows, float):
        return math.isclose(said, follows, rel_tol=1e-9, abs_tol=1e-12)
    return said == follows
