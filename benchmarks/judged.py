"""`python -m benchmarks.judged`: what the demo's gates say of retrained models, which must pass, and of bad ones.

Golds of other seeds are judged as if they were unlearned models: every gold by every choice of another one as the
reference and of two more for the relative test. A gate that refuses them is wrong. Beside them it judges base, and what
`demo-overforget` and entries of `methods.yaml` make of the same base. Values are computed anew from the samples of the
evaluations, which are made where the store has none (half an hour for a data seed on two cores, and twice as long
where bf16 is slow).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from benchmarks.methods import read_methods
from eval.config import EvalConfig, Gate
from eval.records.audited import audit_records
from eval.records.relative import features, relative_records, relative_test
from eval.records.rows import all_records
from eval.schema import JudgedGate, Record, read_samples
from eval.verdicts.gates import judge_gate
from pipeline.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "runs"
GOLDS = (0, 1, 2, 3, 4)  # seeds of their trainings; the demo's own gold is the first
BAD = ("ft", "po", "gd")  # entries of methods.yaml

Samples = list[dict[str, Any]]


def release(name: str, until: str, sets: Sequence[str]) -> Path:
    """Run the demo with these settings up to a stage, and return the folder of its artifacts."""
    argv = [sys.executable, "-m", "pipeline", "release", "demo", "--store", str(STORE), "--until", until]
    argv += [word for value in (f"name={name}", *sets) for word in ("--set", value)]
    subprocess.run(argv, cwd=ROOT, check=True, stdout=sys.stderr)
    return STORE / name


def evaluations(seed: int | None) -> tuple[dict[int, Samples], dict[str, Samples]]:
    """The samples of every gold by its seed, and of base and the bad models by name."""
    at = "" if seed is None else f"-{seed}"
    data = [] if seed is None else [f"data.source.sample.seed={seed}", f"data.seed={seed}"]
    one = ["gold.seeds=null", "eval.relative=null"]  # the further golds are audited too, so each is the one gold once
    golds = {}
    for gold in GOLDS:
        made = release(f"judged{at}-gold-{gold}", "eval-gold", [*data, *one, f"gold.train.args.seed={gold}"])
        golds[gold] = read_samples(made / "eval-gold" / "samples.jsonl")
    methods = {method["name"]: method for method in read_methods()}
    sections = {methods[name]["label"]: json.dumps(methods[name]["unlearn"]) for name in BAD}
    sections["over-forgotten"] = load_recipe("demo-overforget").unlearn.model_dump_json(exclude_none=True)
    others: dict[str, Samples] = {}
    for number, (label, section) in enumerate(sections.items()):
        made = release(f"judged{at}-bad-{number}", "eval-unlearned", [*data, f"unlearn={section}"])
        others.setdefault("base", read_samples(made / "eval-base" / "samples.jsonl"))
        others[label] = read_samples(made / "eval-unlearned" / "samples.jsonl")
    return golds, others


def records(model: Samples, gold: Samples | None, config: EvalConfig) -> list[Record]:
    """The records of one model as its evaluation writes them, without the relative test."""
    return [*all_records(model, gold, config), *audit_records(model, gold, config)]


def judge(
    recipe: Recipe, model: Samples, base: Samples, gold: Samples, further: Sequence[Samples]
) -> Iterator[JudgedGate]:
    """Every gate of the recipe on ``model``, with ``gold`` as the reference."""
    config, named = recipe.eval, {"gold": gold, **{f"gold {i}": samples for i, samples in enumerate(further)}}
    clouds = features({"unlearned": model, "base": base, **named})
    assert config.relative
    test = relative_test(clouds["unlearned"], clouds["base"], [clouds[name] for name in named], config.relative)
    results = {
        "unlearned": [*records(model, gold, config), *relative_records(test)],
        "base": records(base, gold, config),
        "gold": records(gold, None, config),
    }
    return (judge_gate(gate, results) for gate in recipe.gates)


def table(recipe: Recipe, golds: Mapping[int, Samples], others: Mapping[str, Samples]) -> Iterator[str]:
    """A line for each gate: how often a retrained model passes, the range of what was measured, and the others."""
    retrained = [
        list(judge(recipe, golds[one], others["base"], golds[reference], [golds[seed] for seed in further]))
        for one, reference in permutations(golds, 2)
        for further in combinations([seed for seed in golds if seed not in (one, reference)], 2)
    ]
    first, *more = golds.values()
    further = more[: len(recipe.gold.seeds or [])] if not isinstance(recipe.gold, str) else []
    judged = {name: list(judge(recipe, model, others["base"], first, further)) for name, model in others.items()}
    yield f"| gate | rule | retrained models pass | measured of them | {' | '.join(judged)} |"
    yield f"|---|---|--:|--:|{'--:|' * len(judged)}"
    for i, gate in enumerate(recipe.gates):
        cells = [f"{_shown(found[i])}{'' if found[i].passed else ' **fails**'}" for found in judged.values()]
        yield f"| {_name(gate)} | {retrained[0][i].rule} | {_passed(retrained, i)} | {_range(retrained, i)} | " + (
            f"{' | '.join(cells)} |"
        )
    whole = sum(all(gate.passed for gate in found) for found in retrained)
    verdicts = ["pass" if all(gate.passed for gate in found) else "refused" for found in judged.values()]
    yield f"| all gates | | {whole} of {len(retrained)} | | {' | '.join(verdicts)} |"


def _name(gate: Gate) -> str:
    return f"{gate.metric} {gate.split}"


def _passed(judged: Sequence[Sequence[JudgedGate]], i: int) -> str:
    return f"{sum(gates[i].passed for gates in judged)} of {len(judged)}"


def _range(judged: Sequence[Sequence[JudgedGate]], i: int) -> str:
    values = [value for gates in judged if (value := gates[i].measured) is not None]
    return f"{min(values):.3f} to {max(values):.3f}"


def _shown(gate: JudgedGate) -> str:
    return "–" if gate.measured is None else f"{gate.measured:.3f}"


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.judged", description=__doc__)
    options.add_argument("--seed", type=int, help="a data seed, in place of the demo's own")
    golds, others = evaluations(options.parse_args().seed)
    print("\n".join(table(load_recipe("demo"), golds, others)))


if __name__ == "__main__":
    main()
