"""Runs the loopback Hub: in a thread while a release is published, or in the foreground to look at it afterwards."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from core.errors import SystemLimitError
from pipeline.localhub.accounts import Accounts
from pipeline.localhub.app import build_app
from pipeline.localhub.hub import Hub
from pipeline.localhub.uploads import remove_leftovers

HOST = "127.0.0.1"


def hub_token(folder: Path) -> str:
    """The token of the Hub in ``folder``, made on first use; the file ``token`` is readable by its owner only."""
    path = folder / "token"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)  # private repositories are in it
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        for _ in range(100):  # another process may be writing it just now
            if token := path.read_text().strip():
                return token
            time.sleep(0.02)
        raise SystemLimitError(f"{path} is empty. Remove it; the next run makes a new token.") from None
    token = "hf_local" + secrets.token_hex(16)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    return token


class LocalHub:
    """``with LocalHub(folder) as hub``: a Hub at ``hub.endpoint`` on a free port, writable with ``hub.token``.

    ``app`` answers the requests; tests wrap it, before the ``with`` block starts, to inject faults.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.token = hub_token(folder)
        remove_leftovers(folder)
        # The protocol is named because asyncio switches Nagle's delay off only if it is.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((HOST, port))
        except OSError as error:
            self._socket.close()
            raise SystemLimitError(f"Port {port} of {HOST} cannot be used ({error}). Give another port.") from error
        self.endpoint = f"http://{HOST}:{self._socket.getsockname()[1]}"
        self.accounts = Accounts(folder, self.token)
        # Made of the token, so that upload addresses outlive the process that gave them out.
        secret = hashlib.sha256(b"uploads " + self.token.encode()).digest()
        self.app: ASGIApp = build_app(Hub(folder, self.endpoint, self.accounts, secret))

    def _server(self) -> uvicorn.Server:
        return uvicorn.Server(uvicorn.Config(self.app, lifespan="off", log_config=None, timeout_graceful_shutdown=2))

    def __enter__(self) -> Self:
        self._running = self._server()
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
            self._server().run(sockets=[self._socket])
        finally:
            self._socket.close()


def serve(folder: Path, port: int = 0) -> None:
    """Serve the Hub in ``folder`` until interrupted; how to reach it goes to stderr."""
    hub = LocalHub(folder, port)
    print(f"HF_ENDPOINT={hub.endpoint} HF_TOKEN=$(cat {folder / 'token'})", file=sys.stderr)
    hub.run()
