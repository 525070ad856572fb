"""Artifacts: folders that are either complete and unchanged, or do not exist.

An artifact is the folder `<store>/<stage>/<first 16 digits of its key>/`. It is built in `<16 digits>.partial/` beside
that. `manifest.json` is written last and the folder then renamed, so a folder with its final name is complete. The key
identifies the request (stage, version, config, contents of the inputs), the content digest identifies the result.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from core.artifacts import REMEDY, FileEntry, Made, Manifest, json_text, read_manifest
from core.digests import MANIFEST, artifact_key, digest_of, hash_file, list_files
from core.errors import ArtifactError

KEY_DIGITS = 16  # of a key, in the name of its artifact's folder


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


def check_artifact(artifact: Artifact, *, by_content: bool = False) -> None:
    """Compare the files with the manifest: by size, times and inode, and if these differ, by sha256.

    With ``by_content`` every file is hashed: times can be written into a manifest by hand. Raises ArtifactError that
    names the artifact and every file that changed, is missing, or does not belong to it; and if the manifest is that of
    another artifact, or its digest is not that of its files.
    """
    known, present = artifact.manifest.files, list_files(artifact.path)
    seen = {name: _entry(path, known[name].sha256) for name, path in present.items() if name in known}
    touched = [name for name, entry in seen.items() if entry != known[name]]
    changed = [name for name in (seen if by_content else touched) if hash_file(present[name]) != known[name].sha256]
    wrong = {
        "changed": [*changed, *([] if _is_its_own(artifact) else [MANIFEST])],
        "missing": sorted(known.keys() - present),
        "not its own": sorted(present.keys() - known),
        "links or empty folders": _without_files(artifact.path, present),
    }
    if any(wrong.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
        raise ArtifactError(f"{artifact.path} is no longer what was built ({listed}). {REMEDY.format(artifact.path)}")
    if touched:  # same bytes, other times: a copied store. The new times spare the next check the hashing
        with suppress(OSError):  # a read-only store is hashed at each check
            _write_manifest(artifact.path, artifact.manifest.changed(files={**known, **seen}))


def _is_its_own(artifact: Artifact) -> bool:
    """Whether a manifest lies in the folder of its key, its key is of what it says, and its digest of its files."""
    made = artifact.manifest
    return (
        made.key == artifact_key(made.stage, made.version, made.config, made.inputs)
        and artifact.path.resolve().name == made.key[:KEY_DIGITS]
        and made.digest == _digest(made.files)
    )


def _digest(files: Mapping[str, FileEntry]) -> str:
    return digest_of({name: entry.sha256 for name, entry in files.items()})


def _without_files(folder: Path, files: Mapping[str, Path]) -> list[str]:
    """What is below a folder and is neither a file nor a folder with files: links, and folders with nothing in them."""
    used = {parent for path in files.values() for parent in path.parents}
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    empty = [path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink() and path not in used]
    return sorted(path.relative_to(folder).as_posix() for path in (*links, *empty))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest in one step: a reader sees the old or the new one. The draft is not in the folder itself."""
    draft = folder.with_name(f"{folder.name}.{MANIFEST}.draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json_text(manifest.model_dump(mode="json")))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / MANIFEST)


def finish(partial: Path, final: Path, made: Made) -> Artifact:
    """Hash the files of ``partial``, write its manifest last, and give it its final name.

    Folders without files are removed. Raises ArtifactError for a link: what it points to would not be a part.
    """
    present = list_files(partial)
    for name in reversed(_without_files(partial, present)):
        if (partial / name).is_symlink():
            raise ArtifactError(f"{partial / name} is a link, and an artifact has none. Put the file itself there.")
        (partial / name).rmdir()
    files = {name: _entry(path, hash_file(path, sync=True)) for name, path in present.items()}
    manifest = Manifest(**dict(made), digest=_digest(files), files=files)
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
