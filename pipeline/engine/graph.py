"""The plan of one release or several, and the walk over it: build what is not done, hand out what is.

Every stage is there once, known before it has run by what it is asked for: the id of a stage is the digest of its name,
version and config and of the ids of its inputs. Stages of two releases that have one id are one node. What is built and
what is there already is decided by content, as in `runner.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

from core.digests import artifact_key
from core.errors import ArtifactError, ReleaseError, let_go
from pipeline.engine import artifact as art
from pipeline.engine.artifact import Artifact
from pipeline.engine.machine import disk_limits
from pipeline.engine.runner import Stage, Status, Store, build, check, key_of
from pipeline.recipe import Recipe


class Member(NamedTuple):
    """One release."""

    recipe: Recipe
    stages: Sequence[Stage]
    store: Store


@dataclass(frozen=True)
class Node:
    """A stage of one or more releases. ``inputs`` are ids by the name of the stage that makes them.

    The first of ``members`` is the one whose command line builds it.
    """

    id: str
    stage: Stage
    inputs: dict[str, str]
    members: dict[str, Member]

    @property
    def first(self) -> Member:
        """The release that builds it."""
        return next(iter(self.members.values()))

    @property
    def label(self) -> str:
        """For people: the stage, and whose it is."""
        names = list(self.members)
        return (
            self.stage.name
            if not names[0]
            else f"{self.stage.name} of {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        )

    def link(self, artifact: Artifact) -> None:
        """Point the links of all its releases at the artifact. Raises SystemLimitError if they cannot be written."""
        for member in self.members.values():
            with disk_limits(member.store.root, self.stage.name):
                art.link(artifact.path, member.store.link(self.stage.name))


Graph = dict[str, Node]
"""Nodes by id; a node comes after its inputs."""


def graph(members: Mapping[str, Member]) -> Graph:
    """The nodes of these releases."""
    nodes: Graph = {}
    for name, member in members.items():
        ids: dict[str, str] = {}
        for stage in member.stages:
            inputs = {key: ids[made_by] for key, made_by in stage.inputs.items()}
            ids[stage.name] = key = artifact_key(stage.name, stage.version, stage.identity, inputs)
            known = nodes.setdefault(key, Node(key, stage, {by: ids[by] for by in stage.inputs.values()}, {}))
            known.members[name] = member
    return nodes


def releases(nodes: Graph) -> dict[str, Member]:
    """The members of a graph by name."""
    return {name: member for node in nodes.values() for name, member in node.members.items()}


def states_of(nodes: Graph, states: Mapping[str, Status], member: str) -> dict[str, Status]:
    """The state of each stage of one member."""
    return {node.stage.name: states[key] for key, node in nodes.items() if member in node.members}


def before(nodes: Graph) -> dict[str, set[str]]:
    """The ids of all nodes that come before each node, as far as ``nodes`` has them."""
    found: dict[str, set[str]] = {}
    for key, node in nodes.items():
        inputs = node.inputs.values()
        found[key] = set(inputs).union(*(found[made_by] for made_by in inputs if made_by in found))
    return found


def chains(nodes: Graph, seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds from the beginning of each node to the end of the last one that needs it, if none waits for another."""
    found: dict[str, float] = {}
    for key, node in reversed(nodes.items()):
        found[key] = found.get(key, 0.0) + seconds[key]
        for made_by in node.inputs.values():
            found[made_by] = max(found.get(made_by, 0.0), found[key])
    return found


def status_of(node: Node, done: Mapping[str, Artifact]) -> Status:
    """The state of a node, given the artifacts of finished nodes by id."""
    return node.first.store.status(node.stage, inputs_of(node, done))


def inputs_of(node: Node, done: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The artifacts that a node reads, by the name of the stage that made them, as far as they are there."""
    return {made_by: done[key] for made_by, key in node.inputs.items() if key in done}


def survey(nodes: Graph) -> dict[str, Status]:
    """The state of each node; nothing is run or written."""
    done: dict[str, Artifact] = {}
    found: dict[str, Status] = {}
    for key, node in nodes.items():
        found[key] = status_of(node, done)
        if artifact := found[key].artifact:
            done[key] = artifact
    return found


Around = Callable[[Node, Callable[[], Artifact]], object]
Judge = Callable[[Node, Artifact], None]


def execute(
    nodes: Graph, around: Around, judge: Judge = lambda node, artifact: None, *, at_once: int = 1
) -> Iterator[tuple[Node, Artifact | ReleaseError | None]]:
    """Run the nodes, and yield each with its artifact or its error; None: an input failed.

    ``around(node, build)`` is called for a node that must be built; it calls ``build``, or has another process build
    it, and may show its progress. ``judge`` raises the error that stops what reads the artifact, such as that of a
    failed gate. A caller that stops at the first error runs nothing after it. The nodes run in order in this thread,
    unless several may run ``at_once``: then each begins when its inputs are there, the first of them first, and
    ``around`` is called in threads, where it has to start a process: what builds a stage changes the environment.
    """
    waiting, done, failed = dict(nodes), dict[str, Artifact](), set[str]()
    running: dict[Future[Artifact], Node] = {}
    pool: Executor = ThreadPoolExecutor(at_once) if at_once > 1 else _Here()
    try:
        while waiting or running:
            ready = (node for node in waiting.values() if set(node.inputs.values()) <= done.keys() | failed)
            if len(running) < at_once and (node := next(ready, None)):
                del waiting[node.id]
                if failed.intersection(node.inputs.values()):
                    failed.add(node.id)
                    yield node, None
                else:
                    running[pool.submit(_artifact, node, inputs_of(node, done), around)] = node
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                node = running.pop(future)
                try:
                    artifact = future.result()
                    node.link(artifact)
                    judge(node, artifact)
                except ReleaseError as error:
                    failed.add(node.id)
                    yield node, error
                    let_go(error)  # whoever goes on keeps it, and the next stage needs the memory
                    continue
                done[node.id] = artifact
                yield node, artifact
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _artifact(node: Node, inputs: Mapping[str, Artifact], around: Around) -> Artifact:
    """The artifact of a node whose inputs are there: the finished one, which is checked, or a new one."""
    store = node.first.store
    if artifact := store.status(node.stage, inputs).artifact:
        check(node.stage, store, artifact)
        return artifact
    around(node, lambda: build(node.stage, store, inputs))
    # By its key: another run of the recipe, with other settings, may have moved the recipe's link meanwhile.
    place = store.place(node.stage.name, key_of(node.stage, inputs))
    artifact = art.read_artifact(place)
    if artifact is None:
        raise ArtifactError(f"{place} was built, but is gone. Run the command again.")
    art.check_artifact(artifact)
    return artifact


class _Here(Executor):
    """Runs what is submitted at once, in this thread, which an interruption reaches."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
