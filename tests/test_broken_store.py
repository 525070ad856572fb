"""Stores that cannot be read or written: one sentence that names the path, exit code 2, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import places
from pipeline.publish import sign
from tests.conftest import Call
from tests.test_cli import fill


def loop(path: Path) -> Path:
    """A link that leads to itself."""
    path.symlink_to(path.name)
    return path


def test_a_store_that_leads_to_itself_is_named(call: Call, tmp_path: Path) -> None:
    store = loop(tmp_path / "store")
    done = call("release", "demo", "--store", str(store))
    assert (done.returncode, str(store) in done.stderr) == (2, True)
    assert {line.split()[1] for line in call("status", "demo", "--store", str(store)).stdout.splitlines()} == {
        "missing"
    }
    assert call("collection", "demo-collection", "--dry-run", "--store", str(store)).returncode == 0


def test_a_link_to_an_artifact_that_leads_to_itself_is_an_artifact_that_is_missing(call: Call, tmp_path: Path) -> None:
    link = fill(tmp_path).link("base")
    link.unlink()
    loop(link)
    done = call("status", "demo", "--store", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert dict(line.split()[:2] for line in done.stdout.splitlines())["base"] == "done"  # it is found by its key


def test_a_hub_that_leads_to_itself_is_named(call: Call, tmp_path: Path) -> None:
    loop(tmp_path / "hub")
    done = call("verify", "a/b", "--hub", "local", "--key", __file__, "--store", str(tmp_path))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


def test_a_public_key_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.STORE, str(tmp_path))
    sign.public_key()
    key = next((tmp_path / "keys").glob("*.pub"))
    key.unlink()
    key.mkdir()
    before = sorted(key.parent.iterdir())
    with pytest.raises(IsADirectoryError):
        sign.public_key()
    assert sorted(key.parent.iterdir()) == before
