"""`env` and `--version`: what a bug report needs, and nothing that it must not hold."""

from __future__ import annotations

import json
import sys
import tomllib

import pytest
import torch

from core.places import STORE
from pipeline.__main__ import SETTINGS, main
from pipeline.commands import env
from pipeline.engine import machine
from tests.conftest import ROOT, Call

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMIT = "0123456789" * 4


def made_with(commit: str | None, *, dirty: bool = False) -> dict[str, object]:
    return {"git": {"commit": commit, "dirty": dirty}, "packages": {"python": "3.11.7", "torch": "2.13.0"}}


@pytest.mark.parametrize(
    ("commit", "dirty", "said"),
    [
        (COMMIT, False, f"unlearn-release {PROJECT['version']} (commit {COMMIT})\n"),
        (COMMIT, True, f"unlearn-release {PROJECT['version']} (commit {COMMIT} with changes)\n"),
        (None, False, f"unlearn-release {PROJECT['version']}\n"),
    ],
)
def test_version(call: Call, monkeypatch: pytest.MonkeyPatch, commit: str | None, dirty: bool, said: str) -> None:
    monkeypatch.setattr(env, "provenance", lambda: made_with(commit, dirty=dirty))
    done = call("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_env_as_json(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    done = call("env", "--json", "--store", str(tmp_path / "not" / "there"))
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["version"] == PROJECT["version"]
    builds = [facts["packages"]["torch"], torch.__version__]  # one of the two may leave out the build: +cpu
    assert len({version.partition("+")[0] for version in builds}) == 1
    assert facts["torch"]["threads"] == torch.get_num_threads()
    assert facts["processor"]["name"]
    assert facts["processor"]["cores"] > 0
    assert 0 < facts["memory"]["free_bytes"] <= facts["memory"]["total_bytes"]
    assert facts["disk"]["store"] == str(tmp_path / "not" / "there")
    assert facts["disk"]["free_bytes"] > 0
    assert not (tmp_path / "not").exists()
    assert facts["token"] is False
    assert facts["variables"]["HF_HUB_OFFLINE"] is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert json.loads(call("env", "--json").stdout)["variables"]["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("given", "set_to"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, "max_split_size_mb:128"),
        ({"PYTORCH_ALLOC_CONF": ""}, ""),
    ],
)
def test_memory_of_a_gpu_grows_in_place_unless_the_user_says_how(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: dict[str, str], set_to: str
) -> None:
    for name in (*SETTINGS, STORE, "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variables"]["PYTORCH_ALLOC_CONF"] == set_to


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_no_secret_is_printed(call: Call, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:hunter2@hub.example:8443/x")
    said = call("env", *more).stdout
    assert not any(secret in said for secret in ("secretsecret", "hunter2", "me:"))
    assert "https://hub.example:8443/x" in said
    assert "present" in said or json.loads(said)["token"] is True


@pytest.mark.parametrize(
    "given", ["http://[x", "http://me:hunter2@[x", "https://hub.example:port", "hub.example", "ftp://x"]
)
def test_an_address_that_is_none_is_refused(call: Call, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """The Hub's client cannot be imported with the first of them."""
    monkeypatch.setenv("HF_ENDPOINT", given)
    done = call("env")
    assert (done.returncode, done.stdout) == (2, "")
    assert "which is no address of a Hub. Give one such as https://huggingface.co, or unset it." in done.stderr
    assert "hunter2" not in done.stderr


def test_a_manifest_names_processor_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.provenance()["device"] == f"cpu ({machine.processor()['name']}, threads: {torch.get_num_threads()})"
    monkeypatch.delitem(sys.modules, "torch")
    assert machine.provenance()["device"] == f"cpu ({machine.processor()['name']})"


def test_env_for_people(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "provenance", lambda: made_with(COMMIT))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    lines = dict(line.split(maxsplit=1) for line in call("env").stdout.splitlines())
    assert lines["version"] == f"unlearn-release {PROJECT['version']} (commit {COMMIT})"
    assert lines["device"].startswith("cpu (")
    assert lines["threads"].startswith(f"{torch.get_num_threads()} (")
    assert lines["token"] == "absent"
    assert lines["HF_ENDPOINT"] == "not set"
    assert (lines["python"], lines["torch"]) == ("3.11.7", "2.13.0")
    for name in ("memory", "disk"):
        assert "GB" in lines[name]


def test_a_gpu_has_a_name_a_number_and_memory(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "provenance", lambda: made_with(COMMIT))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU X")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "8 x GPU X, 80.0 GB, 60.0 GB free (CUDA 13.0)" in call("env").stdout


def test_a_torch_that_cannot_be_imported_is_reported(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = call("env")
    assert done.returncode == 0
    assert "device            unknown, since torch cannot be imported (ModuleNotFoundError: " in done.stdout
