"""Stages that run elsewhere: what was submitted, what became of it, and the loop that waits for it.

A job is the command line of one stage. Whether it is done is read from the store: its artifact, else the error that it
left. Only where there is neither, the place is asked. What was submitted is written into the store too, so that another
machine, or the same command later, knows of it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from core.artifacts import Versioned, read_file, write_file
from core.errors import ReleaseError, SystemLimitError, left_error
from pipeline.cost.resources import Given
from pipeline.engine.artifact import Artifact
from pipeline.engine.graph import Graph, Judge, Node, inputs_of, status_of
from pipeline.engine.machine import disk_limits
from pipeline.engine.runner import check

POLL_SECONDS = 3.0
GRACE_SECONDS = 10.0  # how long a shared file system may take to show what a job on another machine wrote
Outcome = Artifact | ReleaseError | None


class Job(Versioned):
    """A submitted stage: the content of `jobs/<node>.json` in the store."""

    version: Literal[1] = 1
    place: str
    id: str


class Wanted(NamedTuple):
    """A stage to be submitted: its command line, what it is given, and where its error and its output go."""

    node: Node
    argv: list[str]
    given: Given
    error: Path
    log: Path


class State(NamedTuple):
    """What a place says of a job. ``why`` is in the place's own words."""

    what: Literal["waiting", "running", "ended", "hopeless"]
    why: str


