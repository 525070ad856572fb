"""One stage: its key, its place in the store, whether it is done, and how it is built or fetched.

`graph.py` has the order in which the stages of a release are built.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from core.artifacts import Made
from core.digests import artifact_key
from core.errors import ArtifactError, ReleaseError, TrainingError
from core.heap import keep_freed
from core.strict import Strict
from pipeline.cost.work import Cost, Planned, nothing
from pipeline.engine import artifact as art
from pipeline.engine import attempts
from pipeline.engine.artifact import Artifact
from pipeline.engine.credentials import hidden
from pipeline.engine.machine import device, disk_limits, peak_memory, provenance, reset_peak_memory
from pipeline.engine.remote import Remote
from pipeline.train.facts import Products


class Sizes(NamedTuple):
    """Parameters of the model, rows of each split, and the faster precision, as far as they are known; None if not."""

    parameters: int | None
    rows: dict[str, int] | None
    products: Products | None = None


@dataclass(frozen=True)
class Stage:
    """One stage of one recipe.

    ``run`` returns the stage's facts, for the manifest. ``inputs`` maps the name that ``run`` gets to the stage that
    makes it. ``identity`` enters the key. ``version`` is bumped by hand when the code makes a different result from the
    same input. A ``resumable`` stage finds in its folder what an interrupted run left there; only a failed training
    deletes its checkpoints. ``does`` says in one line what ``config`` asks for, and ``costs`` what that takes.
    ``processes`` is how many processes the recipe asks for. If the stage is ``shardable``, each of them may hold a part
    of the weights; otherwise each holds all of them. A stage that ``fetches`` may read from the Hub with the user's
    token. One that ``publishes`` what its inputs hold may do all that the user may; their files are hashed again before
    it runs.
    """

    name: str
    version: str
    run: Callable[[Any, Mapping[str, Path], Path], Strict]
    config: Any
    identity: Any
    inputs: dict[str, str] = field(default_factory=dict)
    does: Callable[[Any, Sizes], str] = lambda config, sizes: ""
    costs: Callable[[Any, Planned], Cost] = nothing
    processes: int = 1
    resumable: bool = False
    shardable: bool = False
    fetches: bool = False
    publishes: bool = False

    def credentials(self) -> AbstractContextManager[None]:
        """Where the stage runs: with nothing in the environment that gives it rights that it does not need."""
        return nullcontext() if self.publishes else hidden(fetches=self.fetches)


class Status(NamedTuple):
    """``key`` is None if an input is not done yet. ``old`` is the artifact that the recipe's link points to."""

    state: Literal["done", "stale", "missing", "running"]
    key: str | None
    artifact: Artifact | None
    old: Artifact | None


@dataclass(frozen=True)
class Store:
    """The place of artifacts: ``root/store/<stage>/<key>``, with links in ``root/<recipe>/<stage>`` for people.

    ``remote`` is the store that other machines share with this one.
    """

    root: Path
    recipe: str
    remote: Remote | None = None

    def remote_for(self, stage: Stage) -> Remote | None:
        """The remote store, if a stage's artifacts are shared: a signature, and a publication, is one machine's own."""
        return None if stage.publishes else self.remote

    def place(self, stage: str, key: str) -> Path:
        """The folder of an artifact."""
        return self.root / "store" / stage / key[: art.KEY_DIGITS]

    def link(self, stage: str) -> Path:
        """The recipe's link to its newest artifact of a stage."""
        return self.root / self.recipe / stage

    def status(self, stage: Stage, done: Mapping[str, Artifact]) -> Status:
        """The state of a stage, given its finished inputs. Reads manifests only and checks no other file."""
        # Once, since another process may link to a newer artifact meanwhile; and a link may lead to itself.
        linked = Path(os.path.realpath(self.link(stage.name)))
        old = art.read_artifact(linked)
        if not stage.inputs.keys() <= {name for name, made_by in stage.inputs.items() if made_by in done}:
            return Status("stale" if old else "missing", None, None, old)
        key = key_of(stage, done)
        place = self.place(stage.name, key)
        if old and place.is_dir() and place.samefile(linked):
            artifact: Artifact | None = Artifact(place, old.manifest)  # which has just been read
        else:
            artifact = art.read_artifact(place)
        if artifact:
            return Status("done", key, artifact, old)
        if art.is_being_built(place):
            return Status("running", key, None, old)
        return Status("stale" if old else "missing", key, None, old)


