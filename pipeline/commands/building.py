"""What the commands that build share: what is refused before, how a build is run and shown, what is judged after it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path

from core.errors import ArtifactError, InputError
from datasets_prep.schema import read_data_facts
from pipeline import preflight
from pipeline.commands.prepare import refuse_other_gates
from pipeline.engine.artifact import Artifact, check_artifact, read_artifact
from pipeline.engine.graph import Member, Node
from pipeline.engine.launch import check_launch, launch, launch_config
from pipeline.engine.live import watching
from pipeline.engine.runner import Status
from pipeline.engine.summary import require_pass
from pipeline.preflight import Finding, Preflight


def refuse_device(options: argparse.Namespace) -> None:
    """Raise InputError for a device that is not planned for."""
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


def launched(node: Node, build: Callable[[], Artifact], accelerate: Path, options: argparse.Namespace) -> Artifact:
    """Like :func:`watched`, but a stage for several processes is launched on them, as ``accelerate`` configures."""
    stage, store = node.stage, node.first.store
    if stage.processes == 1:
        return watched(node, build)
    launch(accelerate, stage, options, store)
    artifact = read_artifact(store.link(stage.name).resolve())
    if artifact is None:
        raise ArtifactError(f"{store.link(stage.name)} was built, but is gone. Run the command again.")
    check_artifact(artifact)
    return artifact


def judge(node: Node, artifact: Artifact) -> None:
    """Raise the error for which what reads this artifact is not made: a failed gate, data that cannot carry a gate."""
    if node.stage.name == "gate":
        require_pass(artifact.path)
    if node.stage.name == "data":
        for member in node.members.values():
            preflight.refuse_missing(member.recipe, artifact.path, read_data_facts(artifact.path))
