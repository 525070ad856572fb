"""A running loopback Hub with faults in front of it, and packages to publish there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from pipeline.localhub.server import LocalHub
from pipeline.publish import push, tree
from pipeline.publish.config import PublishConfig
from pipeline.publish.hub import Target
from pipeline.publish.schema import Receipt
from tests.publishing import CARD, REPO, build, make_inputs, own_signer, problems
from tests.publishing import CONFIG as PACKAGE

CONFIG = PublishConfig(repo=REPO, hub="local", visibility="private", tag="v1.0.0")
Send = Callable[[dict], Awaitable[None]]


@dataclass
class Fault:
    """What happens to the ``at``-th request whose method and path match ``pattern``; ``seen`` counts them."""

    pattern: str
    kind: str
    at: int = 1
    seen: int = 0
    action: Callable[[], object] | None = None


@dataclass
class Faulty:
    """A Hub's app with faults in front of it."""

    app: Callable
    faults: list[Fault] = field(default_factory=list)

    async def __call__(self, scope: dict, receive: Callable, send: Send) -> None:
        for fault in self.faults:
            if scope["type"] == "http" and re.fullmatch(fault.pattern, f"{scope['method']} {scope['path']}"):
                fault.seen += 1
                if fault.seen == fault.at or fault.kind == "corrupt":
                    await getattr(self, fault.kind)(fault, scope, receive, send)
                    return
        await self.app(scope, receive, send)

    async def before(self, _fault: Fault, _scope: dict, _receive: Callable, send: Send) -> None:
        await _answer(send, 500)

    async def after(self, _fault: Fault, scope: dict, receive: Callable, send: Send) -> None:
        await self.app(scope, receive, _swallow)
        await _answer(send, 500)

    async def drop(self, _fault: Fault, scope: dict, receive: Callable, send: Send) -> None:
        await self.app(scope, receive, _swallow)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        raise ConnectionError("the line is cut")

    async def drop_before(self, _fault: Fault, _scope: dict, _receive: Callable, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        raise ConnectionError("the line is cut")

    async def act(self, fault: Fault, scope: dict, receive: Callable, send: Send) -> None:
        """Something else happens first, from another thread, as another client would do it."""
        from starlette.concurrency import run_in_threadpool

        assert fault.action
        await run_in_threadpool(fault.action)
        await self.app(scope, receive, send)

    async def corrupt(self, _fault: Fault, scope: dict, receive: Callable, send: Send) -> None:
        async def flip(message: dict) -> None:
            if message.get("body"):
                message = {**message, "body": message["body"][:-1] + bytes([message["body"][-1] ^ 1])}
            await send(message)

        scope = {**scope, "extensions": {}}  # the file goes through the app, not past it
        await self.app(scope, receive, flip)


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _swallow(_message: dict) -> None:
    return None


@dataclass
class World:
    """A running Hub, its faults, and a client to look at it."""

    hub: LocalHub
    faulty: Faulty
    api: HfApi
    target: Target

    def publish(self, package: Path, **changes: object) -> Receipt:
        return push.publish(CONFIG.model_copy(update=changes), package / "hub", self.target, own_signer(), problems)

    def head(self, revision: str = "main") -> str:
        return str(self.api.repo_info(REPO, revision=revision).sha)

    def files(self, revision: str = "main") -> dict[str, str]:
        listed = self.api.list_repo_tree(REPO, revision=revision, recursive=True)
        found = {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in listed if hasattr(f, "blob_id")}
        found.pop(".gitattributes")
        return found

    def holds(self, package: Path, revision: str = "main") -> bool:
        remote = self.files(revision)
        local = tree.read_tree(package / "hub")
        return remote == {n: d.sha256 if len(remote.get(n, "")) == 64 else d.git for n, d in local.items()}

    def branches(self) -> list[str]:
        return [b.name for b in self.api.list_repo_refs(REPO).branches]

    def tags(self) -> dict[str, str]:
        return {t.name: t.target_commit for t in self.api.list_repo_refs(REPO).tags}


@contextmanager
def running(store: Path) -> Iterator[World]:
    """The Hub in a store, while it answers."""
    hub = LocalHub(store / "hub")
    hub.app = faulty = Faulty(hub.app)
    with hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        yield World(hub, faulty, api, Target(hub.endpoint, hub.token))


def next_release(inputs: dict[str, Path], tmp_path: Path, name: str = "next", tag: str = "v1.1.0") -> Path:
    """The package of a release with another card and one file less."""
    (inputs["card"] / "README.md").write_text(CARD + f"\n{name}\n")
    (inputs["card"] / "plots" / "metrics.png").unlink(missing_ok=True)
    (inputs["card"] / "plots" / f"{name}.png").write_bytes(b"\x89PNG\0")
    return build(inputs, tmp_path / name, PACKAGE.model_copy(update={"tag": tag}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A store with its key, the inputs of a package, and the package, which no test changes."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_RELEASE_STORE", str(folder / "store"))
        build(make_inputs(folder / "inputs", tiny_model), folder / "package")
    return folder


@pytest.fixture(autouse=True)
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that store; a verification generates nothing, which it takes long to do."""
    shutil.copytree(made / "store", tmp_path / "store")
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("pipeline.publish.verify._generation", lambda _folder: "tested elsewhere")
    return tmp_path / "store"


@pytest.fixture
def inputs(tmp_path: Path, tiny_model: Path) -> dict[str, Path]:
    """The inputs of a package, for tests that change them."""
    return make_inputs(tmp_path / "inputs", tiny_model)


@pytest.fixture
def package(made: Path) -> Path:
    """The package that no test changes."""
    return made / "package"


@pytest.fixture
def world(store: Path) -> Iterator[World]:
    """The Hub of ``store``, of which a file may have its own."""
    with running(store) as world:
        yield world
