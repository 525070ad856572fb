"""`status` and `explain`: what is done, and why a stage would run again."""

from __future__ import annotations

import argparse

from pipeline.collection import is_collection, load_collection
from pipeline.commands.elsewhere import members_of, submitted
from pipeline.commands.prepare import index_of, prepare, surveyed
from pipeline.commands.shared import show
from pipeline.engine.graph import graph, survey
from pipeline.engine.plan import reasons


def status(options: argparse.Namespace) -> int:
    """Print the state of every stage, and of its job where one was submitted. A collection's are those of its plan."""
    if is_collection(options.recipe):
        members = members_of(load_collection(options.recipe, options.set), options)
    else:
        members = {"": prepare(options)}
    nodes = graph(members)
    states = survey(nodes)
    waiting = [key for key, state in states.items() if state.artifact is None]
    jobs = submitted(options, waiting, next(iter(members.values())).recipe.resources)
    rows = [
        {
            "stage": node.label,
            "state": states[key].state,
            "job": jobs.get(key),
            "path": str(node.first.store.link(node.stage.name)) if states[key].artifact else None,
        }
        for key, node in nodes.items()
    ]
    width = 15 if "" in members else 40
    text = "\n".join(f"{r['stage']:<{width}} {r['state']:<8} {r['job'] or r['path'] or ''}".rstrip() for r in rows)
    show(options, {"stages": rows}, text)
    return 0


def explain(options: argparse.Namespace) -> int:
    """Print why a stage would run."""
    member = prepare(options)
    stage = member.stages[index_of(member.stages, options.stage)]
    states = surveyed(member)
    state = states[stage.name]
    why = reasons(stage, state, states)
    text = f"{stage.name} is {state.state}" + ("; it would not run." if state.state == "done" else "; it would run:")
    show(options, {"stage": stage.name, "state": state.state, "reasons": why}, "\n  ".join([text, *why]))
    return 0
