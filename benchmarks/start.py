"""From the command to the first step of the unlearn stage, with model and data on disk: seconds of each part.

The stage itself runs, on the demo's base and data, and is ended by its own report of the first step.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

BEGAN = time.perf_counter()


class FirstStep(Exception):  # noqa: N818 (no error: what was waited for)
    """The first step is done."""


def main(artifacts: str) -> None:
    """Print what was done when, in seconds since the start of the process."""
    from core.progress import Report, listening
    from pipeline.recipe import load_recipe
    from pipeline.unlearn import run

    print(f"imports {time.perf_counter() - BEGAN:.1f}")

    def listener(report: Report) -> None:
        if report.numbers:  # its losses
            print(f"first step {time.perf_counter() - BEGAN:.1f}")
            raise FirstStep
        if not report.done:
            print(f"{report.doing} from {time.perf_counter() - BEGAN:.1f}")

    inputs = {name: Path(artifacts) / name for name in ("model", "base", "data", "novice", "neighbours")}
    with tempfile.TemporaryDirectory() as out, listening(listener):
        try:
            run.run(load_recipe("demo").unlearn, inputs, Path(out))
        except FirstStep:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
