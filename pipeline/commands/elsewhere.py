"""Releases whose stages run elsewhere: `--on slurm` and `--on hf-jobs`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from core.errors import InputError, ReleaseError
from core.places import user_path
from pipeline.collection import Collection
from pipeline.commands.collection_plan import costs_of, device_of, planned_of
from pipeline.commands.prepare import index_of, store_of
from pipeline.commands.shared import say, store_root
from pipeline.cost.resources import Resources, given
from pipeline.engine.graph import Graph, Judge, Member, Node, releases, states_of, survey
from pipeline.engine.hf_jobs import MOUNT, HfJobs
from pipeline.engine.jobs import Outcome, Place, State, Wanted, follow, read_job, record_of
from pipeline.engine.launch import command_line, launch_config
from pipeline.engine.plan import sizes
from pipeline.engine.remote import credentials
from pipeline.engine.runner import Status
from pipeline.engine.slurm import Slurm
from pipeline.publish.hub import hf_endpoint, hub_errors
from pipeline.publish.sign import settings
from pipeline.stages import stages


def place_of(name: str, resources: Resources, secrets: Mapping[str, str]) -> Place:
    """Where the stages are to run. Raises SystemLimitError if ``resources`` lack what the place needs.

    ``secrets`` are given to jobs that do not see the environment of this machine.
    """
    if name == "slurm":
        return Slurm()
    from huggingface_hub import HfApi, get_token

    return HfJobs(HfApi(endpoint=hf_endpoint(), token=get_token()), resources, hub_errors, secrets)


def run_elsewhere(
    options: argparse.Namespace, nodes: Graph, recipe_of: Callable[[Node], str], judge: Judge
) -> Generator[tuple[Node, Outcome]]:
    """Run the nodes as jobs and yield what became of each. ``recipe_of`` names a node's recipe for its command line."""
    _check_names(nodes)
    root = store_root(options).absolute()
    accelerate = launch_config(options.launch)
    resources = next(iter(releases(nodes).values())).recipe.resources
    states, members = survey(nodes), releases(nodes).items()
    if options.on == "hf-jobs":
        _refuse_another_signer(nodes, states)
    costs = costs_of(nodes, planned_of(nodes, states, device_of(options, resources)))
    counts = {name: sizes(member.recipe, states_of(nodes, states, name)).parameters for name, member in members}
    python, store = (sys.executable, root) if options.on == "slurm" else ("python", Path(MOUNT))

    def want(node: Node) -> Wanted:
        recipe = node.first.recipe
        stage, file = node.stage, record_of(root, node.id)
        name = _as_seen_there(recipe_of(node), root, store)
        words = command_line(accelerate, stage, name, options.set, store, options.remote_store)
        count = counts[next(iter(node.members))]
        job = given(recipe.resources, stage.name, stage.processes, costs[node.id], count)
        return Wanted(node, [python, *words], job, file.with_suffix(".error"), file.with_suffix(".log"))

    secrets = credentials() if options.remote_store else {}
    yield from follow(nodes, place_of(options.on, resources, secrets), root, want, judge, say)


def members_of(found: Collection, options: argparse.Namespace, until: str | None = None) -> dict[str, Member]:
    """The releases of a collection, up to the stage ``until``."""
    members = {}
    for name, recipe in found.members.items():
        all_stages = stages(recipe)
        wanted = all_stages[: index_of(all_stages, until) + 1] if until else all_stages
        members[name] = Member(recipe, wanted, store_of(options, recipe.name))
    return members


def submitted(options: argparse.Namespace, waiting: Sequence[str], resources: Resources) -> dict[str, str]:
    """What became of the jobs of nodes that are not done, in words, by node; as far as it can be asked from here."""
    root = store_root(options).absolute()
    jobs = {key: record for key in waiting if (record := read_job(root, key))}
    found: dict[str, str] = {}
    for name in dict.fromkeys(record.place for record in jobs.values()):
        ids = {key: record.id for key, record in jobs.items() if record.place == name}
        try:
            states = place_of(name, resources, {}).states(list(ids.values()))
        except ReleaseError:  # only the cluster's own machines have its programs
            states = None
        for key, job in ids.items():
            state = State("waiting", "cannot be asked from here") if states is None else states.get(job)
            found[key] = f"{name} {job}: " + (f"{state.what}, {state.why}" if state else "no longer known")
    return found


def _as_seen_there(recipe: str, root: Path, store: Path) -> str:
    """A recipe's name as it is, and the path of a file as a job finds it. Raises InputError if it would not find it."""
    collection, colon, member = recipe.rpartition(":")
    path = collection or member
    if "/" in path or path.endswith((".yaml", ".yml")):
        file = user_path(path).absolute()
        if store != root and not file.is_relative_to(root):
            raise InputError(f"--on hf-jobs: a job sees the image and the store only. Put {file} into {root}.")
        path = str(store / file.relative_to(root) if store != root else file)
    return f"{path}{colon}{member}" if colon else path


def _refuse_another_signer(nodes: Graph, states: Mapping[str, Status]) -> None:
    """Raise InputError if a stage that signs would run where nothing is known of what signs on this machine."""
    signs = [node.label for key, node in nodes.items() if node.stage.publishes and states[key].artifact is None]
    if signs and (said := settings()):
        raise InputError(
            f"--on hf-jobs: {', '.join(said)} says what signs here, and a job does not have it: {signs[0]} would be "
            "signed with the store's own key. Give --until card; after that, the same command without --on and --until "
            "packages, signs and publishes here."
        )


def _check_names(nodes: Graph) -> None:
    """Raise InputError if a recipe gives resources to a stage that there is not."""
    for member in releases(nodes).values():
        there_are = [stage.name for stage in member.stages]
        for name in member.recipe.resources.stages:
            if name not in there_are:
                raise InputError(f"resources.stages.{name}: no stage is called so. There are: {', '.join(there_are)}.")
