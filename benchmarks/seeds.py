"""`make seeds`: the demo's method on data seeds that it was not tuned on, up to the gate.

Each seed draws other people, facts and splits, and trains base, gold and the unlearned model anew. Prints one line a
seed; the verdicts are those of the recipe's own gates. The artifacts stay in the store, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse

from benchmarks.releases import STORE, of_seed, release
from eval.schema import JudgedGate, Verdict, read_verdict


def verdict_of(seed: int) -> Verdict:
    """Run the demo with this data seed to its gate and return the verdict."""
    name = f"demo-seed-{seed}"
    release("demo", "gate", [*of_seed(seed), f"name={name}"])
    return read_verdict(STORE / name / "gate")


def _cell(gate: JudgedGate) -> str:
    bounds = [f"{bound:.3f}" for bound in (gate.at_least, gate.at_most) if bound is not None]
    if gate.measured is None or not bounds:
        return f"{gate.why} **fails**"
    return f"{gate.measured:.3f} (bound {' to '.join(bounds)})" + ("" if gate.passed else " **fails**")


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__)
    options.add_argument("seeds", type=int, nargs="+")
    head = False
    for seed in options.parse_args().seeds:
        verdict = verdict_of(seed)
        if not head:
            columns = [f"{gate.metric} {gate.split}" for gate in verdict.gates]
            print(f"| seed | {' | '.join(columns)} | verdict |\n|--:|{'--:|' * len(columns)}---|")
            head = True
        cells = [_cell(gate) for gate in verdict.gates]
        print(f"| {seed} | {' | '.join(cells)} | {'pass' if verdict.passed else 'fail'} |", flush=True)


if __name__ == "__main__":
    main()
