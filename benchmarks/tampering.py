"""Random changes of a published release, each of which `verify` must notice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dulwich.index import commit_tree
from dulwich.objects import Blob, Commit, ObjectID
from dulwich.refs import Ref

from benchmarks.publications import two_packages
from core.errors import HubError, VerificationError
from pipeline.localhub.repository import GITATTRIBUTES_FILE, LFS_SUFFIXES, MAIN, Repository
from pipeline.localhub.server import LocalHub
from pipeline.publish import push, tree, verify
from pipeline.publish.config import PublishConfig
from pipeline.publish.hub import Target
from pipeline.recheck import problems
from tests.publishing import REPO, own_signer

OLD_TAG, NEW_TAG, COPY = "v1.0.0", "v1.1.0", "demo/copy"
FILE, LINK, PROGRAM = 0o100644, 0o120000, 0o100755
NAMES = (
    "plots/more.png",
    "model-00002-of-00002.safetensors",
    "training_args.bin",
    "evil.py",
    "a/b/c.json",
    "README.MD",
)


@dataclass
class Tree:
    """A release's files, and the mode of those that are no plain files."""

    files: dict[str, bytes]
    modes: dict[str, int]


Change = Callable[["Tree", "Released", random.Random], None]


class Released:
    """A published release with an older one, and its repository on the Hub's disk."""

    def __init__(self, folder: Path) -> None:
        os.environ["UNLEARN_RELEASE_STORE"] = str(folder / "store")
        packages = two_packages(folder)
        self.hub, self.signer = LocalHub(folder / "store" / "hub"), own_signer()
        self.target = Target(self.hub.endpoint, self.hub.token)
        with self.hub:
            for package, tag in zip(packages, (OLD_TAG, NEW_TAG), strict=True):
                config = PublishConfig(repo=REPO, hub="local", tag=tag, visibility="private")
                push.publish(config, package, self.target, self.signer, problems)
        self.path = folder / "store" / "hub" / "models" / f"{REPO}.git"
        shutil.copytree(self.path, self.path.parent / f"{COPY.split('/')[1]}.git")
        self.old, self.new = (
            {name: (package / name).read_bytes() for name in tree.read_tree(package)} for package in packages
        )
        self.hub = LocalHub(folder / "store" / "hub")
        self.target = Target(self.hub.endpoint, self.hub.token)

    @contextmanager
    def holding(self, changed: Tree) -> Iterator[str]:
        """A commit with these files, at which main and the new tag are meanwhile."""
        with closing(Repository(self.path)) as repository:
            blobs = [(name.encode(), self._blob(repository, name, data)) for name, data in changed.files.items()]
            modes = [(name, oid, changed.modes.get(name.decode(), FILE)) for name, oid in blobs]
            before = repository.commit_object(repository.resolve("main"))
            commit = Commit()
            commit.tree = commit_tree(repository.store, modes)
            commit.parents = before.parents
            for field in ("author", "committer", "author_time", "commit_time", "author_timezone", "commit_timezone"):
                setattr(commit, field, getattr(before, field))
            commit.message = before.message
            repository.store.add_object(commit)
            with self.at(repository, {"refs/heads/main": commit.id, f"refs/tags/{NEW_TAG}": commit.id}):
                yield commit.id.decode()

    @staticmethod
    @contextmanager
    def at(repository: Repository, refs: dict[str, ObjectID]) -> Iterator[None]:
        """Refs that are somewhere else."""
        before = {name: repository.git.refs[Ref(name.encode())] for name in refs}
        try:
            for name, sha in refs.items():
                repository.git.refs[Ref(name.encode())] = sha
            yield
        finally:
            for name, sha in before.items():
                repository.git.refs[Ref(name.encode())] = sha

    def _blob(self, repository: Repository, name: str, data: bytes) -> ObjectID:
        if name.endswith(LFS_SUFFIXES):
            sha256 = hashlib.sha256(data).hexdigest()
            file = repository.lfs_file(sha256)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        blob = Blob.from_string(data)
        repository.store.add_object(blob)
        return blob.id

    def verify(self, revision: str, repo: str = REPO) -> str:
        """What `verify` says against a revision; empty if nothing."""
        try:
            verify.verify_release(repo, revision, self.target, [self.signer], problems)
        except (VerificationError, HubError) as error:
            return str(error)
        return ""


# -- changes of the files


