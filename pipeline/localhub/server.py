"""Runs the loopback Hub: in a thread while a release is published, or in the foreground to look at it afterwards."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from starlette.types import ASGIApp

from core.errors import SystemLimitError
from pipeline.localhub.app import build_app
from pipeline.localhub.connections import server
from pipeline.localhub.hub import Hub
from pipeline.localhub.pages.site import Site
from pipeline.localhub.pages.versions import Judge
from pipeline.localhub.pages.views import page_routes
from pipeline.localhub.rate_limit import RateLimit
from pipeline.localhub.tokens import Tokens, new_token
from pipeline.localhub.uploads import remove_leftovers

HOST = "127.0.0.1"


def hub_token(folder: Path) -> str:
    """The token of the Hub in ``folder``, made on first use; the file ``token`` is readable by its owner only."""
    path = folder / "token"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(OSError):  # somebody else's, who has done it, or a disk that is only read
        folder.chmod(0o700)  # private repositories are in it
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        for _ in range(100):  # another process may be writing it just now
            if token := path.read_text().strip():
                return token
            time.sleep(0.02)
        raise SystemLimitError(f"{path} is empty. Remove it; the next run makes a new token.") from None
    token = new_token()
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


class LocalHub:
    """``with LocalHub(folder) as hub``: a Hub at ``hub.endpoint`` on a free port, writable with ``hub.token``.

    ``rate`` is how many requests a token may send in a window. ``app`` answers them; tests wrap it, before the ``with``
    block starts, to inject faults.
    """

    def __init__(self, folder: Path, port: int = 0, rate: int | None = None, judge: Judge | None = None) -> None:
        self.folder = folder
        self.token = hub_token(folder)
        remove_leftovers(folder)
        # The protocol is named because asyncio switches Nagle's delay off only if it is.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((HOST, port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise SystemLimitError(
                f"Port {port} of {HOST} cannot be used ({str(error).rstrip('.')}). Give another one, up to 65535, or 0 "
                "for one that is free."
            ) from error
        self.endpoint = f"http://{HOST}:{self._socket.getsockname()[1]}"
        self.tokens = Tokens(folder, self.token)
        # Made of the token, so that upload addresses outlive the process that gave them out.
        secret = hashlib.sha256(b"uploads " + self.token.encode()).digest()
        hub = Hub(folder, self.endpoint, self.tokens, secret, RateLimit(rate) if rate else None)
        self.site = Site(hub, judge)
        self.app: ASGIApp = build_app(hub, page_routes(self.site))

    def __enter__(self) -> Self:
        self._running = server(self.app)
        self._thread = threading.Thread(target=self._running.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._running.started:
            if not self._thread.is_alive():
                raise SystemLimitError(f"The loopback Hub could not start at {self.endpoint}.")
            time.sleep(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.should_exit = True
        self._thread.join()
        self._socket.close()

    def run(self) -> None:
        """Answer until interrupted."""
        try:
            server(self.app).run(sockets=[self._socket])
        finally:
            self._socket.close()


def serve(folder: Path, port: int = 0, rate: int | None = None, judge: Judge | None = None) -> None:
    """Serve the Hub in ``folder`` until interrupted; how to reach it goes to stderr."""
    hub = LocalHub(folder, port, rate, judge)
    print(f"Look at it, with its private repositories (the link works once): {hub.site.link()}", file=sys.stderr)
    print(f"HF_ENDPOINT={hub.endpoint} HF_TOKEN=$(cat {folder / 'token'})", file=sys.stderr, flush=True)
    hub.run()
