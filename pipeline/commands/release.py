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
from pipeline.engine.artifact import Artifact, check_artifact, read_artifact
from pipeline.engine.graph import Member, Node, execute, graph, inputs_of, survey
from pipeline.engine.launch import Lead, check_device, check_launch, follow, launch, launch_config
from pipeline.engine.live import watching
from pipeline.engine.plan import duration, gigabytes, planned, sizes
from pipeline.engine.runner import Stage, Status, Store, build, check, needed
from pipeline.engine.summary import measurements, places, results_table
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
    member = Member(recipe, stages, store)
    if options.dry_run:
        return _show_plan(options, member)
    bring(options, stages, store)
    states = surveyed(member)
    if options.on == "local":
        check_device(options.launch)
    preflight.refuse(examined(options, member, states))
    return _make(options, member, states, accelerate)


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


def _make(options: argparse.Namespace, member: Member, states: Mapping[str, Status], accelerate: Path) -> int:
    """Make what is not done, and report. Raises the first error of a stage; elsewhere, when all others have ended."""
    here = options.on == "local"
    done: dict[str, Artifact] = {}
    built = set() if here else {name for name, state in states.items() if state.artifact is None}
    failed: list[ReleaseError] = []

    def around(node: Node, build: Callable[[], Artifact]) -> Artifact:
        artifact = launched(node, build, accelerate, options)
        built.add(node.stage.name)
        return artifact

    def accept(node: Node, artifact: Artifact) -> None:
        """Note an artifact, then judge it: the report shows a gate that failed too."""
        name = node.stage.name
        done[name] = artifact
        if here and name not in built:
            say(f"{name:<15} done already")
        if name != "data" or states[name].artifact is None:  # of other data the preflight knew the rows
            judge(node, artifact)

    nodes = graph({"": member})
    ends = execute(nodes, around, accept) if here else run_elsewhere(options, nodes, lambda _: options.recipe, accept)
    for node, outcome in ends:
        if isinstance(outcome, ReleaseError):
            failed.append(outcome)
            if here:  # elsewhere, what does not read it goes on
                break
        elif outcome and not here:
            say(f"{node.stage.name:<15} done")
    if not failed or "gate" in done:
        _report(options, member.recipe, done, member.store, built)
    if any(isinstance(error, GateError) for error in failed):
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
    member = Member(recipe, needed(stages, chosen), store)
    bring(options, member.stages, store)
    nodes = graph({"": member})
    states = survey(nodes)
    node = list(nodes.values())[-1]  # the chosen stage comes after all that it needs
    inputs = inputs_of(node, {key: state.artifact for key, state in states.items() if state.artifact})
    for made_by, made in inputs.items():
        check_artifact(made)
        if made_by != "data" or chosen.name == "unlearn":  # which reads the false answers
            judge(nodes[node.inputs[made_by]], made)
    lead = Lead(chosen)
    artifact = states[node.id].artifact or watched(node, lambda: build(lead.stage, store, inputs))
    lead.dismiss()
    check(chosen, store, artifact)
    node.link(artifact)
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


def watched(node: Node, build: Callable[[], Artifact]) -> Artifact:
    """Build a node in this process, and show its progress on stderr."""
    with watching(node.stage.name), redirect_stdout(sys.stderr):  # libraries print; stdout is for data
        return build()


def launched(node: Node, build: Callable[[], Artifact], accelerate: Path, options: argparse.Namespace) -> Artifact:
    """Like :func:`watched`, but a stage for several processes is launched on them, as ``accelerate`` configures."""
    stage, store = node.stage, node.first.store
    if stage.processes == 1:
        return watched(node, build)
    launch(accelerate, stage, options, store)
    artifact = read_artifact(store.link(stage.name).resolve())
    if artifact is None:
        raise ArtifactError(f"{store.link(stage.name)} was built, but is gone. Run the command again.")
    check_artifact(artifact)
    return artifact


def _show_plan(options: argparse.Namespace, member: Member) -> int:
    """Print what each stage does and costs. Raises SystemLimitError afterwards if one would not fit in memory."""
    recipe, stages, store = member
    device, states = device_of(options, recipe.resources), surveyed(member)
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
