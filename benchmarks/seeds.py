"""`make seeds`: the demo's method on data seeds that it was not tuned on, up to the gate.

Each seed draws other people, facts and splits, and trains base, gold and the unlearned model anew. Prints one line a
seed; the verdicts are those of the recipe's own gates. The artifacts stay in the store, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse

from benchmarks.releases import of_seed, print_verdicts


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.seeds", description=__doc__)
    options.add_argument("seeds", type=int, nargs="+")
    runs = ((str(seed), "demo", [*of_seed(seed), f"name=demo-seed-{seed}"]) for seed in options.parse_args().seeds)
    print_verdicts("seed", runs)


if __name__ == "__main__":
    main()