class Place(Protocol):
    """Somewhere to run jobs. ``chains``: it can be given jobs whose inputs are not there yet."""

    name: str
    chains: bool

    def check(self, wanted: Sequence[Wanted]) -> None:
        """Raise SystemLimitError if the place would never run one of these."""

    def submit(self, wanted: Sequence[Wanted], jobs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Submit, and yield node and job; ``jobs`` are those of inputs, by node. Inputs come first."""

    def states(self, ids: Collection[str]) -> dict[str, State] | None:
        """The states of those jobs that the place still knows; None if it does not answer now."""

    def cancel(self, ids: Collection[str]) -> None:
        """End jobs, those too that have not begun."""

    def output(self, job: str) -> str:
        """Where the output of a job is, in words."""


def record_of(root: Path, node: str) -> Path:
    """Where the job of a node is written down; its error and output lie beside it."""
    return root / "jobs" / f"{node[:16]}.json"


def read_job(root: Path, node: str) -> Job | None:
    """What was submitted for a node last, if anything was. Raises ArtifactError if the file is damaged."""
    path = record_of(root, node)
    return read_file(path, Job, f"Delete {path}.") if path.is_file() else None


def follow(
    nodes: Graph, place: Place, root: Path, want: Callable[[Node], Wanted], judge: Judge, tell: Callable[[str], None]
) -> Iterator[tuple[Node, Outcome]]:
    """Submit what is not done, wait, and yield each node with its artifact or its error; None: an input failed.

    Jobs of an earlier command that still wait or run are followed, not submitted again. ``judge`` is as in
    `graph.execute`, ``tell`` gets a line whenever something changes. Raises SystemLimitError before the first job if
    the place would refuse one. Interrupted, it asks whether to cancel what was submitted.
    """
    desk = _Desk(nodes, place, root, want, judge, tell)
    try:
        yield from desk.work()
    except KeyboardInterrupt:
        desk.ask_to_cancel()
        raise


class _Desk:
    """The state of :func:`follow`: artifacts, failed nodes and jobs, by node."""

    def __init__(
        self,
        nodes: Graph,
        place: Place,
        root: Path,
        want: Callable[[Node], Wanted],
        judge: Judge,
        tell: Callable[[str], None],
    ) -> None:
        self.nodes, self.place, self.root, self.want, self.judge, self.tell = nodes, place, root, want, judge, tell
        self.open = dict(nodes)
        self.done: dict[str, Artifact] = {}
        self.failed: set[str] = set()
        self.jobs: dict[str, str] = {}
        self.ended: dict[str, float] = {}  # since when
        self.said: dict[str, str] = {}

    def work(self) -> Iterator[tuple[Node, Outcome]]:
        yield from self.look({})
        if not self.open:
            return
        self.adopt()
        self.place.check([self.want(node) for key, node in self.open.items() if key not in self.jobs])
        while self.open:
            self.submit()
            time.sleep(POLL_SECONDS)
            states = self.place.states(list(self.jobs.values()))  # before the store is looked at, which decides
            if states is None:
                self.say("", f"{self.place.name} does not answer; waiting")
            yield from self.look(states)

    def look(self, states: Mapping[str, State] | None) -> Iterator[tuple[Node, Outcome]]:
        """What has become of the open nodes."""
        for key, node in list(self.open.items()):
            if self.failed & set(node.inputs.values()):
                self.close(key, None)
                if key in self.jobs:
                    self.place.cancel([self.jobs[key]])
                yield node, None
                continue
            if inputs_of(node, self.done).keys() != node.inputs.keys():
                self.show(key, states)
                continue
            try:
                artifact = self.found(key, node, states)
            except ReleaseError as error:
                self.close(key, None)
                yield node, error
                continue
            if artifact:
                self.close(key, artifact)
                yield node, artifact

    def found(self, key: str, node: Node, states: Mapping[str, State] | None) -> Artifact | None:
        """The artifact of a node whose inputs are there. Raises the error for which there will be none."""
        if artifact := status_of(node, self.done).artifact:
            check(node.stage, node.first.store, artifact)
            node.link(artifact)
            self.judge(node, artifact)
            return artifact
        if key not in self.jobs:
            return None
        if error := self.error(key):
            raise error
        state = self.show(key, states)
        if state is None or state.what in ("waiting", "running"):
            self.ended.pop(key, None)
        elif state.what == "hopeless":
            self.place.cancel([self.jobs[key]])
            raise SystemLimitError(f"{node.label}: {self.place.name} would never start it: {state.why}.")
        elif time.monotonic() - self.ended.setdefault(key, time.monotonic()) > GRACE_SECONDS:
            job = self.jobs[key]
            raise SystemLimitError(
                f"{node.label}: {self.place.name} job {job} ended without a result ({state.why}). What it wrote is "
                f"{self.place.output(job)}. Run the command again: it continues from the last checkpoint. If its time "
                f"or memory was too small, set resources.stages.{node.stage.name}.hours or .memory_gb first."
            )
        return None

    def show(self, key: str, states: Mapping[str, State] | None) -> State | None:
        """The state of a node's job, told if it is new; None if it has none, or the place did not answer."""
        if states is None or key not in self.jobs:
            return None
        state = states.get(self.jobs[key], State("ended", f"{self.place.name} does not know it any more"))
        if key not in self.ended:
            self.say(key, f"{self.nodes[key].label:<40} {state.what} ({self.place.name} {self.jobs[key]}: {state.why})")
        return state

    def error(self, key: str) -> ReleaseError | None:
        """The error that a job left."""
        return left_error(record_of(self.root, key).with_suffix(".error"))

    def adopt(self) -> None:
        """Follow the jobs of an earlier command that still wait or run."""
        known = {key: job.id for key in self.open if (job := read_job(self.root, key)) and job.place == self.place.name}
        states = self.place.states(list(known.values()))
        if states is None:
            raise SystemLimitError(f"{self.place.name} does not answer. Run the command again when it does.")
        alive = {job for job, state in states.items() if state.what in ("waiting", "running")}
        self.jobs = {key: job for key, job in known.items() if job in alive}

    def submit(self) -> None:
        """Submit what can be."""
        ready = [
            node
            for key, node in self.open.items()
            if key not in self.jobs and (self.place.chains or inputs_of(node, self.done).keys() == node.inputs.keys())
        ]
        wanted = {node.id: self.want(node) for node in ready}
        with disk_limits(self.root, "jobs"):
            for each in wanted.values():
                each.error.parent.mkdir(parents=True, exist_ok=True)
                each.error.unlink(missing_ok=True)
            for key, job in self.place.submit(list(wanted.values()), self.jobs):
                self.jobs[key] = job
                write_file(record_of(self.root, key), Job(place=self.place.name, id=job))

    def close(self, key: str, artifact: Artifact | None) -> None:
        """A node whose outcome is known."""
        del self.open[key]
        if artifact:
            self.done[key] = artifact
        else:
            self.failed.add(key)

    def say(self, key: str, line: str) -> None:
        """Tell what has changed."""
        if self.said.get(key) != line:
            self.said[key] = line
            self.tell(line)

    def ask_to_cancel(self) -> None:
        """Whether the jobs are to end with this command, if there is somebody to ask."""
        jobs = [job for key, job in self.jobs.items() if key in self.open]
        if not jobs:
            return
        self.tell(f"{len(jobs)} {self.place.name} jobs wait or run. The same command follows them again.")
        if sys.stdin.isatty():
            self.tell("Cancel them? [y/N]")
            if sys.stdin.readline().strip().lower() in ("y", "yes"):
                self.place.cancel(jobs)
                self.tell("cancelled")
