"""Jobs: a command line that runs in a process of its own, as the user whose Hub this is.

There are no containers here, so the image is only kept. A bucket is the folder `buckets/OWNER/NAME`. A process has no
mounts of its own either, so where a word of the command or of the environment begins with the place that a bucket is
mounted at, it begins with the bucket's folder instead.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from core.hub_ids import is_hub_id
from core.places import ROOT
from pipeline.localhub.hub import Call, Hub
from pipeline.localhub.messages import date, field
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.settings import write_json

FLAVORS = ["cpu-basic", "cpu-upgrade"]
ENDED = ("COMPLETED", "CANCELED", "ERROR")
_running: dict[str, subprocess.Popen[bytes]] = {}  # of this server; after its end nobody would know how a job ended
Job = dict[str, Any]


def hardware(call: Call) -> Response:
    """The hardware that there is."""
    listed = [
        {"name": name, "prettyName": name, "cpu": f"{os.cpu_count()} vCPU", "ram": "16 GB", "accelerator": None,
         "unitCostMicroUSD": 0, "unitCostUSD": 0.0, "unitLabel": "minute"}
        for name in FLAVORS
    ]  # fmt: skip
    return JSONResponse(listed)


def run(call: Call) -> Response:
    """Start a job and return what is known of it. The values of its secrets are not kept."""
    spec, namespace = call.json(), call.part("ns")
    call.require("write", namespace)
    command: list[str] = field(spec, "command", list)
    if not command or not all(isinstance(word, str) for word in command):
        raise Refusal(400, "'command' is a list of words, with at least one.")
    if (flavor := field(spec, "flavor", str, FLAVORS[0])) not in FLAVORS:
        raise Refusal(400, f"There is no hardware {flavor!r:.50} here; there is {', '.join(FLAVORS)}.")
    job = {
        "id": secrets.token_hex(12),
        "createdAt": date(time.time()),
        "dockerImage": field(spec, "dockerImage", str),
        "command": command,
        "arguments": [],
        "environment": field(spec, "environment", dict, {}),
        "flavor": flavor,
        "labels": field(spec, "labels", dict, {}),
        "volumes": field(spec, "volumes", list, []),
        "owner": {"id": namespace, "name": namespace, "type": "user"},
        "status": {"stage": "RUNNING", "message": None},
    }
    mounts = {field(volume, "mountPath", str): _bucket(call, volume) for volume in job["volumes"]}
    _save(call.hub, job)
    environment = os.environ | job["environment"] | field(spec, "secrets", dict, {})
    try:
        with (_folder(call.hub, namespace) / f"{job['id']}.log").open("wb") as log:
            process = subprocess.Popen(
                [_mounted(word, mounts) for word in (_python(command[0]), *command[1:])],
                env={name: _mounted(str(value), mounts) for name, value in environment.items()},
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except (OSError, ValueError) as error:  # no such program, or a zero byte
        job |= {"status": {"stage": "ERROR", "message": str(error)}, "finishedAt": date(time.time())}
        _save(call.hub, job)
        return JSONResponse(job)
    _running[job["id"]] = process
    limit = field(spec, "timeoutSeconds", int, 1800)
    threading.Thread(target=_wait, args=(call.hub, namespace, job["id"], process, limit), daemon=True).start()
    return JSONResponse(job)


def _wait(hub: Hub, namespace: str, job: str, process: subprocess.Popen[bytes], limit: int) -> None:
    """Write down how a job ended."""
    try:
        code = process.wait(limit)
        stage, message = ("COMPLETED", None) if code == 0 else ("ERROR", f"exit code {code}")
    except subprocess.TimeoutExpired:
        _end(process)
        stage, message = "ERROR", f"Job timeout: it ran longer than {limit} s"
    _running.pop(job, None)
    with suppress(Refusal):  # its file was removed
        known = _load(hub, namespace, job)
        if known["status"]["stage"] not in ENDED:
            _save(hub, known | {"status": {"stage": stage, "message": message}, "finishedAt": date(time.time())})


def show(call: Call) -> Response:
    """One job."""
    call.require("read", call.part("ns"))
    return JSONResponse(_load(call.hub, call.part("ns"), call.part("job")))


def list_jobs(call: Call) -> Response:
    """The jobs of a namespace, the newest first."""
    call.require("read", call.part("ns"))
    names = sorted(_folder(call.hub, call.part("ns")).glob("*.json"))
    jobs = [json.loads(path.read_text(encoding="utf-8")) for path in names]
    return JSONResponse(sorted(jobs, key=lambda job: job["createdAt"], reverse=True))


def cancel(call: Call) -> Response:
    """End a job."""
    namespace = call.part("ns")
    call.require("write", namespace)
    job = _load(call.hub, namespace, call.part("job"))
    if job["status"]["stage"] not in ENDED:
        _save(call.hub, job | {"status": {"stage": "CANCELED", "message": None}, "finishedAt": date(time.time())})
        if process := _running.get(job["id"]):
            _end(process)
    return JSONResponse({})


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _python(word: str) -> str:
    """The image has our packages in the Python that `python` starts."""
    return sys.executable if word == "python" else word


def _mounted(word: str, mounts: dict[str, Path]) -> str:
    for place, folder in mounts.items():
        if word == place or word.startswith(f"{place}/"):
            return f"{folder}{word[len(place) :]}"
    return word


def _bucket(call: Call, volume: Any) -> Path:
    """The folder of a volume's bucket."""
    kind, source = field(volume, "type", str), field(volume, "source", str)
    if kind != "bucket" or not is_hub_id(source):
        raise Refusal(400, f"Only buckets, named owner/name, can be mounted here, not the {kind:.20} {source:.200}.")
    call.require("write", source.split("/")[0])
    folder = call.hub.folder / "buckets" / source
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def _folder(hub: Hub, namespace: str) -> Path:
    if not is_hub_id(f"{namespace}/x"):
        raise Refusal(400, f"Invalid namespace: {namespace:.200}")
    folder = hub.folder / "jobs" / namespace
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _load(hub: Hub, namespace: str, job: str) -> Job:
    path = _folder(hub, namespace) / f"{job}.json"
    if not job.isalnum() or not path.is_file():
        raise Refusal(404, f"Job not found: {namespace:.200}/{job:.200}")
    known: Job = json.loads(path.read_text(encoding="utf-8"))
    return known


def _save(hub: Hub, job: Job) -> None:
    write_json(_folder(hub, job["owner"]["name"]) / f"{job['id']}.json", job)
