"""A store on S3 as the command line takes it, and what it says where the store cannot be used."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from fsspec.registry import _registry

from pipeline.engine.launch import command_line, launch_config
from pipeline.engine.remote import Remote
from tests.collections import RECIPE
from tests.conftest import ROOT, Call, build_tiny_model
from tests.object_store import ObjectStore, files, forget_addresses, objects, remote, s3, server  # noqa: F401
from tests.test_object_store import chain

pytest.importorskip("s3fs", reason="the package s3fs is not installed")
pytest.importorskip("moto.server", reason="the package moto[server] is not installed")


def test_a_release_goes_on_where_another_machine_was(remote: Remote, tmp_path: Path, call: Call) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        RECIPE.format(demo=ROOT / "pipeline" / "recipes" / "demo.yaml", model=build_tiny_model(tmp_path / "model"))
    )
    url, digests = remote.url, {}
    for machine in ("one", "two"):
        words = ("--store", str(tmp_path / machine), "--remote-store", url, "--json")
        done = call("run", "data", str(recipe), *words) if machine == "two" else None
        assert not done or (done.returncode == 0 and f"data            fetched from {url}" in done.stderr)
        done = call("release", str(recipe), "--until", "data", *words)
        assert done.returncode == 0, done.stderr
        stages = json.loads(done.stdout)["stages"]
        digests[machine] = {name: stage["digest"] for name, stage in stages.items()}
        assert {stage["built"] for stage in stages.values()} == {machine == "one"}
    assert digests["one"] == digests["two"]
    files(remote).rm(f"{url}/model", recursive=True)  # as if it had been made before there was a store
    assert call("run", "data", str(recipe), "--store", str(tmp_path / "one"), "--remote-store", url).returncode == 0
    assert objects(remote, "model")


def test_a_launched_stage_and_a_job_get_the_option(remote: Remote) -> None:
    words = command_line(launch_config("local"), chain()[0], "demo", ["a=1"], Path("/store"), remote.url)
    assert words[words.index("--remote-store") + 1] == remote.url


REFUSED = {
    "PUT probe 403 AccessDenied": "The credentials must be allowed to list the bucket and to get, put and delete",
    "PUT probe 403 InvalidAccessKeyId": "The credentials must be allowed",
    "PUT probe 507 XMinioStorageFull": "XMinioStorageFull",
    "PUT probe ignore": "Use one with conditional writes",
    "GET shared 403 AccessDenied": "The credentials must be allowed",
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_store_that_refuses_is_an_error_before_the_first_stage(
    fault: str, s3: ObjectStore, tmp_path: Path, call: Call
) -> None:
    words = ("--store", str(tmp_path / "runs"), "--remote-store", f"{s3.bucket}/{tmp_path.name}")
    with s3.failing(fault):
        done = call("release", "demo", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --remote-store {s3.bucket}/{tmp_path.name}: ")
    assert REFUSED[fault] in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("url", ["shared", "/disk/shared", "file:///disk/shared", "s3://", "s3://key:word@shared/x"])
def test_only_s3_has_what_is_needed(url: str, call: Call, tmp_path: Path) -> None:
    done = call("release", "demo", "--store", str(tmp_path / "runs"), "--remote-store", url)
    assert done.returncode == 2
    assert "give s3://BUCKET/PREFIX" in done.stderr


def test_a_bucket_an_endpoint_and_credentials_that_are_not_there(
    s3: ObjectStore, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(url: str) -> str:
        forget_addresses()
        done = call("release", "demo", "--store", str(tmp_path / "runs"), "--remote-store", url)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: --remote-store {url}: ")
        assert "Check the bucket, AWS_ENDPOINT_URL and the credentials" in done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "bucket does not exist" in refused("s3://nobodys/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "127.0.0.1:9" in refused("s3://shared/y")
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_EC2_METADATA_DISABLED"]:
        monkeypatch.delenv(name)
    assert "credentials" in refused("s3://shared/z")


def test_without_s3fs_the_error_says_what_to_install(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "s3fs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)
    done = call("release", "demo", "--store", str(tmp_path / "runs"), "--remote-store", "s3://shared/none")
    assert done.returncode == 2
    assert "pip install 's3fs" in done.stderr
