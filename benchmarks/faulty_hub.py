"""The loopback Hub in a process of its own, with a fault in front of it, telling what it is asked and how it stands."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi

from pipeline.localhub import connections
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import Repository
from pipeline.localhub.server import HOST, LocalHub

Send = Callable[[dict], Awaitable[None]]
Receive = Callable[[], Awaitable[dict]]
FULL = 1 << 14  # bytes of the largest file that a full disk still takes, at most


@dataclass(frozen=True)
class Fault:
    """From the ``at``-th request that matches ``request`` on, ``kind`` (a method of :class:`Front`) happens.

    It happens once, or to every later request too if ``lasting``; ``acts`` says whether the Hub does first what it was
    asked. ``seed`` draws bytes and instants. ``status`` and ``wait`` (seconds) are for the kinds that answer or wait.
    """

    kind: str
    request: str
    at: int
    seed: int
    acts: bool = False
    lasting: bool = False
    status: int = 500
    retry_after: bool = False
    wait: float = 0.0


@dataclass(frozen=True)
class Event:
    """A request that ended, and the repository afterwards: whether anybody may read it, and the commit of each ref."""

    request: str
    is_public: bool
    refs: dict[str, str]


def serve(folder: Path, port: int, repo: str, fault: Fault | None, pipe: Connection) -> None:
    """Run the Hub until ``pipe`` is closed at its other end, and send its address and token, and each event."""
    hub = LocalHub(folder, port)
    hub.app = front = Front(hub, repo, fault, pipe)
    with hub:
        pipe.send((hub.endpoint, hub.token))
        with suppress(EOFError, OSError):
            while True:
                front.client = pipe.recv()
        os._exit(0)  # nobody waits for connections to end


class Front:
    """What stands between the Hub and its sockets."""

    def __init__(self, hub: LocalHub, repo: str, fault: Fault | None, pipe: Connection) -> None:
        self._hub, self._app, self._repo, self._fault, self._pipe = hub, hub.app, repo, fault, pipe
        self._draw = random.Random(fault.seed if fault else 0)
        self._seen = 0
        self._is_sick = self._had_its_turn = False
        self.client = 0  # its process

    async def __call__(self, scope: dict, receive: Receive, send: Send) -> None:
        """Answer, or do what the fault does."""
        if scope["type"] != "http":
            return
        request, fault = f"{scope['method']} {scope['path']}", self._fault
        if fault and re.fullmatch(fault.request, request):
            self._seen += 1
            self._is_sick |= self._seen == fault.at
        try:
            if fault and self._is_sick and (fault.lasting or not self._had_its_turn):
                self._had_its_turn = True
                await getattr(self, fault.kind)(fault, scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            if "told" not in scope:
                self._tell(request)

    def _tell(self, request: str) -> None:
        path, is_public, refs = self._hub.folder / "models" / f"{self._repo}.git", False, {}
        with suppress(Refusal, OSError), closing(Repository(path)) as repository:
            is_public = not repository.settings.is_private
            refs = {f"{kind}/{name}": sha for kind in ("heads", "tags") for name, sha in repository.refs(kind).items()}
        with suppress(OSError):
            self._pipe.send(Event(request, is_public, refs))

    # -- what the line does

    async def reset(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """The connection is reset, before the request was done or before its answer."""
        if fault.acts:
            await self._app(scope, receive, _swallow)
        _reset(send)

    async def refuse(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """Nobody listens after this answer, for some time or for good."""

        async def last(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        await self._app({**scope, "extensions": {}}, receive, last)
        running, port = self._hub._running, int(self._hub.endpoint.rsplit(":", 1)[1])
        for server in running.servers:
            server.close()
        for connection in list(running.server_state.connections):
            if connection.transport is not send.__self__.transport:  # type: ignore[attr-defined]
                connection.transport.abort()  # type: ignore[union-attr]
        if not fault.lasting:
            asyncio.get_running_loop().call_later(fault.wait, lambda: asyncio.ensure_future(self._listen(port)))

    async def _listen(self, port: int) -> None:
        running = self._hub._running
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))

        def connection() -> asyncio.Protocol:
            return connections.Connection(config=running.config, server_state=running.server_state, app_state={})

        running.servers = [await asyncio.get_running_loop().create_server(connection, sock=listener)]

    async def hold(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """No answer comes, for longer than the client waits."""
        if fault.acts:
            await self._app(scope, receive, _swallow)
        await asyncio.sleep(fault.wait)
        _reset(send)

    async def slow(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """The bodies of request and answer come in a few pieces, with a wait before each."""

        async def slowly(message: dict) -> None:
            body, start = message.get("body", b""), 0
            if body:
                message = {**message, "more_body": True}
                for end in sorted(self._draw.randrange(len(body)) for _ in range(3)):
                    await send({**message, "body": body[start:end]})
                    await asyncio.sleep(fault.wait)
                    start = end
            await send({**message, "body": body[start:], "more_body": False} if body else message)

        async def late() -> dict:
            await asyncio.sleep(fault.wait)
            return await receive()

        await self._app({**scope, "extensions": {}}, late, slowly)

    async def cut_body(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """Some of the request's body comes. Then the line breaks; or, if the Hub acts, it takes that for the whole."""
        left = self._draw.randrange(int(dict(scope["headers"]).get(b"content-length", b"0")) or 1)
        over = False

        async def partly() -> dict:
            nonlocal left, over
            if over:
                return {"type": "http.disconnect"}
            message = await receive()
            body = message.get("body", b"")[:left]
            over, left = len(body) == left or not message.get("more_body"), left - len(body)
            if over and not fault.acts:
                return {"type": "http.disconnect"}
            return {**message, "body": body, "more_body": not over}

        await self._app(scope, partly, send if fault.acts else _swallow)
        if not fault.acts:
            _reset(send)

    async def cut_answer(self, _fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """The line breaks within the answer's body."""

        async def partly(message: dict) -> None:
            if body := message.get("body"):
                await send({**message, "body": body[: self._draw.randrange(len(body))], "more_body": True})
                _reset(send)
            elif message["type"] == "http.response.start":
                await send(message)

        await self._app({**scope, "extensions": {}}, receive, partly)
        _reset(send)

    # -- what the Hub answers

    async def answer(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """An error, whether the Hub acted or not."""
        if fault.acts:
            await self._app(scope, receive, _swallow)
        body = json.dumps({"error": "made for a test"}).encode()
        headers = [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
        if fault.retry_after:
            headers.append((b"retry-after", b"1"))
        await send({"type": "http.response.start", "status": fault.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def expire(self, _fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """The token is no longer good."""
        headers = [
            (name, b"Bearer hf_expired" if name == b"authorization" else value) for name, value in scope["headers"]
        ]
        await self._app({**scope, "headers": headers}, receive, send)

    # -- what others do

    async def commit(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """Somebody else commits to main first, or right after."""

        def theirs(api: HfApi) -> None:
            api.create_commit(self._repo, [CommitOperationAdd("theirs.txt", b"x")], commit_message="theirs")

        await self._meanwhile(theirs, fault, scope, receive, send)

    async def delete(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """The repository is deleted."""
        await self._meanwhile(lambda api: api.delete_repo(self._repo), fault, scope, receive, send)

    async def show(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """The repository is made public."""
        await self._meanwhile(
            lambda api: api.update_repo_settings(self._repo, private=False), fault, scope, receive, send
        )

    async def _meanwhile(
        self, action: Callable[[HfApi], Any], fault: Fault, scope: dict, receive: Receive, send: Send
    ) -> None:
        def act() -> None:
            with suppress(Exception):  # there may be no repository yet
                action(HfApi(endpoint=self._hub.endpoint, token=self._hub.token))
            self._tell("somebody else")

        if not fault.acts:
            await asyncio.to_thread(act)
            await self._app(scope, receive, send)
            return
        messages: list[dict] = []

        async def keep(message: dict) -> None:
            messages.append(message)

        await self._app({**scope, "extensions": {}}, receive, keep)
        self._tell(f"{scope['method']} {scope['path']}")  # what the Hub said is older than what follows
        scope["told"] = True
        await asyncio.to_thread(act)
        for message in messages:
            await send(message)

    # -- what the machines do

    async def damage(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """One bit of a file that the Hub holds changes on its disk."""
        if fault.acts:
            await self._app(scope, receive, send)
        folder = self._hub.folder / "models" / f"{self._repo}.git"
        kept = [*folder.glob("lfs/*/*"), *folder.glob("objects/??/*")]
        if files := sorted(path for path in kept if path.is_file() and len(path.name) in (38, 64)):
            path = self._draw.choice(files)
            content = bytearray(path.read_bytes())
            content[self._draw.randrange(len(content))] ^= 1 << self._draw.randrange(8)
            path.chmod(0o600)
            path.write_bytes(content)
        if not fault.acts:
            await self._app(scope, receive, send)

    async def fill_client(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """The client's disk is full: no file there grows beyond a size."""
        self._limit(self.client)
        await self._app(scope, receive, send)

    async def fill_hub(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """The Hub's disk is full, until this request is over or for good."""
        self._limit(os.getpid())
        try:
            await self._app(scope, receive, send)
        finally:
            if not fault.lasting:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def _limit(self, process: int) -> None:
        size = self._draw.choice((0, self._draw.randrange(FULL)))
        with suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    async def kill_client(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """The client is killed at some instant around the request."""
        await self._kill(self.client, fault, scope, receive, send)

    async def kill_hub(self, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        """The Hub is killed at some instant around the request."""
        await self._kill(os.getpid(), fault, scope, receive, send)

    async def _kill(self, process: int, fault: Fault, scope: dict, receive: Receive, send: Send) -> None:
        def kill() -> None:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

        if fault.acts:  # done, and not answered
            await self._app(scope, receive, _swallow)
            kill()
        threading.Timer(self._draw.random() * fault.wait, kill).start()
        await self._app(scope, receive, send)


async def _swallow(_message: dict) -> None:
    return None


def _reset(send: Send) -> None:
    """End a connection as a crash does, by RST."""
    transport = send.__self__.transport  # type: ignore[attr-defined]  uvicorn's
    if (line := transport.get_extra_info("socket")) is not None:
        with suppress(OSError):
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
