"""`make methods`: every unlearning method on the demo's data, over several data seeds, from one command.

For each seed the demo's base and gold are trained and measured once; then each method of `methods.yaml` unlearns from
that base and is measured and judged by the demo's gates. The artifacts stay in the store, so an interrupted run goes on
and a second one only prints. Prints the table and writes the plot to docs/measurements.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.releases import ROOT, STORE, of_seed, release
from core.artifacts import read_facts, read_manifest
from core.unlearning import UnlearnFacts
from eval.schema import read_records, read_verdict

OUT = ROOT / "docs" / "measurements"
SEEDS = (11, 12, 13)


class Run(NamedTuple):
    """What one model of one seed was measured to be; None where it cannot be, as steps where nothing was unlearned."""

    quality: float | None
    forget: float
    min_k_plus_plus: float
    damage: float | None
    retain: float
    unrehearsed: float
    steps: int | None = None
    seconds: float | None = None
    failed: int | None = None


def read_methods() -> list[dict[str, Any]]:
    """The entries of `methods.yaml`: ``name``, ``label``, and ``unlearn`` where it is not the demo's."""
    return list(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))["methods"])


def overrides(method: dict[str, Any], seed: int) -> list[str]:
    """What makes the demo's recipe this method on this data seed."""
    sets = [*of_seed(seed), f"name={recipe_name(method, seed)}"]
    if "unlearn" in method:
        sets.append(f"unlearn={json.dumps(method['unlearn'])}")
    return sets


def recipe_name(method: dict[str, Any], seed: int) -> str:
    """Where the artifacts of this run are linked."""
    return f"methods-{seed}-{method['name']}"


def read_run(folder: Path, model: str) -> Run:
    """The measurements of ``model`` (base, gold or unlearned) in the artifacts of a run."""
    records = read_records(folder / f"eval-{model}" / "results.json")
    found = {(r.metric, r.split): r.value for r in records if r.by is None}
    run = Run(
        quality=found.get(("forget_quality", "forget")),
        forget=found["answer_probability", "forget"],
        min_k_plus_plus=found["mia_min_k_plus_plus_auc", "forget"],
        damage=found.get(("damage_gap", "forget")),
        retain=found["answer_probability", "retain"],
        unrehearsed=found["answer_probability", "unrehearsed"],
    )
    if model != "unlearned":
        return run
    steps, seconds = read_facts(folder / "unlearn", UnlearnFacts).steps, read_manifest(folder / "unlearn").seconds
    failed = sum(not gate.passed for gate in read_verdict(folder / "gate").gates)
    return run._replace(steps=steps, seconds=seconds, failed=failed)


def cell(values: Sequence[float | None], digits: int) -> str:
    """Mean and range over seeds, or a dash where nothing was measured."""
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    low, middle, high = (f"{value:.{digits}f}" for value in (min(there), statistics.mean(there), max(there)))
    return middle if low == high else f"{middle} ({low} to {high})"


def table(runs: dict[str, list[Run]]) -> str:
    """One line a method: mean and range over seeds, and of each seed how many gates fail."""
    digits = {
        "forget quality": 3,
        "forget probability": 3,
        "min-k++": 3,
        "damage": 3,
        "retain probability": 3,
        "unrehearsed": 3,
        "steps": 0,
        "seconds": 0,
    }
    lines = [f"| method | {' | '.join(digits)} | gates that fail |", f"|---|{'--:|' * len(digits)}--:|"]
    for label, found in runs.items():
        *columns, failed = zip(*found, strict=True)
        cells = [cell(values, places) for values, places in zip(columns, digits.values(), strict=True)]
        counts = ", ".join(str(count) for count in failed if count is not None)
        lines.append(f"| {' | '.join([label, *cells, counts or '–'])} |")
    return "\n".join(lines)


def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """What nobody rehearsed against forget reached: a mark at the mean of each method, with its range over seeds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "methods"  # the same numbers give the same file
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.add_subplot()
    base = statistics.mean(run.unrehearsed for run in runs["base"])
    gold = [run.forget for run in runs["gold"]]
    axes.axvspan(min(gold), max(gold), color="#f4d03f", alpha=0.35, label="gold's forget probability")
    marks, colours = "osD^vP*X<>hpd", mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for i, (label, found) in enumerate(runs.items()):
        forget, kept = [run.forget for run in found], [run.unrehearsed / base for run in found]
        x, y = statistics.mean(forget), statistics.mean(kept)
        ranges = {"xerr": [[x - min(forget)], [max(forget) - x]], "yerr": [[y - min(kept)], [max(kept) - y]]}
        axes.errorbar(x, y, fmt=marks[i % len(marks)], color=colours[i % 20], ms=7, lw=0.8, label=label, **ranges)
    axes.axhline(0.95, color="#888888", linewidth=0.8, linestyle=":", label="the demo's gate on unrehearsed rows")
    axes.set(
        xlabel="answer probability of forget rows (reached)",
        ylabel="answer probability of unrehearsed rows, of base's",
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run what is missing, print the table, write the plot."""
    methods = read_methods()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--only", nargs="+", choices=[method["name"] for method in methods], help="these methods alone")
    options = parser.parse_args()
    methods = [method for method in methods if not options.only or method["name"] in options.only]
    runs: dict[str, list[Run]] = {"base": [], "gold": []} | {method["label"]: [] for method in methods}
    for seed in options.seeds:
        for method in methods:
            print(f"seed {seed}: {method['label']}", file=sys.stderr, flush=True)
            release("demo", "gate", overrides(method, seed))
            runs[method["label"]].append(read_run(STORE / recipe_name(method, seed), "unlearned"))
        for model in ("base", "gold"):
            runs[model].append(read_run(STORE / recipe_name(methods[0], seed), model))
    print(table(runs))
    if not options.only:
        draw(runs, OUT / "methods.svg")


if __name__ == "__main__":
    main()
