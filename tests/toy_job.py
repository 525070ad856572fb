"""A small graph for places where stages run, and its job: ``python -m tests.toy_job STORE STAGE SECONDS``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import DataError, leave_error
from core.strict import Strict
from pipeline.cost.resources import Given
from pipeline.engine.graph import Graph, Member, Node, graph
from pipeline.engine.jobs import Wanted, record_of
from pipeline.engine.runner import Stage, Store, build
from tests.walk import member, states

GIVEN = Given(gpus=0, cpus=1, memory=200 * 10**6, seconds=60, partition=None, flavor=None)


def steps(config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
    """Ten steps with a checkpoint each; a second run goes on from the last."""
    if config == "bad":
        raise DataError("row 3 has no answer")
    folder = out / "checkpoints"
    done = len(list(folder.glob("checkpoint-*")))
    (out / "begun-at").write_text(str(done)) if done else None
    for step in range(done, 10):
        (folder / f"checkpoint-{step:02}").mkdir(parents=True)
        (folder / f"checkpoint-{step:02}" / "x").write_text("x")
        time.sleep(SECONDS / 10)
    (out / "result").write_text(f"{config} {sorted(inputs)}")
    (out / "began-in").write_text(str(Path.cwd()))
    return Strict()


SECONDS = 0.1


def members(store: Path, kinds: tuple[str, ...]) -> dict[str, Member]:
    """One member for each kind: a and b are shared, c, d and e are its own."""
    found = {}
    for kind in kinds:
        stages = [
            Stage("a", "1", steps, "a", "a", resumable=True),
            Stage("b", "1", steps, "b", "b", {"x": "a"}),
            Stage("c", "1", steps, kind, kind, {"x": "a"}, resumable=True),
            Stage("d", "1", steps, kind, kind, {"x": "c", "y": "b"}),
            Stage("e", "1", steps, kind, kind, {"x": "d", "y": "c"}),
        ]
        found[kind] = member(stages, Store(store, f"toy-{kind}"))
    return found


def toy_graph(store: Path, *kinds: str, until: str = "e") -> Graph:
    whole = members(store, kinds or ("one",))
    return graph({name: m._replace(stages=[s for s in m.stages if s.name <= until]) for name, m in whole.items()})


def want(store: Path, seconds: float = 0.1, given: Given = GIVEN) -> Any:
    def wanted(node: Node) -> Wanted:
        file = record_of(store, node.id)
        argv = [
            sys.executable,
            "-m",
            "tests.toy_job",
            str(store),
            next(iter(node.members)),
            node.stage.name,
            str(seconds),
        ]
        return Wanted(node, argv, given, file.with_suffix(".error"), file.with_suffix(".log"))

    return wanted


def main(store: str, kind: str, name: str, seconds: str) -> None:
    global SECONDS
    SECONDS = float(seconds)
    made = members(Path(store), (kind,))[kind]
    done = {name: state.artifact for name, state in states(made.stages, made.store).items() if state.artifact}
    try:
        build(next(stage for stage in made.stages if stage.name == name), made.store, done)
    except DataError as error:
        leave_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
