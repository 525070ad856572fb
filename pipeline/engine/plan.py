"""What a release would do: the state of each stage, why one would run again, and what it will need.

Nothing here runs a stage or writes a file. Sizes are estimates from the recipe, or facts where a stage is done.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from core.artifacts import read_facts
from core.ranks import rows_per_step
from core.yaml_source import dotted
from pipeline.engine.artifact import Artifact
from pipeline.engine.runner import Stage, Status
from pipeline.recipe import Recipe
from pipeline.train.config import TrainConfig
from pipeline.train.facts import ModelFacts
from pipeline.unlearn.config import UnlearnConfig

KNOWN_ROWS = {"5c67fed496053691db3720ec3fb99825a34dfe72": 20_000}  # retain + forget + test of that revision of FAME
BYTES_STORED = 2  # bf16: what training stages save
BYTES_TRAINED = 16  # float32 weights and gradients, two moments of AdamW; activations come on top
BYTES_FROZEN = 4  # float32 weights under adapters
BYTES_CHECKPOINT = 36  # float32 weights and two moments: two checkpoints while a model unlearns, and one being written


class Sizes(NamedTuple):
    """What is known before anything runs; None where only the stage will tell."""

    parameters: int | None
    rows: dict[str, int] | None


def sizes(recipe: Recipe, states: Mapping[str, Status]) -> Sizes:
    """Parameters of the model and rows of each split: from finished stages, else from the recipe."""
    model = states["model"].artifact if "model" in states else None
    parameters = read_facts(model.path, ModelFacts).parameters if model else recipe.model.parameters
    source, shares = recipe.data.source, recipe.data.shares
    total = None
    if source.sample:
        total = 5 * source.sample.identities * source.sample.topics
    elif source.hub:
        total = KNOWN_ROWS.get(source.hub.revision)
    rows = None
    if total and shares:
        rows = {name: round(total * share) for name, share in shares.model_dump().items()}
    return Sizes(parameters, rows)


def describe(stage: str, recipe: Recipe, known: Sizes) -> str:
    """One line on what a stage will do and how large that is."""
    count, rows = known.parameters, known.rows
    stored = f", {gigabytes(count * BYTES_STORED)} on disk" if count else ""
    forget = rows["forget"] if rows else None
    seen = {"base": rows["retain"] + rows["forget"], "gold": rows["retain"]} if rows else {}
    if stage == "model":
        size = f"{count / 1e6:,.0f} M parameters, " if count else "parameters known when it is here, "
        width = 4 if recipe.model.pypi else BYTES_STORED
        return f"{recipe.model.name}: {size}{gigabytes(count * width) if count else 'size unknown'}"
    if stage == "data":
        listed = ", ".join(f"{n:,} {name}" for name, n in rows.items()) if rows else "rows known when they are here"
        return f"{listed} (seed {recipe.data.seed}, setting {recipe.data.setting})"
    if stage == "base" or stage.startswith("gold"):
        kind = stage.split("-")[0]  # a further gold is gold-seed-N
        config = getattr(recipe, kind)
        if config.hub:
            return f"{config.hub.id} at {config.hub.revision or 'a commit to be pinned'}{stored}"
        return f"fine-tune on {_steps(config.train, seen.get(kind))}{stored}"
    if stage == "unlearn":
        config = recipe.unlearn
        batch = rows_per_step(config.args)
        steps = f", at most {config.epochs * math.ceil(forget / batch)} steps" if forget else ""
        return f"{config.method}, {config.epochs} epochs over {forget or '?'} forget rows{steps}{stored}"
    if stage.startswith("eval-"):
        audited = (recipe.eval.robustness or recipe.eval.sampling) and "-seed-" not in stage
        what = "probes, lm-eval and the audit" if audited else "probes and lm-eval"
        return f"{what} over {sum(rows.values()):,} rows" if rows else f"{what} over all rows"
    if stage == "gate":
        return f"{len(recipe.gates)} gates"
    if stage == "publish":
        hub = "the loopback Hub" if recipe.publish.hub == "local" else "huggingface.co"
        return f"{recipe.publish.repo} on {hub}, {recipe.publish.visibility}, tag {recipe.publish.tag}"
    return f"the tree for the Hub{stored}" if stage == "package" else "card, plots, report"


def _steps(config: TrainConfig, rows: int | None) -> str:
    epochs = config.args.get("num_train_epochs", 3)
    if rows is None:
        return f"rows known after data, {epochs} epochs"
    return f"{rows:,} rows, {epochs} epochs, {math.ceil(rows / rows_per_step(config.args)) * math.ceil(epochs)} steps"


def needs(recipe: Recipe, parameters: int | None) -> dict[str, int] | None:
    """Bytes of disk and of memory of the training device for a whole release, or None where the model is unknown."""
    if parameters is None:
        return None
    several = [c for c in (recipe.base, recipe.gold) if not isinstance(c, str)]
    trained = 1 + sum(1 + len(config.seeds or []) for config in several)
    copies = trained + 1 + (recipe.publish.hub == "local")  # the package, and what the loopback Hub keeps
    source = 4 if recipe.model.pypi else BYTES_STORED
    disk = parameters * (source + copies * BYTES_STORED + BYTES_CHECKPOINT)
    trainings: list[TrainConfig | UnlearnConfig] = [recipe.unlearn, *(c.train for c in several if c.train)]
    return {"disk_bytes": disk, "memory_bytes": max(memory_of_training(config, parameters) for config in trainings)}


def memory_of_training(config: TrainConfig | UnlearnConfig, parameters: int | None) -> int:
    """Bytes that weights, gradients and moments take at least; 0 where the model is unknown."""
    partly = config.lora or config.train_from_layer  # how much of it is trained only the model says
    return (parameters or 0) * (BYTES_FROZEN if partly else BYTES_TRAINED)


def gigabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def reasons(stage: Stage, status: Status, states: Mapping[str, Status]) -> list[str]:
    """Why a stage would run, one line a field: its config by path, its inputs by digest, its version."""
    if status.state == "done":
        return []
    if status.state == "running":
        return ["another process is building it now"]
    waiting = [
        f"input {name}: {made_by} is {states[made_by].state}; its result is not known yet"
        for name, made_by in stage.inputs.items()
        if states[made_by].artifact is None
    ]
    if status.old is None:
        return [*waiting, "there is no earlier result of this recipe to compare with"]
    return [*_changes(status.old, stage, states), *waiting]


def _changes(old: Artifact, stage: Stage, states: Mapping[str, Status]) -> Iterable[str]:
    if old.manifest.version != stage.version:
        yield f"version: {old.manifest.version} -> {stage.version}"
    yield from _differences(old.manifest.config, stage.identity, ())
    before = old.manifest.inputs
    for name, made_by in stage.inputs.items():
        found = states[made_by].artifact
        if name not in before:
            yield f"input {name}: new"
        elif found and found.digest != before[name]:
            yield f"input {name} ({made_by}): {before[name][:12]} -> {found.digest[:12]}"
    yield from (f"input {name}: no longer read" for name in before if name not in stage.inputs)


def _differences(old: Any, new: Any, at: tuple[str | int, ...]) -> Iterable[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if key not in old:
                yield f"config {dotted((*at, key))}: (absent) -> {new[key]!r}"
            elif key not in new:
                yield f"config {dotted((*at, key))}: {old[key]!r} -> (absent)"
            else:
                yield from _differences(old[key], new[key], (*at, key))
    elif isinstance(old, list) and isinstance(new, list | tuple) and len(old) == len(new):
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, (*at, i))
    elif old != (list(new) if isinstance(new, tuple) else new):
        yield f"config {dotted(at)}: {old!r} -> {new!r}"