def _bytes(changed: Tree, _: Released, draw: random.Random) -> None:
    """Some bytes of a file of any kind: other, more or fewer."""
    name = draw.choice(list(changed.files))
    data = bytearray(changed.files[name])
    place = draw.randrange(len(data) + 1)
    few = draw.randbytes(draw.choice((1, 1, 3, 100)))
    how = draw.choice(("flip", "overwrite", "insert", "remove", "cut", "append"))
    if how == "flip" and place < len(data):
        data[place] ^= 1 << draw.randrange(8)
    elif how == "overwrite":
        data[place : place + len(few)] = few
    elif how == "insert":
        data[place:place] = few
    elif how == "remove":
        del data[place : place + len(few)]
    elif how == "cut":
        del data[place:]
    else:
        data += few
    changed.files[name] = bytes(data)


def _added(changed: Tree, _: Released, draw: random.Random) -> None:
    changed.files[draw.choice(NAMES)] = draw.choice((b"", b"{}", draw.randbytes(50)))


def _removed(changed: Tree, _: Released, draw: random.Random) -> None:
    for name in draw.sample(list(changed.files), draw.choice((1, 1, 2, 5))):
        del changed.files[name]


def _renamed(changed: Tree, _: Released, draw: random.Random) -> None:
    name = draw.choice(list(changed.files))
    new = draw.choice((name.upper(), f"plots/{name}", f"{name}.bak", f"plots/{draw.randrange(9)}.png"))
    changed.files[new] = changed.files.pop(name)


def _exchanged(changed: Tree, _: Released, draw: random.Random) -> None:
    """Two files have each other's content."""
    one, other = draw.sample(list(changed.files), 2)
    changed.files[one], changed.files[other] = changed.files[other], changed.files[one]


def _of_older(changed: Tree, made: Released, draw: random.Random) -> None:
    """Some files are those of the older release, the signature not among them."""
    names = [name for name in made.old if name != tree.SIGNATURE]
    for name in draw.sample(names, draw.randint(1, len(names))):
        changed.files[name] = made.old[name]


def _replayed(changed: Tree, made: Released, draw: random.Random) -> None:
    """The older release's signature, alone, or with all or some of what it signs."""
    changed.files[tree.SIGNATURE] = made.old[tree.SIGNATURE]
    how = draw.choice(("alone", "some", "all"))
    if how == "some":
        _of_older(changed, made, draw)
    elif how == "all":
        attributes = changed.files[GITATTRIBUTES_FILE]
        changed.files = {**made.old, GITATTRIBUTES_FILE: attributes}


def _linked(changed: Tree, _: Released, draw: random.Random) -> None:
    """A file is a link: to a file with its own content, to another one, or out of the tree."""
    name = draw.choice(list(changed.files))
    how = draw.choice(("moved", "other", "out"))
    if how == "moved":
        changed.files["plots/target.png"] = changed.files[name]
    target = {"moved": "plots/target.png", "other": draw.choice(list(changed.files)), "out": "../" * 9 + "etc/passwd"}[
        how
    ]
    changed.files[name], changed.modes[name] = target.encode(), LINK


def _mode(changed: Tree, _: Released, draw: random.Random) -> None:
    """A file may be run; its bytes are the same."""
    changed.modes[draw.choice(list(changed.files))] = PROGRAM


def _json(changed: Tree, _: Released, draw: random.Random) -> None:
    """One number, text or truth value in the evidence is another."""
    name = draw.choice(("gate.json", "results.json", "release.json", "config.json", "bom.cdx.json", tree.SIGNATURE))
    value = json.loads(changed.files[name])
    at = value
    while isinstance(at, dict | list) and at:
        key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key]:
            at[key] = draw.choice((True, 0.5, "other", None, at[key]))
            break
        at = at[key]
    changed.files[name] = json.dumps(value).encode()


FILES: dict[str, Change] = {
    "bytes of a file": _bytes,
    "a value in a JSON file": _json,
    "file added": _added,
    "file removed": _removed,
    "file renamed": _renamed,
    "two files exchanged": _exchanged,
    "files of an older release": _of_older,
    "older signature replayed": _replayed,
    "file made a link": _linked,
    "file made executable": _mode,
}


# -- changes of refs, and of the Hub's disk


def _tag_moved(made: Released, draw: random.Random) -> tuple[str, str]:
    with closing(Repository(made.path)) as repository:
        commits = [commit.id for commit in repository.history(repository.resolve("main"))]
        tag, other = draw.choice(((NEW_TAG, 1), (NEW_TAG, 2), (OLD_TAG, 0), (OLD_TAG, 2)))
        with made.at(repository, {f"refs/tags/{tag}": commits[other]}):
            return tag, made.verify(tag)


