"""The releases of a repository, each checked once for each commit that its tag is at."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.localhub.repository import Repository


@dataclass(frozen=True)
class Check:
    """One thing that was checked, and what was found."""

    name: str
    passed: bool
    detail: str


Judge = Callable[[Path, str, str], list[Check]]  # the files of a release, its repository and its tag


class Versions:
    """Remembers the checks of each release. One runs at a time, beside the answers: it reads all of the weights."""

    def __init__(self, judge: Judge | None) -> None:
        self._judge = judge
        self._known: dict[tuple[Path, str, str], list[Check] | None] = {}
        self._starting, self._checking = threading.Lock(), threading.Lock()

    def checks(self, repository: Repository, tag: str, commit: str) -> list[Check] | None:
        """What was found of a tag; None while it is being checked, nothing if this Hub has nobody to judge."""
        if self._judge is None:
            return []
        key = (repository.path, tag, commit)
        with self._starting:
            if key not in self._known:
                self._known[key] = None
                threading.Thread(target=self._check, args=(self._judge, *key), daemon=True).start()
        return self._known[key]

    def _check(self, judge: Judge, path: Path, tag: str, commit: str) -> None:
        found = [Check("check", passed=False, detail="it ended with an error, which the Hub's output shows")]
        try:
            scratch = tempfile.TemporaryDirectory(prefix="release-", dir=path)
            with self._checking, closing(Repository(path)) as repository, scratch as folder:
                problem = _check_out(repository, commit, Path(folder))
                found = problem or judge(Path(folder), repository.name, tag)
        finally:
            self._known[path, tag, commit] = found


def _check_out(repository: Repository, commit: str, folder: Path) -> list[Check]:
    """Lay the files of a commit into a folder; large ones are linked, so that this costs nothing."""
    for entry in repository.entries(repository.resolve(commit)).values():
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.sha256 is None:
            target.write_bytes(repository.read_blob(entry.oid))
            continue
        large = repository.lfs_file(entry.sha256)
        if not large.is_file():
            return [Check("files", passed=False, detail=f"{entry.path} was removed from the Hub for good")]
        try:
            os.link(large, target)
        except OSError:  # a file system without hard links
            shutil.copyfile(large, target)
    return []
