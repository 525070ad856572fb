"""Stages as jobs of a real Slurm: arrays and dependencies, and what goes wrong on clusters."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.errors import DataError, SystemLimitError
from core.places import ROOT
from pipeline.cost.resources import Given
from pipeline.engine import jobs
from pipeline.engine.artifact import Artifact
from pipeline.engine.graph import Graph, Node
from pipeline.engine.jobs import follow, read_job
from pipeline.engine.slurm import Slurm
from tests.collections import write_collection
from tests.conftest import Call
from tests.slurm import PATIENCE, Cluster, missing, running, until
from tests.toy_job import GIVEN, toy_graph, want

WHOLE = os.environ.get("UNLEARN_RELEASE_WHOLE_ON_SLURM", "0") not in ("", "0")

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch, running(tmp_path_factory.mktemp("slurm")) as started:
        patch.setenv("SLURM_CONF", started.environment["SLURM_CONF"])
        patch.setattr(jobs, "POLL_SECONDS", 0.3)
        patch.setattr(jobs, "GRACE_SECONDS", 0.5)
        yield started


def passed(node: Node, artifact: Artifact) -> None:
    """Every artifact may be read."""


class Run:
    """A command that follows its jobs, in a thread."""

    def __init__(self, store: Path, nodes: Graph, seconds: float = 0.1, given: Given = GIVEN) -> None:
        self.store, self.nodes, self.asked = store, nodes, want(store, seconds, given)
        self.said: list[str] = []
        self.outcomes: dict[str, Any] = {}
        self.thread = threading.Thread(target=self.go, daemon=True)

    def go(self) -> None:
        try:
            for node, outcome in follow(self.nodes, Slurm(), self.store, self.asked, passed, self.said.append):
                self.outcomes[node.id] = outcome
        except Exception as error:  # a thread's own would not be seen
            self.said.append(repr(error))

    def start(self) -> Run:
        self.thread.start()
        return self

    def join(self) -> dict[str, Any]:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), self.said
        return {self.nodes[key].label: outcome for key, outcome in self.outcomes.items()}

    def tells(self, text: str) -> None:
        until(lambda: any(text in line for line in self.said) or not self.thread.is_alive(), f"{text}: {self.said}")
        assert any(text in line for line in self.said), self.said


@pytest.fixture(scope="module")
def overdue(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A job that has passed its time limit. Slurm looks every half minute, so it begins before the other tests."""
    store = tmp_path_factory.mktemp("overdue")
    run = Run(store, toy_graph(store, until="a"), seconds=600).start()
    run.tells("running")
    (job,) = [record.id for key in run.nodes if (record := read_job(run.store, key))]
    cluster.call("scontrol", "update", f"jobid={job}", "EndTime=now+1")
    return run


