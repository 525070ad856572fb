"""`make bench`: each measurement as a ratio against a named baseline of the same run.

Needs `make release` to have run once: the demo's model and artifacts are what is measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread: on a shared machine two measure the neighbours

ROOT = Path(__file__).resolve().parents[1]


def command_seconds(*argv: str, rounds: int = 5) -> float:
    """Median wall seconds of ``python *argv``."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, *argv], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> int:
    """Print the table."""
    from benchmarks import eval_pass, gd_step

    model = ROOT / "runs" / "demo" / "model"
    if not model.exists():
        print("bench: runs/demo/model is not there. Run `make release` first.", file=sys.stderr)
        return 2
    step = gd_step.run(model)
    print("| measurement | baseline | ours | ratio |\n|---|--:|--:|--:|")
    for what, naive, ours in (
        ("GD step, 8 + 8 rows, fp32, against two padded forwards with full logits", "naive_fp32", "ours_fp32"),
        ("the same in bf16", "naive_bf16", "ours_bf16"),
        ("GD step as the demo runs it (bf16) against the naive one in fp32", "naive_fp32", "ours_bf16"),
    ):
        print(f"| {what} | {step[naive]:.2f} s | {step[ours]:.2f} s | {step[ours] / step[naive]:.2f} |")
    bare = command_seconds("-c", "pass")
    for what, argv in (
        ("`python -m pipeline --help` against a bare interpreter", ("-m", "pipeline", "--help")),
        ("`release demo` with nothing changed, against a bare interpreter", ("-m", "pipeline", "release", "demo")),
    ):
        seconds = command_seconds(*argv)
        print(f"| {what} | {bare:.2f} s | {seconds:.2f} s | {seconds / bare:.0f} |")
    loss, gradient = step["loss_difference"], step["gradient_difference"]
    print(f"\nThe two forms of the step agree: loss to {loss:.1e}, gradient to {gradient:.1e} (relative).")
    eval_pass.show(ROOT / "runs" / "demo")
    return 0


if __name__ == "__main__":
    sys.exit(main())
