"""What the commands that build share: what is refused before, how a build is run and shown, what is judged after it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import redirect_stdout

from core.errors import InputError
from core.host import cores
from datasets_prep.schema import read_data_facts
from pipeline import preflight
from pipeline.commands.collection_plan import costs_of, planned_of, seconds_of
from pipeline.commands.prepare import refuse_other_gates
from pipeline.commands.shared import say
from pipeline.cost import devices
from pipeline.cost.devices import Device
from pipeline.cost.work import Cost
from pipeline.engine.artifact import Artifact
from pipeline.engine.graph import Graph, Judge, Member, Node, chains, execute
from pipeline.engine.jobs import Outcome
from pipeline.engine.launch import Children, check_launch, launch_config
from pipeline.engine.live import watching
from pipeline.engine.runner import Status
from pipeline.engine.summary import require_pass
from pipeline.preflight import Finding, Preflight

MOST_AT_ONCE = 4
"""Stages of one release that can run side by side: the unlearning's own and those of three golds."""


def refuse_elsewhere(options: argparse.Namespace) -> None:
    """Raise InputError for a device that is not planned for, and for a number of stages that do not run here."""
    if options.jobs and options.on != "local":
        raise InputError(f"--jobs says how many stages run at once here. Leave it out with --on {options.on}.")
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


def watched(node: Node, build: Callable[[], Artifact]) -> Artifact:
    """Build a node in this process, and show its progress on stderr."""
    with watching(node.stage.name), redirect_stdout(sys.stderr):  # libraries print; stdout is for data
        return build()


def schedule(options: argparse.Namespace, nodes: Graph, states: Mapping[str, Status]) -> tuple[Graph, int]:
    """The nodes in the order in which this machine begins them, and how many of them it runs at once.

    That is what ``--jobs`` says, else one for each core that has the memory: two stages of one thread do more than two
    threads of one stage (docs/measurements/time-and-memory.md). It is one where that does not hold or is not known: on
    a GPU, for stages on several processes, and where rows are not known. Of several, those begin first that most of the
    rest waits for.
    """
    device = devices.here()
    costs = costs_of(nodes, planned_of(nodes, states, device))
    waiting = {key: node for key, node in nodes.items() if states[key].artifact is None}
    at_once = options.jobs or _at_once(waiting, costs, device)
    if at_once == 1:
        return nodes, 1
    rest = chains(nodes, seconds_of(waiting, nodes, costs))
    return {key: nodes[key] for key in sorted(nodes, key=lambda key: -rest[key])}, at_once


def _at_once(waiting: Graph, costs: Mapping[str, Cost], device: Device) -> int:
    known = all(costs[key].plain()["seconds"] is not None for key in waiting)
    if device.is_gpu or not known or any(node.stage.processes > 1 for node in waiting.values()):
        return 1
    fullest = sorted((costs[key].memory for key in waiting), reverse=True)
    most = range(1, min(cores(), MOST_AT_ONCE) + 1)
    return max([n for n in most if sum(fullest[:n]) <= device.memory], default=1)


def build_here(
    options: argparse.Namespace,
    nodes: Graph,
    recipe_of: Callable[[Node], str],
    judge: Judge,
    built: set[str],
    at_once: int,
) -> Generator[tuple[Node, Outcome]]:
    """Run the nodes on this machine and yield what became of each; the ids of those that are built join ``built``.

    A node is built in this process, or in others if its stage has several or if several stages run ``at_once``: then
    each has its share of the cores. ``recipe_of`` names a node's recipe for a command line. Processes that still run
    when this ends or is closed are ended.
    """
    accelerate = launch_config(options.launch)
    with Children(max(cores() // at_once, 1) if at_once > 1 else None) as children:

        def around(node: Node, build: Callable[[], Artifact]) -> None:
            if node.label != node.stage.name:  # of several releases
                say(f"— {node.label}")
            if node.stage.processes == 1 and at_once == 1:
                watched(node, build)
            else:
                words = argparse.Namespace(recipe=recipe_of(node), set=options.set, debug=options.debug)
                children.launch(accelerate, node.stage, words, node.first.store)
            built.add(node.id)

        yield from execute(nodes, around, judge, at_once=at_once)


def judge(node: Node, artifact: Artifact) -> None:
    """Raise the error for which what reads this artifact is not made: a failed gate, data that cannot carry a gate."""
    if node.stage.name == "gate":
        require_pass(artifact.path)
    if node.stage.name == "data":
        for member in node.members.values():
            preflight.refuse_misfit(member.recipe, artifact.path, read_data_facts(artifact.path))
