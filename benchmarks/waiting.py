"""Wall seconds of a GD step in bf16 on as many threads as OMP_NUM_THREADS says: `python -m benchmarks.waiting MODEL`.

Whether threads that wait spin is said by OMP_WAIT_POLICY, which is read once, when a process imports torch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks import gd_step


def main(model: Path) -> None:
    """Print seconds by the clock, the median of two steps after one that warms up."""
    batch = gd_step.packed_batch(*gd_step.some_rows(model, header=False))
    ours = gd_step.load(model, ours=True)
    step = gd_step.Step(ours, lambda: gd_step.packed_loss(ours, batch))
    print(gd_step.seconds({"ours": step}, bf16=True, rounds=2, clock=time.perf_counter)["ours"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
