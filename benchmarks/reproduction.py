"""What a published checkpoint was trained with: runs that differ in what is not known, each compared with it.

    python -m benchmarks.reproduction REPO@COMMIT --set base.hub.revision=COMMIT --set gold.hub.revision=COMMIT …

Each run of `reproduction.yaml` is released to its evaluation and compared (`python -m pipeline compare`). Prints one
line a run: the verdicts of all metrics that have a margin, and a few differences, ours minus theirs. Base, gold and
theirs are fetched and measured once. The artifacts stay in the store, so an interrupted command goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.releases import ROOT, STORE, release

RECIPE = "fame-topics-gd-published"
SHOWN = (
    ("answer_probability", "forget"),
    ("extraction_strength", "forget"),
    ("rouge_l_recall", "forget"),
    ("fluency", "forget"),
    ("answer_probability", "retain"),
    ("utility", "general"),
)
VERDICTS = ("equivalent", "not shown", "different")


def read_runs() -> list[dict[str, Any]]:
    """The entries of `reproduction.yaml`: ``name``, ``label`` and ``sets``."""
    return list(yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))["runs"])


def overrides(run: dict[str, Any], common: Sequence[str]) -> list[str]:
    """What makes the recipe this run; ``common`` are the values that all runs share."""
    return [f"name={RECIPE}-{run['name']}", *run["sets"], *common]


def compared(to: str, sets: Sequence[str]) -> list[dict[str, Any]]:
    """The metrics of `compare --json`. Any failure ends the benchmark."""
    argv = [sys.executable, "-m", "pipeline", "compare", RECIPE, "--to", to, "--store", str(STORE), "--json"]
    argv += [word for value in sets for word in ("--set", value)]
    done = subprocess.run(argv, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    metrics: list[dict[str, Any]] = json.loads(done.stdout)["metrics"]
    return metrics


def head() -> str:
    """The first two lines of the table."""
    cells = ["run", *VERDICTS, *(f"{metric}, {split}" for metric, split in SHOWN)]
    return f"| {' | '.join(cells)} |\n|---|{'--:|' * (len(cells) - 1)}"


def line(label: str, metrics: Sequence[dict[str, Any]]) -> str:
    """A line of the table: how many metrics have which verdict, and the differences that are shown."""
    found = {(entry["metric"], entry["split"]): entry for entry in metrics}
    counts = [sum(entry["verdict"] == verdict for entry in metrics) for verdict in VERDICTS]
    differences = [found.get(key, {}).get("difference") for key in SHOWN]
    cells = [label, *map(str, counts), *("–" if value is None else f"{value:+.3f}" for value in differences)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run what is missing and print the table."""
    runs = read_runs()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduction", description=__doc__)
    parser.add_argument("to", metavar="REPO@COMMIT", help="the published checkpoint")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value for all runs")
    parser.add_argument("--only", nargs="+", choices=[run["name"] for run in runs], help="these runs alone")
    options = parser.parse_args()
    print(head())
    for run in runs:
        if not options.only or run["name"] in options.only:
            sets = overrides(run, options.set)
            release(RECIPE, "eval-unlearned", sets)
            print(line(run["label"], compared(options.to, sets)), flush=True)


if __name__ == "__main__":
    main()
