from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.digests import artifact_key, canonical, content_digest, hash_file
from core.errors import ArtifactError
from core.progress import listening
from pipeline.engine import artifact as art
from tests.artifacts import toy_made
from tests.conftest import ROOT

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def made(folder: Path, files: dict[str, str]) -> art.Artifact:
    key = artifact_key("x", "1", {}, {})
    with art.building(folder / key[: art.KEY_DIGITS]) as own:
        partial = own.begin(resume=True)
        for name, text in files.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(text)
        return own.finish(toy_made())


@given(JSON)
def test_canonical_text_does_not_depend_on_the_order_of_keys(value: object) -> None:
    def turned(item: object) -> object:
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(item)}
        return [turned(part) for part in item] if isinstance(item, list) else item

    assert canonical(turned(value)) == canonical(value)


def test_canonical_floats_have_one_form() -> None:
    assert canonical([1.0, -0.0, 1e-5, 1e22, True]) == canonical([1, 0, 0.00001, 1e22, True])
    assert canonical(0.1) != canonical(0.1 + 1e-16 * 2)
    assert canonical(1) != canonical(True)


@pytest.mark.parametrize("value", [Path("a"), {1, 2}, b"x", {1: 2}, object(), {"a": [Path("b")]}, os.getpid])
def test_a_type_without_canonical_form_raises(value: object) -> None:
    with pytest.raises(TypeError, match="config"):
        canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_raise(value: float) -> None:
    with pytest.raises(ValueError):
        canonical(value)


def test_every_part_of_a_request_changes_its_key() -> None:
    keys = {
        artifact_key("s", "1", {"a": 1}, {"m": "d"}),
        artifact_key("t", "1", {"a": 1}, {"m": "d"}),
        artifact_key("s", "2", {"a": 1}, {"m": "d"}),
        artifact_key("s", "1", {"a": 2}, {"m": "d"}),
        artifact_key("s", "1", {"a": 1}, {"m": "e"}),
        artifact_key("s", "1", {"a": 1}, {"n": "d"}),
    }
    assert len(keys) == 6


def test_the_content_digest_follows_names_and_bytes_and_not_the_place(tmp_path: Path) -> None:
    one = made(tmp_path / "one", {"a.txt": "x", "deep/b.txt": "y"})
    two = made(tmp_path / "two", {"deep/b.txt": "y", "a.txt": "x"})
    assert one.digest == two.digest == content_digest(two.path)
    assert one.digest != made(tmp_path / "three", {"a.txt": "y", "deep/b.txt": "x"}).digest
    assert one.digest != made(tmp_path / "four", {"a.txt": "x", "b.txt": "y"}).digest


def test_an_untouched_artifact_is_trusted_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = made(tmp_path, {"a.txt": "x"})
    monkeypatch.setattr(art, "hash_file", lambda path: pytest.fail(f"read {path}"))
    art.check_artifact(artifact)


@pytest.mark.parametrize("change", ["changed", "missing", "not its own"])
def test_a_change_is_named_with_the_file_and_the_remedy(tmp_path: Path, change: str) -> None:
    artifact = made(tmp_path, {"a.txt": "x", "deep/b.txt": "y"})
    file = artifact.path / "deep" / "b.txt"
    if change == "changed":
        file.write_text("z")
    elif change == "missing":
        file.unlink()
    else:
        (file.parent / "c.txt").write_text("")
    with pytest.raises(ArtifactError) as caught:
        art.check_artifact(artifact)
    said = str(caught.value)
    assert f"{change}: deep/{'c' if change == 'not its own' else 'b'}.txt" in said
    assert f"Delete the folder {artifact.path}" in said
    assert "a.txt" not in said


def test_a_change_that_keeps_size_and_time_is_found(tmp_path: Path) -> None:
    artifact = made(tmp_path, {"a.txt": "x"})
    file = artifact.path / "a.txt"
    before = file.stat()
    file.write_text("z")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactError, match=r"changed: a\.txt"):
        art.check_artifact(artifact)


def test_a_copied_store_is_hashed_once_and_then_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path / "one", {"a.txt": "x"}).path
    place = tmp_path / "copy" / first.name
    shutil.copytree(first, place)
    copy = art.read_artifact(place)
    assert copy
    art.check_artifact(copy)
    monkeypatch.setattr(art, "hash_file", lambda path: pytest.fail(f"read {path}"))
    again = art.read_artifact(place)
    assert again
    art.check_artifact(again)


