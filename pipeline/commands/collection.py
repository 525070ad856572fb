"""`collection`: plan, make and publish several releases that share their stages."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import ArtifactError, GateError, HubError, InputError, ReleaseError, TrainingError
from pipeline import preflight
from pipeline.collection import Collection, load_collection
from pipeline.commands import collection_comparison
from pipeline.commands.building import build_here, examined, judge, refuse_elsewhere, schedule
from pipeline.commands.collection_plan import costs_of, planned_of, show_plan
from pipeline.commands.elsewhere import members_of, run_elsewhere
from pipeline.commands.prepare import bring
from pipeline.commands.shared import say, show, store_root
from pipeline.cost import devices
from pipeline.engine.artifact import Artifact, check_artifact
from pipeline.engine.graph import Graph, Member, Node, graph, releases, states_of, survey
from pipeline.engine.launch import check_device
from pipeline.engine.machine import disk_limits
from pipeline.publish.collection import publish
from pipeline.publish.package import forget_scanner

Outcomes = dict[str, Artifact | ReleaseError | None]
"""By node: what was made, the error, or None where an input was not made."""


def collection(options: argparse.Namespace) -> int:
    """Make every member, as far as its gates allow, compare them, and bring the collection on the Hub up to date.

    Returns 3 if a gate or a training of any member failed, or the exit code of another error; the others are made all
    the same. Raises RecipeError, InputError or SystemLimitError before anything runs.
    """
    refuse_elsewhere(options)
    found = load_collection(options.recipe, options.set)
    nodes = graph(members_of(found, options, options.until))
    if options.dry_run:
        return show_plan(options, found, nodes)
    for member in releases(nodes).values():
        bring(options, member.stages, member.store)
    _check(options, nodes)
    outcomes: Outcomes = {}
    built: set[str] = set()

    def name_of(node: Node) -> str:
        return command_name(options, node.first)

    if options.on == "local":
        in_order, at_once = schedule(options, nodes, survey(nodes))
        ends = build_here(options, in_order, name_of, judge, built, at_once)
    else:
        ends = run_elsewhere(options, nodes, name_of, judge)
    for node, outcome in ends:
        outcomes[node.id] = outcome
        if isinstance(outcome, ReleaseError):
            say(f"{node.label}: {outcome}")
        elif outcome and node.id not in built:
            say(f"{node.label:<40} {'done already' if options.on == 'local' else 'done'}")
    return _finish(options, found, nodes, outcomes)


def _check(options: argparse.Namespace, nodes: Graph) -> None:
    """Before the first stage runs, raise the errors that the releases would end with later."""
    if options.on == "local":
        check_device(options.launch)
    states = survey(nodes)
    members = releases(nodes).items()
    findings = [f for name, member in members for f in examined(options, member, states_of(nodes, states, name))]
    preflight.refuse(list(dict.fromkeys(findings)))
    costs = costs_of(nodes, planned_of(nodes, states, devices.cpu()))  # each member was judged alone
    preflight.enough_disk([cost for key, cost in costs.items() if states[key].artifact is None], store_root(options))


def command_name(options: argparse.Namespace, member: Member) -> str:
    """How a command line of this machine names a member: the collection as it was given here."""
    return f"{options.recipe}:{member.recipe.origin.recipe.rpartition(':')[2]}"


def _finish(options: argparse.Namespace, found: Collection, nodes: Graph, outcomes: Outcomes) -> int:
    """Compare, publish and report. Returns the exit code."""
    done = {key: artifact for key, artifact in outcomes.items() if isinstance(artifact, Artifact)}
    measured, lost = _measured(nodes)
    folder = store_root(options) / found.config.name
    models = collection_comparison.compared(found, nodes, measured)
    slug, refusal = None, []
    if models:
        with disk_limits(folder, "comparison"):
            listing = collection_comparison.write(found, models, nodes, measured, folder)
        try:
            scanners = [
                forget_scanner(measured[key].path, search_for)
                for key, node in nodes.items()
                if node.stage.name == "data" and key in measured
                for search_for in {tuple(member.recipe.publish.search_for) for member in node.members.values()}
            ]
            can_scan = not any(nodes[key].stage.name == "data" for key in lost)
            slug = publish(listing, found.hub, scanners) if listing.models and can_scan else None
        except (HubError, InputError) as error:  # everything else is done, and is reported
            refusal = [error]
            say(f"error: {error}")
    errors = {key: error for key, error in outcomes.items() if isinstance(error, ReleaseError)}
    rows = []
    for name in found.members:
        mine = [key for key, node in nodes.items() if name in node.members]
        failed = [key for key in mine if key in errors]
        rows.append(
            {
                "member": name,
                "state": "done" if set(mine) <= done.keys() else "failed" if failed else "not made",
                "stage": nodes[failed[0]].stage.name if failed else None,
                "error": str(errors[failed[0]]) if failed else None,
            }
        )
    place = str(folder / "comparison.html") if models else None
    text = "\n".join(_outcome(row) for row in rows)
    text += f"\n\ncomparison  {place}" if place else ""
    text += f"\ncollection  {slug} on {'the loopback Hub' if found.hub == 'local' else 'the Hub'}" if slug else ""
    show(options, {"collection": found.config.name, "members": rows, "comparison": place, "slug": slug}, text)
    return _exit_code([*errors.values(), *refusal])


def _measured(nodes: Graph) -> tuple[dict[str, Artifact], set[str]]:
    """What is there, also of what reads a failed gate, and the nodes that are no longer what was built or read such."""
    found: dict[str, Artifact] = {}
    lost: set[str] = set()
    for key, status in survey(nodes).items():
        if status.artifact is None:
            continue
        try:
            check_artifact(status.artifact)
        except ArtifactError:  # the walk has said so, or did not come so far
            lost.add(key)
        if lost.intersection(nodes[key].inputs.values()):
            lost.add(key)
        if key not in lost:
            found[key] = status.artifact
    return found, lost


def _outcome(row: Mapping[str, Any]) -> str:
    said = (row["error"] or "").splitlines()
    return f"{row['member']:<24} {row['state']:<9} {row['stage'] or ''}{': ' + said[0] if said else ''}".rstrip()


def _exit_code(errors: Sequence[ReleaseError]) -> int:
    others = [error.exit_code for error in errors if not isinstance(error, GateError | TrainingError)]
    return others[0] if others else 3 if errors else 0
