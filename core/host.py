"""What this process may use of its machine: in a container or a job that is less than there is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def cores() -> int:
    """The processor cores that it is bound to and has time of, at most OMP_NUM_THREADS."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for limit in _limits("cpu.max"):
        quota, _, period = limit.partition(" ")
        if quota.isdecimal() and period.isdecimal():
            there = min(there, max(1, math.ceil(int(quota) / int(period))))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(there, int(asked)) if asked.isdecimal() and int(asked) else there


def memory() -> int:
    """The bytes of memory that it may have in all."""
    limits = (int(limit) for limit in _limits("memory.max") if limit.isdecimal())
    return min([psutil.virtual_memory().total, *limits])


def _limits(name: str) -> Iterator[str]:
    """The limits of that name that its control group and those above it have (cgroup v2); "max" is none."""
    with suppress(OSError, ValueError):
        own = next((line[3:] for line in OWN_GROUP.read_text().splitlines() if line.startswith("0::")), "/")
        group = GROUPS / own.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(GROUPS):
                with suppress(OSError):
                    yield (folder / name).read_text().strip()
