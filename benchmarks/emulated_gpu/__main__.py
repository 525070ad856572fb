"""`python -m benchmarks.emulated_gpu walk|memory`, as the package says."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # nothing here is compiled, and kernels for a GPU cannot be

from benchmarks.emulated_gpu.device import install

BUILDS = Path(__file__).resolve().parents[2] / "runs" / "emulated_gpu"


def main() -> None:
    """Print one of the tables."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.emulated_gpu", description=__doc__)
    options.add_argument("what", choices=("walk", "memory"))
    options.add_argument(
        "names", nargs="*", metavar="NAME", help="lines of the table by their beginnings (default: all)"
    )
    options.add_argument(
        "--rows", type=Path, help="FAME's published rows, for memory (default: those of the sample set)"
    )
    given = options.parse_args()
    device = install(BUILDS)
    if given.what == "walk":
        from benchmarks.emulated_gpu.walk import WALKS, walks

        lines = walks(named(given.names, WALKS))
    else:
        from benchmarks.emulated_gpu.memory import CASES, peaks

        lines = peaks(named(given.names, CASES), device, given.rows)
    for line in lines:
        print(line, flush=True)


def named(beginnings: list[str], known: Iterable[str]) -> list[str]:
    """Those of ``known`` that begin so, or all."""
    return [name for name in known if not beginnings or name.startswith(tuple(beginnings))]


if __name__ == "__main__":
    main()