def key_of(stage: Stage, done: Mapping[str, Artifact]) -> str:
    """The key of a stage whose inputs are finished."""
    inputs = {name: done[made_by].digest for name, made_by in stage.inputs.items()}
    return artifact_key(stage.name, stage.version, stage.identity, inputs)


def check(stage: Stage, store: Store, artifact: Artifact) -> None:
    """Compare a finished artifact with its manifest, and hand it on to the remote store if that lacks it."""
    art.check_artifact(artifact)
    if remote := store.remote_for(stage):
        remote.push(artifact)


def fetch(stages: Sequence[Stage], store: Store) -> Iterator[Stage]:
    """Bring what is not done here from the remote store, up to the first stage that it lacks; yield what came."""
    if store.remote is None:
        return
    done: dict[str, Artifact] = {}
    for stage in stages:
        status = store.status(stage, done)
        artifact, remote = status.artifact, store.remote_for(stage)
        if artifact is None and status.key and remote:
            final = store.place(stage.name, status.key)
            if remote.manifest(final):
                with disk_limits(store.root, stage.name), art.building(final) as own:
                    artifact = art.read_artifact(final) or remote.fetch(own)
                yield stage
        if artifact:
            done[stage.name] = artifact


def needed(stages: Sequence[Stage], chosen: Stage) -> list[Stage]:
    """The stages whose results enter a stage, also through others, and that stage itself last, in order."""
    names = {chosen.name}
    for stage in reversed(stages):
        if stage.name in names:
            names.update(stage.inputs.values())
    return [stage for stage in stages if stage.name in names]


def build(stage: Stage, store: Store, done: Mapping[str, Artifact]) -> Artifact:
    """Run one stage into a partial folder and make an artifact of it, unless another runner has just done so."""
    if absent := [name for name in stage.inputs.values() if name not in done]:
        raise ArtifactError(f"{stage.name} reads {', '.join(absent)}, not done yet. Run these stages first.")
    for made_by in stage.inputs.values():  # again: hours may have gone by since they were built, or found
        art.check_artifact(done[made_by], by_content=stage.publishes)
    key = key_of(stage, done)
    final = store.place(stage.name, key)
    with disk_limits(store.root, stage.name), art.building(final) as own:
        remote = store.remote_for(stage)
        if artifact := art.read_artifact(final):
            if remote:  # who built it here may have been killed before it handed it on
                remote.push(artifact)
            return artifact
        if remote is None:
            return _make(stage, done, key, own)
        with remote.turn(final):
            artifact = remote.fetch(own)
            if artifact is None:
                artifact = _make(stage, done, key, own)
                remote.push(artifact)
            return artifact


def _make(stage: Stage, done: Mapping[str, Artifact], key: str, own: art.Build) -> Artifact:
    partial = own.begin(resume=stage.resumable)
    keep_freed()
    reset_peak_memory()
    of_code = provenance()  # now: a commit that is made while the stage runs did not make its result
    runs = attempts.begin(partial, of_code) if stage.resumable else []
    began = time.monotonic()
    try:
        with stage.credentials():
            facts = stage.run(stage.config, {n: done[by].path for n, by in stage.inputs.items()}, partial)
        for made_by in stage.inputs.values():  # what was read is what the key says
            art.check_artifact(done[made_by])
    except BaseException as error:
        can_resume = any(partial.glob("checkpoints/checkpoint-*")) and not isinstance(error, TrainingError)
        if not stage.resumable or (isinstance(error, ReleaseError) and not can_resume):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    seconds = round(time.monotonic() - began, 3)
    if runs:
        of_code |= attempts.end(partial, runs, seconds)
    made = Made(
        stage=stage.name,
        version=stage.version,
        key=key,
        config=stage.identity,
        inputs={name: done[by].digest for name, by in stage.inputs.items()},
        facts=facts.model_dump(mode="json"),
        peak_memory_bytes=peak_memory(),
        # The device may be known only since the stage has loaded torch.
        **{"seconds": seconds, **of_code, "device": device()},
    )
    return own.finish(made)
