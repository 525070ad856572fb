"""The plan of a release for `--dry-run`: what each stage does and takes, and what would change on the Hub."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.verdicts.gates import rule
from pipeline import preflight
from pipeline.commands.building import schedule
from pipeline.commands.collection_plan import device_of
from pipeline.commands.prepare import surveyed
from pipeline.commands.shared import say, show
from pipeline.cost.fits import refuse_what_does_not_fit
from pipeline.cost.work import total
from pipeline.engine.graph import Member, graph, survey
from pipeline.engine.plan import ASSUMED, duration, gigabytes, planned, sizes
from pipeline.engine.runner import Stage, Status
from pipeline.preflight import Preflight
from pipeline.recipe import Recipe
from pipeline.stages import publication

if TYPE_CHECKING:
    from pipeline.publish.plan import PublicationPlan


def dry_run(options: argparse.Namespace, member: Member) -> int:
    """Print the plan. Raises InputError afterwards for what the recipe, or rows on this machine, say would fail.

    SystemLimitError if a stage would not fit in memory.
    """
    release = show_plan(options, member)
    preflight.refuse(preflight.examine_offline(release))
    refuse_what_does_not_fit(release.costs(device_of(options, release.recipe.resources)))
    return 0


def show_plan(options: argparse.Namespace, member: Member) -> Preflight:
    """Print what each stage does and costs, and what is to be filled in; return what the plan was made from."""
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
            f"\nOn {device.name}: {hours}; at the fullest {memory} of the {gigabytes(device.memory)} of memory that "
            f"tensors can have there; {disk} of disk; {download} of downloads, without data sets."
        )
        nodes = graph({"": member})
        here = options.on == "local" and not options.device
        if here and (at_once := schedule(options, nodes, survey(nodes))[1]) > 1:
            lines.append(
                f"Up to {at_once} stages run at once here (--jobs), which takes less time and the memory of each."
            )
        if from_what.lengths and from_what.lengths.assumed:
            lines.append(ASSUMED)
    publication = _publication(recipe, waiting, states)
    lines += ["", *publication.lines()] if publication else []
    value = {"recipe": recipe.name, "device": device.name, "stages": rows, "needs": needed}
    value["publication"] = publication.model_dump() if publication else None
    value["gates"] = [
        gate.model_dump(include={"metric", "split", "min_n", "reason"}) | {"rule": rule(gate)} for gate in recipe.gates
    ]
    show(options, value, "\n".join(lines))
    release = Preflight(recipe, waiting, states, store)
    for finding in preflight.to_fill_in(release):
        if finding.problem:
            say(f"warning: the release itself would refuse to start. {finding.problem}")
    return release


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
