"""A store on S3, for runners that share no disk: artifacts go up when they are finished, and come down when needed.

Stages read and write the store on their own disk. Below the URL an artifact is `<stage>/<16 digits>/`. Each of its
files lies there under its sha256, and `manifest.json` is put last, by a request that S3 refuses if there is such an
object (`If-None-Match: *`). So a name has no artifact or a whole one, and never another one later, whatever runners do
at the same time and whenever they are killed. A lease only saves work: others wait instead of building the same. What
the store holds does not depend on it.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from core.artifacts import REMEDY, FileEntry, Manifest, parse
from core.digests import MANIFEST
from core.errors import ArtifactError, InputError, ReleaseError, SystemLimitError
from core.progress import byte_reporter, report
from pipeline.engine import artifact as art
from pipeline.engine.artifact import Artifact

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LEASE = "lease-"  # followed by a number: the greatest is in force, and who takes over takes the next
IN_FLIGHT = 4  # parts of a large file at the same time, of 50 MB each
BEATS = 6  # of a lease's heart, in the time after which it counts as dead
TAKEN = (409, 412)  # what S3 answers where the object is there, or is being made


@cache
def remote_of(url: str) -> Remote:
    """The one store at a URL, which is not asked yet. Raises InputError for another URL than s3://BUCKET/PREFIX."""
    bucket = url.removeprefix("s3://").split("/")[0]
    if not url.startswith("s3://") or not bucket or "@" in bucket:
        raise InputError(
            f"--remote-store {url}: give s3://BUCKET/PREFIX. Endpoint and credentials are those of the AWS tools, such "
            "as AWS_ENDPOINT_URL and AWS_PROFILE. A folder that runners share is given with --store."
        )
    return Remote(url)


def credentials() -> dict[str, str]:
    """What the environment says of endpoint and credentials, for a job on a machine that has another environment."""
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


