"""What the job of a stage is given: what the `resources` section of a recipe says, else what follows from the plan."""

from __future__ import annotations

import math
from typing import NamedTuple

from pydantic import Field

from core.errors import InputError
from core.host import cores
from core.strict import Strict
from pipeline.cost.work import Cost

SLACK = 4.0
"""Time limit over estimated time. Ours: an estimate is no promise, and a job over its limit is ended."""
START_SECONDS = 900  # to load Python, packages and the model, on a slow disk
UNKNOWN_SECONDS = 24 * 3600
GB = 10**9


class Asked(Strict):
    """What a job of a stage is given. What is null follows from the plan's estimates of time and memory."""

    gpus: int | None = Field(default=None, ge=0, description="GPUs.")
    cpus: int | None = Field(default=None, ge=1, description="Processors. Default: 8 for each GPU, 2 without one.")
    memory_gb: float | None = Field(default=None, gt=0, description="Memory of the host, in GB.")
    hours: float | None = Field(default=None, gt=0, description="Time limit.")
    partition: str | None = Field(
        default=None, min_length=1, description="Partition of Slurm. Default: the cluster's own."
    )
    flavor: str | None = Field(default=None, min_length=1, description="Hardware of Hugging Face Jobs, such as `h200`.")


class Resources(Asked):
    """What the jobs of `--on slurm` and `--on hf-jobs` are given. No part of any stage's identity."""

    device: str | None = Field(
        default=None,
        min_length=1,
        description="Device of the jobs, by its name in `pipeline/cost/devices.py`. Default: that of this machine.",
    )
    stages: dict[str, Asked] = Field(default_factory=dict, description="Other values for single stages, by name.")
    image: str | None = Field(
        default=None,
        min_length=1,
        description="For Hugging Face Jobs: the container image. Its working folder is a checkout of this project.",
    )
    bucket: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+/[\w.-]+$",
        description="For Hugging Face Jobs: the bucket with the store, `owner/name`; `--store` is where it is mounted "
        "here.",
    )


class Given(NamedTuple):
    """What a job gets: counts, bytes and seconds, and the names of places, None for the place's default."""

    gpus: int
    cpus: int
    memory: int
    seconds: int
    partition: str | None
    flavor: str | None


def given(resources: Resources, stage: str, processes: int, cost: Cost, parameters: int | None) -> Given:
    """What a job of a stage gets.

    Beside a GPU the host has the weights twice in float32 while they are loaded or saved, once for each process; on a
    processor it has what the plan counted, and half as much again, and time for the cores that it gets, which may be
    fewer than the plan's. Raises InputError if the size of the model is not known, and no memory is asked for.
    """
    own = resources.stages.get(stage, Asked())

    def value(name: str) -> float | None:
        found = getattr(own, name)
        asked: float | None = getattr(resources, name) if found is None else found
        return asked

    estimate = cost.plain()["seconds"]
    asked, hours, memory_gb = (value(name) for name in ("cpus", "hours", "memory_gb"))
    gpus = gpus_of(resources, stage, processes, cost)
    cpus = int(asked or max(8 * gpus, 2 * processes))
    slower = max(1.0, cores() / cpus) if cost.device is not None and not cost.device.is_gpu else 1.0
    seconds = UNKNOWN_SECONDS if estimate is None else START_SECONDS + SLACK * slower * estimate
    return Given(
        gpus=gpus,
        cpus=cpus,
        memory=_memory(stage, processes, cost, parameters) if memory_gb is None else round(memory_gb * GB),
        seconds=math.ceil(seconds if hours is None else hours * 3600),
        partition=own.partition or resources.partition,
        flavor=own.flavor or resources.flavor,
    )


def gpus_of(resources: Resources, stage: str, processes: int, cost: Cost) -> int:
    """How many GPUs the job of a stage gets."""
    asked = resources.stages.get(stage, Asked()).gpus
    asked = resources.gpus if asked is None else asked
    return asked if asked is not None else processes if _is_on_gpu(cost) else 0


def _is_on_gpu(cost: Cost) -> bool:
    return cost.device is not None and cost.device.is_gpu


def _memory(stage: str, processes: int, cost: Cost, parameters: int | None) -> int:
    """Bytes of the host's memory."""
    if cost.device is not None and parameters is None:
        raise InputError(
            f"{stage}: how large the model is is not known before it is fetched, and so not how much memory its job "
            f"needs. Give model.parameters, or resources.stages.{stage}.memory_gb."
        )
    return processes * (4 * GB + 8 * (parameters or 0)) if _is_on_gpu(cost) else 2 * GB + round(1.5 * cost.memory)
