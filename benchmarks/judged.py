"""`python -m benchmarks.judged`: what a recipe's gates say of retrained models, which must pass, and of bad ones.

Golds of other seeds are judged as if they were unlearned models: every gold by every choice of another one as the
reference and of two more for the relative test. A gate that refuses them is wrong. Beside them it judges base, and for
the demo what `demo-overforget` and entries of `methods.yaml` make of the same base, and its own model. Values are
computed anew from the samples of the evaluations, which are made where the store has none (about an hour on two slow
cores for the demo).

`--rows FILE` takes a part of the rehearsal on FAME's published rows in the place of the demo: four topics in five
languages, about 400 forget rows, four golds (planned for five hours of two cores).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from benchmarks.methods import read_methods
from benchmarks.releases import STORE, of_seed, release
from eval.catalog import is_of
from eval.config import EvalConfig, Gate
from eval.records.relative import features, relative_records, relative_test
from eval.schema import JudgedGate, read_samples
from eval.verdicts.confirm import gate_records
from eval.verdicts.gates import judge_gate, rule
from pipeline.recipe import Recipe, load_recipe

GOLDS = (0, 1, 2, 3, 4)  # seeds of their trainings; the demo's own gold is the first
FURTHER = 2  # golds beside the reference, as many as the recipes have; of three golds one is left for it
REHEARSAL = "fame-topics-rehearsal"
REHEARSED = (42, 43, 44, 45)
TOPICS = ["biography.birthplace", "career.breakthrough_project", "achievements.directorial_award"]
TOPICS += ["personal.hobby_or_interest"]
BAD = ("ft", "po", "gd")  # entries of methods.yaml

Samples = list[dict[str, Any]]


def made(name: str, until: str, sets: Sequence[str], recipe: str = "demo") -> Path:
    """The folder of a recipe's artifacts with these settings."""
    release(recipe, until, [f"name={name}", *sets])
    return STORE / name


def alone(recipe: Recipe) -> list[str]:
    """The settings with which a gold is the only one: the further golds are audited too, so each is it once."""
    gates = [
        gate.model_dump(mode="json", exclude_none=True) for gate in recipe.gates if not is_of(gate.metric, "relative")
    ]
    return ["gold.seeds=null", "eval.relative=false", f"gates={json.dumps(gates)}"]


def rehearsal(source: str) -> tuple[Recipe, list[str]]:
    """The rehearsal on a part of its rows, with the attacks that a gate reads, and the settings that make it so."""
    sets = [f"data.source.file={source}", f"data.part={json.dumps({'topics': TOPICS})}"]
    sets += ["eval.robustness.first_words=null", "eval.robustness.other_language=false"]
    sets += [f"eval.robustness.quantize={json.dumps(['nf4'])}"]
    gates = [gate.model_copy(update={"min_n": 1}) for gate in load_recipe(REHEARSAL, sets).gates]
    sets += [f"gates={json.dumps([gate.model_dump(mode='json', exclude_none=True) for gate in gates])}"]
    return load_recipe(REHEARSAL, sets), sets


def rehearsed(recipe: Recipe, sets: Sequence[str]) -> tuple[dict[int, Samples], dict[str, Samples]]:
    """As :func:`evaluations`, of a part of the rehearsal: its golds, and base."""
    one = [*sets, *alone(recipe)]
    golds = {}
    for seed in REHEARSED:
        name = f"judged-{REHEARSAL}-{seed}"
        folder = made(name, "eval-base", [*one, f"gold.train.args.seed={seed}"], REHEARSAL)
        golds[seed] = read_samples(folder / "eval-gold" / "samples.jsonl")
    return golds, {"base": read_samples(folder / "eval-base" / "samples.jsonl")}


