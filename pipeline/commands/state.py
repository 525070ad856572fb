"""`status` and `explain`: what is done, and why a stage would run again."""

from __future__ import annotations

import argparse

from pipeline.commands.prepare import index_of, prepare, surveyed
from pipeline.commands.shared import show
from pipeline.engine.plan import reasons


def status(options: argparse.Namespace) -> int:
    """Print the state of every stage."""
    _, stages, store = prepare(options)
    states = surveyed(stages, store)
    rows = [
        {"stage": name, "state": state.state, "path": str(store.link(name)) if state.artifact else None}
        for name, state in states.items()
    ]
    text = "\n".join(f"{row['stage']:<15} {row['state']:<8} {row['path'] or ''}".rstrip() for row in rows)
    show(options, {"stages": rows}, text)
    return 0


def explain(options: argparse.Namespace) -> int:
    """Print why a stage would run."""
    _, stages, store = prepare(options)
    stage = stages[index_of(stages, options.stage)]
    states = surveyed(stages, store)
    state = states[stage.name]
    why = reasons(stage, state, states)
    text = f"{stage.name} is {state.state}" + ("; it would not run." if state.state == "done" else "; it would run:")
    show(options, {"stage": stage.name, "state": state.state, "reasons": why}, "\n  ".join([text, *why]))
    return 0
