"""The releases that benchmarks read, made by the command itself; what the store has is not made again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "runs"
GATE_FAILED = 3


def of_seed(seed: int) -> list[str]:
    """The settings that draw other people, facts and splits."""
    return [f"data.source.sample.seed={seed}", f"data.seed={seed}"]


def release(recipe: str, until: str, sets: Sequence[str]) -> None:
    """Run a recipe with these settings to a stage; its gates may refuse. Any other failure ends the benchmark."""
    argv = [sys.executable, "-m", "pipeline", "release", recipe, "--store", str(STORE), "--until", until]
    argv += [word for value in sets for word in ("--set", value)]
    code = subprocess.run(argv, cwd=ROOT, check=False, stdout=sys.stderr).returncode
    if code not in (0, GATE_FAILED):
        raise SystemExit(code)
