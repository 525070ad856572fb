"""`python -m benchmarks.requests_in_a_row`: five forget requests in a row, and one request for all of their rows.

The rows are the demo's: its 40 forget rows in five requests of eight, drawn by a seed; its holdout rows stay unseen.
The first request trains a base, each other one starts from the release before it. Prints what each took, and what the
models know of each kind of row; the last release is to be compared with the one that forgot all rows at once.
``--plan`` prints what the runs would take, and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.releases import STORE, release
from benchmarks.scale import stage_seconds
from core.artifacts import read_manifest
from datasets_prep.prepare import prepare
from datasets_prep.schema import FORGOTTEN, SPLITS
from eval.schema import find_record, read_records, read_samples
from pipeline.cost import devices
from pipeline.engine.plan import duration, planned
from pipeline.recipe import load_recipe
from pipeline.stages import stages

NAME = "requests-in-a-row"
REQUESTS, SEED = 5, 0
METRICS = ("answer_probability", "extraction_strength")
# Wide: they are here to end a chain that broke, and the table says how far each value is from base's and holdout's.
LIMIT = {"of": "holdout", "bound": "ci_high", "plus": 0.2}


def demo_rows() -> dict[str, list[str]]:
    """The ids of the demo's rows by split."""
    prepared = prepare(load_recipe("demo").data)
    ids = [row_id for (row_id,) in prepared.loaded.rows.columns("row_id")]
    return {split: [ids[i] for i in np.flatnonzero(prepared.split == code)] for code, split in enumerate(SPLITS)}


def requests(forget: Sequence[str]) -> list[list[str]]:
    """The forget rows in as many requests, all of one size."""
    shuffled = random.Random(SEED).sample(list(forget), len(forget))
    return [sorted(shuffled[i::REQUESTS]) for i in range(REQUESTS)]


def recipe(name: str, forget: list[str], holdout: list[str], before: list[list[str]]) -> dict[str, Any]:
    """The demo with a request for some rows: on a base of its own, or on the release that forgot those ``before``."""
    forgotten = sorted(row for rows in before for row in rows)
    request: dict[str, Any] = {"forget": [{"rows": forget}], "holdout": [{"rows": holdout}]}
    base: dict[str, Any] = {}
    if before:
        request["forgotten"] = [{"rows": forgotten}]
        base = {"train": None, "release": f"demo/{NAME}-{len(before)}@v1.0.0"}
    return {
        "extends": "demo",
        "name": name,
        "data": {"setting": "request", "shares": None, "request": request},
        "base": base,
        "gold": "none",
        "unlearn": {"min_steps": 48},  # as many as the demo takes for all 40 rows
        "eval": {"robustness": None, "relative": False},
        "gates": [
            {
                "metric": "answer_probability",
                "split": split,
                "at_most": LIMIT,
                "min_n": len(rows),
                "reason": "A chain whose rows are still known, or known again, is not continued.",
            }
            for split, rows in (("forget", forget), ("forgotten", forgotten))
            if rows
        ],
        "publish": {"repo": f"demo/{name}"},
    }


def recipes() -> dict[str, dict[str, Any]]:
    """By name: the one with all rows, and the five in a row."""
    rows = demo_rows()
    listed = requests(rows["forget"])
    row = {
        f"{NAME}-{i + 1}": recipe(f"{NAME}-{i + 1}", listed[i], rows["holdout"], listed[:i]) for i in range(REQUESTS)
    }
    return {f"{NAME}-all": recipe(f"{NAME}-all", sorted(rows["forget"]), rows["holdout"], [])} | row


