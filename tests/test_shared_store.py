"""A store that several runners share: real processes on one folder, killed, stopped, and lost with their machine."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.errors import ArtifactError
from core.strict import Strict
from pipeline.engine import artifact as art
from pipeline.engine.runner import Stage, Store
from tests.artifacts import toy_made
from tests.conftest import PATIENCE
from tests.processes import kill_one, start
from tests.walk import make

STEPS = 15


def wait_for(condition: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def work(root: Path, log: Path, member: str, lease: float, seconds: float = 0.01) -> None:
    """A release of three stages, of which the second is each member's own. What is begun and ended goes to ``log``."""
    art.LEASE_SECONDS = lease

    def note(line: str) -> None:
        with log.open("a") as file:
            file.write(line + "\n")

    def steps(config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
        state = out / "state"
        done = int(state.read_text()) if state.exists() else 0
        note(f"begin {config} {os.getpid()} {done}")
        for step in range(done, STEPS):
            (out / f"part-{step}").write_text(f"{config} {step}")
            draft = out / "state.draft"
            draft.write_text(str(step + 1))
            draft.replace(state)
            time.sleep(seconds)
        state.unlink()
        note(f"end {config} {os.getpid()}")
        return Strict()

    stages = [
        Stage("a", "1", steps, "A", "A", resumable=True),
        Stage("b", "1", steps, f"B-{member}", f"B-{member}", {"x": "a"}),
        Stage("c", "1", steps, "C", "C", {"x": "a"}, resumable=True),
    ]
    make(stages, Store(root, member))


def test_of_many_runners_some_of_them_killed_one_builds_each_artifact(tmp_path: Path) -> None:
    root, log, chance = tmp_path / "runs", tmp_path / "log", random.Random(3)
    begun = [start(work, root, log, f"m{i % 3}", 60.0, said=tmp_path / f"said-{i}") for i in range(9)]
    killed = {kill_one(begun, chance, 0.02, 0.3) for _ in range(4)}
    begun += [start(work, root, log, f"m{i}", 60.0, said=tmp_path / f"said-again-{i}") for i in range(3)]
    for process in begun:
        process.join(PATIENCE)
        assert process.exitcode == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    builders: dict[str, set[int]] = {}
    for _, stage, pid, *_ in lines:
        builders.setdefault(stage, set()).add(int(pid))
    assert set(builders) == {"A", "B-m0", "B-m1", "B-m2", "C"}
    assert all(len(pids - killed) <= 1 for pids in builders.values()), builders  # others waited for it
    made = [path for path in (root / "store").glob("*/*") if path.is_dir()]
    assert sorted(path.parent.name for path in made) == ["a", "b", "b", "b", "c"]
    for path in made:
        artifact = art.read_artifact(path)
        assert artifact
        art.check_artifact(artifact, by_content=True)
        assert len(artifact.manifest.files) == STEPS


def test_a_runner_that_was_stopped_for_too_long_is_superseded_and_tears_nothing(tmp_path: Path) -> None:
    root, log = tmp_path / "runs", tmp_path / "log"
    first = start(work, root, log, "m", 1.0, 0.05, said=tmp_path / "first")
    wait_for(lambda: log.exists() and list(root.rglob("part-3")))
    assert first.pid
    os.kill(first.pid, signal.SIGSTOP)
    second = start(work, root, log, "m", 1.0, said=tmp_path / "second")
    second.join(PATIENCE)
    assert second.exitcode == 0
    (made,) = [path for path in (root / "store" / "a").iterdir() if path.is_dir()]
    before = (made / "manifest.json").read_bytes()
    os.kill(first.pid, signal.SIGCONT)
    first.join(PATIENCE)
    assert first.exitcode == 1
    assert "ArtifactError" in (tmp_path / "first").read_text()
    begun = [line.split() for line in log.read_text().splitlines() if line.startswith("begin A")]
    assert int(begun[1][3]) > 0  # from where the first had come to
    assert (made / "manifest.json").read_bytes() == before
    artifact = art.read_artifact(made)
    assert artifact
    art.check_artifact(artifact, by_content=True)


def test_a_lease_of_a_machine_that_is_gone_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(art, "LEASE_SECONDS", 0.6)
    place = tmp_path / "a" / "key"
    with art.building(place) as own:
        lease = place.with_name("key.lease")
        elsewhere = lease.read_text().replace("host=", "host=gone-")
        assert not own.is_lost()
    lease.write_text(elsewhere)
    assert art.is_being_built(place)
    began = time.monotonic()
    with art.building(place):
        assert time.monotonic() - began >= 0.6
    lease.write_text(elsewhere)
    os.utime(lease, (time.time() - 60,) * 2)
    assert not art.is_being_built(place)


def test_nothing_is_committed_without_the_lease(tmp_path: Path) -> None:
    place = tmp_path / "a" / "key"
    with art.building(place) as own:
        (own.begin(resume=False) / "file").write_text("x")
        place.with_name("key.lease").unlink()
        with pytest.raises(ArtifactError, match="another runner"):
            own.finish(toy_made())
    assert not place.exists()
