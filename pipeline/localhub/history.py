"""What rewrites or joins histories: squash a branch, remove large files from all commits, merge a pull request.

Every function of a repository is called under its lock, apart from those that only read.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping

from dulwich.gc import prune_unreachable_objects
from dulwich.graph import find_merge_base
from dulwich.objects import Commit, ObjectID
from dulwich.refs import Ref

from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import Files, Repository

MAX_DIFFED_BYTES = 100_000  # of one file; comparing lines takes time in the square of their number


def squash(repository: Repository, branch: str, message: str, user: str) -> None:
    """Replace the history of a branch by one commit with the same files. What no ref holds any more is removed."""
    ref = repository.branch(branch)
    head = repository.git.refs[ref]
    repository.move(ref, head, repository.write(repository.files(head), [], message, user))
    _prune(repository)


def remove_large_files(repository: Repository, digests: Collection[str], *, rewrite: bool) -> None:
    """Remove large files for good. With ``rewrite`` no commit of any ref names them afterwards.

    The refs move first, one by one, and the bytes go last: if this is cut off, it can be done again.
    """
    if rewrite:
        rewritten: dict[ObjectID, ObjectID] = {}
        for ref in (ref for ref in repository.git.refs.allkeys() if ref.startswith(b"refs/")):
            old = repository.git.refs[ref]
            for commit in _oldest_first(repository, old):
                rewritten[commit.id] = _without(repository, commit, digests, rewritten)
            repository.move(ref, old, rewritten[old])
        _prune(repository)
    for digest in digests:
        repository.lfs_file(digest).unlink(missing_ok=True)


def _oldest_first(repository: Repository, head: ObjectID) -> Iterator[Commit]:
    for entry in repository.git.get_walker(include=[head], order="topo", reverse=True):
        yield entry.commit


def _without(
    repository: Repository, commit: Commit, digests: Collection[str], rewritten: Mapping[ObjectID, ObjectID]
) -> ObjectID:
    """A commit as it would be if it had never held the large files; itself if it does not change."""
    files = repository.files(commit.id)
    kept = {path: oid for path, oid in files.items() if repository.entry(path, oid).sha256 not in digests}
    parents = [rewritten[parent] for parent in commit.parents]
    if kept == files and parents == commit.parents:
        return commit.id
    copy = Commit.from_string(commit.as_raw_string())
    copy.parents = parents
    copy.tree = repository.commit_object(repository.write(kept, [], "", "local")).tree
    repository.store.add_object(copy)
    return ObjectID(copy.id)


def _prune(repository: Repository) -> None:
    prune_unreachable_objects(repository.store, repository.git.refs)


def merged_files(repository: Repository, ours: ObjectID, theirs: ObjectID) -> tuple[Files, list[str]]:
    """Our files with what ``theirs`` changed since both parted, and the paths that both changed differently."""
    base = _common(repository, ours, theirs)
    files = repository.files(ours)
    conflicts = []
    for path, (before, after) in changed(base, repository.files(theirs)).items():
        if files.get(path) not in (before, after):
            conflicts.append(path)
        elif after is None:
            files.pop(path, None)
        else:
            files[path] = after
    return files, conflicts


def _common(repository: Repository, ours: ObjectID, theirs: ObjectID) -> Files:
    found = find_merge_base(repository.git, [ours, theirs])
    return repository.files(found[0]) if found else {}


def changed(before: Files, after: Files) -> dict[str, tuple[ObjectID | None, ObjectID | None]]:
    """Old and new blob of each path that differs, sorted."""
    paths = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return {path: (before.get(path), after.get(path)) for path in paths}


def diff(repository: Repository, ours: ObjectID, theirs: ObjectID) -> str:
    """The changes of ``theirs`` since both parted, as git writes them; of large and binary files only the names."""
    parts = []
    for path, (old, new) in changed(_common(repository, ours, theirs), repository.files(theirs)).items():
        parts.append(f"diff --git a/{path} b/{path}\n")
        before, after = _lines(repository, old), _lines(repository, new)
        if before is None or after is None:
            parts.append(f"Binary files a/{path} and b/{path} differ\n")
            continue
        names = (f"a/{path}" if old else "/dev/null", f"b/{path}" if new else "/dev/null")
        parts += [line if line.endswith("\n") else line + "\n" for line in difflib.unified_diff(before, after, *names)]
    return "".join(parts)


def _lines(repository: Repository, oid: ObjectID | None) -> list[str] | None:
    content = repository.read_blob(oid.decode()) if oid else b""
    if len(content) > MAX_DIFFED_BYTES or b"\0" in content:
        return None
    return content.decode(errors="replace").splitlines(keepends=True)


def merge(repository: Repository, base: Ref, theirs: ObjectID, message: str, user: str) -> tuple[ObjectID, ObjectID]:
    """The head of ``base`` and one commit on it that has the changes of ``theirs``; 409 if they contradict."""
    head = repository.git.refs[base]
    files, conflicts = merged_files(repository, head, theirs)
    if conflicts:
        raise Refusal(409, f"This pull request has conflicts: {', '.join(conflicts):.1000}")
    return head, repository.write(files, [head], message, user)


def last_commits(repository: Repository, head: ObjectID) -> dict[str, Commit]:
    """The commit that last changed each file and folder of ``head``."""
    found: dict[str, Commit] = {}
    wanted = repository.files(head)
    later, files = None, wanted
    for commit in repository.history(head):
        if later is not None:
            older = repository.files(commit.id)
            _note(found, later, (path for path in wanted if files.get(path) != older.get(path)))
            files = older
        later = commit
    if later is not None:
        _note(found, later, wanted)
    return found


def _note(found: dict[str, Commit], commit: Commit, paths: Iterable[str]) -> None:
    for path in paths:
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            found.setdefault("/".join(parts[:end]), commit)
