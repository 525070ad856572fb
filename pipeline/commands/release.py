"""`release` and `run`: make what is not done yet."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ArtifactError, GateError, InputError, ReleaseError
from core.ranks import is_first
from datasets_prep.schema import read_data_facts
from eval.schema import read_other_prompts, read_verdict
from eval.verdicts.gates import rule
from model_card.stage import refused
from pipeline import preflight
from pipeline.commands.collection_plan import device_of
from pipeline.commands.elsewhere import judge, run_elsewhere
from pipeline.commands.prepare import bring, index_of, prepare, refuse_other_gates, surveyed
from pipeline.commands.shared import REAL_RELEASE, say, show
from pipeline.cost.fits import refuse_what_does_not_fit
from pipeline.cost.work import total
from pipeline.engine.artifact import Artifact, check_artifact, link, read_artifact
from pipeline.engine.graph import Member, graph
from pipeline.engine.launch import Lead, check_device, check_launch, follow, launch, launch_config
from pipeline.engine.live import watching
from pipeline.engine.plan import duration, gigabytes, planned, sizes
from pipeline.engine.runner import Stage, Status, Store, build, check, execute, needed, survey
from pipeline.engine.summary import measurements, places, require_pass, results_table
from pipeline.preflight import Finding, Preflight
from pipeline.recipe import Recipe
from pipeline.stages import publication

if TYPE_CHECKING:
    from pipeline.publish.plan import PublicationPlan


def release(options: argparse.Namespace) -> int:
    """Run every stage that is not done.

    Raises InputError before the first stage, and DataError before the first training, if a later stage would fail;
    GateError if the gates allow no publication.
    """
    refuse_device(options)
    accelerate = launch_config(options.launch)
    recipe, stages, store = prepare(options)
    stages = stages[: index_of(stages, options.until) + 1] if options.until else stages
    if options.dry_run:
        return _show_plan(options, recipe, stages, store)
    bring(options, stages, store)
    member, states = Member(recipe, stages, store), surveyed(stages, store)
    if options.on == "local":
        check_device(options.launch)
    preflight.refuse(examined(options, member, states))
    if options.on != "local":
        return _release_elsewhere(options, member, states)
    built: set[str] = set()
    done: dict[str, Artifact] = {}
    try:
        for stage, artifact in execute(stages, store, launched(built, accelerate, options, store)):
            done[stage.name] = artifact
            if stage.name not in built:
                say(f"{stage.name:<15} done already")
            if stage.name == "data" and "data" in built:  # of others the preflight knew the rows
                preflight.refuse_missing(recipe, artifact.path, read_data_facts(artifact.path))
            if stage.name == "gate":
                require_pass(artifact.path)
    except ReleaseError as error:
        if "gate" in done:
            _report(options, recipe, done, store, built)
        if isinstance(error, GateError):
            _show_refusal(stages, done, store)
        raise
    _report(options, recipe, done, store, built)
    return 0


def refuse_device(options: argparse.Namespace) -> None:
    """Raise InputError for a device that is not planned for."""
    if options.device and not options.dry_run and options.on == "local":
        raise InputError("--device plans for another device, and a release runs on this one. Give it with --dry-run.")


def examined(options: argparse.Namespace, member: Member, states: Mapping[str, Status]) -> list[Finding]:
    """What the preflight of a release finds. Raises at once for what the other checks build on."""
    recipe, stages, store = member
    preflight.refuse_unpinned(recipe)  # the other checks ask the Hub about the pinned commits
    refuse_other_gates(recipe, stages)
    waiting = [stage for stage in stages if states[stage.name].artifact is None]
    accelerate = launch_config(options.launch)
    check_launch(options.launch, accelerate, recipe, stages, [stage.name for stage in waiting])
    here = options.on == "local"  # elsewhere, the place is asked about its devices
    return preflight.examine(Preflight(recipe, waiting, states, store), here=here)


def _release_elsewhere(options: argparse.Namespace, member: Member, states: Mapping[str, Status]) -> int:
    """The same with jobs on other machines. Raises the first error of a stage when all others have ended."""
    done: dict[str, Artifact] = {}
    failed: list[ReleaseError] = []
    for node, outcome in run_elsewhere(options, graph({"": member}), lambda _: options.recipe, judge):
        if isinstance(outcome, ReleaseError):
            failed.append(outcome)
        elif outcome:
            done[node.stage.name] = outcome
            say(f"{node.stage.name:<15} done")
    refused = any(isinstance(error, GateError) for error in failed)
    if refused and (gate := read_artifact(member.store.link("gate").resolve())):  # linked before it was judged
        done["gate"] = gate
    built = {name for name in done if states[name].artifact is None}
    if not failed or "gate" in done:
        _report(options, member.recipe, done, member.store, built)
    if refused:
        _show_refusal(member.stages, done, member.store)
    if failed:
        raise failed[0]
    return 0


def run_one(options: argparse.Namespace) -> int:
    """Run one stage. Raises ArtifactError if an input is not done, GateError if a gate failed."""
    recipe, stages, store = prepare(options)
    chosen = stages[index_of(stages, options.stage)]
    preflight.refuse_unpinned(recipe)
    refuse_other_gates(recipe, stages[: index_of(stages, options.stage) + 1])
    if not is_first():  # of several processes that were launched for this stage
        follow(chosen)
        return 0
    bring(options, needed(stages, chosen), store)
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
            if made_by == "data" and chosen.name == "unlearn":
                preflight.refuse_missing(recipe, done[made_by].path, read_data_facts(done[made_by].path))
    lead = Lead(chosen)
    artifact = state.artifact or watched(set())(chosen, lambda: build(lead.stage, store, done))
    lead.dismiss()
    check(chosen, store, artifact)
    link(artifact.path, store.link(chosen.name))
    summary = {"stage": chosen.name, "path": str(store.link(chosen.name)), "digest": artifact.digest}
    show(options, {**summary, "facts": artifact.facts}, str(store.link(chosen.name)))
    return 0


def _show_refusal(stages: Sequence[Stage], done: Mapping[str, Artifact], store: Store) -> None:
    """The report of a release that a gate refused, if it has a card stage and all that a report reads."""
    card = next((stage for stage in stages if stage.name == "card"), None)
    if card is None or not set(card.inputs.values()) <= done.keys():
        return
    inputs = {name: done[made_by].path for name, made_by in card.inputs.items()}
    try:
        page = refused(card.config, inputs, store.link("refused"))
    except ArtifactError as error:
        say(f"note: no report could be written ({error})")
        return
    say(f"\nWhy, in all detail: {page}")


def watched(built: set[str]) -> Callable[[Stage, Callable[[], Artifact]], Artifact]:
    """A function for the runner to call around each build. It shows the build on stderr and records it in ``built``."""

    def around(stage: Stage, build: Callable[[], Artifact]) -> Artifact:
        with watching(stage.name), redirect_stdout(sys.stderr):  # libraries print; stdout is for data
            artifact = build()
        built.add(stage.name)
        return artifact

    return around


def launched(
    built: set[str], accelerate: Path, options: argparse.Namespace, store: Store
) -> Callable[[Stage, Callable[[], Artifact]], Artifact]:
    """Like :func:`watched`, but a stage for several processes is launched on them."""
    here = watched(built)

    def around(stage: Stage, build: Callable[[], Artifact]) -> Artifact:
        if stage.processes == 1:
            return here(stage, build)
        launch(accelerate, stage, options, store)
        artifact = read_artifact(store.link(stage.name).resolve())
        if artifact is None:
            raise ArtifactError(f"{store.link(stage.name)} was built, but is gone. Run the command again.")
        check_artifact(artifact)
        built.add(stage.name)
        return artifact

    return around


def _show_plan(options: argparse.Namespace, recipe: Recipe, stages: Sequence[Stage], store: Store) -> int:
    """Print what each stage does and costs. Raises SystemLimitError afterwards if one would not fit in memory."""
    device = device_of(options, recipe.resources)
    states = surveyed(stages, store)
    known, from_what = sizes(recipe, states), planned(recipe, states, device)
    costs = {stage.name: stage.costs(stage.config, from_what) for stage in stages}
    waiting = [stage for stage in stages if states[stage.name].artifact is None]
    rows = [
        {
            "stage": stage.name,
            "state": states[stage.name].state,
            "will_run": stage in waiting,
            "does": stage.does(stage.config, known),
            **costs[stage.name].plain(),
        }
        for stage in stages
    ]
    needed = total([costs[stage.name] for stage in waiting], device) if known.parameters else None
    lines = [HEADINGS, *(_line(row) for row in rows)]
    if needed and waiting:
        hours = "an unknown time" if needed["seconds"] is None else f"about {duration(needed['seconds'])}, an estimate"
        memory, disk, download = (gigabytes(needed[f"{what}_bytes"]) for what in ("memory", "disk", "download"))
        lines.append(
            f"\nOn {device.name}: {hours}; at the fullest {memory} of its {gigabytes(device.memory)} of memory; {disk} "
            f"of disk; {download} of downloads, without data sets."
        )
    publication = _publication(recipe, waiting, states)
    lines += ["", *publication.lines()] if publication else []
    value = {"recipe": recipe.name, "device": device.name, "stages": rows, "needs": needed}
    value["publication"] = publication.model_dump() if publication else None
    value["gates"] = [
        gate.model_dump(include={"metric", "split", "min_n", "reason"}) | {"rule": rule(gate)} for gate in recipe.gates
    ]
    show(options, value, "\n".join(lines))
    for finding in preflight.examine(Preflight(recipe, waiting, states, store), recipe_alone=True):
        if finding.problem:
            say(f"warning: the release itself would refuse to start. {finding.problem}")
    refuse_what_does_not_fit({stage.name: (stage.config, costs[stage.name]) for stage in waiting})
    return 0


def _publication(recipe: Recipe, waiting: Sequence[Stage], states: Mapping[str, Status]) -> PublicationPlan | None:
    """What would change on the Hub; None if there is nothing to publish yet, or it is published already."""
    package = states["package"].artifact if "package" in states else None
    if package is None or [stage.name for stage in waiting] != ["publish"]:
        return None
    return publication(recipe.publish, package.path)


HEADINGS = f"{'stage':<18} {'state':<8} {'time':>7} {'memory':>9} {'disk':>9} {'download':>9}"


def _line(row: dict[str, Any]) -> str:
    numbers = [row[name] for name in ("memory_bytes", "disk_bytes", "download_bytes")]
    sizes_of = " ".join(f"{gigabytes(number) if number else '':>9}" for number in numbers)
    seconds = row["seconds"]
    time = "?" if seconds is None else duration(seconds) if seconds >= 1 else ""
    return f"{row['stage']:<18} {'will run' if row['will_run'] else 'done':<8} {time:>7} {sizes_of}  {row['does']}"


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
