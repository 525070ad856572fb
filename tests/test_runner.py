"""The runner on toy stages: real folders, real processes, real kills."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import ArtifactError, DataError, RecipeError, ReleaseError, SystemLimitError, TrainingError
from core.strict import Strict
from pipeline.engine import artifact, machine, runner
from pipeline.engine.artifact import Artifact
from pipeline.engine.plan import reasons
from pipeline.engine.runner import Stage, Store, build
from tests.conftest import PATIENCE
from tests.processes import start
from tests.walk import make, states

RUNS: list[str] = []


class Length(Strict):
    """The facts of a toy stage."""

    length: int


def toy(name: str, config: Any = None, inputs: dict[str, str] | None = None, **options: Any) -> Stage:
    """A stage that writes its config and what it read."""

    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        RUNS.append(name)
        read = {name: (path / "text").read_text() for name, path in sorted(inputs.items())}
        (out / "text").write_text(f"{config} {read}")
        return Length(length=len(read))

    return Stage(name, options.pop("version", "1"), options.pop("run", run), config, config, inputs or {}, **options)


def go(stages: Sequence[Stage], store: Store) -> dict[str, Artifact]:
    RUNS.clear()
    return make(stages, store)


def chain(first: Any = 1, second: Any = 2) -> list[Stage]:
    return [toy("a", first), toy("b", second, {"x": "a"}), toy("c", 3, {"x": "a", "y": "b"})]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", "demo")


def test_a_second_run_runs_nothing_and_gives_the_same(store: Store) -> None:
    first = go(chain(), store)
    assert RUNS == ["a", "b", "c"]
    second = go(chain(), store)
    assert RUNS == []
    assert {name: artifact.digest for name, artifact in first.items()} == {n: a.digest for n, a in second.items()}
    assert (store.root / "demo" / "c" / "text").read_text().startswith("3 ")
    assert not list(store.root.rglob("*.partial"))


def test_only_what_depends_on_a_change_runs_again(store: Store) -> None:
    go(chain(), store)
    go(chain(second=5), store)
    assert RUNS == ["b", "c"]
    go(chain(), store)
    assert RUNS == []  # the earlier artifacts are still there


def test_a_rerun_with_the_same_content_stops_there(store: Store) -> None:
    go(chain(), store)
    stages = chain()
    stages[0] = toy("a", 1, version="2")
    go(stages, store)
    assert RUNS == ["a"]


def test_the_manifest_says_where_an_artifact_comes_from(store: Store) -> None:
    manifest = json.loads((go(chain(), store)["c"].path / "manifest.json").read_text())
    assert manifest["facts"] == {"length": 2}
    assert manifest["git"].keys() == {"commit", "dirty"}
    assert manifest["packages"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert manifest["peak_memory_bytes"] > 1e6
    assert manifest["files"]["text"].keys() == {"sha256", "size", "mtime_ns", "ctime_ns", "inode"}
    assert {"argv", "device", "seconds"} <= manifest.keys()


def test_the_key_knows_no_place(tmp_path: Path) -> None:
    one, two = go(chain(), Store(tmp_path / "one", "demo")), go(chain(), Store(tmp_path / "two", "other"))
    assert [a.manifest.key for a in one.values()] == [a.manifest.key for a in two.values()]


def test_a_changed_file_stops_the_run_and_is_named(store: Store) -> None:
    path = go(chain(), store)["a"].path
    (path / "text").write_text("tampered")
    with pytest.raises(ArtifactError, match=r"changed: text"):
        go(chain(), store)
    assert RUNS == []


@pytest.mark.parametrize("reads", [{}, {"x": "a"}])
def test_an_input_that_is_changed_while_stages_run_is_noticed(store: Store, reads: dict[str, str]) -> None:
    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        RUNS.append("b")
        (store.root / "demo" / "a" / "text").write_text("tampered")
        (out / "text").write_text("b")
        return Length(length=0)

    with pytest.raises(ArtifactError, match=r"store/a/\w+ is no longer what was built \(changed: text"):
        go([toy("a"), toy("b", inputs=reads, run=run), toy("c", 3, {"x": "a", "y": "b"})], store)
    assert RUNS == ["a", "b"]
    assert (store.root / "demo" / "b").exists() is not bool(reads)  # what read it is not kept
    assert not list(store.root.rglob("*.partial"))


def test_bad_input_leaves_nothing_behind(store: Store) -> None:
    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        (out / "half").write_text("half")
        raise DataError("row 3 has no answer")

    for resumable in (False, True):
        with pytest.raises(DataError):
            go([toy("a", run=run, resumable=resumable)], store)
        assert not [path for path in store.root.rglob("*") if path.is_dir() and path.name not in ("store", "a")]
        assert not list(store.root.rglob("half"))


@pytest.mark.parametrize("error", [RecipeError, ArtifactError, SystemLimitError, TrainingError])
def test_an_error_spoils_no_checkpoints_but_those_of_a_training_that_failed(
    store: Store, error: type[ReleaseError]
) -> None:
    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        (out / "checkpoints" / "checkpoint-10").mkdir(parents=True, exist_ok=True)
        raise error("keep: closest needs whole weights")

    with pytest.raises(error):
        go([toy("a", run=run, resumable=True)], store)
    assert bool(list(store.root.rglob("checkpoint-10"))) == (error is not TrainingError)


def test_a_manifest_tells_of_all_runs_of_a_stage_that_was_cut_off(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        if not (out / "checkpoints" / "checkpoint-10").exists():
            (out / "checkpoints" / "checkpoint-10").mkdir(parents=True)
            (saved := out / "checkpoints" / "checkpoint-10" / "weights").touch()
            os.utime(saved, (time.time() + 3600,) * 2)  # an hour's work, and then
            raise KeyboardInterrupt
        shutil.rmtree(out / "checkpoints")
        (out / "text").write_text("whole")
        return Length(length=0)

    def made_with(commit: str, torch: str) -> dict[str, Any]:
        packages = {"python": "3.11.7", "torch": torch}
        return {"git": {"commit": commit, "dirty": commit == "aa"}, "packages": packages, "device": "cpu", "argv": []}

    stages = [toy("a", run=run, resumable=True)]
    monkeypatch.setattr(runner, "provenance", lambda: made_with("aa", "2.6.0"))
    with pytest.raises(KeyboardInterrupt):
        go(stages, store)
    monkeypatch.setattr(runner, "provenance", lambda: made_with("bb", "2.13.0"))
    made = go(stages, store)["a"].manifest
    assert made.seconds == pytest.approx(3600, abs=60)
    assert (made.git.commit, made.git.dirty) == ("aa, then bb", True)
    assert made.packages == {"python": "3.11.7", "torch": "2.6.0, then 2.13.0"}
    assert set(made.files) == {"text"}


@pytest.mark.parametrize("kind", ["errno", "text", "quota", "torch", "memory"])
def test_a_full_disk_is_one_sentence_with_place_and_space(store: Store, kind: str) -> None:
    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        if kind == "errno":
            raise OSError(errno.ENOSPC, "No space left on device", str(out / "weights"))
        if kind == "memory":
            raise MemoryError
        if kind == "quota":
            raise RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)")
        if kind == "torch":  # the optimizer's state, the largest file of a checkpoint
            torch.save({"moments": torch.zeros(10_000)}, "/dev/full")
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(SystemLimitError, match=r"a: .* GB free at .*run the command again"):
        go([toy("a", run=run)], store)


def test_a_real_full_disk_keeps_what_a_resumable_stage_wrote(store: Store) -> None:
    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        (out / "checkpoint").write_text("10")
        with Path("/dev/full").open("w") as full:
            full.write("x" * 100_000)
        return Length(length=0)

    with pytest.raises(SystemLimitError, match=r"No space left.*--store"):
        go([toy("a", run=run, resumable=True)], store)
    (left,) = store.root.rglob("checkpoint")
    assert left.parent.name.endswith(".partial")


def test_a_store_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemLimitError, match="Check the path"):
        go(chain(), Store(tmp_path / "file" / "runs", "demo"))


def test_a_failure_that_is_a_bug_stays_one(store: Store) -> None:
    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        go([toy("a", run=run)], store)


def test_a_manifest_names_the_commit_that_the_stage_began_with(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "checkout"
    repository.mkdir()

    def git(*words: str) -> str:
        who = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        return subprocess.run(["git", *who, *words], cwd=repository, capture_output=True, text=True, check=True).stdout

    def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        git("commit", "--allow-empty", "-m", "meanwhile")
        (repository / "not committed").touch()
        return Length(length=0)

    git("init")
    git("commit", "--allow-empty", "-m", "first")
    began = git("rev-parse", "HEAD").strip()
    monkeypatch.setattr(machine, "ROOT", repository)
    made = go([toy("a", run=run)], store)["a"].manifest.git
    assert (made.commit, made.dirty) == (began, False)


def test_an_input_without_its_stage_is_named(store: Store) -> None:
    with pytest.raises(ArtifactError, match="b reads a, not done yet"):
        build(toy("b", 1, {"x": "a"}), store, {})


def seen_as(stages: Sequence[Stage], store: Store) -> list[str]:
    return [status.state for status in states(stages, store).values()]


def test_status_before_during_and_after(store: Store) -> None:
    assert seen_as(chain(), store) == ["missing"] * 3
    assert not store.root.exists()  # looking writes nothing
    seen: list[list[str]] = []

    def look(config: Any, inputs: Mapping[str, Path], out: Path) -> Length:
        seen.append(seen_as([toy("a", "look", run=look)], store))
        return Length(length=0)

    go([toy("a", "look", run=look)], store)
    assert seen == [["running"]]
    go(chain(), store)
    assert seen_as(chain(), store) == ["done"] * 3
    assert seen_as(chain(first=9), store) == ["stale"] * 3
    assert seen_as(chain(second=9), store) == ["done", "stale", "stale"]


def why(stages: Sequence[Stage], store: Store, name: str) -> list[str]:
    known = states(stages, store)
    return next(reasons(stage, known[name], known) for stage in stages if stage.name == name)


def test_an_artifact_that_another_process_finishes_while_it_is_asked_for_is_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = go([toy("a", 2)], store)["a"]
    go([toy("a", 1)], store)
    read = artifact.read_artifact

    def and_then_the_other_links(path: Path) -> Artifact | None:
        found = read(path)
        artifact.link(new.path, store.link("a"))
        return found

    monkeypatch.setattr(artifact, "read_artifact", and_then_the_other_links)
    status = store.status(toy("a", 2), {})
    assert status.artifact
    assert (status.artifact.digest, status.artifact.manifest.key) == (new.digest, new.manifest.key)


def test_explain_names_the_field_the_input_and_the_version(store: Store) -> None:
    config = {"lr": 1e-5, "gates": [{"min_n": 40}], "old": 1}
    go([toy("a", config), toy("b", 1, {"x": "a"})], store)
    changed = {"lr": 2e-5, "gates": [{"min_n": 50}], "new": None}
    stages = [toy("a", changed, version="2"), toy("b", 1, {"x": "a"})]
    assert why(stages, store, "a") == [
        "version: 1 -> 2",
        "config lr: 1e-05 -> 2e-05",
        "config gates[0].min_n: 40 -> 50",
        "config old: 1 -> (absent)",
        "config new: (absent) -> None",
    ]
    assert why(stages, store, "b") == ["input x: a is stale; its result is not known yet"]
    go(stages[:1], store)
    (line,) = why(stages, store, "b")
    assert line.startswith("input x (a): ")
    assert why(stages, store, "a") == []


def work(root: Path, log: Path, said: Path) -> None:
    """Two stages of ten steps, in a process of their own: what is begun goes to ``log``, what is made to ``said``."""

    def steps(config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
        state = out / "state"
        done = int(state.read_text()) if state.exists() else 0
        with log.open("a") as file:
            file.write(f"start {config} {done}\n")
        for step in range(done, 10):
            time.sleep(0.02)
            draft = out / "state.draft"
            draft.write_text(str(step + 1))
            draft.replace(state)
        (out / "result").write_text(f"{config} {[(p / 'result').read_text() for p in inputs.values()]}")
        state.unlink()
        return Strict()

    two = [Stage("a", "1", steps, "A", "A", {}, resumable=True), Stage("b", "1", steps, "B", "B", {"x": "a"})]
    made = make(two, Store(root, "demo"))
    said.write_text(str([(name, artifact.digest) for name, artifact in made.items()]))


def starts(log: Path) -> list[list[str]]:
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def test_kill_at_random_points_and_the_same_command_ends_with_the_same_digests(tmp_path: Path) -> None:
    work(tmp_path / "clean", tmp_path / "clean.log", tmp_path / "expected")
    chance = random.Random(7)
    root, log = tmp_path / "killed", tmp_path / "log"
    killed = 0
    for _ in range(12):
        started = len(starts(log))
        begun = start(work, root, log, tmp_path / "made", said=tmp_path / "said")
        while begun.is_alive() and len(starts(log)) == started:
            time.sleep(0.002)  # until its first stage has begun
        time.sleep(chance.uniform(0.0, 0.25))
        begun.kill()
        begun.join(PATIENCE)
        killed += begun.exitcode == -signal.SIGKILL
        if begun.exitcode == 0:
            break
    work(root, log, tmp_path / "last")
    assert (tmp_path / "last").read_text() == (tmp_path / "expected").read_text()
    assert killed >= 2
    assert all(done == "0" for _, stage, done in starts(log) if stage == "B")  # emptied, since it cannot resume
    assert any(done != "0" for _, stage, done in starts(log) if stage == "A")  # resumed
    assert not list(root.rglob("*.partial"))


def test_two_processes_do_not_build_the_same_artifact(tmp_path: Path) -> None:
    root, log, files = tmp_path / "runs", tmp_path / "log", [tmp_path / f"said-{number}" for number in range(3)]
    started = [start(work, root, log, tmp_path / "made", said=said) for said in files]
    for process in started:
        process.join(PATIENCE)
    codes = [process.exitcode for process in started]
    assert 0 in codes
    for code, said in zip(codes, files, strict=True):
        assert code == 0 or "ArtifactError" in said.read_text()
    assert log.read_text().count("start A") <= 2  # a third one found it locked or done
    assert os.listdir(root / "demo")  # noqa: PTH208
