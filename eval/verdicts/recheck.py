"""Whether a verdict follows from what is published with it: the recipe's gates, and the values of all models.

What was confirmed on other rows, and values on parts of rows, need measurements of single rows, which are never
published. Of these, only what their own numbers say is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from eval.config import Gate
from eval.schema import JudgedGate, OnOtherRows, Record, Verdict
from eval.verdicts.gates import Results, compare, judge_gate

_OF_THE_RECIPE = ("metric", "split", "rule", "min_n", "reason")
_OF_THE_RESULTS = ("measured", "ci_low", "ci_high", "n", "at_least", "at_most", "smallest_difference")


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
    for fields, source in ((_OF_THE_RECIPE, "the recipe"), (_OF_THE_RESULTS, "the recipe and the results")):
        for name in fields:
            said, follows = getattr(given, name), getattr(again, name)
            if not _same(said, follows):
                yield f"{given.name}: {name} is {said!r}, and by {source} it is {follows!r}."
    confirmed = given.confirmed
    if confirmed and confirmed.measured is not None:
        yield from _confirmation(gate, confirmed)
    passed = again.passed and not (confirmed and confirmed.passed is False)
    if given.passed != passed:
        yield f"{given.name}: passed is {given.passed}, and by its value and bounds it is {passed}."


def _confirmation(gate: Gate, confirmed: OnOtherRows) -> Iterator[str]:
    """What is wrong with a confirmation by its own numbers, and by the bounds that are numbers of the recipe."""
    for name in ("at_least", "at_most"):
        bound = getattr(gate, name)
        if isinstance(bound, float | None) and getattr(confirmed, name) != bound:
            yield f"{gate.metric} on {gate.split}: its confirmation has another {name} than the recipe."
    numbers = (confirmed.measured, confirmed.ci_low, confirmed.ci_high)
    if any(number is None for number in numbers):
        yield f"{gate.metric} on {gate.split}: its confirmation has no interval."
        return
    record = Record(gate.metric, gate.split, *numbers, confirmed.n or 0, None, 0)  # type: ignore[arg-type]
    passed, _ = compare(gate, record, confirmed.at_least, confirmed.at_most)
    if confirmed.passed and not passed:
        yield f"{gate.metric} on {gate.split}: its confirmation passed, and by its numbers it did not."


def _same(said: object, follows: object) -> bool:
    """Whether two values are equal; computed numbers may differ in their last digits between machines."""
    if isinstance(said, float) and isinstance(follows, float):
        return math.isclose(said, follows, rel_tol=1e-9, abs_tol=1e-12)
    return said == follows
