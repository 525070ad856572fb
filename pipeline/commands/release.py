"""`release` and `run`: make what is not done yet."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from core.errors import ArtifactError, RecipeError, ReleaseError, SystemLimitError
from core.ranks import is_first
from datasets_prep.schema import read_data_facts
from eval.schema import read_other_prompts, read_verdict
from eval.verdicts import measurable
from pipeline.commands.prepare import index_of, prepare, refuse_other_gates, refuse_unpinned, surveyed
from pipeline.commands.shared import REAL_RELEASE, say, show
from pipeline.engine.artifact import Artifact, check_artifact, link, read_artifact
from pipeline.engine.launch import Lead, check_device, check_launch, follow, launch, launch_config
from pipeline.engine.live import watching
from pipeline.engine.plan import gigabytes, memory_of_training, needs, sizes
from pipeline.engine.runner import Stage, Store, build, execute, survey
from pipeline.engine.summary import measurements, places, require_pass, results_table
from pipeline.recipe import Recipe


def release(options: argparse.Namespace) -> int:
    """Run every stage that is not done.

    Raises DataError before a training if the data cannot carry a gate, GateError if the gates allow no publication.
    """
    accelerate = launch_config(options.launch)
    recipe, stages, store = prepare(options)
    stages = stages[: index_of(stages, options.until) + 1] if options.until else stages
    if options.dry_run:
        return _show_plan(options, recipe, stages, store)
    refuse_unpinned(recipe)
    refuse_other_gates(recipe, stages)
    waiting = [name for name, state in surveyed(stages, store).items() if state.artifact is None]
    _check_trainings(recipe, waiting, store)
    check_device(options.launch)
    check_launch(options.launch, accelerate, recipe, stages, waiting)
    built: set[str] = set()
    done: dict[str, Artifact] = {}
    try:
        for stage, artifact in execute(stages, store, _launched(built, accelerate, options, store)):
            done[stage.name] = artifact
            if stage.name not in built:
                say(f"{stage.name:<15} done already")
            if stage.name == "data":
                measurable.check(recipe.gates, read_data_facts(artifact.path))
            if stage.name == "gate":
                require_pass(artifact.path)
    except ReleaseError:
        if "gate" in done:
            _report(options, recipe, done, store, built)
        raise
    _report(options, recipe, done, store, built)
    return 0


def run_one(options: argparse.Namespace) -> int:
    """Run one stage. Raises ArtifactError if an input is not done, GateError if a gate failed."""
    recipe, stages, store = prepare(options)
    chosen = stages[index_of(stages, options.stage)]
    refuse_unpinned(recipe)
    refuse_other_gates(recipe, stages[: index_of(stages, options.stage) + 1])
    if not is_first():  # of several processes that were launched for this stage
        follow(chosen)
        return 0
    done: dict[str, Artifact] = {}
    for stage, state in survey(stages, store):
        if stage.name == chosen.name:
            break
        if state.artifact:
            done[stage.name] = state.artifact
    for made_by in chosen.inputs.values():
        if made_by in done:
            check_artifact(done[made_by])
            if made_by == "gate":
                require_pass(done[made_by].path)
    lead = Lead(chosen)
    artifact = state.artifact or watched(set())(chosen, lambda: build(lead.stage, store, done))
    lead.dismiss()
    check_artifact(artifact)
    link(artifact.path, store.link(chosen.name))
    summary = {"stage": chosen.name, "path": str(store.link(chosen.name)), "digest": artifact.digest}
    show(options, {**summary, "facts": artifact.facts}, str(store.link(chosen.name)))
    return 0


def _check_trainings(recipe: Recipe, waiting: Collection[str], store: Store) -> None:
    """Before the first stage runs, refuse trainings that are bound to fail.

    Raises RecipeError for arguments that the trainer's own config class refuses, and SystemLimitError for a model whose
    weights, gradients and moments alone are larger than the device's memory.
    """
    whole = {"base": recipe.base, "gold": recipe.gold}
    trainings: dict[str, Any] = {
        f"{n}.train": c.train for n, c in whole.items() if n in waiting and not isinstance(c, str)
    }
    trainings |= {"unlearn": recipe.unlearn} if "unlearn" in waiting else {}
    trainings = {key: config for key, config in trainings.items() if config is not None}
    if not trainings:
        return  # a cached release starts without torch
    from core.memory import device_memory
    from pipeline.train.fit import training_arguments

    for key, config in trainings.items():
        try:
            training_arguments(config.args, config.precision, store.root / "unused")
        except RecipeError as error:
            raise RecipeError(f"{key}.args: {error}") from error
        needed, (_, total) = memory_of_training(config, recipe.model.parameters), device_memory()
        if config.processes == 1 and needed > total:  # several may share the weights
            raise SystemLimitError(
                f"{key}: weights, gradients and AdamW of {(recipe.model.parameters or 0) / 1e6:,.0f} M parameters take "
                f"at least {needed / 1e9:.1f} GB in float32, without activations, and the device has {total / 1e9:.1f} "
                f"GB. Use {key}.lora, several processes that share the weights ({key}.processes with --launch fsdp2), "
                "or a device with more memory."
            )


def watched(built: set[str]) -> Callable[[Stage, Callable[[], Artifact]], Artifact]:
    """A function for the runner to call around each build. It shows the build on stderr and records it in ``built``."""

    def around(stage: Stage, build: Callable[[], Artifact]) -> Artifact:
        with watching(stage.name), redirect_stdout(sys.stderr):  # libraries print; stdout is for data
            artifact = build()
        built.add(stage.name)
        return artifact

    return around


def _launched(
    built: set[str], accelerate: Path, options: argparse.Namespace, store: Store
) -> Callable[[Stage, Callable[[], Artifact]], Artifact]:
    """Like :func:`watched`, but a stage for several processes is launched on them."""
    here = watched(built)

    def around(stage: Stage, build: Callable[[], Artifact]) -> Artifact:
        if stage.processes == 1:
            return here(stage, build)
        launch(accelerate, stage, options, store.root)
        artifact = read_artifact(store.link(stage.name).resolve())
        if artifact is None:
            raise ArtifactError(f"{store.link(stage.name)} was built, but is gone. Run the command again.")
        check_artifact(artifact)
        built.add(stage.name)
        return artifact

    return around


def _show_plan(options: argparse.Namespace, recipe: Recipe, stages: Sequence[Stage], store: Store) -> int:
    states = surveyed(stages, store)
    known = sizes(recipe, states)
    rows = [
        {
            "stage": stage.name,
            "state": states[stage.name].state,
            "will_run": states[stage.name].artifact is None,
            "does": stage.does(stage.config, known),
        }
        for stage in stages
    ]
    needed = needs(recipe, known.parameters)
    lines = [f"{row['stage']:<15} {'will run' if row['will_run'] else 'done':<9} {row['does']}" for row in rows]
    if needed:
        lines.append(
            f"\nAbout {gigabytes(needed['disk_bytes'])} of disk, and {gigabytes(needed['memory_bytes'])} of memory for "
            f"weights, gradients and AdamW in float32; activations come on top."
        )
    show(options, {"recipe": recipe.name, "stages": rows, "needs": needed}, "\n".join(lines))
    for key in recipe.unpinned():
        say(f"warning: {key} is not pinned; the release itself will refuse to start until it is.")
    return 0


def _report(
    options: argparse.Namespace, recipe: Recipe, done: dict[str, Artifact], store: Store, built: set[str]
) -> None:
    """Print the results table and where everything is on stdout, and what to do next on stderr."""
    links = {name: store.link(name) for name in done}
    results_at = places(done, links, store.root)
    for name, artifact in done.items():
        if name.startswith("eval-") and (prompts := read_other_prompts(artifact.path)):
            say(f"note: {name} {prompts.says()}.")
    if options.json:
        verdict = read_verdict(done["gate"].path).model_dump(mode="json") if "gate" in done else None
        stages = {
            name: {"path": str(links[name]), "digest": a.digest, "built": name in built, "facts": a.facts}
            for name, a in done.items()
        }
        results = [line.plain() for line in measurements(done)]
        result = {"recipe": recipe.name, "stages": stages, "results": results, "gate": verdict, **results_at}
        print(json.dumps(result, indent=1, ensure_ascii=False))
        return
    if "gate" in done:
        from rich.console import Console

        width = None if sys.stdout.isatty() else 160
        Console(width=width).print(results_table(done))
    for name, place in results_at.items():
        print(f"{name:<9}{place}")
    if "publish" not in done:
        if done and "gate" not in done:
            print(str(links[list(done)[-1]]))
    elif recipe.publish.hub == "local":
        say(f"\nNext, a real release:  python -m pipeline release {REAL_RELEASE} --dry-run")
