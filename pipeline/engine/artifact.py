"""Artifacts: folders that are either complete and unchanged, or not there.

An artifact lies in `<store>/<stage>/<first 16 digits of its key>/`. It is built in `<16 digits>.partial/` beside that;
`manifest.json` is written last and the folder renamed, so a folder with its final name is done. The key says what was
asked for (stage, version, config, contents of the inputs), the content digest what came out.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.digests import MANIFEST, digest_of, hash_file, list_files
from core.errors import ArtifactError

REMEDY = "Delete the folder {} to have it built again."


def _stat(path: Path) -> dict[str, int]:
    found = path.lstat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns, "inode": found.st_ino}


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    @property
    def digest(self) -> str:
        """The content digest, by which it enters the keys of later stages."""
        return str(self.manifest["digest"])

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage said about its result."""
        return dict(self.manifest["facts"])


def read_artifact(path: Path) -> Artifact | None:
    """The artifact at a path, or None where there is no folder. Raises ArtifactError where its manifest is damaged."""
    if not path.is_dir():
        return None
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if not {"stage", "key", "digest", "facts", "files", "config", "inputs", "version"} <= manifest.keys():
            raise ValueError("entries are missing")  # noqa: TRY301
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: its {MANIFEST} cannot be read ({error}). {REMEDY.format(path)}") from error
    return Artifact(path, manifest)


def check_artifact(artifact: Artifact) -> None:
    """Compare the files with the manifest: by size, times and inode, and where those differ by sha256.

    Raises ArtifactError that names the artifact and every file that changed, is missing, or is not its own.
    """
    known: dict[str, dict[str, Any]] = artifact.manifest["files"]
    present = list_files(artifact.path)
    touched = [
        name for name, path in present.items() if name in known and not _stat(path).items() <= known[name].items()
    ]
    changed = [name for name in touched if hash_file(present[name]) != known[name]["sha256"]]
    wrong = {
        "changed": changed,
        "missing": sorted(known.keys() - present),
        "not its own": sorted(present.keys() - known),
    }
    if any(wrong.values()):
        said = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
        raise ArtifactError(f"{artifact.path} is no longer what was built ({said}). {REMEDY.format(artifact.path)}")
    if touched:  # same bytes, other times: a copied store. Remember, so that the next check reads no weights again
        for name in touched:
            known[name] |= _stat(present[name])
        with suppress(OSError):  # a store that cannot be written is checked by hashing each time
            write_json(artifact.path / MANIFEST, artifact.manifest)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one; the draft lies beside the folder, not in it."""
    draft = path.parent.with_name(f"{path.parent.name}.{path.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def finish(partial: Path, final: Path, manifest: dict[str, Any]) -> Artifact:
    """Hash the files of ``partial``, write its manifest last, and give it its final name."""
    files = {name: {"sha256": hash_file(path, sync=True), **_stat(path)} for name, path in list_files(partial).items()}
    manifest["digest"] = digest_of({name: entry["sha256"] for name, entry in files.items()})
    manifest["files"] = files
    write_json(partial / MANIFEST, manifest)
    partial.replace(final)
    return Artifact(final, manifest)


@contextmanager
def locked(final: Path) -> Iterator[None]:
    """Hold the lock of an artifact. Raises ArtifactError that says who holds it; a killed holder's lock is free."""
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
    """Whether some process builds this artifact right now."""
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
    if name.is_dir() and not name.is_symlink():  # a real folder here is the user's
        draft.unlink()
        raise ArtifactError(
            f"{name} is a folder, where a link to {target} belongs. Move it away and run the command again."
        )
    draft.replace(name)
