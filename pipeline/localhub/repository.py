"""One model repository: a bare git folder, its large files by sha256, and its visibility.

A commit writes objects first and moves the branch last, under the repository's lock and by compare-and-swap: a reader
sees the old commit or the new one. Large files are git-lfs pointers in git; their bytes lie in ``lfs/`` in that folder.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dulwich.index import commit_tree
from dulwich.objects import Blob, Commit, ObjectID
from dulwich.refs import Ref, check_ref_format
from dulwich.repo import Repo
from filelock import FileLock

from core.hub_ids import is_commit
from pipeline.localhub.refusal import Refusal

MAX_REGULAR_BYTES = 10 * 1024 * 1024
FILE_MODE = 0o100644
VISIBILITIES = ("private", "public")
LEFT_OVER = 3600  # seconds after which an upload without new bytes was killed
AUTHOR = b"local <local@localhost>"
LFS_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".onnx", ".gguf", ".h5", ".model"),
    *(".msgpack", ".npy", ".npz", ".parquet", ".arrow", ".zip", ".gz", ".tar"),
)
# What the real Hub puts into a new repository.
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
STALE_PARENT = "A commit has happened since. Please refresh and try again."

_POINTER_VERSION = b"version https://git-lfs.github.com/spec/v1"
_POINTER = re.compile(re.escape(_POINTER_VERSION) + rb"\noid sha256:([0-9a-f]{64})\nsize (\d+)\n\Z")
_HUB_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


@dataclass(frozen=True)
class Entry:
    """A file of a commit. ``oid`` is its git blob; for a large file ``sha256`` is set and ``size`` is the real size."""

    path: str
    oid: str
    size: int
    sha256: str | None = None
    pointer_size: int = 0


@dataclass(frozen=True)
class Add:
    """Write ``content``, or the large file (``sha256``, ``size``) that was uploaded before, to ``path``."""

    path: str
    content: bytes | None = None
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True)
class Delete:
    """Remove the file ``path``, or everything below it if ``folder``."""

    path: str
    folder: bool = False


def check_path(path: str) -> None:
    """Refuse a path that is absolute, leaves the repository, enters git's own folder, or cannot be a file name."""
    parts = path.split("/")
    bad = any(part in ("", ".", "..") or part.lower() == ".git" for part in parts)
    if bad or "\\" in path or any(ord(char) < 32 for char in path) or len(path) > 1000:
        raise Refusal(400, f"Invalid file path {path!r}: use a relative path with / and no '.', '..' or '.git' parts.")