def evaluations(seed: int | None) -> tuple[dict[int, Samples], dict[str, Samples]]:
    """The samples of every gold by its seed, and of the other models by name: base, the bad ones, the demo's own."""
    prefix, data = ("judged", []) if seed is None else (f"judged-{seed}", of_seed(seed))
    one = alone(load_recipe("demo"))
    golds = {}
    for gold in GOLDS:
        folder = made(f"{prefix}-gold-{gold}", "eval-gold", [*data, *one, f"gold.train.args.seed={gold}"])
        golds[gold] = read_samples(folder / "eval-gold" / "samples.jsonl")
    methods = {method["name"]: method for method in read_methods()}
    sets = {methods[name]["label"]: [f"unlearn={json.dumps(methods[name]['unlearn'])}"] for name in BAD}
    sets["over-forgotten"] = [f"unlearn={load_recipe('demo-overforget').unlearn.model_dump_json(exclude_none=True)}"]
    sets["the demo"] = []
    others: dict[str, Samples] = {}
    for number, (label, of_model) in enumerate(sets.items()):
        folder = made(f"{prefix}-{number}", "eval-unlearned", [*data, *of_model])
        others.setdefault("base", read_samples(folder / "eval-base" / "samples.jsonl"))
        others[label] = read_samples(folder / "eval-unlearned" / "samples.jsonl")
    return golds, others


def judge(
    gates: Sequence[Gate],
    config: EvalConfig,
    samples: Mapping[str, Samples],
    further: Sequence[Sequence[Samples]],
) -> Iterator[list[JudgedGate]]:
    """Every gate on the unlearned model of ``samples``, beside base and gold, for each choice of ``further`` golds."""
    alone = [{} if is_of(gate.metric, "relative") else gate_records(gate, samples, config) for gate in gates]
    for more in further:
        clouds = features({**samples, **{str(i): gold for i, gold in enumerate(more)}})
        golds = [clouds["gold"], *(clouds[str(i)] for i in range(len(more)))]
        together = {"unlearned": relative_records(relative_test(clouds["unlearned"], clouds["base"], golds))}
        yield [judge_gate(gate, records or together) for gate, records in zip(gates, alone, strict=True)]


def table(recipe: Recipe, golds: Mapping[int, Samples], others: Mapping[str, Samples]) -> Iterator[str]:
    """A line for each gate: how often a retrained model passes, the range of what was measured, and the others."""

    def judged_against(gold: Samples, model: Samples, further: list[Sequence[Samples]]) -> list[list[JudgedGate]]:
        models = {"unlearned": model, "base": others["base"], "gold": gold}
        return list(judge(recipe.gates, recipe.eval, models, further))

    retrained = []
    for one, reference in permutations(golds, 2):
        rest = [samples for seed, samples in golds.items() if seed not in (one, reference)]
        further = list(combinations(rest, min(FURTHER, len(rest))))
        retrained += judged_against(golds[reference], golds[one], further)
    first, *more = golds.values()
    judged = {name: judged_against(first, model, [more[:FURTHER]])[0] for name, model in others.items()}
    yield f"| gate | rule | retrained models pass | measured of them | {' | '.join(judged)} |"
    yield f"|---|---|--:|--:|{'--:|' * len(judged)}"
    for i, gate in enumerate(recipe.gates):
        cells = [f"{_shown(found[i])}{'' if found[i].passed else ' **fails**'}" for found in judged.values()]
        line = [_name(gate), rule(gate), _passed(retrained, i), _range(retrained, i), *cells]
        yield f"| {' | '.join(line)} |"
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
    which = options.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="a data seed, in place of the demo's own")
    which.add_argument(
        "--rows", metavar="FILE", help="FAME's published retain split: judge the rehearsal's golds on it"
    )
    chosen = options.parse_args()
    if chosen.rows:
        recipe, sets = rehearsal(chosen.rows)
        golds, others = rehearsed(recipe, sets)
    else:
        recipe = load_recipe("demo")
        golds, others = evaluations(chosen.seed)
    print("\n".join(table(recipe, golds, others)))


if __name__ == "__main__":
    main()
