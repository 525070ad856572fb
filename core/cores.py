"""How many processor cores there are for this process."""

from __future__ import annotations

import os


def cores() -> int:
    """The processor cores that this process may use: those that it is bound to, at most OMP_NUM_THREADS."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(there, int(asked)) if asked.isdecimal() and int(asked) else there
