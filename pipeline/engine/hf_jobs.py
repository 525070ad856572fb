"""Stages as jobs of the Hugging Face Hub, with a bucket as the store.

The image's working folder is a checkout of this project; the bucket is mounted in each job. This machine has the bucket
mounted too, as its `--store`: it waits, and submits a stage when its inputs are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from core.errors import ERROR_FILE, SystemLimitError
from pipeline.cost.resources import Resources
from pipeline.engine.jobs import State, Wanted

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Errors = Callable[[str], AbstractContextManager[None]]
MOUNT = "/store"  # where a job has the bucket


class HfJobs:
    """Jobs in the namespace that owns the bucket."""

    name = "hf-jobs"
    chains = False

    def __init__(self, api: HfApi, resources: Resources, errors: Errors, secrets: Mapping[str, str]) -> None:
        """``errors`` says what was being done when the Hub refused.

        ``secrets`` is what a job gets beside the token and the Hub's address.
        """
        if not resources.image or not resources.bucket:
            raise SystemLimitError(
                "--on hf-jobs: set resources.image (a container image whose working folder is a checkout of this "
                "project) and resources.bucket (the store, mounted here as --store)."
            )
        self._api, self._image, self._bucket = api, resources.image, resources.bucket
        self._namespace = self._bucket.split("/")[0]
        self._errors = errors
        # A job reads from and publishes on the Hub that runs it. Its address may have a password in it, hence a secret.
        self._secrets = {**secrets, "HF_ENDPOINT": str(api.endpoint)}
        self._secrets |= {"HF_TOKEN": api.token} if isinstance(api.token, str) else {}

    def check(self, wanted: Sequence[Wanted]) -> None:
        """Raise SystemLimitError for hardware that the Hub does not have, or a stage on a GPU that names none."""
        with self._errors("listing the Hub's hardware"):
            names = [hardware.name for hardware in self._api.list_jobs_hardware()]
        for each in wanted:
            flavor, key = each.given.flavor, f"resources.stages.{each.node.stage.name}.flavor"
            if flavor not in (*names, None):
                raise SystemLimitError(
                    f"{each.node.label}: the Hub has no hardware {flavor!r}. Set {key} to one of {', '.join(names)}."
                )
            if flavor is None and each.given.gpus:
                raise SystemLimitError(
                    f"{each.node.label} runs on {each.given.gpus} GPUs, and names no hardware. Set {key} or "
                    f"resources.flavor to one of {', '.join(names)}."
                )

    def submit(self, wanted: Sequence[Wanted], jobs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Submit, and yield node and job."""
        from huggingface_hub import Volume

        for each in wanted:
            with self._errors(f"submitting {each.node.label}"):
                job = self._api.run_job(
                    image=self._image,
                    command=each.argv,
                    env={ERROR_FILE: f"{MOUNT}/jobs/{each.error.name}"},
                    secrets=self._secrets,
                    flavor=each.given.flavor,
                    timeout=each.given.seconds,
                    volumes=[Volume(type="bucket", source=self._bucket, mount_path=MOUNT)],
                    labels={"node": each.node.id[:16], "stage": each.node.stage.name},
                    namespace=self._namespace,
                )
            yield each.node.id, job.id

    def states(self, ids: Collection[str]) -> dict[str, State] | None:
        """What the Hub says."""
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import httpx

        try:
            listed = list(self._api.list_jobs(namespace=self._namespace)) if ids else []
        except (HfHubHTTPError, httpx.HTTPError):
            return None
        what = {"SCHEDULING": "waiting", "RUNNING": "running"}
        return {
            job.id: State(what.get(str(job.status.stage), "ended"), job.status.message or str(job.status.stage).lower())  # type: ignore[arg-type]
            for job in listed
            if job.id in ids
        }

    def cancel(self, ids: Collection[str]) -> None:
        """End jobs."""
        for job in ids:
            with self._errors(f"cancelling the job {job}"):
                self._api.cancel_job(job_id=job, namespace=self._namespace)

    def output(self, job: str) -> str:
        """Where the output of a job is."""
        return f"shown by `hf jobs logs {self._namespace}/{job}`"
