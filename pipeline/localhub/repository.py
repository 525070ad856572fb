"""One repository: a bare git folder, its large files by sha256, and its settings.

A commit writes objects first and moves the branch last, under the repository's lock and by compare-and-swap: a reader
sees the old commit or the new one. Large files are git-lfs pointers in git; their bytes lie in ``lfs/`` in that folder.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
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
from pipeline.localhub.settings import Settings, read_settings, write_settings
from pipeline.localhub.tokens import OWNER

MAX_REGULAR_BYTES = 10 * 1024 * 1024
MAX_REF_BYTES = 200  # a ref is a file name
FILE_MODE = 0o100644
LFS_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".onnx", ".gguf", ".h5", ".model"),
    *(".msgpack", ".npy", ".npz", ".parquet", ".arrow", ".zip", ".gz", ".tar"),
)
# What the real Hub puts into a new repository.
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
STALE_PARENT = "A commit has happened since. Please refresh and try again."
MAIN = Ref(b"refs/heads/main")
GITATTRIBUTES_FILE = ".gitattributes"

_POINTER_VERSION = b"version https://git-lfs.github.com/spec/v1"
_POINTER = re.compile(re.escape(_POINTER_VERSION) + rb"\noid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n\Z")
_HUB_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


def is_large(name: str, size: int, sample: bytes) -> bool:
    """Whether a file is kept in LFS: by ending, size, and whether its first bytes look like text. No empty file is."""
    return size > 0 and (size > MAX_REGULAR_BYTES or name.endswith(LFS_SUFFIXES) or b"\0" in sample)


Files = dict[str, ObjectID]  # path to blob

# The size of a blob, and size and sha256 of the large file that it points to. A blob is named by its content, so these
# never change, and listing a repository need not read all of its files again.
MAX_MEASURED = 50_000
_MEASURED: dict[ObjectID, tuple[int, tuple[int, str] | None]] = {}


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
    """Write ``content``, or the large file ``sha256`` (of ``size``, if given) that was uploaded before, to ``path``."""

    path: str
    content: bytes | None = None
    sha256: str = ""
    size: int | None = None


@dataclass(frozen=True)
class Delete:
    """Remove the file ``path``, or everything below it if ``folder``."""

    path: str
    folder: bool = False


def check_path(path: str) -> None:
    """Refuse a path that is absolute, leaves the repository, enters git's own folder, or cannot be a file name."""
    parts = path.split("/")
    bad = any(part in ("", ".", "..") or part.lower() == ".git" or len(part.encode()) > 255 for part in parts)
    if bad or "\\" in path or any(ord(char) < 32 or ord(char) == 127 for char in path) or len(path) > 1000:
        raise Refusal(
            400, f"Invalid file path {path!r:.200}: use a relative path with / and no '.', '..' or '.git' parts."
        )


