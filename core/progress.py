"""Progress of a stage, for the person who watches: how far it is, and a few numbers.

Stages call :func:`report` and know nothing of terminals. Whoever runs a stage installs a listener with
:func:`listening`; without one, reports go nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """``done`` of ``total`` units of ``doing`` (None: unknown), and numbers worth showing, for example a loss."""

    doing: str
    done: int | None = None
    total: int | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    in_bytes: bool = False


_listener: ContextVar[Callable[[Report], None] | None] = ContextVar("progress_listener", default=None)


def report(doing: str, done: int | None = None, total: int | None = None, **numbers: float) -> None:
    """Tell the listener, if there is one."""
    listener = _listener.get()
    if listener is not None:
        listener(Report(doing, done, total, dict(numbers)))


def byte_reporter(doing: str, total: int) -> Callable[[int], None]:
    """A function that reports how many of ``total`` bytes are done.

    It may be called in any thread: those of a library do not know this one's listener.
    """
    listener = _listener.get()

    def send(done: int) -> None:
        if listener is not None:
            listener(Report(doing, done, total, in_bytes=True))

    return send


@contextmanager
def listening(listener: Callable[[Report], None]) -> Iterator[None]:
    """Send all reports made inside the ``with`` block to ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
