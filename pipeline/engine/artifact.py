"""Artifacts: folders that are either complete and unchanged, or do not exist.

An artifact is the folder `<store>/<stage>/<first 16 digits of its key>/`. It is built in `<16 digits>.<token>.partial/`
beside that, by the one process that holds the artifact's lease. `manifest.json` is written last and the folder then
renamed, so a folder with its final name is complete. The key identifies the request (stage, version, config, contents
of the inputs), the content digest identifies the result.
"""

from __future__ import annotations

import _thread
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import SoftFileLease, Timeout

from core.artifacts import REMEDY, FileEntry, Made, Manifest, json_text, read_manifest
from core.digests import MANIFEST, artifact_key, digest_of, hash_file, list_files
from core.errors import ArtifactError
from core.progress import report

KEY_DIGITS = 16  # of a key, in the name of its artifact's folder
LEASE_SECONDS = 120.0  # a lease whose file stands still for so long has no holder any more; the same for all runners


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


def manifest_text(manifest: Manifest) -> str:
    """The content of ``manifest.json``."""
    return json_text(manifest.model_dump(mode="json"))


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest in one step: a reader sees the old or the new one. The draft is not in the folder itself.

    Each writer has its own draft, since who checks a copied store holds no lease, and several may do so at once.
    """
    draft = folder.with_name(f"{folder.name}.{MANIFEST}.{os.getpid()}-{uuid.uuid4().hex[:8]}.draft")
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.write(manifest_text(manifest))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / MANIFEST)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


class Build:
    """The right to build the artifact ``final``, and the folder to build it in, while the lease lasts."""

    def __init__(self, final: Path, lease: SoftFileLease) -> None:
        self.final, self._lease, self._token = final, lease, str(lease.token)
        self.partial = final.with_name(f"{final.name}.{self._token[:8]}.partial")

    def begin(self, *, resume: bool) -> Path:
        """The folder to build in. With ``resume`` it is the one that an earlier holder left, under this build's name.

        Under another name, since an earlier holder that was only paused would go on writing into it.
        """
        left = sorted(self.final.parent.glob(f"{self.final.name}*.partial"))
        if resume and left:
            left.pop(0).rename(self.partial)
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        self.partial.mkdir(parents=True, exist_ok=True)
        return self.partial

    def is_lost(self) -> bool:
        """Whether another runner has taken the lease over, or someone has removed it."""
        owner = self._lease.owner
        return owner is None or owner.token != self._token

    def finish(self, made: Made) -> Artifact:
        """Hash the files, write the manifest last, and give the folder its final name.

        Folders without files are removed. Raises ArtifactError for a link, since what it points to would not be a part;
        and if the lease was lost.
        """
        files = self._hashed()
        return self._commit(Manifest(**dict(made), digest=_digest(files), files=files))

    def adopt(self, made: Manifest) -> Artifact:
        """Commit a copy of an artifact, if its files are those of ``made``. Raises ArtifactError that names others."""
        files = self._hashed()
        known = made.files
        wrong = [n for n in files.keys() | known.keys() if n not in files or n not in known]
        wrong += [n for n in files.keys() & known.keys() if files[n].sha256 != known[n].sha256]
        if wrong or not _is_its_own(Artifact(self.final, made)):
            raise ArtifactError(f"changed or missing: {', '.join(sorted(wrong)) or MANIFEST}")
        return self._commit(made.changed(files=files))

    def _hashed(self) -> dict[str, FileEntry]:
        """The files with their digests, on the disk for good. Folders without files are removed."""
        present = list_files(self.partial)
        for name in reversed(_without_files(self.partial, present)):
            if (self.partial / name).is_symlink():
                raise ArtifactError(
                    f"{self.partial / name} is a link, and an artifact has none. Put the file itself there."
                )
            (self.partial / name).rmdir()
        return {name: _entry(path, hash_file(path, sync=True)) for name, path in present.items()}

    def _commit(self, manifest: Manifest) -> Artifact:
        if self.is_lost():
            raise ArtifactError(LOST.format(self.final))
        _write_manifest(self.partial, manifest)
        self.partial.replace(self.final)
        return Artifact(self.final, manifest)


LOST = "{}: another runner has taken this build over, since this one gave no sign of life. Run the command again."


def _lease_of(final: Path) -> SoftFileLease:
    # The heartbeat tells the main thread, which may be deep inside a training, as Ctrl-C would.
    path = final.with_name(final.name + ".lease")
    return SoftFileLease(path, lease_duration=LEASE_SECONDS, on_compromise=lambda _: _thread.interrupt_main())


@contextmanager
def building(final: Path) -> Iterator[Build]:
    """Hold the lease of an artifact, after waiting for whoever holds it: killing the holder ends it.

    A holder on another machine counts as gone when it gave no sign of life for ``LEASE_SECONDS``. Raises ArtifactError
    if the lease was lost to another runner: this process was stopped for longer than that.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    lease = _lease_of(final)
    try:
        lease.acquire(blocking=False)
    except Timeout:
        owner = lease.owner
        holder = f"process {owner.pid} on {owner.hostname}" if owner else "another runner"
        report(f"waiting for {holder}, which is building it")
        lease.acquire(poll_interval=0.2, cancel_check=lambda: _ends_nameless(Path(lease.lock_file)))
    own = Build(final, lease)
    try:
        yield own
    except BaseException as error:  # its files were moved under it, or the heartbeat interrupted it
        if own.is_lost():
            raise ArtifactError(LOST.format(final)) from error
        raise
    finally:
        lease.release()


def _ends_nameless(lease: Path) -> bool:
    """Write into a lease that has been empty for ``LEASE_SECONDS``: its runner was killed before it wrote its name.

    Filelock takes over what it cannot read, and never what is empty, as old versions of it left their locks. If the
    runner was only stopped, its name overwrites what is written here. Always False: waiting goes on.
    """
    with suppress(OSError), lease.open("r+b") as file:
        found = os.fstat(file.fileno())
        if found.st_size == 0 and time.time() - found.st_mtime > LEASE_SECONDS:
            file.write(b"?")
    return False


def is_being_built(final: Path) -> bool:
    """Whether a process is building this artifact now, as far as its lease tells."""
    lease = _lease_of(final)
    if lease.owner is None or lease.is_lock_held_by_us:
        return lease.owner is not None
    try:
        if time.time() - Path(lease.lock_file).stat().st_mtime > LEASE_SECONDS:
            return False
        with lease.acquire(blocking=False):
            return False
    except (OSError, Timeout):  # OSError: a store that can only be read
        return Path(lease.lock_file).exists()


def link(target: Path, name: Path) -> None:
    """Point the relative symlink ``name`` at ``target``, in one step.

    One that is right is left as it is: the store may be one that can only be read.
    """
    path = os.path.relpath(target, name.parent)
    if name.is_symlink() and str(name.readlink()) == path:
        return
    name.parent.mkdir(parents=True, exist_ok=True)
    draft = name.with_name(f".{name.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(path)
    if name.is_dir() and not name.is_symlink():  # a real folder here belongs to the user
        draft.unlink()
        raise ArtifactError(
            f"{name} is a folder, and a link to {target} belongs there. Move the folder away and run the command again."
        )
    draft.replace(name)
