"""The releases that benchmarks read, made by the command itself; what the store has is not made again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from eval.schema import JudgedGate, read_verdict

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "runs"
GATE_FAILED = 3


def of_seed(seed: int) -> list[str]:
    """The settings that draw other people, facts and splits."""
    return [f"data.source.sample.seed={seed}", f"data.seed={seed}"]


def release(recipe: str, until: str, sets: Sequence[str], store: Path = STORE) -> None:
    """Run a recipe with these settings to a stage; its gates may refuse. Any other failure ends the benchmark."""
    argv = [sys.executable, "-m", "pipeline", "release", recipe, "--store", str(store), "--until", until]
    argv += [word for value in sets for word in ("--set", value)]
    code = subprocess.run(argv, cwd=ROOT, check=False, stdout=sys.stderr).returncode
    if code not in (0, GATE_FAILED):
        raise SystemExit(code)


def print_verdicts(what: str, runs: Iterable[tuple[str, str, Sequence[str]]]) -> None:
    """Release each run (its label, recipe and settings, ``name`` among them) to its gate and print a line for it.

    The verdicts are those of the recipe's own gates.
    """
    head: list[str] = []
    for label, recipe, sets in runs:
        release(recipe, "gate", sets)
        name = next(value.removeprefix("name=") for value in sets if value.startswith("name="))
        verdict = read_verdict(STORE / name / "gate")
        columns = [f"{gate.metric} {gate.split}" for gate in verdict.gates]
        if columns != head:
            print(f"| {what} | {' | '.join(columns)} | verdict |\n|---|{'--:|' * len(columns)}---|")
            head = columns
        cells = [_cell(gate) for gate in verdict.gates]
        print(f"| {label} | {' | '.join(cells)} | {'pass' if verdict.passed else 'fail'} |", flush=True)


def _cell(gate: JudgedGate) -> str:
    bounds = [f"{bound:.3f}" for bound in (gate.at_least, gate.at_most) if bound is not None]
    if gate.measured is None or not bounds:
        return f"{gate.why} **fails**"
    return f"{gate.measured:.3f} (bound {' to '.join(bounds)})" + ("" if gate.passed else " **fails**")