def plan(path: str) -> str:
    """What a run would take on this processor: by the cost model, times what the demo's manifests say of it."""
    recipe, cpu = load_recipe(path), devices.cpu()
    prepared = prepare(recipe.data)
    rows = {split: int((prepared.split == code).sum()) for code, split in enumerate(SPLITS)}
    rows |= {FORGOTTEN: len(prepared.forgotten)}
    known = planned(recipe, {}, cpu)._replace(rows=rows)
    took = {stage.name: stage_seconds(stage, known, start=0.0) for stage in stages(recipe)}
    long = ", ".join(f"{name} {duration(of)}" for name, of in took.items() if of >= 30)
    counts = ", ".join(f"{count} {split}" for split, count in rows.items() if count)
    return f"{counts}; about {duration(sum(took.values()))} ({long})"


def seconds(name: str, store: Path) -> dict[str, float]:
    """The seconds of each stage of a release."""
    return {stage.name: read_manifest(stage).seconds for stage in sorted((store / name).iterdir())}


def known(evaluation: Path, rows: Collection[str]) -> list[float]:
    """The mean of each of METRICS over these rows."""
    samples = [row for row in read_samples(evaluation / "samples.jsonl") if row["row_id"] in rows]
    if len(samples) != len(rows):
        raise SystemExit(f"{evaluation} measured {len(samples)} of {len(rows)} rows.")
    return [float(np.mean([row[metric] for row in samples])) for metric in METRICS]


def line(label: str, name: str, model: str, kinds: Sequence[Collection[str]], store: Path) -> str:
    """One model: what it knows of each kind of row, and its utility."""
    evaluation = store / name / f"eval-{model}"
    cells = ["/".join(f"{value:.3f}" for value in known(evaluation, rows)) if rows else "–" for rows in kinds]
    utility = find_record(read_records(evaluation / "results.json"), "utility", "general")
    return f"| {label} | {' | '.join(cells)} | {utility.value if utility else float('nan'):.3f} |"


def table(made: Sequence[str], rows: dict[str, list[str]], store: Path) -> str:
    """What each run took, and what its models know."""
    listed = requests(rows["forget"])
    retained = {*rows["retain"], *rows["unrehearsed"]}
    took = ["| run | base | neighbours | unlearn | evaluations | the rest | all, s |", "|---|" + "--:|" * 6]
    head = "| model | its request | earlier ones | all 40 | the 160 retained | holdout | utility |"
    knows = [f"{' / '.join(METRICS)}:", "", head, "|---|" + "--:|" * 6]
    for name in made:
        of = seconds(name, store)
        parts = [of["base"], of["neighbours"], of["unlearn"], of["eval-base"] + of["eval-unlearned"]]
        cells = [*parts, sum(of.values()) - sum(parts), sum(of.values())]
        took.append(f"| {name} | {' | '.join(f'{cell:.0f}' for cell in cells)} |")
        is_all = name.endswith("-all")
        number = 0 if is_all else int(name.rsplit("-", 1)[1]) - 1
        own = rows["forget"] if is_all else listed[number]
        earlier = [] if is_all else [row for request in listed[:number] for row in request]
        kinds = (own, earlier, rows["forget"], retained, rows["holdout"])
        if not earlier:
            knows.append(line(f"base of {name}", name, "base", kinds, store))
        knows.append(line(name, name, "unlearned", kinds, store))
    return "\n".join([*took, "", *knows])


def main() -> None:
    """Run what is not done yet, and print the tables."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.requests_in_a_row", description=__doc__)
    options.add_argument("--plan", action="store_true", help="print what each run would take, and run nothing")
    options.add_argument("--store", type=Path, default=STORE, help="default: %(default)s")
    given = options.parse_args()
    made = []
    with TemporaryDirectory() as folder:
        for name, content in recipes().items():
            path = Path(folder) / f"{name}.yaml"
            path.write_text(json.dumps(content), encoding="utf-8")  # which is YAML too
            if given.plan:
                print(f"{name}: {plan(str(path))}", flush=True)
                continue
            release(str(path), "publish", [], given.store)
            if not (given.store / name / "publish").exists():
                print(f"The chain ends with {name}: its gates refused it.", file=sys.stderr)
                break
            made.append(name)
    if made:
        print(table(made, demo_rows(), given.store))


if __name__ == "__main__":
    main()