class Repository:
    """The repository in the bare git folder ``path``. Opened per request; safe across threads and processes."""

    def __init__(self, path: Path) -> None:
        settings = read_settings(path)
        if settings is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        self.path = path
        self.settings: Settings = settings
        self.git = Repo(str(path))
        self.store = self.git.object_store

    def close(self) -> None:
        """Release git's file handles."""
        self.git.close()

    @property
    def name(self) -> str:
        """owner/name."""
        return f"{self.path.parent.name}/{self.path.name.removesuffix('.git')}"

    @staticmethod
    def lock(path: Path) -> FileLock:
        """The lock of the repository at ``path``, to be held for a change. It lies beside it, to cover deletion."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(str(path.with_suffix(".lock")))

    @classmethod
    def create(cls, path: Path, settings: Settings) -> None:
        """A new repository with the Hub's first commit; 409 if it exists. The caller holds the lock."""
        if read_settings(path) is not None:
            raise Refusal(409, "You already created this model repo")
        shutil.rmtree(path, ignore_errors=True)  # left by an interrupted creation
        path.mkdir(parents=True)
        git = Repo.init_bare(str(path), default_branch=b"main")
        blob = Blob.from_string(GITATTRIBUTES)
        git.object_store.add_object(blob)
        tree = commit_tree(git.object_store, [(GITATTRIBUTES_FILE.encode(), blob.id, FILE_MODE)])
        git.refs.set_if_equals(MAIN, None, _write_commit(git, tree, [], "initial commit", OWNER))
        git.close()
        write_settings(path, settings)

    # -- reading

    def resolve(self, revision: str) -> ObjectID:
        """The commit of a branch, a tag, a full ref name or a commit id."""
        name = revision.encode()
        for ref in (Ref(b"refs/heads/" + name), Ref(b"refs/tags/" + name), Ref(name)):
            if (commit := self._read_ref(ref)) is not None:
                return commit
        if revision == "HEAD":
            return self.git.refs[MAIN]
        if is_commit(revision) and (sha := ObjectID(name)) in self.store and isinstance(self.store[sha], Commit):
            return sha
        raise Refusal(404, f"Invalid rev id: {revision:.200}", "RevisionNotFound")

    def _read_ref(self, ref: Ref) -> ObjectID | None:
        if not ref.startswith(b"refs/") or len(ref) > MAX_REF_BYTES or not check_ref_format(ref):
            return None
        try:
            return self.git.refs[ref]
        except KeyError:
            return None

    def branch(self, revision: str) -> Ref:
        """The ref that a commit on ``revision`` moves: a branch, or a pull request's ``refs/pr/N``."""
        ref = Ref(revision.encode() if revision.startswith("refs/pr/") else b"refs/heads/" + revision.encode())
        if self._read_ref(ref) is None:
            raise Refusal(404, f"Invalid rev id: {revision:.200}", "RevisionNotFound")
        return ref

    def commit_object(self, commit: ObjectID) -> Commit:
        """The git commit."""
        stored = self.store[commit]
        assert isinstance(stored, Commit)  # noqa: S101  resolve() returned it
        return stored

    def history(self, commit: ObjectID) -> Iterator[Commit]:
        """``commit`` and its first ancestors, newest first (histories here are linear)."""
        current: ObjectID | None = commit
        while current is not None:
            stored = self.commit_object(current)
            yield stored
            current = stored.parents[0] if stored.parents else None

    def files(self, commit: ObjectID) -> Files:
        """Path to blob of every file of a commit."""
        found = self.store.iter_tree_contents(self.commit_object(commit).tree)
        return {file.path.decode(): file.sha for file in found}

    def entries(self, commit: ObjectID) -> dict[str, Entry]:
        """Every file of a commit by path, sorted."""
        return {path: self.entry(path, oid) for path, oid in sorted(self.files(commit).items())}

    def entry(self, path: str, oid: ObjectID) -> Entry:
        """One file, by its blob."""
        if oid not in _MEASURED:
            if len(_MEASURED) > MAX_MEASURED:
                _MEASURED.clear()
            content = self.read_blob(oid.decode())
            pointer = _POINTER.match(content)
            _MEASURED[oid] = (len(content), (int(pointer[2]), pointer[1].decode()) if pointer else None)
        size, pointed = _MEASURED[oid]
        return Entry(path, oid.decode(), pointed[0], pointed[1], size) if pointed else Entry(path, oid.decode(), size)

    def read_blob(self, oid: str) -> bytes:
        """The bytes of a git blob."""
        return self.store[ObjectID(oid.encode())].as_raw_string()

    def lfs_file(self, sha256: str) -> Path:
        """The path of the large file with this digest, whether it exists or not. Refuses a text that is no digest."""
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise Refusal(400, f"{sha256!r:.100} is not a sha256.")
        return self.path / "lfs" / sha256[:2] / sha256

    def refs(self, kind: Literal["heads", "tags", "pr"]) -> dict[str, str]:
        """Branches, tags or pull requests: name to commit."""
        refs = self.git.refs.as_dict(Ref(f"refs/{kind}".encode()))
        return {name.decode(): sha.decode() for name, sha in sorted(refs.items())}

    # -- writing; the caller holds the lock

    def break_locks(self) -> None:
        """Remove git's own locks: whoever made them was killed, since only the holder of our lock writes."""
        for places in ("*.lock", "refs/**/*.lock", "objects/*/*.lock"):
            for leftover in self.path.glob(places):
                leftover.unlink(missing_ok=True)

    def set_settings(self, settings: Settings) -> None:
        """Change who may read."""
        write_settings(self.path, settings)
        self.settings = settings

    def create_ref(self, kind: Literal["heads", "tags", "pr"], name: str, commit: ObjectID) -> None:
        """A new branch, tag or pull request. Refuses a name that exists (409) or that git does not allow (400)."""
        ref = Ref(f"refs/{kind}/{name}".encode())
        if len(ref) > MAX_REF_BYTES or not check_ref_format(ref) or is_commit(name):
            raise Refusal(400, f"Invalid reference name: {name:.200}")
        # Refs are files: there cannot be a branch a/b beside a branch a.
        beside = [other for other in self.refs(kind) if other.startswith(f"{name}/") or name.startswith(f"{other}/")]
        if beside or not self.git.refs.add_if_new(ref, commit):
            raise Refusal(409, f"Reference {name} already exists" + (f", as {beside[0]}" if beside else ""))

    def delete_ref(self, kind: Literal["heads", "tags"], name: str) -> None:
        """Remove a branch (not main) or a tag."""
        if kind == "heads" and name == "main":
            raise Refusal(400, "The main branch cannot be deleted")
        ref = Ref(f"refs/{kind}/{name}".encode())
        if self._read_ref(ref) is None:
            raise Refusal(404, f"Invalid rev id: {name:.200}", "RevisionNotFound")
        self.git.refs.remove_if_equals(ref, None)

    def commit(
        self,
        revision: str,
        parent: str | None,
        operations: Sequence[Add | Delete],
        message: str,
        user: str = OWNER,
    ) -> str:
        """All ``operations`` as one commit on a branch or pull request; returns its id.

        ``parent`` (7 to 40 hex digits, or None) must be the head of the branch, else 412. Readers see nothing before
        the branch moves, and it moves only from the head that was read.
        """
        ref = self.branch(revision)
        head, new = self.build(ref, parent, operations, message, user)
        self.move(ref, head, new)
        return new.decode()

    def build(
        self, ref: Ref, parent: str | None, operations: Sequence[Add | Delete], message: str, user: str
    ) -> tuple[ObjectID, ObjectID]:
        """The head of ``ref`` and a commit on it that no ref names yet; see :meth:`commit`."""
        head = self.git.refs[ref]
        if parent is not None and (len(parent) < 7 or not head.decode().startswith(parent)):
            raise Refusal(412, STALE_PARENT)
        files = self.files(head)
        for operation in operations:
            self._apply(files, operation)
        return head, self.write(files, [head], message, user)

    def write(self, files: Mapping[str, ObjectID], parents: list[ObjectID], message: str, user: str) -> ObjectID:
        """A commit of these files that no ref names yet."""
        _check_no_file_is_folder(files)
        tree = commit_tree(self.store, [(path.encode(), oid, FILE_MODE) for path, oid in files.items()])
        return _write_commit(self.git, tree, parents, message, user)

    def move(self, ref: Ref, old: ObjectID, new: ObjectID) -> None:
        """Move a ref; 412 if it is not where it was read."""
        if not self.git.refs.set_if_equals(ref, old, new):
            raise Refusal(412, STALE_PARENT)

    def _apply(self, files: Files, operation: Add | Delete) -> None:
        if isinstance(operation, Delete):
            path = operation.path.rstrip("/")
            gone = [p for p in files if (p.startswith(path + "/") if operation.folder else p == path)]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {operation.path:.1000}", "EntryNotFound")
            for name in gone:
                del files[name]
            return
        check_path(operation.path)
        blob = Blob.from_string(self._git_content(operation))
        self.store.add_object(blob)
        files[operation.path] = blob.id

    def _git_content(self, add: Add) -> bytes:
        content = add.content
        if content is None:
            stored = self.lfs_file(add.sha256)  # refuses a text that is no digest
            size = add.size
            if size is None and stored.is_file():  # a copy: the client does not repeat the size
                size = stored.stat().st_size
            content = b"%b\noid sha256:%b\nsize %d\n" % (_POINTER_VERSION, add.sha256.encode(), size or 0)
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


def _check_no_file_is_folder(files: Mapping[str, ObjectID]) -> None:
    for path in files:
        parts = path.split("/")
        for end in range(1, len(parts)):
            if (folder := "/".join(parts[:end])) in files:
                raise Refusal(400, f"{folder} cannot be both a file and a folder (of {path}).")


def _write_commit(git: Repo, tree: ObjectID, parents: list[ObjectID], message: str, user: str) -> ObjectID:
    commit = Commit()
    commit.tree = tree
    commit.parents = parents
    commit.author = commit.committer = f"{user} <{user}@localhost>".encode()
    commit.author_time = commit.commit_time = int(time.time())
    commit.author_timezone = commit.commit_timezone = 0
    commit.encoding = b"UTF-8"
    commit.message = message.replace("\0", "").encode()
    git.object_store.add_object(commit)
    return commit.id
