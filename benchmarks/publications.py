"""One publication with a fault in it, and the next run without: what has to hold after each.

Client and Hub are processes of their own, with the store, the package and the protocol of a release. Two things are
not as in a release: the client's waiting between attempts is cut to a fiftieth of a second, and its download is not
loaded with transformers, which asks the Hub for nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import re
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path

from dulwich import porcelain

from benchmarks.faulty_hub import Event, Fault, serve
from core.errors import ReleaseError
from pipeline.engine.machine import disk_limits
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import GITATTRIBUTES_FILE, Repository
from pipeline.publish import push, tree, verify
from pipeline.publish.config import PublishConfig
from pipeline.publish.hub import Target
from pipeline.publish.sign import public_key
from pipeline.publish.trust import Signer
from pipeline.recheck import problems
from tests.conftest import build_tiny_model
from tests.publishing import CONFIG, REPO, build, make_inputs, write_card

PATIENCE = 60.0  # seconds that a publication may take
QUICK = 0.02  # seconds of waiting between attempts
IMPATIENT, PATIENT = 1.5, 30.0  # seconds that a client waits for an answer, with and without a fault
OLD_TAG, NEW_TAG = "v1.0.0", "v1.1.0"
LOADED = (  # what takes a process long to import
    *("benchmarks.publications", "model_signing.verifying", "model_signing.hashing", "scipy.stats", "_strptime"),
    *("huggingface_hub.hf_api", "huggingface_hub.repocard", "huggingface_hub._snapshot_download"),
)
_PROCESSES = multiprocessing.get_context("forkserver")


def prepare_processes(home: Path) -> None:
    """Let processes begin with what they need, and with an empty home; before any of them starts."""
    os.environ |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    os.environ |= {"HF_HUB_DOWNLOAD_TIMEOUT": "2", "HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DISABLE_XET": "1"}
    _PROCESSES.set_forkserver_preload(list(LOADED))


@dataclass(frozen=True, eq=False)
class World:
    """A store as it is before a publication, and what is published then."""

    name: str
    store: Path
    package: Path
    config: PublishConfig

    @property
    def is_first(self) -> bool:
        """Whether there is no release yet."""
        return self.config.tag == OLD_TAG


@dataclass
class State:
    """The repository on the Hub's disk. ``trees`` has the content of each ref: path to sha256 of the file's bytes.

    ``history`` has id and title of each commit of main, newest first.
    """

    is_public: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    history: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@dataclass
class Run:
    """How a publication ended: ``end`` is finished, refused, killed or broken, and ``said`` the error."""

    end: str
    said: str
    events: list[Event]
    state: State


@dataclass
class Outcome:
    """A publication with a fault, the next one, and what did not hold."""

    first: Run
    second: Run
    wrong: list[str]


def two_packages(folder: Path) -> list[Path]:
    """The trees of a release and of the next one, with another card and another plot, as `recheck` wants them."""
    inputs = make_inputs(folder / "inputs", build_tiny_model(folder / "model", hidden=16, layers=1, vocab=300))
    plots, packages = inputs["card"] / "plots", []
    for tag, plot in ((OLD_TAG, "metrics.png"), (NEW_TAG, "next.png")):
        shutil.rmtree(plots)
        plots.mkdir()
        (plots / plot).write_bytes(b"\x89PNG" + tag.encode())
        (folder / tag).mkdir()
        write_card(inputs, folder / tag, tag)
        packages.append(build(inputs, folder / f"package-{tag}", CONFIG.model_copy(update={"tag": tag})) / "hub")
    return packages


def make_worlds(folder: Path) -> list[World]:
    """A first release, which becomes public, and the second one of a private repository."""
    os.environ["UNLEARN_RELEASE_STORE"] = str(folder / "first")
    package, following = two_packages(folder)
    made = {"repo": REPO, "hub": "local"}
    worlds = [
        World("first", folder / "first", package, PublishConfig(**made, tag=OLD_TAG, visibility="public")),
        World("second", folder / "second", following, PublishConfig(**made, tag=NEW_TAG, visibility="private")),
    ]
    shutil.copytree(folder / "first", folder / "second")
    before = worlds[0].config.model_copy(update={"visibility": "private"})
    run = publication(World("before", folder / "second", package, before), folder / "second", None)
    assert run.end == "finished", run.said
    return worlds


def with_fault(world: World, fault: Fault, scratch: Path) -> Outcome:
    """Publish with a fault, look, publish without, and look again."""
    store = scratch / "store"
    shutil.copytree(world.store, store)
    first = publication(world, store, fault)
    second = publication(world, store, None)
    wrong = [f"after the fault: {what}" for what in _broken(world, fault, first)]
    wrong += [f"after the next run: {what}" for what in _unfinished(world, fault, second)]
    shutil.rmtree(scratch)
    return Outcome(first, second, wrong)


def requests(world: World, scratch: Path) -> list[str]:
    """Every request of a publication without faults, in order."""
    shutil.copytree(world.store, scratch / "store")
    run = publication(world, scratch / "store", None)
    assert run.end == "finished", run.said
    shutil.rmtree(scratch)
    return [event.request for event in run.events]


# -- one run


class _Hub:
    """The Hub's process."""

    def __init__(self, folder: Path, fault: Fault | None, port: int = 0) -> None:
        self.pipe, theirs = _PROCESSES.Pipe()
        self.process = _PROCESSES.Process(target=serve, args=(folder, port, REPO, fault, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.endpoint, self.token = self.pipe.recv()

    def events(self) -> Iterator[Event]:
        """What was told since the last time."""
        with suppress(EOFError, OSError):
            while self.pipe.poll():
                yield self.pipe.recv()

    def end(self) -> None:
        self.pipe.close()
        self.process.join(PATIENCE)


def publication(world: World, store: Path, fault: Fault | None) -> Run:
    """Publish once."""
    hub = _Hub(store / "hub", fault)
    ours, theirs = _PROCESSES.Pipe(duplex=False)
    scratch = store.parent / f"scratch-{time.monotonic_ns()}"
    scratch.mkdir()
    target = Target(hub.endpoint, hub.token)
    arguments = (world.config, world.package, target, store, scratch, IMPATIENT if fault else PATIENT, theirs)
    client = _PROCESSES.Process(target=_client, args=arguments, daemon=True)
    client.start()
    theirs.close()
    hub.pipe.send(client.pid)
    events: list[Event] = []
    deadline = time.monotonic() + PATIENCE
    while client.is_alive() and time.monotonic() < deadline:
        alive = [hub.pipe] if hub.process.is_alive() else []
        wait([client.sentinel, *alive], 1.0)
        events += hub.events()
        if not hub.process.is_alive() and fault is not None and fault.kind == "kill_hub":
            with suppress(OSError):
                events += hub.events()
                hub.end()
            if not fault.lasting:  # somebody starts it again, at its old address
                hub = _Hub(store / "hub", None, int(target.endpoint.rsplit(":", 1)[1]))
            fault = None
    ended = not client.is_alive()
    client.kill()
    client.join()
    end, said = ("killed", "") if ended else ("broken", f"it hung for {PATIENCE:.0f} seconds")
    with suppress(EOFError):
        end, said = ours.recv() if ended else (end, said)
    with suppress(OSError):
        events += hub.events()
        hub.end()
    shutil.rmtree(scratch, ignore_errors=True)
    return Run(end, said, events, _state(store))


def _client(
    config: PublishConfig, package: Path, target: Target, store: Path, scratch: Path, patience: float, pipe: Connection
) -> None:
    """The client's process: publish, and say how it ended."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import httpx

    os.environ["UNLEARN_RELEASE_STORE"] = str(store)
    really = time.sleep
    time.sleep = lambda seconds: really(min(seconds, QUICK))  # type: ignore[assignment]
    verify._generation = lambda _folder: "not loaded"
    set_client_factory(lambda: httpx.Client(timeout=patience, follow_redirects=True))
    try:
        with disk_limits(store, "publish"):  # as the engine runs the stage
            signer = Signer(key=str(public_key()))
            receipt = push.publish(config, package, target, signer, problems, scratch)
        pipe.send(("finished", receipt.commit))
    except ReleaseError as error:
        pipe.send(("refused", str(error)))
    except BaseException:
        pipe.send(("broken", traceback.format_exc()))


# -- what has to hold


@cache
def _content(package: Path) -> dict[str, str]:
    return {name: digest.sha256 for name, digest in tree.read_tree(package).items()}


def _state(store: Path) -> State:
    """The repository as it lies on the disk, every byte of it read."""
    path = store / "hub" / "models" / f"{REPO}.git"
    try:
        repository = Repository(path)
    except Refusal:
        return State()
    with closing(repository):
        state = State(not repository.settings.is_private)
        for kind in ("heads", "tags"):
            state.refs |= {f"{kind}/{name}": sha for name, sha in repository.refs(kind).items()}  # type: ignore[arg-type]
        try:
            state.damaged += [str(error) for _, error in porcelain.fsck(str(path))]
            for ref, sha in state.refs.items():
                state.trees[ref] = _read(repository, sha, state.damaged)
            for commit in repository.history(repository.resolve("main")):
                state.history.append((commit.id.decode(), commit.message.decode().split("\n")[0]))
        except Exception as error:  # what a damaged object raises is dulwich's choice
            state.damaged.append(repr(error))
    return state


def _read(repository: Repository, sha: str, damaged: list[str]) -> dict[str, str]:
    found = {}
    for name, entry in repository.entries(repository.resolve(sha)).items():
        if entry.sha256:
            file = repository.lfs_file(entry.sha256)
            content = file.read_bytes() if file.is_file() else b""
            if hashlib.sha256(content).hexdigest() != entry.sha256:
                damaged.append(name)
            found[name] = entry.sha256
        elif name != GITATTRIBUTES_FILE:
            found[name] = hashlib.sha256(repository.read_blob(entry.oid)).hexdigest()
    return found


def _holds(state: State, ref: str, world: World) -> str:
    """What a ref holds: new, old, nothing, or the names of what is strange."""
    content = {name: digest for name, digest in state.trees.get(ref, {}).items() if name != "theirs.txt"}
    old = {} if world.is_first else _content(world.package.parents[1] / f"package-{OLD_TAG}" / "hub")
    if content == _content(world.package):
        return "new"
    return "old" if content == old else tree.differences(_content(world.package), content)


def _broken(world: World, fault: Fault | None, run: Run) -> Iterator[str]:
    """What must hold after any run."""
    state, kind = run.state, fault.kind if fault else ""
    if run.end == "broken" or (run.end == "killed" and kind != "kill_client"):
        yield f"the client ended with {run.said or 'no word'}"
    if state.damaged and kind != "damage":
        yield f"damaged on the Hub: {state.damaged}"
    if kind == "damage" and state.damaged:
        return  # what is there cannot be read
    if not state.refs:
        if not world.is_first and kind != "delete":
            yield "the repository is gone"
        return
    if (main := _holds(state, "heads/main", world)) not in ("old", "new"):
        yield f"main is neither the old release nor the new one: {main}"
    tag = f"tags/{world.config.tag}"
    if tag in state.refs and _holds(state, tag, world) != "new":
        yield "the tag is not at the new release"
    if not world.is_first and kind != "delete" and _holds(state, f"tags/{OLD_TAG}", world) != "old":
        yield "the old tag is not at the old release"
    if state.is_public and kind != "show" and not (main == "new" and tag in state.refs):
        yield "it is public without the complete release"
    landed = [sha for sha, title in state.history if title == f"Release {world.config.tag}"]
    if len(landed) > 1:
        yield f"the release was committed {len(landed)} times"
    yield from _unverified(world, run, landed)
    yield from _shown(world, run)
    if run.end == "finished":
        yield from _incomplete(world, run)


def _incomplete(world: World, run: Run) -> Iterator[str]:
    state, wanted = run.state, world.config.visibility
    if _holds(state, "heads/main", world) != "new" or f"tags/{world.config.tag}" not in state.refs:
        yield "it said that it finished, and did not"
    if strange := [ref for ref in state.refs if ref.startswith("heads/") and ref != "heads/main"]:
        yield f"it finished, and left {strange}"
    # What becomes public after the last look cannot be seen: the next run refuses it.
    if state.is_public != (wanted == "public") and (wanted == "public" or any(_seen_public(run.events))):
        yield f"it finished, and the repository is not {wanted}"


def _unverified(world: World, run: Run, landed: list[str]) -> Iterator[str]:
    """Whether main moved to the release before all of the staged commit was downloaded."""
    fetched: set[str] = set()
    if run.events and run.events[0].refs.get("heads/main") in landed:
        return  # by an earlier run
    for event in run.events:
        if match := re.fullmatch(rf"GET /{REPO}/resolve/[0-9a-f]{{40}}/(.+)", event.request):
            fetched.add(match[1])
        if event.refs.get("heads/main") in landed:
            if missing := _content(world.package).keys() - fetched:
                yield f"main moved before these were downloaded: {sorted(missing)}"
            return


def _shown(world: World, run: Run) -> Iterator[str]:
    """Whether the client went on after it could see that the repository had become public, against the recipe."""
    if world.config.visibility == "public":
        return
    could_see = False
    for event, seen in zip(run.events[1:], _seen_public(run.events), strict=True):
        if could_see and re.search(r"(POST .*/commit/(main|staging)|PUT .*/upload/)", event.request):
            yield f"it went on in a repository that had become public: {event.request}"
        could_see |= seen


def _seen_public(events: Sequence[Event]) -> list[bool]:
    """Of each request but the first, whether its answer said that the repository is public."""
    look = f"GET /api/models/{REPO}"
    return [before.is_public and event.request == look for before, event in itertools.pairwise(events)]


def _unfinished(world: World, fault: Fault, run: Run) -> Iterator[str]:
    """What must hold after the next run: it finished, or said what a person must decide."""
    yield from _broken(world, fault if fault.kind in ("damage", "commit", "show", "delete") else None, run)
    if run.end == "finished":
        return
    decisions = {
        "damage": r"different: .+|damaged",
        "commit": r"somebody else committed to main",
        "show": r"is public, and publish\.visibility is private",
    }
    if fault.kind not in decisions or not re.search(decisions[fault.kind], run.said):
        yield f"it {run.end}: {run.said}"
    strange = [ref for ref in run.state.refs if ref.startswith("heads/staging-")]
    if strange and fault.kind != "damage":
        yield f"it left {strange}"
