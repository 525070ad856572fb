"""`python -m benchmarks.ks_intervals`: how often an interval of the two-sample KS statistic holds the true distance.

Each pair of samples is drawn from distributions whose distance is known. About two minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from eval.statistics.intervals import ks_intervals

Floats = NDArray[np.float64]
DRAWS, RESAMPLES = 2000, 400
GRID = 0.5  # what tied values are rounded to
KNOWN = -9.0  # a value that no other row has: a fact that is still known


class Case(NamedTuple):
    """Rows of both samples, their distributions, and whether the values of one row are correlated (.7)."""

    rows: tuple[int, int]
    shape: str
    distance: float
    paired: bool = False


CASES = [
    Case((1, 1), "shift", 0.0),
    Case((4, 5), "shift", 0.0),
    Case((4, 5), "shift", 0.5),
    Case((40, 50), "shift", 0.0),
    Case((40, 50), "shift", 0.3),
    Case((40, 50), "shift", 0.8),
    Case((40, 50), "known", 0.2),
    Case((40, 50), "ties", 0.0),
    Case((40, 50), "ties", 0.3),
    Case((50, 50), "shift", 0.3),
    Case((160, 50), "shift", 0.0),
    Case((160, 50), "shift", 0.3),
    Case((40, 40), "shift", 0.0, paired=True),
    Case((40, 40), "shift", 0.3, paired=True),
    Case((160, 160), "shift", 0.3, paired=True),
]


def draw(case: Case, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A sample of each distribution: standard normal, and one that is ``distance`` away from it."""
    n, m = case.rows
    first, second = rng.normal(size=n), rng.normal(size=m)
    if case.paired:
        second = 0.7 * first + math.sqrt(1 - 0.7**2) * second
    if case.shape == "known":
        return np.where(rng.random(n) < case.distance, KNOWN, first), second
    first = first + 2 * norm.ppf((1 + case.distance) / 2)
    return (np.round(first / GRID) * GRID, np.round(second / GRID) * GRID) if case.shape == "ties" else (first, second)


def true_distance(case: Case) -> float:
    """The largest gap between the two distribution functions; rounding only leaves those at its own borders."""
    if case.shape != "ties":
        return case.distance
    borders = np.arange(-8, 8, GRID) + GRID / 2
    return float(np.abs(norm.cdf(borders) - norm.cdf(borders - 2 * norm.ppf((1 + case.distance) / 2))).max())


def heights(pooled: Floats, steps: Floats) -> Floats:
    """(samples,): the largest gap between two distributions, from the (samples, rows) steps that each value adds."""
    order = np.argsort(pooled, kind="stable")
    gaps = np.cumsum(steps[:, order], axis=1)
    found: Floats = np.abs(gaps[:, np.append(np.diff(pooled[order]) > 0, True)]).max(axis=1)
    return found


def found_intervals(
    first: Floats, second: Floats, paired: bool, rng: np.random.Generator
) -> Iterator[tuple[str, Floats]]:
    """The statistic itself, and the interval of each way, by its name."""
    n, m = first.size, second.size
    pooled = np.concatenate([first, second])
    flat = np.concatenate([np.full(n, 1 / n), np.full(m, -1 / m)])
    value = float(heights(pooled, flat[None])[0])
    counts = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES)
    others = counts if paired else rng.multinomial(m, np.full(m, 1 / m), RESAMPLES)
    steps = np.concatenate([counts / n, -others / m], axis=1)
    drawn = heights(pooled, steps)
    yield "value", np.array([value, value])
    low, high = np.percentile(drawn, [2.5, 97.5])
    yield "percentile", np.array([low, high])
    yield "basic", 2 * value - np.array([high, low])
    below = np.clip((drawn < value).mean() + (drawn == value).mean() / 2, 0.5 / RESAMPLES, 1 - 0.5 / RESAMPLES)
    yield "bias-corrected", np.quantile(drawn, norm.cdf(2 * norm.ppf(below) + norm.ppf([0.025, 0.975])))
    yield "subsamples", value - _subsampled(pooled, n, paired, value, rng)[::-1]
    wide = float(np.quantile(heights(pooled, steps - flat), 0.95))
    yield "bootstrap band", np.array([value - wide, value + wide])
    wide = sum(math.sqrt(math.log(2 / 0.025) / (2 * rows)) for rows in (n, m))
    yield "DKW twice", np.array([value - wide, value + wide])
    yield "KS critical value", np.array(ks_intervals(value, n, m)[1])


def _subsampled(pooled: Floats, n: int, paired: bool, value: float, rng: np.random.Generator) -> Floats:
    """2.5 and 97.5 % of D* - D over subsamples without replacement of n^0.7 rows, scaled to the whole."""
    m = pooled.size - n
    small = [max(1, round(rows**0.7)) for rows in (n, m)]
    picked = np.argsort(rng.random((RESAMPLES, n)), axis=1) < small[0]
    others = picked if paired else np.argsort(rng.random((RESAMPLES, m)), axis=1) < small[1]
    drawn = heights(pooled, np.concatenate([picked / small[0], others / -small[1]], axis=1))
    scale = math.sqrt((1 / n + 1 / m) / (1 / small[0] + 1 / small[1]))
    return np.percentile(scale * (drawn - value), [2.5, 97.5])


def line(case: Case) -> tuple[list[str], str]:
    """The ways' names, and the table's line: share of draws with the true distance inside, mean width, value inside."""
    rng = np.random.default_rng([*case.rows, round(100 * case.distance)])
    true = true_distance(case)
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(DRAWS):
        ways = found_intervals(*draw(case, rng), case.paired, rng)
        value = next(ways)[1][0]
        for name, ends in ways:
            low, high = np.clip(ends, 0, 1) + np.array([-1e-9, 1e-9])
            found.setdefault(name, []).append((low <= true <= high, high - low, low <= value <= high))
    cells = ["{:.3f}, {:.2f}, {:.2f}".format(*np.mean(of_way, axis=0)) for of_way in found.values()]
    rows = f"{case.rows[0]}" if case.paired else f"{case.rows[0]} and {case.rows[1]}"
    what = f"{rows}{', the same rows' if case.paired else ''} | {case.shape} | {true:.2f}"
    return list(found), f"| {what} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    for index, case in enumerate(CASES):
        names, text = line(case)
        if index == 0:
            print(f"| rows | other distribution | distance | {' | '.join(names)} |\n|---|---|--:|{'---|' * len(names)}")
        print(text, flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.ks_intervals", description=__doc__).parse_args()
    main()