class Repository:
    """The repository in the bare git folder ``path``. Opened per request; safe across threads and processes."""

    def __init__(self, path: Path) -> None:
        if not (path / "hub.json").is_file():
            raise Refusal(404, "Repository not found", "RepoNotFound")
        self.path = path
        self._git = Repo(str(path))
        self._store = self._git.object_store

    def close(self) -> None:
        """Release git's file handles."""
        self._git.close()

    @staticmethod
    def lock(path: Path) -> FileLock:
        """The lock of the repository at ``path``, to be held for a change. It lies beside it, to cover deletion."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(str(path.with_suffix(".lock")))

    @classmethod
    def create(cls, path: Path, visibility: str) -> None:
        """A new repository with the Hub's first commit; 409 if it exists. The caller holds the lock."""
        if visibility not in VISIBILITIES:
            raise Refusal(400, f"visibility {visibility!r}: use private or public for a model.")
        if (path / "hub.json").is_file():
            raise Refusal(409, "You already created this model repo")
        shutil.rmtree(path, ignore_errors=True)  # left by an interrupted creation
        path.mkdir(parents=True)
        git = Repo.init_bare(str(path), default_branch=b"main")
        blob = Blob.from_string(GITATTRIBUTES)
        git.object_store.add_object(blob)
        tree = commit_tree(git.object_store, [(b".gitattributes", blob.id, FILE_MODE)])
        git.refs.set_if_equals(Ref(b"refs/heads/main"), None, _write_commit(git, tree, [], "initial commit"))
        git.close()
        _write_settings(path, visibility)

    # -- settings

    @property
    def visibility(self) -> str:
        """``private`` or ``public``."""
        return visibility(self.path) or "private"

    def set_visibility(self, visibility: str) -> None:
        """Change who may read."""
        _write_settings(self.path, visibility)

    # -- reading

    def resolve(self, revision: str) -> ObjectID:
        """The commit of a branch, a tag, a full ref name or a commit id."""
        name = revision.encode()
        for ref in (Ref(b"refs/heads/" + name), Ref(b"refs/tags/" + name), Ref(name)):
            if ref.startswith(b"refs/") and check_ref_format(ref) and ref in self._git.refs:
                return self._git.refs[ref]
        if is_commit(revision):
            sha = ObjectID(name)
            if sha in self._store and isinstance(self._store[sha], Commit):
                return sha
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit_object(self, commit: ObjectID) -> Commit:
        """The git commit."""
        stored = self._store[commit]
        assert isinstance(stored, Commit)  # noqa: S101  resolve() returned it
        return stored

    def history(self, commit: ObjectID) -> Iterator[Commit]:
        """``commit`` and its ancestors, newest first (histories here are linear)."""
        current: ObjectID | None = commit
        while current is not None:
            stored = self.commit_object(current)
            yield stored
            current = stored.parents[0] if stored.parents else None

    def entries(self, commit: ObjectID) -> dict[str, Entry]:
        """Every file of a commit by path, sorted."""
        files = self._store.iter_tree_contents(self.commit_object(commit).tree)
        entries = (self._entry(file.path.decode(), file.sha) for file in files)
        return {entry.path: entry for entry in sorted(entries, key=lambda entry: entry.path)}

    def _entry(self, path: str, sha: ObjectID) -> Entry:
        content = self.read_blob(sha.decode())
        pointer = _POINTER.match(content)
        if pointer:
            return Entry(path, sha.decode(), int(pointer[2]), pointer[1].decode(), len(content))
        return Entry(path, sha.decode(), len(content))

    def read_blob(self, oid: str) -> bytes:
        """The bytes of a git blob."""
        return self._store[ObjectID(oid.encode())].as_raw_string()

    def lfs_file(self, sha256: str) -> Path:
        """The path of the large file with this digest, whether it exists or not. Refuses a text that is no digest."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise Refusal(400, f"{sha256!r} is not a sha256.")
        return self.path / "lfs" / sha256[:2] / sha256

    def refs(self, kind: Literal["heads", "tags"]) -> dict[str, str]:
        """Branches or tags: name to commit."""
        refs = self._git.refs.as_dict(Ref(f"refs/{kind}".encode()))
        return {name.decode(): sha.decode() for name, sha in sorted(refs.items())}

    # -- writing; the caller holds the lock

    def create_ref(self, kind: Literal["heads", "tags"], name: str, commit: ObjectID) -> None:
        """A new branch or tag. Refuses a name that exists (409) or that git does not allow (400)."""
        ref = Ref(f"refs/{kind}/{name}".encode())
        if not check_ref_format(ref) or is_commit(name):
            raise Refusal(400, f"Invalid reference name: {name}")
        if not self._git.refs.add_if_new(ref, commit):
            raise Refusal(409, f"Reference {name} already exists")

    def delete_ref(self, kind: Literal["heads", "tags"], name: str) -> None:
        """Remove a branch (not main) or a tag."""
        if kind == "heads" and name == "main":
            raise Refusal(400, "The main branch cannot be deleted")
        ref = Ref(f"refs/{kind}/{name}".encode())
        if not check_ref_format(ref) or ref not in self._git.refs:
            raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")
        self._git.refs.remove_if_equals(ref, None)

    def commit(self, branch: str, parent: str | None, operations: Sequence[Add | Delete], message: str) -> str:
        """All ``operations`` as one commit on ``branch``; returns its id.

        ``parent`` (7 to 40 hex digits, or None) must be the head of the branch, else 412. Readers see nothing before
        the branch moves, and it moves only from the head that was read.
        """
        ref = Ref(f"refs/heads/{branch}".encode())
        if not check_ref_format(ref) or ref not in self._git.refs:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        head = self._git.refs[ref]
        if parent is not None and (len(parent) < 7 or not head.decode().startswith(parent)):
            raise Refusal(412, STALE_PARENT)
        files = {path: ObjectID(entry.oid.encode()) for path, entry in self.entries(head).items()}
        for operation in operations:
            self._apply(files, operation)
        _check_no_file_is_folder(files)
        tree = commit_tree(self._store, [(path.encode(), oid, FILE_MODE) for path, oid in files.items()])
        new = _write_commit(self._git, tree, [head], message)
        if not self._git.refs.set_if_equals(ref, head, new):
            raise Refusal(412, STALE_PARENT)
        return new.decode()

    def _apply(self, files: dict[str, ObjectID], operation: Add | Delete) -> None:
        if isinstance(operation, Delete):
            path = operation.path.rstrip("/")
            gone = [p for p in files if (p.startswith(path + "/") if operation.folder else p == path)]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {operation.path}", "EntryNotFound")
            for name in gone:
                del files[name]
            return
        check_path(operation.path)
        blob = Blob.from_string(self._git_content(operation))
        self._store.add_object(blob)
        files[operation.path] = blob.id

    def _git_content(self, add: Add) -> bytes:
        content = add.content
        if content is None:
            self.lfs_file(add.sha256)  # refuses a text that is no digest
            content = b"%b\noid sha256:%b\nsize %d\n" % (_POINTER_VERSION, add.sha256.encode(), add.size)
        elif len(content) > MAX_REGULAR_BYTES:
            raise Refusal(400, f"{add.path} is larger than 10 MiB: upload it as a large file (LFS).")
        elif _HUB_TOKEN.search(content):
            raise Refusal(400, f"{add.path} contains a Hugging Face token. Remove it, and commit again.")
        pointer = _POINTER.match(content)
        if pointer:
            blob = self.lfs_file(pointer[1].decode())
            if not blob.is_file() or blob.stat().st_size != int(pointer[2]):
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {add.path}")
        return content


def _check_no_file_is_folder(files: dict[str, ObjectID]) -> None:
    for path in files:
        parts = path.split("/")
        for end in range(1, len(parts)):
            if (folder := "/".join(parts[:end])) in files:
                raise Refusal(400, f"{folder} cannot be both a file and a folder (of {path}).")


def _write_commit(git: Repo, tree: ObjectID, parents: list[ObjectID], message: str) -> ObjectID:
    commit = Commit()
    commit.tree = tree
    commit.parents = parents
    commit.author = commit.committer = AUTHOR
    commit.author_time = commit.commit_time = int(time.time())
    commit.author_timezone = commit.commit_timezone = 0
    commit.encoding = b"UTF-8"
    commit.message = message.encode()
    git.object_store.add_object(commit)
    return commit.id


def visibility(path: Path) -> str | None:
    """``private`` or ``public``, None if there is no repository at ``path``."""
    try:
        return str(json.loads((path / "hub.json").read_text())["visibility"])
    except FileNotFoundError:
        return None


def _write_settings(path: Path, visibility: str) -> None:
    if visibility not in VISIBILITIES:
        raise Refusal(400, f"visibility {visibility!r}: use private or public for a model.")
    temporary = path / "hub.json.new"
    temporary.write_text(json.dumps({"visibility": visibility}) + "\n")
    temporary.replace(path / "hub.json")


def remove_leftovers(folder: Path) -> None:
    """Remove what uploads left that were killed. Those of the last hour may still be coming in to another Hub."""
    for path in folder.rglob("*.part"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - LEFT_OVER:
                path.unlink()


@contextmanager
def receiving(repository: Repository, sha256: str, size: int) -> Iterator[Receiver]:
    """Receive a large file into a temporary one, which is moved into place only if digest and size are right."""
    target = repository.lfs_file(sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    receiver = Receiver(target, sha256, size)
    try:
        yield receiver
    finally:
        receiver.discard()


class Receiver:
    """An upload in progress; see :func:`receiving`."""

    def __init__(self, target: Path, sha256: str, size: int) -> None:
        self._target, self._sha256, self._size = target, sha256, size
        self._temporary = target.with_name(f"{sha256}.{time.monotonic_ns()}.part")
        self._file = self._temporary.open("xb")
        self._hash = hashlib.sha256()
        self._received = 0

    def write(self, data: bytes) -> None:
        """Take the next bytes. Refuses more bytes than announced."""
        self._received += len(data)
        if self._received > self._size:
            raise Refusal(400, f"More than the announced {self._size} bytes were sent.")
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """Move the file into place. Refuses it if size or digest are not as announced."""
        self._file.close()
        if self._received != self._size or self._hash.hexdigest() != self._sha256:
            raise Refusal(400, "The bytes that were sent do not have the announced size and sha256.")
        self._temporary.replace(self._target)

    def discard(self) -> None:
        """Remove the rest of an upload that did not finish."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
