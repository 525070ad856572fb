"""`env` and `--version`: what a bug report needs to say about this installation and this machine."""

from __future__ import annotations

import argparse
import os
import platform
import re
import tomllib
from pathlib import Path
from typing import Any

import psutil

from core.errors import HubError
from core.places import ROOT
from pipeline.commands.shared import show, store_root
from pipeline.engine.machine import free_space, processor, provenance
from pipeline.publish.hub import has_token

VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "PYTORCH_ALLOC_CONF")


def version(options: argparse.Namespace) -> int:
    """Print the project's name and version, with the commit if this is a checkout."""
    print(_version_line(provenance()["git"]))
    return 0


def env(options: argparse.Namespace) -> int:
    """Print the versions, the device and the settings on which a release depends. A token is never printed."""
    facts = _facts(store_root(options))
    show(options, facts, "\n".join(f"{name:<17} {text}".rstrip() for name, text in _lines(facts)))
    return 0


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def _version_line(git: dict[str, Any]) -> str:
    changed = " with changes" if git["dirty"] else ""
    commit = f" (commit {git['commit']}{changed})" if git["commit"] else ""
    return f"{_project()['name']} {_project()['version']}{commit}"


def _token() -> bool | str:
    """Whether the Hub's client has a token, or why it cannot get the one that it was told to get."""
    try:
        return has_token()
    except HubError as error:
        return str(error)


def _facts(store: Path) -> dict[str, Any]:
    installation = provenance()
    memory = psutil.virtual_memory()
    return {
        "version": _project()["version"],
        "git": installation["git"],
        "packages": installation["packages"],
        "platform": platform.platform(),
        "processor": processor(),
        "memory": {"total_bytes": memory.total, "free_bytes": memory.available},
        "disk": {"store": str(store), "free_bytes": free_space(store)[1]},
        "torch": _torch(),
        "token": _token(),
        "variables": {name: _without_password(os.environ.get(name)) for name in VARIABLES},
    }


def _torch() -> dict[str, Any]:
    """Threads, device and its memory in bytes; or why torch cannot be imported, since that may be the bug."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    facts: dict[str, Any] = {
        "threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": device.type if device else "cpu", "cuda": torch.version.cuda,
    }  # fmt: skip
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        facts |= {"device": torch.cuda.get_device_name(), "count": torch.cuda.device_count()}
        facts["device_memory"] = {"total_bytes": total, "free_bytes": free}
    return facts


def _without_password(value: str | None) -> str | None:
    """A variable's value. If it is an address, user and password are removed."""
    return value if value is None else re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1", value)


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    processor, torch = facts["processor"], facts["torch"]
    if "error" in torch:
        computes = [("device", f"unknown, since torch cannot be imported ({torch['error']})")]
    else:
        device = torch["device"]
        if "device_memory" in torch:
            device = f"{torch['count']} x {device}, {_memory(torch['device_memory'])}"
        cuda = f"CUDA {torch['cuda']}" if torch["cuda"] else "no CUDA"
        computes = [("device", f"{device} ({cuda})"), ("threads", f"{torch['threads']} ({torch['instructions']})")]
    return [
        ("version", _version_line(facts["git"])),
        ("platform", facts["platform"]),
        ("processor", ", ".join([processor["name"], f"{processor['cores']} cores", *processor["bf16"]])),
        ("memory", _memory(facts["memory"])),
        ("disk", f"{facts['disk']['free_bytes'] / 1e9:.1f} GB free for the store {facts['disk']['store']}"),
        *computes,
        ("token", {True: "present", False: "absent"}.get(facts["token"], facts["token"])),
        *((name, "not set" if value is None else value) for name, value in facts["variables"].items()),
        *facts["packages"].items(),
    ]


def _memory(memory: dict[str, int]) -> str:
    return f"{memory['total_bytes'] / 1e9:.1f} GB, {memory['free_bytes'] / 1e9:.1f} GB free"