def test_stages_of_several_members_are_arrays_and_each_is_built_once(
    cluster: Cluster, overdue: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the toy job, which no installation has
    nodes = toy_graph(tmp_path, "one", "two", "three")
    outcomes = Run(tmp_path, nodes).start().join()
    assert all(isinstance(outcome, Artifact) for outcome in outcomes.values())
    assert len(outcomes) == 2 + 3 * 3
    records = {node.label: read_job(tmp_path, key) for key, node in nodes.items()}
    arrays = {label: record.id.split("_") for label, record in records.items() if record}
    assert len(arrays["a of one and 2 more"]) == 1
    for stage in "cde":
        ids = [arrays[f"{stage} of {member}"] for member in ("one", "two", "three")]
        assert len({array for array, _ in ids}) == 1, ids
        assert [index for _, index in ids] == ["0", "1", "2"]
    assert (tmp_path / "toy-two" / "e" / "result").read_text() == "two ['x', 'y']"
    assert (tmp_path / "toy-two" / "e" / "began-in").read_text() == str(tmp_path)


def test_a_failed_stage_stops_its_member_and_no_other(cluster: Cluster, tmp_path: Path) -> None:
    outcomes = Run(tmp_path, toy_graph(tmp_path, "one", "bad")).start().join()
    assert isinstance(outcomes["c of bad"], DataError)
    assert str(outcomes["c of bad"]) == "row 3 has no answer"
    assert outcomes["d of bad"] is None
    assert outcomes["e of bad"] is None
    assert isinstance(outcomes["e of one"], Artifact)
    until(lambda: not {"PENDING", "RUNNING"} & own_states(cluster, tmp_path), "jobs are left")


def own_states(cluster: Cluster, store: Path) -> set[str]:
    known = cluster.jobs()
    return {known.get(json.loads(file.read_text())["id"], "") for file in (store / "jobs").glob("*.json")}


def test_a_killed_job_is_an_error_and_the_same_command_continues_from_its_checkpoint(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = Run(tmp_path, toy_graph(tmp_path, until="a"), seconds=60).start()
    until(lambda: list(tmp_path.rglob("checkpoint-00/x")), "it never began")
    ours = [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in (p.info["cmdline"] or [])]
    assert ours
    for process in ours:
        process.send_signal(signal.SIGKILL)
    (error,) = run.join().values()
    assert isinstance(error, SystemLimitError)
    assert "ended without a result (FAILED" in str(error)
    assert "continues from the last checkpoint" in str(error)
    (made,) = Run(tmp_path, toy_graph(tmp_path, until="a")).start().join().values()
    assert isinstance(made, Artifact)
    assert int((made.path / "begun-at").read_text()) > 0


def test_a_command_in_a_task_of_an_array_submits_stages_that_run(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm hands the variables of a job to those that it submits, an index too if they are not of an array."""
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    (made,) = Run(tmp_path, toy_graph(tmp_path, until="a")).start().join().values()
    assert isinstance(made, Artifact)


def test_a_second_command_follows_the_jobs_of_the_first(cluster: Cluster, tmp_path: Path) -> None:
    nodes = toy_graph(tmp_path, until="a")
    first, second = (Run(tmp_path, nodes, seconds=3) for _ in range(2))
    first.start().tells("running")
    (before,) = [record.id for key in nodes if (record := read_job(tmp_path, key))]
    second.start()
    assert [type(outcome) for outcome in (*first.join().values(), *second.join().values())] == [Artifact, Artifact]
    (after,) = [record.id for key in nodes if (record := read_job(tmp_path, key))]
    assert before == after


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"gpus": 1}, r"Invalid generic resource .* asked for 1 GPUs"),
        ({"memory": 10**12}, "Requested node configuration is not available"),
    ],
)
def test_what_the_cluster_has_not_is_an_error_before_the_first_job(
    cluster: Cluster, tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    before = cluster.jobs()
    nodes = toy_graph(tmp_path)
    asked = want(tmp_path, given=GIVEN._replace(**given))
    with pytest.raises(SystemLimitError, match=said):
        list(follow(nodes, Slurm(), tmp_path, asked, passed, print))
    assert {state for job, state in cluster.jobs().items() if job not in before} <= {"CANCELLED", "FAILED"}


def test_a_time_limit_that_the_partition_does_not_allow_is_an_error(cluster: Cluster, tmp_path: Path) -> None:
    asked = GIVEN._replace(seconds=10**6)
    (error,) = Run(tmp_path, toy_graph(tmp_path, until="a"), given=asked).start().join().values()
    assert "would never start it: PartitionTimeLimit" in str(error)


@pytest.mark.skipif(not WHOLE, reason="set UNLEARN_RELEASE_WHOLE_ON_SLURM=1; it takes minutes")
def test_a_collection_made_by_jobs_has_the_digests_of_one_made_here(
    cluster: Cluster, call: Call, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = write_collection(tmp_path, tiny_model)
    found = {}
    for place in ("slurm", "local"):
        store = tmp_path / place
        done = call("collection", str(recipe), "--store", str(store), "--on", place, "--json")
        assert done.returncode == 3, done.stderr[-3000:]
        manifests = [json.loads(path.read_text()) for path in (store / "store").glob("*/*/manifest.json")]
        found[place] = {(made["stage"], made["key"]): made["digest"] for made in manifests}
    differs = ("card", "package", "publish")  # a card says how long stages took, and a signature is random
    here, there = ({k: v for k, v in found[place].items() if k[0] not in differs} for place in ("local", "slurm"))
    assert here == there
    assert len(here) >= 3
    state = call("status", str(recipe), "--store", str(tmp_path / "slurm"), "--json")
    assert {row["state"] for row in json.loads(state.stdout)["stages"] if row["stage"].startswith("base")} == {"done"}


def test_a_job_over_its_time_limit_is_an_error_that_says_what_to_set(cluster: Cluster, overdue: Run) -> None:
    (error,) = overdue.join().values()
    assert "TIMEOUT" in str(error)
    assert "resources.stages.a.hours" in str(error)
    (made,) = Run(overdue.store, toy_graph(overdue.store, until="a")).start().join().values()
    assert isinstance(made, Artifact)


def test_a_drained_node_and_a_restart_of_the_controller_are_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    """The last one, since a controller that starts again begins its half minute again."""
    cluster.call("scontrol", "update", f"nodename={cluster.host}", "state=drain", "reason=test")
    run = Run(tmp_path, toy_graph(tmp_path, until="a"), seconds=4).start()
    run.tells("waiting")
    assert not run.outcomes
    cluster.call("scontrol", "update", f"nodename={cluster.host}", "state=resume")
    run.tells("running")
    cluster.stop("slurmctld.pid")
    run.tells("does not answer")
    cluster.call("slurmctld")
    (made,) = run.join().values()
    assert isinstance(made, Artifact)
    assert not (made.path / "begun-at").exists()  # the job itself went on