class Remote:
    """The store at ``url``. Every method raises SystemLimitError if the store cannot be reached or refuses."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @cached_property
    def _files(self) -> AbstractFileSystem:
        """The store, which at first use must refuse to write an object again: all else builds on that."""
        from fsspec.core import url_to_fs

        probe = f"{self.url}/probe-{uuid.uuid4().hex}"
        with self._errors("writing a first object"):
            files = url_to_fs(self.url, use_listings_cache=False, max_concurrency=IN_FLIGHT)[0]
            once, twice = _create(files, probe, b"1"), _create(files, probe, b"2")
            files.rm_file(probe)
        if not once or twice:
            raise SystemLimitError(
                f"--remote-store {self.url}: the store overwrites an object although it is asked not to "
                "(If-None-Match: *), so that two runners could spoil each other's artifacts. Use one with conditional "
                "writes: AWS S3, MinIO and others have them."
            )
        return files

    def manifest(self, final: Path) -> Manifest | None:
        """The manifest of the artifact that belongs at ``final``, if it is there. Raises ArtifactError if damaged."""
        folder = self._folder(final)
        try:
            with self._errors(f"reading {folder}"):
                text = self._files.cat_file(f"{folder}/{MANIFEST}")
        except FileNotFoundError:
            return None
        place = f"{folder}/{MANIFEST}"
        try:
            found = parse(text.decode(), Manifest, place, REMEDY.format(folder))
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{place} is not text ({error}). {REMEDY.format(folder)}") from error
        for name in found.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) in (".", MANIFEST):
                raise ArtifactError(f"{place}: a file cannot be called {name!r}. {REMEDY.format(folder)}")
        return found

    def fetch(self, own: art.Build) -> Artifact | None:
        """Bring an artifact into the folder of a build and commit it there; None if the store does not have it.

        Raises ArtifactError that names what is damaged or missing.
        """
        made = self.manifest(own.final)
        if made is None:
            return None
        folder, partial = self._folder(own.final), own.begin(resume=False)
        for name, entry, callback in _with_progress(made, f"fetching it from {self.url}"):
            target = partial / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError), self._errors(f"fetching {folder}"):  # what is missing is named below
                self._files.get_file(f"{folder}/{entry.sha256}", str(target), callback=callback)
        try:
            return own.adopt(made)
        except ArtifactError as error:
            raise ArtifactError(f"{folder} is not what was built ({error}). {REMEDY.format(folder)}") from error

    def push(self, artifact: Artifact) -> None:
        """Hand a finished artifact on, unless the store has it. What an earlier push has sent is not sent again.

        Raises ArtifactError if the store has another result of the same request.
        """
        folder = self._folder(artifact.path)
        while (theirs := self.manifest(artifact.path)) is None:
            there = self._listed(folder)
            for name, entry, callback in _with_progress(artifact.manifest, f"handing it on to {self.url}"):
                if entry.sha256 not in there:
                    with self._errors(f"writing {folder}"):
                        self._files.put_file(str(artifact.path / name), f"{folder}/{entry.sha256}", callback=callback)
            with self._errors(f"writing {folder}"):
                _create(self._files, f"{folder}/{MANIFEST}", art.manifest_text(artifact.manifest).encode())
        if theirs.digest != artifact.digest:
            raise ArtifactError(
                f"{artifact.path} and {folder} are different results of the same request, made by two runners. "
                f"Delete the folder {artifact.path} to use the shared one."
            )

    @contextmanager
    def turn(self, final: Path) -> Iterator[None]:
        """Wait until an artifact is there, or this process may build it: then others wait for the end of the body.

        A holder of the lease that gave no sign of life for ``LEASE_SECONDS`` is gone. Who waits counts them in the
        times that it has asked, so that a machine which stood still with both of them on it is no sign of death.
        """
        token = f"process {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex[:8]})"
        lease = self._acquire(final, token)
        if lease is None:
            yield
            return
        ended = threading.Event()
        heart = threading.Thread(target=self._beat, args=(lease, token, ended), daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            with suppress(FileNotFoundError, SystemLimitError), self._errors(f"ending {lease}"):
                self._files.rm_file(lease)

    def _acquire(self, final: Path, token: str) -> str | None:
        """The lease that is now this process's; None when the artifact is there."""
        folder, pause = self._folder(final), min(5.0, art.LEASE_SECONDS / 20)
        seen: tuple[str, bytes] | None = None
        asked = 0  # times that `seen` was found again
        while self.manifest(final) is None:
            with self._errors(f"asking for {folder}"):
                last = max((name for name in self._listed(folder) if name.startswith(LEASE)), default=f"{LEASE}{0:08}")
                found = _read(self._files, f"{folder}/{last}")
                asked += 1
                if found is not None and seen != (last, found):
                    seen, asked = (last, found), 0
                    report(f"waiting for {found.decode(errors='replace').partition(' (')[0]}, which is building it")
                if found is None or asked * pause > art.LEASE_SECONDS:
                    following = f"{folder}/{LEASE}{int(last.removeprefix(LEASE)) + 1:08}"
                    if _create(self._files, following, token.encode()):
                        return following
            time.sleep(pause)
        return None

    def _beat(self, lease: str, token: str, ended: threading.Event) -> None:
        """Rewrite a lease until its build has ended. Only its holder writes it, so that nothing is lost by that."""
        count = 0
        while not ended.wait(art.LEASE_SECONDS / BEATS):
            count += 1
            with suppress(Exception):  # the next may get through; if none does, another runner builds it too
                self._files.pipe_file(lease, f"{token} {count}".encode())

    def _folder(self, final: Path) -> str:
        return f"{self.url}/{final.parent.name}/{final.name}"

    def _listed(self, folder: str) -> set[str]:
        """The names of the objects of an artifact."""
        with suppress(FileNotFoundError), self._errors(f"listing {folder}"):
            return {str(path).rpartition("/")[2] for path in self._files.ls(folder, detail=False)}
        return set()

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn what fsspec and the client of S3 raise into one sentence. That an object is absent is for the caller."""
        try:
            yield
        except ReleaseError:
            raise
        except Exception as error:
            no_bucket = _answer(error).get("Error", {}).get("Code") == "NoSuchBucket"
            absent = isinstance(error, FileNotFoundError) and not no_bucket
            full_here = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
            of_client = type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp"))
            if absent or full_here or not (of_client or isinstance(error, OSError | ImportError)):
                raise
            raise SystemLimitError(f"--remote-store {self.url}: {doing}: {error}. {_remedy(error)}") from error


def _read(files: AbstractFileSystem, path: str) -> bytes | None:
    try:
        return bytes(files.cat_file(path))
    except FileNotFoundError:
        return None


def _create(files: AbstractFileSystem, path: str, data: bytes) -> bool:
    """Make an object that must not be there yet. Returns whether it holds ``data`` now.

    A request that got through and whose answer was lost is sent again by the client, and then refused.
    """
    try:
        files.pipe_file(path, data, mode="create")
    except OSError as error:
        status = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
        if not isinstance(error, FileExistsError) and status not in TAKEN:
            raise
        return _read(files, path) == data
    return True


def _answer(error: Exception) -> dict[str, Any]:
    """What S3 answered, if that is what an error of s3fs is made of."""
    return getattr(error.__cause__, "response", {})


def _remedy(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "Install what it needs with pip install 's3fs>=2026.2'."
    if isinstance(error, PermissionError):
        return "The credentials must be allowed to list the bucket and to get, put and delete objects below the prefix."
    return (
        "Check the bucket, AWS_ENDPOINT_URL and the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY), and run the command again. What is finished stays finished."
    )


def _with_progress(made: Manifest, doing: str) -> Iterator[tuple[str, FileEntry, object]]:
    """The files of an artifact, each with fsspec's callback that reports the bytes of all of them."""
    from fsspec.callbacks import Callback

    before, tell = 0, byte_reporter(doing, sum(entry.size for entry in made.files.values()))
    for name, entry in made.files.items():
        yield name, entry, Callback(hooks={"bytes": lambda _, done, before=before, **__: tell(before + done)})
        before += entry.size
