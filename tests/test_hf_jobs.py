"""Stages as jobs of the Hub: the loopback Hub really runs the command lines, with a bucket as the store."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from core.errors import DataError, HubError, SystemLimitError
from pipeline.cost.resources import Resources
from pipeline.engine import jobs
from pipeline.engine.artifact import Artifact
from pipeline.engine.graph import Graph, Node
from pipeline.engine.hf_jobs import MOUNT, HfJobs
from pipeline.engine.jobs import Wanted, follow, read_job
from pipeline.localhub.server import LocalHub
from pipeline.publish import sign
from pipeline.publish.hub import hub_errors
from tests.collections import RECIPE
from tests.conftest import PATIENCE, ROOT, Call
from tests.toy_job import GIVEN, toy_graph, want

BUCKET = "demo/store"
RESOURCES = Resources(image="registry.example/unlearn-release:1", bucket=BUCKET)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with pytest.MonkeyPatch.context() as patch, LocalHub(tmp_path_factory.mktemp("jobs") / "hub") as running:
        patch.setattr(jobs, "POLL_SECONDS", 0.2)
        patch.setattr(jobs, "GRACE_SECONDS", 0.5)
        yield running


@pytest.fixture
def store(hub: LocalHub) -> Path:
    """The bucket, mounted here, and empty."""
    folder = hub.folder / "buckets" / BUCKET
    if folder.exists():
        folder.rename(folder.with_name(f"old-{time.time_ns()}"))
    folder.mkdir(parents=True)
    return folder.absolute()


def api_of(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token)


def run(hub: LocalHub, store: Path, nodes: Graph, work: float = 0.1, **given: Any) -> dict[str, Any]:
    """What became of each node. The command lines name the store as the jobs see it."""

    def wanted(node: Node) -> Wanted:
        here = want(store, work, GIVEN._replace(**given))(node)
        there = ["python", *(word.replace(str(store), MOUNT) for word in here.argv[1:])]
        return here._replace(argv=there)

    said: list[str] = []
    place = HfJobs(api_of(hub), RESOURCES, hub_errors, {})
    outcomes = follow(nodes, place, store, wanted, lambda node, artifact: None, said.append)
    return {node.label: outcome for node, outcome in outcomes}


def test_jobs_run_when_their_inputs_are_there_and_a_failed_one_stops_its_member_alone(
    hub: LocalHub, store: Path
) -> None:
    outcomes = run(hub, store, toy_graph(store, "one", "bad"))
    assert isinstance(outcomes["e of one"], Artifact)
    assert isinstance(outcomes["c of bad"], DataError)
    assert outcomes["e of bad"] is None
    listed = {job.labels["stage"]: job for job in api_of(hub).list_jobs(namespace="demo") if job.labels}
    assert listed["a"].docker_image == RESOURCES.image
    assert listed["a"].command[:4] == ["python", "-m", "tests.toy_job", MOUNT]
    assert [volume.source for volume in listed["a"].volumes or []] == [BUCKET]
    assert hub.token not in "".join(path.read_text() for path in (hub.folder / "jobs").rglob("*.json"))


def test_a_job_past_its_time_and_a_cancelled_one_are_errors_and_the_next_command_continues(
    hub: LocalHub, store: Path
) -> None:
    (error,) = run(hub, store, toy_graph(store, until="a"), 60, seconds=4).values()
    assert isinstance(error, SystemLimitError)
    assert "ended without a result (Job timeout" in str(error)
    assert "hf jobs logs demo/" in str(error)
    found: dict[str, Any] = {}
    nodes = toy_graph(store, until="a")
    (key,) = nodes
    before = read_job(store, key)
    follower = threading.Thread(target=lambda: found.update(run(hub, store, nodes, 60)))
    follower.start()
    while (job := read_job(store, key)) is None or job == before:
        time.sleep(0.05)
    while not list(store.rglob("checkpoint-00/x")):
        time.sleep(0.05)
    api_of(hub).cancel_job(job_id=job.id, namespace="demo")
    follower.join(PATIENCE)
    assert "canceled" in str(found.popitem()[1])
    (made,) = run(hub, store, toy_graph(store, until="a")).values()
    assert isinstance(made, Artifact)
    assert int((made.path / "begun-at").read_text()) > 0


@pytest.mark.parametrize(("answer", "stage"), [("y", "CANCELED"), ("", "RUNNING")])
def test_an_interrupted_command_asks_whether_to_cancel(
    hub: LocalHub, store: Path, monkeypatch: pytest.MonkeyPatch, answer: str, stage: str
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    nodes = toy_graph(store, until="a")
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", Terminal(f"{answer}\n"))
        patch.setattr(jobs, "time", SimpleNamespace(sleep=interrupted, monotonic=time.monotonic))
        with pytest.raises(KeyboardInterrupt):
            run(hub, store, nodes, 60)
    (job,) = [record.id for key in nodes if (record := read_job(store, key))]
    assert api_of(hub).inspect_job(job_id=job, namespace="demo").status.stage == stage
    api_of(hub).cancel_job(job_id=job, namespace="demo")


def test_a_job_that_vanishes_is_an_error_and_its_command_is_not_run_beside_it(hub: LocalHub, store: Path) -> None:
    found: dict[str, Any] = {}
    nodes = toy_graph(store, until="a")
    (key,) = nodes
    follower = threading.Thread(target=lambda: found.update(run(hub, store, nodes, 3)))
    follower.start()
    while not list(store.rglob("checkpoint-00/x")):
        time.sleep(0.05)
    record = read_job(store, key)
    assert record
    (hub.folder / "jobs" / "demo" / f"{record.id}.json").unlink()
    follower.join(PATIENCE)
    assert "does not know it any more" in str(found.popitem()[1])
    (made,) = run(hub, store, nodes, 3).values()  # its job waits for the lease of the one that goes on unknown
    assert isinstance(made, Artifact)
    assert not (made.path / "begun-at").exists()


def test_a_hub_that_refuses_is_an_error_and_no_traceback(hub: LocalHub, store: Path) -> None:
    place = HfJobs(HfApi(endpoint=hub.endpoint, token="hf_wrong"), RESOURCES, hub_errors, {})
    with pytest.raises(HubError, match="submitting a of one"):
        list(place.submit([want(store)(next(iter(toy_graph(store, until="a").values())))], {}))


@pytest.mark.parametrize(
    ("given", "said"),
    [({"flavor": "h900"}, r"no hardware 'h900'. Set resources\.stages\.a\.flavor"), ({"gpus": 2}, "runs on 2 GPUs")],
)
def test_hardware_that_there_is_not_is_an_error_before_the_first_job(
    hub: LocalHub, store: Path, given: dict[str, Any], said: str
) -> None:
    before = len(list(api_of(hub).list_jobs(namespace="demo")))
    with pytest.raises(SystemLimitError, match=said):
        run(hub, store, toy_graph(store), **given)
    assert len(list(api_of(hub).list_jobs(namespace="demo"))) == before


def test_a_program_that_there_is_not_ends_its_job(hub: LocalHub) -> None:
    api = api_of(hub)
    job = api.run_job(image="x", command=["/no/such/program"], namespace="demo")
    assert api.inspect_job(job_id=job.id, namespace="demo").status.stage == "ERROR"


def test_a_stage_of_a_release_has_the_same_digest_there(
    call: Call, hub: LocalHub, store: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    text = RECIPE.format(demo=ROOT / "pipeline" / "recipes" / "demo.yaml", model=tiny_model)
    complete = text + "  image: registry.example/x\n  bucket: demo/store\n"
    for content, said in ((text, "set resources.image"), (complete, "a job sees the image and the store only")):
        (tmp_path / "tiny.yaml").write_text(content)
        refused = call("release", str(tmp_path / "tiny.yaml"), "--on", "hf-jobs", "--store", str(store))
        assert refused.returncode == 2
        assert said in refused.stderr
    (store / "tiny.yaml").write_text(complete)
    found = []
    for words in (["--store", str(tmp_path / "here")], ["--on", "hf-jobs", "--store", str(store)]):
        done = call("release", str(store / "tiny.yaml"), "--until", "data", "--json", *words)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["stages"])
        if len(found) == 1:  # the model was made before, so one job is enough
            shutil.copytree(tmp_path / "here" / "store" / "model", store / "store" / "model")
    here, there = ({name: stage["digest"] for name, stage in stages.items()} for stages in found)
    assert there == here
    assert [name for name, stage in found[1].items() if stage["built"]] == ["data"]


def test_what_signs_here_is_no_jobs_and_is_said_before_the_first(
    call: Call, hub: LocalHub, store: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    key = tmp_path / "ours.pem"
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "keys"))
    key.write_bytes(sign.private_key().read_bytes())
    monkeypatch.setenv("UNLEARN_RELEASE_KEY", str(key))
    text = RECIPE.format(demo=ROOT / "pipeline" / "recipes" / "demo.yaml", model=tiny_model)
    (store / "tiny.yaml").write_text(text + "  image: registry.example/x\n  bucket: demo/store\n")
    monkeypatch.setattr(HfJobs, "submit", lambda *_: pytest.fail("a job was submitted"))
    refused = call("release", str(store / "tiny.yaml"), "--on", "hf-jobs", "--store", str(store))
    assert refused.returncode == 2
    assert "UNLEARN_RELEASE_KEY says what signs here, and a job does not have it: package would" in refused.stderr


def test_a_job_sees_what_this_machine_gives_it_beside_the_token(hub: LocalHub, store: Path) -> None:
    place = HfJobs(api_of(hub), RESOURCES, hub_errors, {"AWS_PROFILE": "mine"})
    (node,) = toy_graph(store, until="a").values()
    seen = "os.environ['AWS_PROFILE'], 'HF_TOKEN' in os.environ, os.environ.get('HF_ENDPOINT')"
    prints = f"import os, sys; print({seen}, file=open(sys.argv[1], 'w'))"
    wanted = want(store)(node)._replace(argv=["python", "-c", prints, f"{MOUNT}/seen"])
    ((_, job),) = place.submit([wanted], {})
    end = time.monotonic() + PATIENCE
    while (place.states([job]) or {})[job].what != "ended":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert (store / "seen").read_text() == f"mine True {hub.endpoint}\n"
