"""What is remembered of the runs of a stage that were cut off, whose checkpoints the last one continued from.

A manifest says how long a stage took, and with which sources and packages. Of a stage that was resumed, that is true of
all its runs together. So each run writes itself down in the folder that it builds in, in a file that is no part of the
artifact.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core.artifacts import Git, read_file, write_file
from core.errors import ArtifactError
from core.strict import Strict

FILE = "attempts.json"


class Attempt(Strict):
    """A run: when it began, in seconds since 1970, and with what; ``seconds`` up to its last file if it was cut off."""

    began: float
    seconds: float
    git: Git
    packages: dict[str, str]


class Attempts(Strict):
    """The content of the file: all runs in their order."""

    attempts: list[Attempt]


def begin(folder: Path, made_with: Mapping[str, Any]) -> list[Attempt]:
    """Write down that a run begins in ``folder``, and its sources and packages; all runs up to it."""
    found = _earlier(folder)
    if found:
        last = found[-1]  # what it did after its last file is lost, and is done again
        newest = max((path.stat().st_mtime for path in folder.rglob("*") if path.name != FILE), default=last.began)
        found[-1] = last.changed(seconds=max(newest - last.began, 0.0))
    git, packages = Git.model_validate(made_with["git"]), made_with["packages"]
    found.append(Attempt(began=time.time(), seconds=0.0, git=git, packages=packages))
    write_file(folder / FILE, Attempts(attempts=found))
    return found


def _earlier(folder: Path) -> list[Attempt]:
    try:
        return read_file(folder / FILE, Attempts, "").attempts
    except ArtifactError:  # there is none, or the run was killed while it wrote it
        return []


def end(folder: Path, attempts: list[Attempt], seconds: float) -> dict[str, Any]:
    """Remove the file; what a manifest says of all runs, of which the last took ``seconds``.

    What changed between them is ``a, then b``.
    """
    (folder / FILE).unlink(missing_ok=True)
    names = sorted({name for attempt in attempts for name in attempt.packages})
    commits = [attempt.git.commit or "unknown" for attempt in attempts]
    commit = _then(commits) if any(attempt.git.commit for attempt in attempts) else None
    return {
        "seconds": round(sum(attempt.seconds for attempt in attempts) + seconds, 3),
        "git": {"commit": commit, "dirty": any(attempt.git.dirty for attempt in attempts)},
        "packages": {name: _then(attempt.packages.get(name, "none") for attempt in attempts) for name in names},
    }


def _then(values: Iterable[str]) -> str:
    return ", then ".join(dict.fromkeys(values))
