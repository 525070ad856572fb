"""Seconds of scoring 24 forget rows: `python -m benchmarks.freed_memory FORM RUN`, FORM `kept` or `given back`.

RUN is a folder with `base` and `data` of a release. Freed memory is kept from the start of a process or not at all.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.eval_pass import Set, seconds
from core.heap import keep_freed


def main(form: str, run: Path) -> None:
    """Print processor seconds, the median of two passes after one that warms up."""
    if form == "kept":
        keep_freed()
    measured = Set(run / "base" / "model", run / "data", rows=24)
    measured.one_pass()
    print(seconds(measured.one_pass, rounds=2))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
