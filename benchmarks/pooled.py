"""`python -m benchmarks.pooled RUN …`: the gates over the rows of several data seeds together, 40 forget rows a seed.

Each run is a release of the demo on another data seed (``make seeds``), with its three golds. Judged are *retrained
models*, where a gold of each seed stands for the unlearned model, another one is the reference and the third a further
gold; the *unlearned* models, against the same references; and *base*. A draw takes one of the seeds, ten, or all, and
deals the golds of each anew. No row is drawn twice: the tests take rows to be independent, and copies of a row would
let them see differences that are none. As the rows come from different trainings, whose deviations partly cancel, a
single model of that many rows varies more. Readings under attack are left out, since further golds are not attacked.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.judged import Samples, judge
from benchmarks.releases import STORE
from eval.catalog import CATALOG
from eval.config import EvalConfig, Gate
from eval.schema import JudgedGate, read_samples
from eval.verdicts.gates import rule
from pipeline.recipe import load_recipe

GOLDS = ("eval-gold", "eval-gold-seed-1", "eval-gold-seed-2")
GENERAL = "general"  # the same questions in each run, whatever the number of rows
ROWS = 40  # forget rows of one seed
SEEDS = 10  # of a draw of the middle size


class Seed:
    """The rows of one run, by model, and the golds in the order of their training."""

    def __init__(self, folder: Path) -> None:
        self.golds = [_read(folder / name) for name in GOLDS]
        self.base = _read(folder / "eval-base")
        self.unlearned = _read(folder / "eval-unlearned")


def _read(evaluation: Path) -> Samples:
    """Its rows, with the reading without any attack, which further golds lack: it is the row's own."""
    samples = read_samples(evaluation / "samples.jsonl")
    for row in samples:
        if row["split"] == "forget":
            own = {reading: row[reading] for reading in ("answer_probability", "extraction_strength")}
            row.setdefault("attacked", {"untreated": own})
    return samples


def draw(seeds: Sequence[Seed], count: int, chance: random.Random, judged: str) -> dict[str, Samples]:
    """The samples of each model over all rows of ``count`` seeds.

    The models are the judged one (``unlearned``), base, gold and one ``further`` gold.
    """
    pooled: dict[str, Samples] = {"unlearned": [], "base": [], "gold": [], "further": []}
    for place, seed in enumerate(chance.sample(seeds, count)):
        dealt = dict(zip(("retrained", "gold", "further"), chance.sample(seed.golds, 3), strict=True))
        dealt |= {"unlearned": seed.unlearned, "base": seed.base}
        of_model = {**dealt, "unlearned": dealt[judged]}
        for model, samples in pooled.items():
            own = [row for row in of_model[model] if row["split"] != GENERAL or not place]
            samples += [{**row, "row_id": f"{place} {row['row_id']}"} for row in own]
    return pooled


def measurable(gates: Sequence[Gate]) -> list[Gate]:
    """The gates that these rows can be judged by, whatever their number."""
    return [gate.model_copy(update={"min_n": 1}) for gate in gates if not gate.of_suite and _is_measured(gate.metric)]


def _is_measured(name: str) -> bool:
    metric = CATALOG[CATALOG[name].gap_of or name]
    return metric.attack is None or metric.attack.name == "untreated"


def table(seeds: Sequence[Seed], gates: Sequence[Gate], config: EvalConfig, draws: int) -> Iterator[str]:
    """A line for each gate: the share of draws that pass, and the middle of what was measured, for each size."""
    counts = sorted({1, min(SEEDS, len(seeds)), len(seeds)})
    columns = [(judged, count) for judged in ("retrained", "unlearned", "base") for count in counts]
    found: dict[tuple[str, int], list[list[JudgedGate]]] = {}
    for judged, count in columns:
        chance = random.Random(f"{judged} {count}")
        drawn = (draw(seeds, count, chance, judged) for _ in range(draws))
        found[judged, count] = [next(judge(gates, config, models, [[models["further"]]])) for models in drawn]
    yield f"| gate | rule | {' | '.join(f'{judged}, {ROWS * count}' for judged, count in columns)} |"
    yield f"|---|---|{'--:|' * len(columns)}"
    for i, gate in enumerate(gates):
        cells = [_cell([verdict[i] for verdict in found[column]]) for column in columns]
        yield f"| {gate.metric} {gate.split} | {rule(gate)} | {' | '.join(cells)} |"
    passed = [sum(all(gate.passed for gate in verdict) for verdict in found[column]) for column in columns]
    yield f"| all of these | | {' | '.join(f'{count / draws:.0%}' for count in passed)} |"


def _cell(gates: Sequence[JudgedGate]) -> str:
    values = sorted(gate.measured for gate in gates if gate.measured is not None)
    passed = sum(gate.passed for gate in gates) / len(gates)
    return f"{passed:.0%} ({values[len(values) // 2]:.3f})" if values else "–"


def main() -> None:
    """Print the tables, by the demo's gates and by those for thousands of rows."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.pooled", description=__doc__)
    options.add_argument("runs", nargs="+", help="names of runs in the store")
    options.add_argument("--draws", type=int, default=40)
    chosen = options.parse_args()
    seeds = [Seed(STORE / name) for name in chosen.runs]
    config = load_recipe("demo").eval
    for recipe in ("demo", "fame-topics-gd-llama32-3b"):
        print(f"\n{recipe}, {len(seeds)} data seeds\n")
        print("\n".join(table(seeds, measurable(load_recipe(recipe).gates), config, chosen.draws)), flush=True)


if __name__ == "__main__":
    main()