def _main_set_back(made: Released, draw: random.Random) -> tuple[str, str]:
    with closing(Repository(made.path)) as repository:
        commits = [commit.id for commit in repository.history(repository.resolve("main"))]
        with made.at(repository, {MAIN.decode(): commits[draw.choice((1, 2))]}):
            return "main", made.verify("main")


def _copied(made: Released, draw: random.Random) -> tuple[str, str]:
    revision = draw.choice(("main", NEW_TAG, OLD_TAG))
    return revision, made.verify(revision, COPY)


def _on_disk(made: Released, draw: random.Random) -> tuple[str, str]:
    """A bit of what the Hub holds of this release flips on its disk, under an id that says otherwise."""
    with closing(Repository(made.path)) as repository:
        entries = list(repository.entries(repository.resolve("main")).values())
        places = [
            repository.lfs_file(entry.sha256) if entry.sha256 else made.path / "objects" / entry.oid[:2] / entry.oid[2:]
            for entry in entries
        ]
    place = draw.choice(places)
    before = place.read_bytes()
    data = bytearray(before)
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    place.chmod(0o600)
    try:
        place.write_bytes(data)
        return str(place), made.verify(NEW_TAG)
    finally:
        place.write_bytes(before)


PLACES: dict[str, Callable[[Released, random.Random], tuple[str, str]]] = {
    "tag moved": _tag_moved,
    "main set back": _main_set_back,
    "copied to another name": _copied,
    "bit on the Hub's disk": _on_disk,
}
OFTEN = {"bytes of a file": 6, "a value in a JSON file": 2, "files of an older release": 2, "bit on the Hub's disk": 2}


def tampered(made: Released, seed: int) -> tuple[str, str, str]:
    """Kind of change, ``caught``, ``no change`` or ``missed``, and what `verify` said or where it was silent."""
    draw = random.Random(seed)
    kinds = [kind for kind in (*FILES, *PLACES) for _ in range(OFTEN.get(kind, 1))]
    kind = kinds[seed % len(kinds)]
    if kind in PLACES:
        where, said = PLACES[kind](made, draw)
        return kind, "caught" if said else "missed", said or where
    with closing(Repository(made.path)) as repository:
        attributes = repository.read_blob(repository.files(repository.resolve("main"))[GITATTRIBUTES_FILE].decode())
    original = {**made.new, GITATTRIBUTES_FILE: attributes}
    changed = Tree(dict(original), {})
    FILES[kind](changed, made, draw)
    with made.holding(changed) as commit:
        revision = draw.choice(("main", NEW_TAG, commit))
        said = made.verify(revision)
    if said:
        return kind, "caught", said
    different = {n for n in original.keys() | changed.files.keys() if original.get(n) != changed.files.get(n)}
    # A signature that is valid for the very files is none that was tampered with; .gitattributes is not signed. And a
    # commit's id says nothing of a version: the whole older release is that release there, and verify says which.
    same = different <= {tree.SIGNATURE, GITATTRIBUTES_FILE} and LINK not in changed.modes.values()
    same |= revision == commit and {**changed.files, GITATTRIBUTES_FILE: b""} == {**made.old, GITATTRIBUTES_FILE: b""}
    return kind, "no change" if same else "missed", ", ".join(sorted(different))


def tampering(folder: Path, seeds: Sequence[int]) -> int:
    """Print a line for each kind of change; how many were missed."""
    made = Released(folder)
    counts: Counter[tuple[str, str]] = Counter()
    really = time.sleep
    time.sleep = lambda seconds: really(min(seconds, 0.02))  # the client waits before it asks again
    verify._generation = lambda _folder: "not loaded"  # it comes after all other checks, and takes long
    logging.disable()  # the Hub's tracebacks, of damaged repositories
    with made.hub:
        assert not made.verify("main"), made.verify("main")
        with suppress(KeyboardInterrupt):  # the table then has what was tried until then
            for seed in seeds:
                kind, found, said = tampered(made, seed)
                counts[kind, found] += 1
                if found != "caught":
                    print(f"seed {seed}: {kind}: {found}: {said}", file=sys.stderr, flush=True)
        assert not made.verify("main"), made.verify("main")
    print("| change | tried | caught | no change | missed |\n|---|--:|--:|--:|--:|")
    for kind in (*FILES, *PLACES):
        found = [counts[kind, what] for what in ("caught", "no change", "missed")]
        print(f"| {kind} | {sum(found)} | {' | '.join(map(str, found))} |")
    return sum(count for (_, what), count in counts.items() if what == "missed")
