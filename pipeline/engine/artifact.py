"""Artifacts: folders that are either complete and unchanged, or do not exist.

An artifact is the folder `<store>/<stage>/<first 16 digits of its key>/`. It is built in `<16 digits>.partial/` beside
that. `manifest.json` is written last and the folder then renamed, so a folder with its final name is complete. The key
identifies the request (stage, version, config, contents of the inputs), the content digest identifies the result.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.artifacts import REMEDY, FileEntry, Made, Manifest, json_text, read_manifest
from core.digests import MANIFEST, digest_of, hash_file, list_files
from core.errors import ArtifactError


def _entry(path: Path, sha256: str) -> FileEntry:
    """The entry of a file with this digest, with its size and times now."""
    stat = path.lstat()
    return FileEntry(
        sha256=sha256,
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,
        inode=stat.st_ino,
    )


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and what its manifest says."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """The content digest, which enters the keys of later stages."""
        return self.manifest.digest

    @property
    def facts(self) -> dict[str, Any]:
        """The stage's facts about its result, for people. Code that uses them calls ``read_facts``."""
        return self.manifest.facts


def read_artifact(path: Path) -> Artifact | None:
    """The artifact at a path, or None if there is no folder. Raises ArtifactError if its manifest is damaged."""
    return Artifact(path, read_manifest(path)) if path.is_dir() else None


def check_artifact(artifact: Artifact) -> None:
    """Compare the files with the manifest: by size, times and inode, and if these differ, by sha256.

    Raises ArtifactError that names the artifact and every file that changed, is missing, or does not belong to it.
    """
    known, present = artifact.manifest.files, list_files(artifact.path)
    seen = {name: _entry(path, known[name].sha256) for name, path in present.items() if name in known}
    touched = [name for name, entry in seen.items() if entry != known[name]]
    changed = [name for name in touched if hash_file(present[name]) != known[name].sha256]
    wrong = {
        "changed": changed,
        "missing": sorted(known.keys() - present),
        "not its own": sorted(present.keys() - known),
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
        raise ArtifactError(f"{artifact.path} is no longer what was built ({listed}). {REMEDY.format(artifact.path)}")
    if touched:  # same bytes, other times: a copied store. The new times spare the next check the hashing
        with suppress(OSError):  # a read-only store is hashed at each check
            _write_manifest(artifact.path, artifact.manifest.changed(files={**known, **seen}))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest in one step: a reader sees the old or the new one. The draft is not in the folder itself."""
    draft = folder.with_name(f"{folder.name}.{MANIFEST}.draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json_text(manifest.model_dump(mode="json")))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / MANIFEST)


def finish(partial: Path, final: Path, made: Made) -> Artifact:
    """Hash the files of ``partial``, write its manifest last, and give it its final name."""
    files = {name: _entry(path, hash_file(path, sync=True)) for name, path in list_files(partial).items()}
    digest = digest_of({name: entry.sha256 for name, entry in files.items()})
    manifest = Manifest(**dict(made), digest=digest, files=files)
    _write_manifest(partial, manifest)
    partial.replace(final)
    return Artifact(final, manifest)


@contextmanager
def locked(final: Path) -> Iterator[None]:
    """Hold the lock of an artifact. Raises ArtifactError that says who holds it; killing the holder frees the lock."""
    path = final.with_name(final.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
        raise ArtifactError(
            f"{final} is being built by {holder}. Wait until it is done and run the command again, or end that process."
        ) from error
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        lock.release()


def is_locked(final: Path) -> bool:
    """Whether a process is building this artifact now."""
    path = final.with_name(final.name + ".lock")
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True


def link(target: Path, name: Path) -> None:
    """Point the relative symlink ``name`` at ``target``, in one step."""
    name.parent.mkdir(parents=True, exist_ok=True)
    draft = name.with_name(f".{name.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(os.path.relpath(target, name.parent))
    if name.is_dir() and not name.is_symlink():  # a real folder here belongs to the user
        draft.unlink()
        raise ArtifactError(
            f"{name} is a folder, and a link to {target} belongs there. Move the folder away and run the command again."
        )
    draft.replace(name)
