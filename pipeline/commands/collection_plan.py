"""The plan of a collection for `--dry-run`: which stages there are, which are shared, and what they take."""

from __future__ import annotations

import argparse
from collections.abc import Container, Mapping
from typing import Any

from pipeline.collection import Collection
from pipeline.commands.shared import say, show
from pipeline.cost import devices
from pipeline.cost.devices import Device
from pipeline.cost.fits import refuse_what_does_not_fit
from pipeline.cost.resources import Resources, gpus_of
from pipeline.cost.work import Cost, Planned, total
from pipeline.engine.graph import Graph, Node, chains, releases, states_of, survey
from pipeline.engine.plan import ASSUMED, duration, gigabytes, planned
from pipeline.engine.runner import Status


def planned_of(nodes: Graph, states: Mapping[str, Status], device: Device) -> dict[str, Planned]:
    """What the costs of each release are computed from."""
    members = releases(nodes).items()
    return {name: planned(member.recipe, states_of(nodes, states, name), device) for name, member in members}


def costs_of(nodes: Graph, known: Mapping[str, Planned]) -> dict[str, Cost]:
    """What each node takes, by what is known of the releases."""
    return {key: node.stage.costs(node.stage.config, known[next(iter(node.members))]) for key, node in nodes.items()}


def seconds_of(waiting: Container[str], nodes: Graph, costs: Mapping[str, Cost]) -> dict[str, float]:
    """Estimated seconds of each node: 0 for one that is done, or of which they are not known."""
    return {key: (costs[key].plain()["seconds"] or 0.0) if key in waiting else 0.0 for key in nodes}


def device_of(options: argparse.Namespace, resources: Resources) -> Device:
    """The device that is planned for: that of ``--device``, of the jobs if there are any, or of this machine."""
    asked = options.device or (resources.device if options.on != "local" else None)
    return devices.named(asked) if asked else devices.here()


def show_plan(options: argparse.Namespace, found: Collection, nodes: Graph) -> int:
    """Print the plan. Raises SystemLimitError afterwards if a stage would not fit in memory."""
    device = device_of(options, next(iter(found.members.values())).resources)
    states = survey(nodes)
    known = planned_of(nodes, states, device)
    costs = costs_of(nodes, known)
    waiting = [key for key in nodes if states[key].artifact is None]
    names = dict.fromkeys(node.stage.name for node in nodes.values())
    rows = [_row([node for node in nodes.values() if node.stage.name == name], waiting, costs) for name in names]
    needed = total([costs[key] for key in waiting], device)
    needed |= {
        "gpu_hours": _gpu_hours([nodes[key] for key in waiting], costs),
        "longest_chain_seconds": max(chains(nodes, seconds_of(waiting, nodes, costs)).values()),
        "stages": len(nodes),
        "stages_without_sharing": sum(len(node.members) for node in nodes.values()),
        "waiting": len(waiting),
    }
    plan = {
        "collection": found.config.name,
        "device": device.name,
        "members": {name: recipe.publish.repo for name, recipe in found.members.items()},
        "stages": rows,
        "needs": needed,
    }
    lines = [f"{len(found.members)} releases of {found.config.title}, planned for {device.name}", ""]
    lines += [f"  {name:<20} {repo}" for name, repo in plan["members"].items()]  # type: ignore[attr-defined]
    lines += ["", HEADINGS, *(_line(row) for row in rows), "", *_totals(needed, device)]
    lines += [ASSUMED] if any(each.lengths and each.lengths.assumed for each in known.values()) else []
    show(options, plan, "\n".join(lines))
    unpinned = dict.fromkeys(key for recipe in found.members.values() for key in recipe.unpinned())
    for key in unpinned:
        say(f"warning: {key} is not pinned; the releases themselves will refuse to start until it is.")
    refuse_what_does_not_fit({nodes[key].label: (nodes[key].stage.config, costs[key]) for key in waiting})
    return 0


HEADINGS = f"{'stage':<20} {'planned':>7} {'shared':>6} {'to run':>6} " + (
    f"{'time of one':>11} {'of all':>8} {'memory':>9} {'disk':>9}"
)


def _row(same: list[Node], waiting: list[str], costs: Mapping[str, Cost]) -> dict[str, Any]:
    """The nodes of one stage."""
    run = [node for node in same if node.id in waiting]
    seconds = [costs[node.id].plain()["seconds"] for node in run]
    return {
        "stage": same[0].stage.name,
        "planned": len(same),
        "shared": sum(len(node.members) > 1 for node in same),
        "to_run": len(run),
        "seconds_of_one": None if None in seconds else max(seconds, default=0),
        "seconds": None if None in seconds else sum(seconds),
        "memory_bytes": max((costs[node.id].memory for node in run), default=0),
        "disk_bytes": sum(costs[node.id].disk for node in run),
    }


def _line(row: Mapping[str, Any]) -> str:
    one, every = ("?" if row[k] is None else duration(row[k]) if row[k] else "" for k in ("seconds_of_one", "seconds"))
    memory, disk = (gigabytes(row[k]) if row[k] else "" for k in ("memory_bytes", "disk_bytes"))
    counts = f"{row['planned']:>7} {row['shared'] or '':>6} {row['to_run'] or '':>6}"
    return f"{row['stage']:<20} {counts} {one:>11} {every:>8} {memory:>9} {disk:>9}".rstrip()


def _totals(needed: Mapping[str, Any], device: Device) -> list[str]:
    lines = [
        f"{needed['stages']} stages instead of {needed['stages_without_sharing']}, since members share them; "
        f"{needed['waiting']} are to be run."
    ]
    if needed["seconds"] is not None and needed["waiting"]:
        hours = f", {needed['gpu_hours']:.1f} GPU-hours" if needed["gpu_hours"] else ""
        lines.append(
            f"About {duration(needed['seconds'])} one after the other{hours}; "
            f"{duration(needed['longest_chain_seconds'])} with a machine for every stage. These are estimates."
        )
    memory, disk, download = (gigabytes(needed[f"{what}_bytes"]) for what in ("memory", "disk", "download"))
    lines.append(
        f"At the fullest {memory} of the {gigabytes(device.memory)} of memory that tensors can have; {disk} of disk; "
        f"{download} of downloads, without data sets."
    )
    return lines


def _gpu_hours(waiting: list[Node], costs: Mapping[str, Cost]) -> float:
    hours = 0.0
    for node in waiting:
        recipe = node.first.recipe
        cost = costs[node.id]
        gpus = gpus_of(recipe.resources, node.stage.name, node.stage.processes, cost)
        hours += gpus * (cost.plain()["seconds"] or 0) / 3600
    return round(hours, 2)
