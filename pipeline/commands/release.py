"""`release` and `run`: make what is not done yet."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

from core.errors import ArtifactError, GateError, ReleaseError
from core.ranks import is_first
from eval.schema import read_other_prompts, read_verdict
from model_card.stage import refused
from pipeline import preflight
from pipeline.commands.building import build_here, examined, judge, refuse_elsewhere, schedule, watched
from pipeline.commands.elsewhere import run_elsewhere
from pipeline.commands.prepare import bring, index_of, prepare, refuse_other_gates, surveyed
from pipeline.commands.release_plan import dry_run
from pipeline.commands.shared import REAL_RELEASE, say, show
from pipeline.engine.artifact import Artifact
from pipeline.engine.graph import Member, Node, graph, inputs_of, survey
from pipeline.engine.launch import Lead, check_device, follow, launch_config
from pipeline.engine.runner import Stage, Status, Store, build, check, needed
from pipeline.engine.summary import measurements, places, results_table
from pipeline.recipe import Recipe


def release(options: argparse.Namespace) -> int:
    """Run every stage that is not done.

    Raises InputError before the first stage, and DataError before the first training, if a later stage would fail;
    GateError if the gates allow no publication.
    """
    refuse_elsewhere(options)
    launch_config(options.launch)  # before anything is read
    recipe, stages, store = prepare(options)
    stages = stages[: index_of(stages, options.until) + 1] if options.until else stages
    member = Member(recipe, stages, store)
    if options.dry_run:
        return dry_run(options, member)
    bring(options, stages, store)
    states = surveyed(member)
    if options.on == "local":
        check_device(options.launch)
    preflight.refuse(examined(options, member, states))
    return _make(options, member, states)


def _make(options: argparse.Namespace, member: Member, states: Mapping[str, Status]) -> int:
    """Make what is not done, and report. Raises the first error of a stage; elsewhere, when all others have ended."""
    here = options.on == "local"
    nodes = graph({"": member})
    of_nodes = {key: states[node.stage.name] for key, node in nodes.items()}
    nodes, at_once = schedule(options, nodes, of_nodes) if here else (nodes, 1)
    done: dict[str, Artifact] = {}
    built = set() if here else {key for key, state in of_nodes.items() if state.artifact is None}
    failed: list[ReleaseError] = []

    def accept(node: Node, artifact: Artifact) -> None:
        """Note an artifact, then judge it: the report shows a gate that failed too."""
        name = node.stage.name
        done[name] = artifact
        if here and node.id not in built:
            say(f"{name:<15} done already")
        if name != "data" or states[name].artifact is None:  # of other data the preflight knew the rows
            judge(node, artifact)

    def name_of(_: Node) -> str:
        return str(options.recipe)

    if here:
        ends = build_here(options, nodes, name_of, accept, built, at_once)
    else:
        ends = run_elsewhere(options, nodes, name_of, accept)
    with closing(ends):  # what still runs side by side ends with the first error
        for node, outcome in ends:
            if isinstance(outcome, ReleaseError):
                failed.append(outcome)
                if here:  # elsewhere, what does not read it goes on
                    break
            elif outcome and not here:
                say(f"{node.stage.name:<15} done")
    done = {stage.name: done[stage.name] for stage in member.stages if stage.name in done}  # in the order of the plan
    if not failed or "gate" in done:
        _report(options, member.recipe, done, member.store, {nodes[key].stage.name for key in built})
    if any(isinstance(error, GateError) for error in failed):
        _show_refusal(member.stages, done, member.store)
    if failed:
        raise failed[0]
    if "card" in done:
        shutil.rmtree(member.store.link("refused"), ignore_errors=True)  # of other settings, which this recipe had
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
    if absent := [name for name in chosen.inputs.values() if name not in inputs]:
        raise ArtifactError(
            f"{chosen.name} reads {', '.join(absent)}, not done yet. "
            f"Run `release {options.recipe} --until {absent[-1]}`."
        )
    for key, state in states.items():
        if state.artifact and key != node.id:
            check(nodes[key].stage, store, state.artifact)
    for made_by, made in inputs.items():
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
    say(f"\nWhy, in all detail: {page}\nWhat each gate speaks for, and what to change: docs/when-refused.md")


def _report(
    options: argparse.Namespace, recipe: Recipe, done: dict[str, Artifact], store: Store, built: set[str]
) -> None:
    """Print the results table and where everything is on stdout, and what to do next on stderr."""
    links = {name: store.link(name) for name in done}
    results_at = places(done, links, store.root)
    for name, artifact in done.items():
        if name.startswith("eval-") and (prompts := read_other_prompts(artifact.path)):
            say(f"note: {name} {prompts.says()}.")
    if "publish" in done and "publish" not in built:
        repo, tag = recipe.publish.repo, recipe.publish.tag
        say(
            f"note: {repo} was published earlier, and the Hub was not asked again. Whether it has {tag} still, and "
            f"nobody revoked it, says `python -m pipeline verify {repo} --revision {tag}`."
        )
    if options.json:
        verdict = read_verdict(done["gate"].path).model_dump(mode="json") if "gate" in done else None
        stages = {
            name: {"path": str(links[name]), "digest": a.digest, "built": name in built, "facts": a.facts}
            for name, a in done.items()
        }
        results = [line.plain() for line in measurements(done)]
        result = {"recipe": recipe.name, "stages": stages, "results": results, "gate": verdict, **results_at}
        show(options, result, "")
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
        say(f"\nNext, a real release:  python -m pipeline release {REAL_RELEASE} --dry-run --device 'H100 80GB'")
