"""`python -m benchmarks.evaluation`: what the whole evaluation says of a good run and of a destroyed one.

Runs `demo-audit` to its gate, and the same audit on what `demo-overforget` makes of the same base; what is in the store
already is not made again. Prints every metric with its interval for base, gold, the unlearned and the over-forgotten
model, and the gates' verdicts. Two golds beside those of the demo are trained for it; about three quarters of an hour
on one core, once the demo is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.releases import STORE, release
from eval.schema import JudgedGate, Record, Verdict, find_record, read_records, read_verdict
from pipeline.recipe import load_recipe

GOOD, BAD = "demo-audit", "demo-overforget-audit"
MODELS = {
    "base": (GOOD, "eval-base"),
    "gold": (GOOD, "eval-gold"),
    "unlearned": (GOOD, "eval-unlearned"),
    "over-forgotten": (BAD, "eval-unlearned"),
}


def overrides() -> list[str]:
    """What makes `demo-audit` the same audit of what `demo-overforget` unlearns."""
    destroyed = load_recipe("demo-overforget").unlearn.model_dump_json(exclude_none=True)
    return [f"name={BAD}", f"unlearn={destroyed}"]


def cell(record: Record | None, digits: int = 3) -> str:
    """Value and interval, or a dash where the model was not measured so (a gap of gold to itself)."""
    if record is None:
        return "–"
    value, low, high = (f"{x:.{digits}f}" for x in (record.value, record.ci_low, record.ci_high))
    return f"{value} ({low} to {high})"


def apart(first: Record | None, second: Record | None) -> bool:
    """Whether the two 95 % intervals have no point in common."""
    if first is None or second is None:
        return False
    return max(first.ci_low, second.ci_low) > min(first.ci_high, second.ci_high)


def metric_rows(found: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """A line for each metric and split; the last column says whether it tells the two unlearned models apart."""
    yield f"| metric | rows | {' | '.join(found)} | apart |"
    yield f"|---|---|{'--:|' * len(found)}---|"
    names = [(r.metric, r.split) for records in found.values() for r in records if r.by is None]
    for metric, split in sorted(dict.fromkeys(names), key=lambda name: (_order(name[1]), names.index(name))):
        records = {model: find_record(list(of_model), metric, split) for model, of_model in found.items()}
        tells = "yes" if apart(records["unlearned"], records["over-forgotten"]) else ""
        n = next(r.n for r in records.values() if r)
        yield f"| {metric} | {split} ({n}) | {' | '.join(cell(r) for r in records.values())} | {tells} |"


def _order(split: str) -> int:
    order = ("forget", "retain", "unrehearsed", "holdout", "general")
    return order.index(split) if split in order else len(order)


def gate_rows(verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    """A line for each gate: what was measured of each run, and the verdict."""
    yield f"| gate | {' | '.join(verdicts)} |"
    yield f"|---|{'---|' * len(verdicts)}"
    for gates in zip(*(verdict.gates for verdict in verdicts.values()), strict=True):
        cells = [f"{_measured(gate)}: {'passes' if gate.passed else '**fails**'}" for gate in gates]
        yield f"| {gates[0].metric} {gates[0].split} | {' | '.join(cells)} |"


def _measured(gate: JudgedGate) -> str:
    return "not measured" if gate.measured is None else f"{gate.measured:.3g}"


def main() -> None:
    """Make what is missing, and print."""
    for sets in ([], overrides()):
        release(GOOD, "gate", sets)
    found = {model: read_records(STORE / name / stage / "results.json") for model, (name, stage) in MODELS.items()}
    print("\n".join(metric_rows(found)))
    print()
    runs = {"unlearned": GOOD, "over-forgotten": BAD}
    print("\n".join(gate_rows({model: read_verdict(STORE / name / "gate") for model, name in runs.items()})))


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__).parse_args()
    main()
