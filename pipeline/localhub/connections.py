"""The connections of the loopback Hub: bounded in number, in the size of their headers, and in how long they may wait.

uvicorn ends a connection that is idle after an answer. It waits for ever for the rest of a request's head, for a client
that does not take its answer, and for the rest of a body that nobody will read; those are ended here.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # for the head of a request, and for a body that is not read any more
WRITE_SECONDS = 60.0  # without the client taking anything of its answer
MAX_CONNECTIONS = 200
MAX_HEAD = 32 << 10
MAX_UNREAD = 16 << 20  # of a body after its request was answered; then the client has had time to see the answer


class Connection(H11Protocol):
    """One connection, with an end to everything that it waits for."""

    _timer: asyncio.TimerHandle | None = None
    _unread = 0
    _is_paused = False  # because the client does not take its answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection. If there are too many, the one that waits longest makes room."""
        super().connection_made(transport)
        self._wait(HEAD_SECONDS)
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [c for c in self.connections if isinstance(c, Connection) and c._timer and c._is_waiting()]
            min(waiting, key=lambda c: c._timer.when() if c._timer else 0.0)._end()

    def _is_waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._end)

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._go_on()
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head that comes byte by byte does not get more time for each."""
        if self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self._unread += len(data)
            if self._unread > MAX_UNREAD:
                self._end()
                return
        super().data_received(data)
        if self._is_waiting():
            self._wait(HEAD_SECONDS)
        elif not self._is_paused:
            self._go_on()

    def on_response_complete(self) -> None:
        """From here on the next request, or the end of this one's body, is waited for."""
        self._go_on()
        self._unread = 0
        super().on_response_complete()
        if self._is_waiting() and not self.transport.is_closing():
            self._wait(HEAD_SECONDS)

    def pause_writing(self) -> None:
        """The client does not take its answer."""
        super().pause_writing()
        self._is_paused = True
        self._wait(WRITE_SECONDS)

    def resume_writing(self) -> None:
        """The client has taken some of its answer."""
        super().resume_writing()
        self._is_paused = False
        self._go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._go_on()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or hang up if an answer has begun."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()


def server(app: ASGIApp) -> uvicorn.Server:
    """A server for ``app`` whose connections are bounded."""
    bounds: dict[str, Any] = {"http": Connection, "h11_max_incomplete_event_size": MAX_HEAD, "ws": "none"}
    quiet: dict[str, Any] = {"log_config": None, "server_header": False, "proxy_headers": False}
    return uvicorn.Server(uvicorn.Config(app, lifespan="off", timeout_graceful_shutdown=2, **bounds, **quiet))
