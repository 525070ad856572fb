"""How far verdicts without gold agree with those against gold: `python -m benchmarks.without_gold runs/methods-*`.

Each RUN is a folder of links that `make methods` or `make seeds` left (`runs/methods-11-npo`): good and bad unlearned
models, and of every seed base (nothing was forgotten) and gold (it never knew), which its runs share.

Only the gates on forget rows are compared: those on retained rows and general knowledge need no gold. Values are
computed anew from the samples of the evaluations. The start model alone is run, once for each run's data, since a
release with gold does not evaluate it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import InputError
from eval import suite
from eval.catalog import CATALOG
from eval.config import Gate
from eval.records.rows import row_records, set_records
from eval.schema import JudgedGate, Record, find_record, read_records, read_samples
from eval.verdicts.gates import judge_gate
from pipeline.recipe import load_recipe

RECIPES = {"against gold": "demo", "without gold": "demo-no-gold"}
PAIRS = (
    ("forget_quality", "forget_against_holdout"),
    ("mia_min_k_auc", "mia_min_k_auc"),
    ("answer_probability", "answer_probability"),
)
FAMILIES = ("answer", "generation", "ks", "membership")  # what both recipes can gate: no attack, no further golds


def forget_gates(recipe: str) -> list[Gate]:
    gates = [gate for gate in load_recipe(recipe).gates if gate.split == "forget"]
    return [gate for gate in gates if CATALOG[gate.metric].family in FAMILIES]


def evaluations(run: Path) -> dict[str, Path]:
    """The evaluation of each model of a run."""
    found = {name: (run / f"eval-{name}").resolve() for name in ("base", "gold", "unlearned")}
    if not all((folder / "samples.jsonl").is_file() for folder in found.values()):
        raise InputError(f"{run}: has not all evaluations. Run `make methods` or `make seeds` first.")
    return found


def records(folder: Path, gold: Sequence[dict[str, Any]]) -> list[Record]:
    config = load_recipe("demo").eval
    samples = read_samples(folder / "samples.jsonl")
    return [*row_records(samples, config), *set_records(samples, gold, config)]


def of_start_model(run: Path, known: dict[Path, list[Record]]) -> list[Record]:
    """What the start model has on the data of a run; kept in ``known`` by data."""
    data = (run / "data").resolve()
    if data not in known:
        plain = load_recipe("demo").eval.without_audit()
        with tempfile.TemporaryDirectory() as folder:
            suite.run(plain, {name: run / name for name in ("model", "data", "base")}, Path(folder))
            known[data] = read_records(Path(folder) / "results.json")
    return known[data]


def alike(run: Path, starts: dict[Path, list[Record]]) -> str:
    """How far the start model and gold, neither of which saw a row, tell forget from holdout rows."""
    found = {"the start model": of_start_model(run, starts), "gold": read_records(run / "eval-gold" / "results.json")}
    values = {model: find_record(records, "mia_min_k_auc", "forget") for model, records in found.items()}
    said = ", ".join(f"{model} {record.value:.3f}" for model, record in values.items() if record)
    return f"min-k AUC on the data of {run.name}: {said}"


def judged(run: Path, seen: set[Path], starts: dict[Path, list[Record]]) -> dict[str, dict[str, list[JudgedGate]]]:
    """By model, then by kind of verdict: the entries of its gates. Evaluations that were ``seen`` are left out."""
    folders = evaluations(run)
    gold = read_samples(folders["gold"] / "samples.jsonl")
    found = {name: records(folder, gold) for name, folder in folders.items()}
    references = {"start": of_start_model(run, starts), "base": found["base"], "gold": found["gold"]}
    return {
        name: {
            kind: [judge_gate(gate, {**references, "unlearned": found[name]}) for gate in forget_gates(recipe)]
            for kind, recipe in RECIPES.items()
        }
        for name in found
        if folders[name] not in seen
    }


def main() -> None:
    """Print a line for each model of each seed, and how often the two verdicts agree."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.without_gold", description=__doc__)
    options.add_argument("runs", type=Path, nargs="+")
    heads = [
        f"{g.metric}{'' if kind == 'without gold' else ' (gold)'}"
        for kind, r in RECIPES.items()
        for g in forget_gates(r)
    ]
    print(
        f"| run | model | {' | '.join(heads)} | against gold | without gold |\n|---|---|{'--:|' * len(heads)}---|---|"
    )
    agree: dict[str, list[bool]] = {}
    seen: set[Path] = set()
    starts: dict[Path, list[Record]] = {}
    notes: list[str] = []
    for run in options.parse_args().runs:
        verdicts = judged(run, seen, starts)
        notes.append(alike(run, starts))
        seen |= set(evaluations(run).values())
        for model, (against, without) in ((m, tuple(v.values())) for m, v in verdicts.items()):
            cells = [f"{g.measured:.3g}{'' if g.passed else ' **fails**'}" for g in (*against, *without)]
            passed = [all(g.passed for g in gates) for gates in (against, without)]
            words = ["pass" if verdict else "fail" for verdict in passed]
            print(f"| {run.name} | {model} | {' | '.join(cells)} | {' | '.join(words)} |", flush=True)
            agree.setdefault(f"{model}: all forget gates", []).append(passed[0] == passed[1])
            for ours, theirs in PAIRS:
                pair = [next(g for g in gates if g.metric == m) for gates, m in ((against, ours), (without, theirs))]
                same = pair[0].passed == pair[1].passed
                agree.setdefault(f"all models: {ours} against gold and {theirs} without", []).append(same)
    print()
    for what, verdict_pairs in agree.items():
        print(f"{what}: the verdicts agree in {sum(verdict_pairs)} of {len(verdict_pairs)}.")
    print("\n".join(dict.fromkeys(notes)))


if __name__ == "__main__":
    main()