def test_of_two_checks_of_a_copied_store_one_may_be_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write the manifest; here the second is killed when the first is about to put its own in place."""
    first = made(tmp_path / "one", {"a.txt": "x"}).path
    place = tmp_path / "copy" / first.name
    shutil.copytree(first, place)
    copy, fsync = art.read_artifact(place), os.fsync
    assert copy

    def killed(value: object) -> str:
        raise KeyboardInterrupt

    def meanwhile(file: int) -> None:
        fsync(file)
        monkeypatch.setattr(art, "json_text", killed)
        with pytest.raises(KeyboardInterrupt):
            art.check_artifact(copy)

    monkeypatch.setattr(os, "fsync", meanwhile)
    art.check_artifact(copy)
    assert art.read_artifact(place)
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def edited(artifact: art.Artifact, **changes: object) -> art.Artifact:
    """The artifact with an edited manifest."""
    path = artifact.path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    again = art.read_artifact(artifact.path)
    assert again
    return again


def test_another_artifact_in_its_place_is_noticed(tmp_path: Path) -> None:
    artifact = made(tmp_path, {"a.txt": "x"})
    other = artifact.path.with_name("0" * 16)  # the folder of another key, and this artifact copied into it
    shutil.copytree(artifact.path, other)
    copied = art.read_artifact(other)
    assert copied
    with pytest.raises(ArtifactError, match=r"changed: manifest\.json"):
        art.check_artifact(copied)
    for changes in ({"key": "0" * 64}, {"version": "2"}, {"config": {"a": 1}}, {"inputs": {"y": "0" * 64}}):
        with pytest.raises(ArtifactError, match=r"changed: manifest\.json"):
            art.check_artifact(edited(made(tmp_path / str(len(str(changes))), {"a.txt": "x"}), **changes))


def test_a_file_whose_hash_was_mended_in_the_manifest_is_noticed(tmp_path: Path) -> None:
    artifact = made(tmp_path, {"a.txt": "fail"})
    (artifact.path / "a.txt").write_text("pass")
    entry = art._entry(artifact.path / "a.txt", hash_file(artifact.path / "a.txt"))
    mended = edited(artifact, files={"a.txt": entry.model_dump()})
    with pytest.raises(ArtifactError, match=r"changed: manifest\.json"):
        art.check_artifact(mended)


def test_a_file_whose_times_were_mended_in_the_manifest_is_noticed_by_its_content(tmp_path: Path) -> None:
    artifact = made(tmp_path, {"a.txt": "fail"})
    (artifact.path / "a.txt").write_text("pass")
    entry = art._entry(artifact.path / "a.txt", artifact.manifest.files["a.txt"].sha256)
    mended = edited(artifact, files={"a.txt": entry.model_dump()})
    art.check_artifact(mended)
    with pytest.raises(ArtifactError, match=r"changed: a\.txt"):
        art.check_artifact(mended, by_content=True)


def test_links_and_folders_without_files_are_no_part_of_an_artifact(tmp_path: Path) -> None:
    partial = tmp_path / "one" / f"{artifact_key('x', '1', {}, {})[: art.KEY_DIGITS]}.partial"
    (partial / "empty" / "deep").mkdir(parents=True)
    artifact = made(tmp_path / "one", {"a.txt": "x"})
    assert {path.name for path in artifact.path.iterdir()} == {"a.txt", "manifest.json"}
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "b.txt").write_text("x")
    for name, make in {
        "empty": lambda path: path.mkdir(),
        "folder": lambda path: path.symlink_to(tmp_path / "target"),
        "nowhere": lambda path: path.symlink_to(tmp_path / "gone"),
    }.items():
        place = artifact.path / name
        make(place)
        with pytest.raises(ArtifactError, match=f"links or empty folders: {name}"):
            art.check_artifact(artifact)
        place.unlink() if place.is_symlink() else place.rmdir()
    art.check_artifact(artifact)
    file = artifact.path / "a.txt"
    file.unlink()
    file.symlink_to(tmp_path / "target" / "b.txt")  # the same bytes, until somebody changes them there
    with pytest.raises(ArtifactError, match=r"links or empty folders: a\.txt"):
        art.check_artifact(artifact)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / partial.name).mkdir()
    (tmp_path / "two" / partial.name / "b.txt").symlink_to(tmp_path / "target" / "b.txt")
    with pytest.raises(ArtifactError, match=r"b\.txt is a link"):
        made(tmp_path / "two", {"a.txt": "x"})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stage": "x"}', "null"])
def test_a_damaged_manifest_is_an_error_with_a_remedy(tmp_path: Path, text: str) -> None:
    path = made(tmp_path, {"a.txt": "x"}).path
    (path / "manifest.json").write_text(text)
    (tmp_path / "link").symlink_to(path)
    for place in (path, tmp_path / "link"):
        with pytest.raises(ArtifactError, match=f"Delete the folder {path} "):
            art.read_artifact(place)


def test_a_link_is_relative_and_replaced_in_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "store" / name).mkdir(parents=True)
        art.link(tmp_path / "store" / name, tmp_path / "demo" / "data")
    link = tmp_path / "demo" / "data"
    assert link.readlink() == Path("../store/two")
    assert [path.name for path in link.parent.iterdir()] == ["data"]
    before = link.lstat()
    art.link(tmp_path / "store" / "two", link)  # nothing is written: the store may be one that can only be read
    assert (link.lstat().st_ino, link.lstat().st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


def test_a_users_folder_is_not_replaced_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "demo" / "data").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="Move the folder away"):
        art.link(tmp_path, tmp_path / "demo" / "data")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["data"]


HOLD = """
import pathlib, sys
from pipeline.engine.artifact import building
with building(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lease_dies_with_its_holder_and_until_then_others_wait(tmp_path: Path) -> None:
    place = tmp_path / "stage" / "key"
    said: list[str] = []
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        assert art.is_being_built(place)

        def end() -> None:
            holder.kill()
            holder.wait()  # as a shell or an init would; until then its process id is in use

        began = time.monotonic()
        threading.Timer(0.3, end).start()
        with listening(lambda report: said.append(report.doing)), art.building(place):
            assert 0.3 <= time.monotonic() - began < art.LEASE_SECONDS
    finally:
        holder.kill()
        holder.wait()
    assert said[0].startswith(f"waiting for process {holder.pid} on ")
    assert not art.is_being_built(place)


def test_a_lease_whose_runner_was_killed_before_it_wrote_its_name_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(art, "LEASE_SECONDS", 1.0)
    place, said, began = tmp_path / "key", list[str](), time.monotonic()
    place.with_name("key.lease").touch()
    with listening(lambda report: said.append(report.doing)), art.building(place) as build:
        assert time.monotonic() - began > 1.0  # until then it may be about to write
        assert not build.is_lost()
    assert said == ["waiting for another runner, which is building it"]


def test_a_runner_that_was_stopped_before_it_wrote_its_name_keeps_its_lease(tmp_path: Path) -> None:
    """Also if somebody has given it up meanwhile, and not taken it over yet."""
    lease, old = tmp_path / "lease", time.time() - 2 * art.LEASE_SECONDS
    lease.touch()
    assert not art._ends_nameless(lease)
    assert lease.read_bytes() == b""
    with lease.open("wb") as holder:
        os.utime(lease, (old, old))
        assert not art._ends_nameless(lease)
        assert lease.read_bytes() == b"?"
        holder.write(b"its name")
    assert lease.read_bytes() == b"its name"
    os.utime(lease, (old, old))
    assert not art._ends_nameless(lease)
    assert lease.read_bytes() == b"its name"
    assert not art._ends_nameless(tmp_path / "none")


def test_a_file_is_read_again_only_if_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its time of modification and its size are what they were."""
    path, read = tmp_path / "x", []
    whole = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda file, name: read.append(file) or whole(file, name))
    path.write_bytes(b"one")
    assert {hash_file(path) for _ in range(3)} == {hashlib.sha256(b"one").hexdigest()}
    assert len(read) == 3  # just written: another change could have the same time
    monkeypatch.setattr("core.digests._SETTLED", 20_000_000)
    time.sleep(0.05)
    assert {hash_file(path) for _ in range(3)} == {hashlib.sha256(b"one").hexdigest()}
    assert len(read) == 4
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hash_file(path) == hashlib.sha256(b"two").hexdigest()
