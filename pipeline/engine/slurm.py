"""Stages as Slurm jobs: sbatch with dependencies, and an array where several members have the same stage.

Jobs read and write a disk that the nodes share: the store, this checkout and its Python. A lost node is Slurm's own
requeue: the same command line finds what the lost one left.
"""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from core.errors import ERROR_FILE, SystemLimitError
from pipeline.cost.resources import Given
from pipeline.engine.graph import before
from pipeline.engine.jobs import State, Wanted

HOPELESS = ("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints")  # a pending job with these stays pending
WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SUSPENDED", "STOPPED", "CONFIGURING", "RESIZING")
RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING")


class _Array(NamedTuple):
    """Stages that are submitted together: by index in the array, with one dependency. Alone, the index is None."""

    tasks: dict[int | None, Wanted]
    dependency: str


class Slurm:
    """A cluster that this machine can submit to."""

    name = "slurm"
    chains = True

    def check(self, wanted: Sequence[Wanted]) -> None:
        """Submit a job of each kind that never begins, and take it back. Raises SystemLimitError with Slurm's answer.

        `sbatch --test-only` would ask the same, but it also refuses what fits a node that is drained just now.
        """
        kinds = {(each.given, each.node.stage.name): each for each in wanted}
        for (given, stage), each in kinds.items():
            said = _run(["sbatch", "--hold", "--parsable", *_options(given, stage)], _script({None: each}))
            if said.returncode:
                reason = "; ".join(line.removeprefix("sbatch: error: ") for line in said.stderr.strip().splitlines())
                raise SystemLimitError(
                    f"{each.node.label}: Slurm refuses the job: {reason}. It was asked for {_in_words(given)}. Set "
                    f"resources, or resources.stages.{stage}, to what the cluster has (`sinfo` lists it)."
                )
            self.cancel([said.stdout.strip().split(";")[0]])

    def submit(self, wanted: Sequence[Wanted], jobs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Submit in an order in which dependencies are known, and yield node and job, such as 12 or 12_3."""
        known = dict(jobs)
        for level in _levels(wanted):
            for array in _arrays(level, wanted, known):
                tasks = array.tasks
                first = next(iter(tasks.values()))
                options = [*_options(first.given, first.node.stage.name), "--parsable"]
                options += [f"--output={first.log.with_name('slurm.log')}"]
                options += [f"--dependency={array.dependency}"] if array.dependency else []
                options += [] if None in tasks else [f"--array={','.join(str(index) for index in tasks)}"]
                said = _run(["sbatch", *options], _script(tasks))
                if said.returncode:
                    raise SystemLimitError(f"{first.node.label}: sbatch failed: {said.stderr.strip()}")
                job = said.stdout.strip().split(";")[0]
                for index, each in tasks.items():
                    known[each.node.id] = job if index is None else f"{job}_{index}"
                    yield each.node.id, known[each.node.id]

    def states(self, ids: Collection[str]) -> dict[str, State] | None:
        """What squeue says. It forgets a job some minutes after its end (MinJobAge)."""
        user = pwd.getpwuid(os.getuid()).pw_name
        listed = ["squeue", "--noheader", "--array", "--states=all", f"--user={user}", "--format=%i|%T|%r|%N"]
        said = _run(listed)
        if said.returncode:
            return None
        rows = [line.split("|") for line in said.stdout.splitlines()]
        return {job: _state(state, reason, node) for job, state, reason, node in rows if job in ids}

    def cancel(self, ids: Collection[str]) -> None:
        """End them with scancel."""
        _run(["scancel", *ids])

    def output(self, job: str) -> str:
        """In the store; Slurm's own words, such as those of a time limit, are in `slurm.log`."""
        return "in the folder jobs of the store"


def _run(argv: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, input=text, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError as error:
        raise SystemLimitError(
            f"--on slurm: {argv[0]} is not installed here. Run the command on a machine that submits to the cluster."
        ) from error
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 1, "", f"{argv[0]} gave no answer in 120 s")


def _state(state: str, reason: str, node: str) -> State:
    if state in RUNNING:
        return State("running", f"on {node}")
    if state in WAITING:
        return State("hopeless" if reason in HOPELESS else "waiting", reason)
    return State("ended", state if reason in ("None", "NonZeroExitCode") else f"{state}, {reason}")


def _options(given: Given, stage: str) -> list[str]:
    """What a job is given, in sbatch's words."""
    options = [
        f"--job-name=unlearn-release-{stage}",
        f"--chdir={Path.cwd()}",  # where paths given by --set begin
        "--open-mode=append",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        f"--cpus-per-task={given.cpus}",
        f"--mem={max(1, given.memory // 10**6)}M",
        f"--time={max(1, -(-given.seconds // 60))}",
    ]
    options += [f"--gres=gpu:{given.gpus}"] if given.gpus else []
    return options + ([f"--partition={given.partition}"] if given.partition else [])


def _in_words(given: Given) -> str:
    asked = f"{given.gpus} GPUs, {given.cpus} processors, {given.memory / 1e9:.1f} GB and {given.seconds / 3600:.1f} h"
    return asked + (f" in the partition {given.partition}" if given.partition else "")


def _script(tasks: Mapping[int | None, Wanted]) -> str:
    """The batch script: the command line of the task, with its output and its error where they are looked for.

    One alone does not ask for its index: it has that of the array in which this process itself runs, if it does.
    """
    commands = {}
    for index, each in tasks.items():
        command = shlex.join(["env", f"{ERROR_FILE}={each.error}", *each.argv])
        commands[index] = f"exec {command} >>{shlex.quote(str(each.log))} 2>&1"
    if None in commands:
        return f"#!/bin/sh\n{commands[None]}\n"
    lines = ["#!/bin/sh", "case $SLURM_ARRAY_TASK_ID in", *(f"{index}) {line} ;;" for index, line in commands.items())]
    return "\n".join([*lines, "esac", ""])


def _levels(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    """The stages by how many of the others have to come before each."""
    level: dict[str, int] = {}
    for each in wanted:
        inputs = each.node.inputs.values()
        level[each.node.id] = 1 + max((level[made_by] for made_by in inputs if made_by in level), default=-1)
    return [[each for each in wanted if level[each.node.id] == n] for n in range(max(level.values(), default=-1) + 1)]


def _arrays(level: list[Wanted], wanted: Sequence[Wanted], jobs: Mapping[str, str]) -> Iterator[_Array]:
    """The stages of a level, those in one array that have the same name and resources and wait for the same.

    Or for the same but one, if that one is a task of one array: then task waits for task (`aftercorr`).
    """
    earlier = before({each.node.id: each.node for each in wanted})
    same: dict[tuple[str, Given, frozenset[str]], list[Wanted]] = {}
    for each in level:
        same.setdefault((each.node.stage.name, each.given, _direct(each, earlier, jobs)), []).append(each)
    along: dict[tuple[str, Given, str, frozenset[str]], dict[int | None, Wanted]] = {}
    for (stage, given, after), group in same.items():
        if len(group) > 1:
            yield _Array(dict(enumerate(group)), _afterok(after))
            continue
        for job in after:
            array, line, index = job.partition("_")
            if line:
                along.setdefault((stage, given, array, after - {job}), {})[int(index)] = group[0]
    left = {group[0].node.id: (group[0], after) for (_, _, after), group in same.items() if len(group) == 1}
    for (_, _, array, shared), found in sorted(along.items(), key=lambda item: -len(item[1])):
        tasks = {index: each for index, each in found.items() if each.node.id in left}
        if len(tasks) > 1:
            for each in tasks.values():
                del left[each.node.id]
            yield _Array(tasks, ",".join(filter(None, [f"aftercorr:{array}", _afterok(shared)])))
    for each, after in left.values():
        yield _Array({None: each}, _afterok(after))


def _direct(each: Wanted, earlier: Mapping[str, set[str]], jobs: Mapping[str, str]) -> frozenset[str]:
    """The jobs that a stage waits for, without those that another of them waits for already."""
    inputs = [made_by for made_by in each.node.inputs.values() if made_by in jobs]
    implied = set[str]().union(*(earlier.get(made_by, set()) for made_by in inputs))
    return frozenset(jobs[made_by] for made_by in inputs if made_by not in implied)


def _afterok(jobs: Collection[str]) -> str:
    return f"afterok:{':'.join(sorted(jobs))}" if jobs else ""
