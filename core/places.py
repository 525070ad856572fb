"""Where things are: this project, its store, paths as users write them, the Hub, and which Hub holds a repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from core.errors import InputError

ROOT = Path(__file__).resolve().parents[1]  # of this project: its checkout, or the working folder of its image
STORE = "UNLEARN_RELEASE_STORE"  # the command line sets it, so that all that a command starts has the same store


def store() -> Path:
    """The folder of everything that this project keeps on this machine: UNLEARN_RELEASE_STORE, or its own ``runs``."""
    return Path(os.environ.get(STORE) or ROOT / "runs")


def user_path(text: str) -> Path:
    """The path of a file or folder that may exist; ``~`` is a home folder.

    Raises InputError if no file can have this path: a home folder of nobody, a name that is too long.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(
            f"{text!r:.200} cannot be a path: {str(error)[:200].rstrip('.')}. Give another one."
        ) from error
    return path


def check_endpoint() -> None:
    """Raise InputError if HF_ENDPOINT is no address; with some of these, the Hub's client cannot even be imported."""
    given = os.environ.get("HF_ENDPOINT")
    try:
        address = urlsplit(given or "https://huggingface.co")
        usable = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:
        usable = False
    if not usable:
        shown = str(given).rpartition("@")[2]  # before it, there may be a password
        raise InputError(
            f"HF_ENDPOINT is {shown!r:.200}, which is no address of a Hub. Give one such as https://huggingface.co, or "
            "unset it."
        )


def holder(repo: str, store: Path) -> Literal["local", "hf"]:
    """Which Hub has a repository: the loopback Hub of ``store`` if it holds it, else the real one."""
    return "local" if (store / "hub" / "models" / f"{repo}.git").is_dir() else "hf"
