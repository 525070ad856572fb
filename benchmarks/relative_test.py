"""`python -m benchmarks.relative_test`: how often the relative test and the KS test are right, in a simulation.

Every model is trained anew: its measurements of all rows are moved together by a retraining shift. A safe model is one
more gold; a leaking one answers a share of the rows as base does; a destroyed one is far from both. Prints the table of
docs/measurements/relative-test.md (about five minutes on one core).
"""

from __future__ import annotations

import argparse

import numpy as np

from eval.records.relative import RelativeTest, relative_test
from eval.statistics.formulas import Floats, forget_quality

BASE = np.array([2.0, 1.0])  # from gold, in standard deviations of a row's measurement
ROW_EFFECT = 0.5  # share of a measurement's variance that the models have in common: some facts are easier to guess
GRID = {40: (1, 2, 3, 5, 10), 100: (1, 2, 3, 5, 10), 400: (1, 3, 5), 1600: (1,)}  # rows: numbers of golds
LEAK_LIMIT, DAMAGE_MARGIN = 0.25, 0.1  # of the demo's gates on leak_coordinate and damage_gap
SHIFT = 0.13  # of one training, in the same unit: with it KS rejects about as often as our first simulation said


def gold_like(rng: np.random.Generator, effect: Floats, shift: float = SHIFT) -> Floats:
    """Measurements (rows, 2) of a model that never saw the rows, moved by its own training."""
    noise = rng.normal(size=effect.shape)
    return np.sqrt(ROW_EFFECT) * effect + np.sqrt(1 - ROW_EFFECT) * noise + shift * rng.normal(size=2)


def base_like(rng: np.random.Generator, effect: Floats, shift: float = SHIFT) -> Floats:
    """Measurements of a model that knows the rows."""
    return BASE + 0.7 * gold_like(rng, effect, shift)


def leaking(rng: np.random.Generator, effect: Floats, share: float, shift: float = SHIFT) -> Floats:
    """A model that knows each row with the probability ``share``."""
    known = rng.random(len(effect)) < share
    return np.where(known[:, None], base_like(rng, effect, shift), gold_like(rng, effect, shift))


def destroyed(rng: np.random.Generator, effect: Floats) -> Floats:
    """A model that finds true answers far less likely than gold does."""
    return gold_like(rng, effect) - np.array([3.0, -1.0])


def trial(rng: np.random.Generator, rows: int, golds: int, share: float | None, shift: float = SHIFT) -> RelativeTest:
    """The relative test of a model that leaks ``share`` of the rows; None: of a destroyed model."""
    effect = rng.normal(size=(rows, 2))
    references = [gold_like(rng, effect, shift) for _ in range(golds)]
    base = base_like(rng, effect, shift)
    unlearned = destroyed(rng, effect) if share is None else leaking(rng, effect, share, shift)
    return relative_test(unlearned, base, references)


def within_gates(test: RelativeTest) -> bool:
    """Whether the demo's gates on the relative test would pass; that on the leak asks for the whole interval."""
    return test.high <= LEAK_LIMIT and test.damage_gap <= DAMAGE_MARGIN


def ks_rejections(rows: int, trials: int) -> float:
    """How often KS at 5 % rejects a safe model, a retrained gold."""
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(trials):
        effect = rng.normal(size=(rows, 2))
        rejected += forget_quality(gold_like(rng, effect)[:, 0], gold_like(rng, effect)[:, 0])[0] < 0.05
    return rejected / trials


def passes(rows: int, golds: int, share: float | None, trials: int) -> dict[str, float]:
    """Shares of trials: the whole test passes; it would pass with the variance of rows alone; and means of f and r."""
    rng = np.random.default_rng(0)
    found = [trial(rng, rows, golds, share) for _ in range(trials)]
    return {
        "passed": float(np.mean([within_gates(test) for test in found])),
        "rows_only": float(np.mean([test.leak + 1.960 * test.se <= LEAK_LIMIT for test in found])),
        "leak": float(np.mean([test.leak for test in found])),
        "leak_sd": float(np.std([test.leak for test in found])),
        "damage": float(np.mean([test.damage for test in found])),
    }


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.relative_test", description=__doc__)
    options.add_argument("--trials", type=int, default=400, help="fewer with 400 rows and more")
    options.add_argument("--rows", type=int, nargs="+", choices=GRID, default=list(GRID), help="a part of the table")
    given = options.parse_args()
    trials: int = given.trials
    print("| rows | safe retrain rejected by KS at 5 % |\n|--:|--:|")
    for rows in (40, 100, 400, 3200):
        print(f"| {rows} | {ks_rejections(rows, trials):.0%} |", flush=True)
    models = {"safe": 0.0, "10 % leak": 0.1, "25 % leak": 0.25, "50 % leak": 0.5, "destroyed": None}
    print(f"\n| rows | golds | {' | '.join(models)} | 25 % leak, rows' variance alone | f of safe: mean, sd |")
    print(f"|--:|--:|{'--:|' * len(models)}--:|---|")
    for rows in given.rows:
        for golds in GRID[rows]:
            found = {name: passes(rows, golds, share, trials // (1 + rows // 400)) for name, share in models.items()}
            cells = " | ".join(f"{cell['passed']:.0%}" for cell in found.values())
            safe = found["safe"]
            alone = found["25 % leak"]["rows_only"]
            mean, sd = safe["leak"], safe["leak_sd"]
            print(f"| {rows} | {golds} | {cells} | {alone:.0%} | {mean:.3f}, {sd:.3f} |", flush=True)


if __name__ == "__main__":
    main()
