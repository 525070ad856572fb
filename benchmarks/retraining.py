"""`python -m benchmarks.retraining NAME`: how much two trainings of gold differ, and what one gold would have said.

Reads the evaluations of a recipe with `gold.seeds` and `eval.relative` (`python -m pipeline release demo-audit --until
eval-unlearned` makes them) and trains nothing. Prints the tables of docs/measurements/relative-test.md.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.relative_test import within_gates
from eval.records.relative import features, relative_test
from eval.schema import read_samples
from eval.statistics.formulas import forget_quality

ROOT = Path(__file__).resolve().parents[1]


def _mean(samples: list[dict[str, Any]], measure: str) -> float:
    return float(np.mean([sample[measure] for sample in samples if sample["split"] == "forget"]))


def _ratios(samples: list[dict[str, Any]]) -> list[float]:
    return [sample["truth_ratio"] for sample in samples if sample["split"] == "forget" and "truth_ratio" in sample]


def _ks(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> float:
    return forget_quality(_ratios(first), _ratios(second))[0]


def _row(name: str, *cells: object) -> str:
    return f"| {name} | {' | '.join(f'{cell:.3f}' if isinstance(cell, float) else str(cell) for cell in cells)} |"


def main() -> None:
    """Print the tables."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.retraining", description=__doc__)
    options.add_argument("name", help="a recipe's name, or the path of its folder in the store")
    place = ROOT / "runs" / options.parse_args().name
    tested = json.loads((place / "eval-unlearned" / "relative.json").read_text(encoding="utf-8"))
    golds = ["eval-gold", *tested["golds"][1:]]  # the evaluation itself calls the first one its gold
    samples = {name: read_samples(place / name / "samples.jsonl") for name in (*golds, "eval-unlearned", "eval-base")}
    clouds = features(samples)
    test = partial(relative_test, base=clouds["eval-base"])
    references = [clouds[name] for name in golds]
    every = test(clouds["eval-unlearned"], golds=references)
    at_base = test(clouds["eval-base"], golds=references)
    nothing = ["–"]  # one gold has no others
    leaks = [*(every.gold_leaks or nothing), every.leak, at_base.leak]
    damages = [*(every.gold_damages or nothing), every.damage, at_base.damage]

    print("| model | answer probability | extraction strength | f against the (other) golds | r |")
    print("|---|--:|--:|--:|--:|")
    for (name, found), leak, damage in zip(samples.items(), leaks, damages, strict=True):
        means = (_mean(found, "answer_probability"), _mean(found, "extraction_strength"))
        print(_row(name.removeprefix("eval-"), *means, leak, damage))

    print("\n| golds | f of the unlearned model | error from rows | sd between golds | 95 % bound | r | verdict |")
    print("|---|--:|--:|--:|--:|--:|---|")
    tests = {name.removeprefix("eval-"): test(clouds["eval-unlearned"], golds=[clouds[name]]) for name in golds}
    for name, result in {**tests, f"all {len(golds)}": every}.items():
        spread = "unknown" if result.gold_sd is None else result.gold_sd
        verdict = "pass" if within_gates(result) else "fail"
        print(_row(name, result.leak, result.se, spread, result.bound, result.damage, verdict))

    ours = ", ".join(f"{_ks(samples['eval-unlearned'], samples[gold]):.3f}" for gold in golds)
    print(f"\nKS of the unlearned model against each gold: p {ours}.")
    pairs = [_ks(samples[a], samples[b]) for a, b in combinations(golds, 2)]
    if pairs:
        below = sum(p < 0.05 for p in pairs)
        between = f"{min(pairs):.3f} to {max(pairs):.3f} in {len(pairs)} pairs, {below} below 0.05"
        print(f"KS between two golds: p {between}.")


if __name__ == "__main__":
    main()
