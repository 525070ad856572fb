"""A store on S3 that several runners share: a real server, real processes, kills, and answers that nobody likes."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from core.errors import ArtifactError, SystemLimitError
from core.progress import listening
from core.strict import Strict
from pipeline.engine import artifact as art
from pipeline.engine.artifact import Artifact
from pipeline.engine.remote import Remote
from pipeline.engine.runner import Stage, Store, build, fetch
from tests.conftest import PATIENCE
from tests.object_store import ObjectStore, files, objects, remote, s3, server  # noqa: F401
from tests.processes import kill_one, start
from tests.walk import make

pytest.importorskip("s3fs", reason="the package s3fs is not installed")
pytest.importorskip("moto.server", reason="the package moto[server] is not installed")

STEPS = 15
RUNS: list[str] = []


def chain(content: str = "A", **options: Any) -> list[Stage]:
    """Two stages; the first writes more than one kind of file."""

    def first(config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
        RUNS.append("a")
        (out / "weights" / "ü deep").mkdir(parents=True)
        (out / "weights" / "ü deep" / "file one").write_bytes(b"\0\xff" * 1000)
        (out / "text").write_text(content)
        (out / "same").write_text(content)
        (out / "nothing").touch()
        return Strict()

    def second(config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
        RUNS.append("b")
        (out / "text").write_text((inputs["x"] / "text").read_text() + "b")
        return Strict()

    return [Stage("a", "1", first, "A", "A"), Stage("b", "1", second, "B", "B", {"x": "a"}, **options)]


def go(stages: list[Stage], store: Store) -> dict[str, Artifact]:
    RUNS.clear()
    list(fetch(stages, store))
    return make(stages, store)


def whole(artifact: Artifact | None) -> Artifact:
    assert artifact
    art.check_artifact(artifact, by_content=True)
    return artifact


def test_what_one_machine_made_another_has_byte_by_byte(remote: Remote, tmp_path: Path) -> None:
    made = go(chain(), Store(tmp_path / "one", "demo", remote))
    assert RUNS == ["a", "b"]
    came = go(chain(), Store(tmp_path / "two", "other", remote))
    assert RUNS == []
    for name, artifact in came.items():
        assert artifact.path.is_relative_to(tmp_path / "two")
        assert whole(artifact).digest == made[name].digest
        assert artifact.manifest.seconds == made[name].manifest.seconds
    assert (tmp_path / "two" / "other" / "a" / "weights" / "ü deep" / "file one").read_bytes() == b"\0\xff" * 1000
    assert not list(tmp_path.rglob("*.partial"))
    assert len(objects(remote, "a")) == 4  # three contents and a manifest: leases and first objects are gone
    assert sorted(path.split("/")[2] for path in objects(remote)) == ["a"] * 4 + ["b"] * 2


def test_what_was_made_without_the_store_is_handed_on_later(remote: Remote, tmp_path: Path) -> None:
    made = go(chain(), Store(tmp_path / "one", "demo"))
    assert go(chain(), Store(tmp_path / "one", "demo", remote))["b"].digest == made["b"].digest
    assert RUNS == []
    assert go(chain(), Store(tmp_path / "two", "demo", remote))["b"].digest == made["b"].digest
    assert RUNS == []


def test_a_signature_and_a_publication_are_each_machines_own(remote: Remote, tmp_path: Path) -> None:
    for machine in ("one", "two"):
        go(chain(publishes=True), Store(tmp_path / machine, "demo", remote))
        assert (["a", "b"] if machine == "one" else ["b"]) == RUNS
    assert not any("/b/" in path for path in objects(remote))


def test_an_upload_that_was_cut_off_is_no_artifact_and_the_next_run_completes_it(
    s3: ObjectStore, remote: Remote, tmp_path: Path
) -> None:
    one = Store(tmp_path / "one", "demo", remote)
    with s3.failing("PUT manifest.json 403 AccessDenied"), pytest.raises(SystemLimitError, match="must be allowed"):
        go(chain(), one)
    place = next((tmp_path / "one" / "store" / "a").iterdir())
    assert whole(art.read_artifact(place))  # what is finished stays finished
    assert len(objects(remote, "a")) == 3
    assert remote.manifest(place) is None
    began = {path: files(remote).info(path)["LastModified"] for path in objects(remote, "a")}
    time.sleep(1.1)  # S3 tells the time in seconds
    made = go(chain(), one)
    assert RUNS == ["b"]
    assert remote.manifest(place) == made["a"].manifest
    assert all(files(remote).info(path)["LastModified"] == when for path, when in began.items())  # nothing sent twice


def test_when_the_first_uploader_is_gone_another_runner_makes_it(
    s3: ObjectStore, remote: Remote, tmp_path: Path
) -> None:
    with s3.failing("PUT manifest.json 403 AccessDenied"), pytest.raises(SystemLimitError):
        go(chain(), Store(tmp_path / "one", "demo", remote))
    go(chain(), Store(tmp_path / "two", "demo", remote))
    assert RUNS == ["a", "b"]
    go(chain(), Store(tmp_path / "three", "demo", remote))
    assert RUNS == []


def rewritten(remote: Remote, path: str, **changes: Any) -> None:
    manifest = json.loads(files(remote).cat_file(path))
    files(remote).pipe_file(path, json.dumps(manifest | changes).encode())


ENTRY = {"sha256": "ab" * 32, "size": 1, "mtime_ns": 1, "ctime_ns": 1, "inode": 1}
DAMAGES = {
    "changed": lambda r, folder, file: files(r).pipe_file(file, b"B"),
    "longer": lambda r, folder, file: files(r).pipe_file(file, b"A and more"),
    "missing": lambda r, folder, file: files(r).rm_file(file),
    "not JSON": lambda r, folder, file: files(r).pipe_file(f"{folder}/manifest.json", b"\xff{"),
    "half a manifest": lambda r, folder, file: files(r).pipe_file(f"{folder}/manifest.json", b'{"stage": "a"}'),
    "of another request": lambda r, folder, file: rewritten(r, f"{folder}/manifest.json", config="B"),
    "of another content": lambda r, folder, file: rewritten(r, f"{folder}/manifest.json", digest="0" * 64),
    "a file outside": lambda r, folder, file: rewritten(
        r, f"{folder}/manifest.json", files={"../../../outside": ENTRY}
    ),
    "an absolute file": lambda r, folder, file: rewritten(r, f"{folder}/manifest.json", files={"/outside": ENTRY}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_damaged_in_the_store_is_refused_by_name_and_made_again_when_it_is_deleted(
    damage: str, remote: Remote, tmp_path: Path
) -> None:
    made = go(chain(), Store(tmp_path / "one", "demo", remote))
    folder = f"{remote.url}/a/{made['a'].path.name}"
    DAMAGES[damage](remote, folder, f"{folder}/{made['a'].manifest.files['text'].sha256}")
    two = Store(tmp_path / "two", "demo", remote)
    for _ in range(2):
        with pytest.raises(ArtifactError) as caught:
            go(chain(), two)
        assert f"Delete the folder {folder} to have it built again" in str(caught.value)
    if damage in ("changed", "longer", "missing"):
        assert "same, text)" in str(caught.value)
    assert RUNS == []
    assert not [path for path in (tmp_path / "two" / "store" / "a").glob("*") if len(path.name) == 16]
    assert not list(tmp_path.rglob("outside"))
    files(remote).rm(folder, recursive=True)
    assert go(chain(), two)["b"].digest == made["b"].digest
    assert RUNS == ["a"]  # b was there
    assert whole(go(chain(), Store(tmp_path / "three", "demo", remote))["a"]).digest == made["a"].digest
    assert RUNS == []


def test_two_results_of_one_request_are_named_and_neither_is_lost(remote: Remote, tmp_path: Path) -> None:
    first = go(chain("A"), Store(tmp_path / "one", "demo", remote))
    second = go(chain("Z"), Store(tmp_path / "two", "demo"))
    with pytest.raises(ArtifactError, match="different results of the same request") as caught:
        go(chain("Z"), Store(tmp_path / "two", "demo", remote))
    assert str(second["a"].path) in str(caught.value)
    assert whole(second["a"]).digest != first["a"].digest
    came = go(chain("A"), Store(tmp_path / "three", "demo", remote))
    assert {name: artifact.digest for name, artifact in came.items()} == {n: a.digest for n, a in first.items()}


@pytest.mark.parametrize("content", ["A", "Z"])
def test_of_two_uploads_at_once_the_first_manifest_stays(
    content: str, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = go(chain("A"), Store(tmp_path / "one", "demo"))["a"]
    other = go(chain(content), Store(tmp_path / "two", "demo"))["a"]
    listed = Remote._listed

    def meanwhile(self: Remote, folder: str) -> set[str]:
        monkeypatch.setattr(Remote, "_listed", listed)
        Remote(remote.url).push(other)
        return listed(self, folder)

    monkeypatch.setattr(Remote, "_listed", meanwhile)
    if content == "A":
        remote.push(mine)
    else:
        with pytest.raises(ArtifactError, match="different results"):
            remote.push(mine)
    assert remote.manifest(mine.path) == other.manifest
    other_disk = Store(tmp_path / "three", "demo", remote)
    assert whole(go(chain(content), other_disk)["a"]).digest == other.digest


def test_what_another_left_here_is_handed_on_before_anything_is_built_of_it(remote: Remote, tmp_path: Path) -> None:
    """Its runner was killed before it did so, while this one waited: another machine would build it anew."""
    left = go(chain(), Store(tmp_path / "one", "demo"))["a"]
    assert build(chain()[0], Store(tmp_path / "one", "demo", remote), {}).digest == left.digest
    assert remote.manifest(left.path) == left.manifest


def test_the_manifest_that_was_read_is_handed_on(remote: Remote, tmp_path: Path) -> None:
    """The file may be another by then, and what is in the store stays there."""
    made = go(chain(), Store(tmp_path / "one", "demo"))["a"]
    (made.path / "manifest.json").write_text("")
    remote.push(made)
    assert remote.manifest(made.path) == made.manifest


# Several runners


def work(root: Path, url: str, log: Path, member: str, lease: float, seconds: float = 0.02) -> None:
    """A release of three stages, of which the second is each member's own. What is begun and ended goes to ``log``."""
    art.LEASE_SECONDS = lease

    def note(line: str) -> None:
        with log.open("a") as file:
            file.write(line + "\n")

    def steps(config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
        note(f"begin {config} {os.getpid()}")
        for step in range(STEPS):
            (out / f"part-{step}").write_text(f"{config} {step} of {os.getpid()}")  # no two builds are alike
            time.sleep(seconds)
        note(f"end {config} {os.getpid()}")
        return Strict()

    stages = [
        Stage("a", "1", steps, "A", "A"),
        Stage("b", "1", steps, f"B-{member}", f"B-{member}", {"x": "a"}),
        Stage("c", "1", steps, "C", "C", {"x": "a"}),
    ]
    make(stages, Store(root, member, Remote(url)))


def work_aloud(*arguments: Any) -> None:
    with listening(lambda told: print(told.doing, file=sys.stderr)):
        work(*arguments)


def all_whole(remote: Remote, into: Path) -> dict[str, list[str]]:
    """Fetch every artifact of the store and check its bytes. Returns who wrote each, by stage."""
    writers: dict[str, list[str]] = {}
    # A runner may be killed before it removes the object that it probes the store with.
    made = [path for path in objects(remote) if "/probe-" not in path]
    for folder in sorted({path.rpartition("/")[0] for path in made}):
        final = into / "store" / Path(folder).parent.name / Path(folder).name
        with art.building(final) as own:
            artifact = whole(remote.fetch(own))
        who = {path.read_text().split()[-1] for path in artifact.path.glob("part-*")}
        assert len(who) == 1, who  # no artifact is made of two builds
        assert len(artifact.manifest.files) == STEPS
        writers.setdefault(final.parent.name, []).extend(who)
    return writers


def test_of_many_runners_some_are_killed_and_the_others_finish_what_is_whole(remote: Remote, tmp_path: Path) -> None:
    log, chance, lease = tmp_path / "log", random.Random(5), 6.0

    def begin(i: int) -> Any:  # every other one shares its disk with the one before it
        return start(
            work, tmp_path / f"disk-{i // 2}", remote.url, log, f"m{i % 2}", lease, said=tmp_path / f"said-{i}"
        )

    begun = [begin(i) for i in range(6)]
    while not log.exists():
        time.sleep(0.01)
    for _ in range(3):
        kill_one(begun, chance, 0.05, 0.6)
    begun += [begin(i) for i in range(6, 9)]
    for process in begun:
        process.join(PATIENCE)
    assert [process.exitcode for process in begun] == [0] * len(begun), [
        path.read_text()[-300:] for path in tmp_path.glob("said-*")
    ]
    writers = all_whole(remote, tmp_path / "all")
    assert {stage: len(who) for stage, who in writers.items()} == {"a": 1, "b": 2, "c": 1}


def test_a_runner_that_was_stopped_for_too_long_changes_nothing_that_another_finished(
    remote: Remote, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    first = start(work, tmp_path / "one", remote.url, log, "m", 1.0, 0.1, said=tmp_path / "first")
    while not log.exists():
        time.sleep(0.005)
    assert first.pid
    os.kill(first.pid, signal.SIGSTOP)
    second = start(work, tmp_path / "two", remote.url, log, "m", 1.0, said=tmp_path / "second")
    second.join(PATIENCE)
    assert second.exitcode == 0, (tmp_path / "second").read_text()
    before = {path: files(remote).cat_file(path) for path in objects(remote) if "/lease-" not in path}
    os.kill(first.pid, signal.SIGCONT)
    first.join(PATIENCE)
    assert first.exitcode == 1
    assert "ArtifactError" in (tmp_path / "first").read_text()
    assert all(files(remote).cat_file(path) == content for path, content in before.items())
    assert all_whole(remote, tmp_path / "all")["a"] == [str(second.pid)]


def test_a_machine_that_stood_still_is_no_reason_to_build_what_another_of_its_runners_builds(
    remote: Remote, tmp_path: Path
) -> None:
    log, lease = tmp_path / "log", 2.0
    first = start(work, tmp_path / "one", remote.url, log, "m", lease, 0.1, said=tmp_path / "first")
    while not log.exists():
        time.sleep(0.005)
    said = tmp_path / "second"
    second = start(work_aloud, tmp_path / "two", remote.url, log, "m", lease, said=said)
    while not (said.exists() and "waiting for process" in said.read_text()):
        assert second.is_alive()
        time.sleep(0.005)
    assert first.pid
    assert second.pid
    for pid in (first.pid, second.pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.2 * lease)
    for pid in (second.pid, first.pid):  # who waits asks before the other gives a sign of life
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1 * lease)
    for process in (first, second):
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert [line for line in log.read_text().splitlines() if " A " in line] == [
        f"{w} A {first.pid}" for w in ("begin", "end")
    ]


def test_a_build_that_takes_longer_than_a_lease_keeps_it(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(art, "LEASE_SECONDS", 2.0)
    place, entered, released = tmp_path / "a" / "key", [0.0], 0.0

    def wait() -> None:
        with Remote(remote.url).turn(place):
            entered.append(time.monotonic())

    other = threading.Thread(target=wait)
    with remote.turn(place):
        other.start()
        time.sleep(6)
        released = time.monotonic()
    other.join(PATIENCE)
    assert entered[-1] > released
    assert not objects(remote)


def test_who_waits_takes_what_the_other_has_made(remote: Remote, tmp_path: Path) -> None:
    log = tmp_path / "log"
    begun = [
        start(work, tmp_path / f"{i}", remote.url, log, "m", 60.0, 0.05, said=tmp_path / f"said-{i}") for i in range(4)
    ]
    for process in begun:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert sorted(line.rpartition(" ")[0] for line in log.read_text().splitlines()) == sorted(
        f"{what} {stage}" for what in ("begin", "end") for stage in ("A", "B-m", "C")
    )


def test_a_store_that_is_full_when_a_stage_is_done_loses_nothing(
    s3: ObjectStore, remote: Remote, tmp_path: Path
) -> None:
    one = Store(tmp_path / "one", "demo", remote)
    list(fetch(chain(), one))
    with s3.failing("PUT a/ 507 XMinioStorageFull"), pytest.raises(SystemLimitError, match="XMinioStorageFull"):
        go(chain(), one)
    assert go(chain(), one)
    assert sorted(RUNS) == ["a", "b"]
