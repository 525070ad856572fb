"""`python -m benchmarks.ks_power`: what the truth-ratio test sees at each number of rows, stated and simulated."""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import norm

from eval.schema import ALPHA
from eval.statistics import power

DRAWS = {40: 1000, 100: 1000, 400: 1000, 3200: 300}


def seen(rows: int, distance: float, critical: float) -> float:
    """The share of draws in which two normal distributions that are ``distance`` apart are told apart."""
    rng = np.random.default_rng(0)
    shift = 2 * norm.ppf((1 + distance) / 2)
    found = []
    for _ in range(DRAWS[rows]):
        ours, gold = np.sort(rng.normal(shift, 1, rows)), np.sort(rng.normal(0, 1, rows))
        values = np.concatenate([ours, gold])
        gaps = np.searchsorted(ours, values, "right") - np.searchsorted(gold, values, "right")
        found.append(np.abs(gaps).max() / rows >= critical - 1e-9)
    return float(np.mean(found))


def main() -> None:
    """Print the table."""
    print("| n | critical statistic | KS distance | seen for a shift | at 0.7 of it |\n|--:|--:|--:|--:|--:|")
    for rows in DRAWS:
        critical = power.ks_critical(rows, ALPHA)
        distance = power.smallest_ks_distance(rows, critical)
        assert distance is not None
        shares = [seen(rows, part * distance, critical) for part in (1.0, 0.7)]
        print(f"| {rows:,} | {critical:.3f} | {distance:.3f} | {shares[0]:.2f} | {shares[1]:.2f} |", flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.ks_power", description=__doc__).parse_args()
    main()
