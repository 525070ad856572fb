"""The plan of a release: what each stage does, why it would run again, and what it will need.

Nothing here runs a stage or writes a file. Sizes are estimates from the recipe, or facts of finished stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from core.artifacts import read_facts
from core.differences import differences
from core.steps import rows_per_step, steps_of
from core.yaml_source import dotted
from datasets_prep.config import DataConfig
from eval.config import EvalConfig, GateConfig
from pipeline.cost.devices import Device, cpu
from pipeline.cost.shape import parameters as count_parameters
from pipeline.cost.shape import shape_of, start_folder
from pipeline.cost.work import Planned
from pipeline.engine.artifact import Artifact
from pipeline.engine.rows import counts_of, lengths_of
from pipeline.engine.runner import Sizes, Stage, Status
from pipeline.publish.config import PublishConfig
from pipeline.recipe import Recipe
from pipeline.train.config import ModelConfig, TrainedOrPublished
from pipeline.train.facts import ModelFacts, Products
from pipeline.unlearn.config import Neighbours, UnlearnConfig

ASSUMED = "Rows are assumed to be as long as FAME's: how long they are is known when the data stage is done."


def sizes(recipe: Recipe, states: Mapping[str, Status]) -> Sizes:
    """Parameters of the model and rows of each split: from finished stages, else from the recipe and its files."""
    model = _finished(states, "model")
    facts = read_facts(model, ModelFacts) if model else None
    parameters, products = (facts.parameters, facts.products) if facts else (recipe.model.parameters, None)
    if parameters is None and (shape := shape_of(recipe.model, None)):
        parameters = count_parameters(shape)
    return Sizes(parameters, counts_of(recipe.data, _finished(states, "data")), products)


def planned(recipe: Recipe, states: Mapping[str, Status], device: Device) -> Planned:
    """What the costs of the stages are computed from, on ``device``."""
    known, model, data = sizes(recipe, states), _finished(states, "model"), _finished(states, "data")
    shape = shape_of(recipe.model, model)
    if shape and known.parameters and not math.isclose(count_parameters(shape), known.parameters, rel_tol=0.01):
        shape = None  # a model of another kind; biases and small norms are within a percent
    lengths = lengths_of(recipe.data, data, shape, start_folder(recipe.model, model)) if shape else None
    return Planned(shape, known.parameters, known.rows, lengths, recipe.data, device, cpu())


def _finished(states: Mapping[str, Status], stage: str) -> Path | None:
    """The folder of a finished stage."""
    artifact = states[stage].artifact if stage in states else None
    return artifact.path if artifact else None


def fetching(config: ModelConfig, known: Sizes) -> str:
    """What the model stage does, in one line. The functions below do the same for the other stages."""
    count = known.parameters
    size = f"{count / 1e6:,.0f} M parameters" if count else "parameters unknown until it is fetched"
    gated = (
        ", under a licence that may have to be accepted on the Hub first" if config.hub and config.rules.gated else ""
    )
    return f"{config.name}: {size}{gated}" + (f", products in {_faster(known.products)}" if known.products else "")


def _faster(products: Products) -> str:
    if not (products.bf16_seconds and products.fp32_seconds):
        return products.precision
    ratio = products.fp32_seconds / products.bf16_seconds
    return f"{products.precision} (measured: bf16 {ratio:.1f} x as fast as fp32)"


def preparing(config: DataConfig, known: Sizes) -> str:
    """Rows of each split."""
    rows = known.rows
    listed = ", ".join(f"{n:,} {name}" for name, n in rows.items()) if rows else "rows unknown until they are read"
    return f"{listed} (seed {config.seed}, setting {config.setting})"


def training(config: TrainedOrPublished, known: Sizes, *, splits: Sequence[str]) -> str:
    """The training on these splits, or the published model that replaces it."""
    if config.release:
        return f"the release {config.release}, verified before it is used"
    if config.hub:
        return f"{config.hub.id} at {config.hub.revision or 'a commit to be pinned'}"
    args = config.train.args if config.train else {}
    most = args.get("max_steps", -1)
    epochs = "" if most > 0 else f", {args.get('num_train_epochs', 3)} epochs"
    if known.rows is None:
        return f"fine-tune, rows unknown until data is done{epochs or f', {most} steps'}"
    rows = sum(known.rows[split] for split in splits)
    return f"fine-tune on {rows:,} rows{epochs}, {steps_of(args, rows)} steps"


def asking(config: Neighbours, known: Sizes) -> str:
    """How many questions base is asked."""
    return f"base answers up to {config.questions} questions like the given ones"


def unlearning(config: UnlearnConfig, known: Sizes) -> str:
    """Method, epochs and steps."""
    forget = known.rows["forget"] if known.rows else None
    batch = rows_per_step(config.args)
    epochs = config.passes(forget) if forget else config.epochs
    steps = f", at most {math.ceil(epochs * forget / batch)} steps" if forget else ""
    return f"{config.method}, {epochs} epochs over {forget or '?'} forget rows{steps}"


def evaluating(config: EvalConfig, known: Sizes) -> str:
    """What is measured, on how many rows."""
    what = "probes, lm-eval and the audit" if config.robustness or config.sampling else "probes and lm-eval"
    return f"{what} over {sum(known.rows.values()):,} rows" if known.rows else f"{what} over all rows"


def comparing(config: object, known: Sizes) -> str:
    """What is compared."""
    return "the unlearned model with the other checkpoint"


def gating(config: GateConfig, known: Sizes) -> str:
    """How many gates there are."""
    return f"{len(config.gates)} gates"


def describing(config: object, known: Sizes) -> str:
    """What the card stage writes."""
    return "card, plots, report"


def packaging(config: object, known: Sizes) -> str:
    """What the package stage makes."""
    return "the tree for the Hub"


def publishing(config: PublishConfig, known: Sizes) -> str:
    """Where the release goes."""
    hub = "the loopback Hub" if config.hub == "local" else "huggingface.co"
    return f"{config.repo} on {hub}, {config.visibility}, tag {config.tag}"


def gigabytes(count: int) -> str:
    """Bytes in GB or MB, for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def reasons(stage: Stage, status: Status, states: Mapping[str, Status]) -> list[str]:
    """Why a stage would run, one line for each change of its version, config or inputs."""
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
    for path, was, will_be in differences(old.manifest.config, stage.identity):
        yield f"config {dotted(path)}: {was!r} -> {will_be!r}"
    before = old.manifest.inputs
    for name, made_by in stage.inputs.items():
        artifact = states[made_by].artifact
        if name not in before:
            yield f"input {name}: new"
        elif artifact and artifact.digest != before[name]:
            yield f"input {name} ({made_by}): {before[name][:12]} -> {artifact.digest[:12]}"
    yield from (f"input {name}: no longer read" for name in before if name not in stage.inputs)
