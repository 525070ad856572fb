"""Progress of a stage for people: one live line on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from core.progress import Report, listening

PLAIN_SECONDS = 15.0  # a log file need not show every step


class _Pace:
    """Rate and time left of the current work, counted from its first report, so that loading is not part of a step."""

    def __init__(self) -> None:
        self.doing = ""
        self.first = (0, 0.0)

    def line(self, report: Report, now: float) -> str:
        """``step 12/40 · loss 1.234 · 2.1/s · 0:13 left``, as far as it is known; bytes as MB."""
        if report.doing != self.doing or (report.done or 0) < self.first[0]:
            self.doing, self.first = report.doing, (report.done or 0, now)
        parts = [report.doing]
        shown = megabytes if report.in_bytes else str
        if report.done is not None:
            parts.append(f"{shown(report.done)}/{shown(report.total)}" if report.total else shown(report.done))
        parts += [f"{name.replace('_', ' ')} {value:.4g}" for name, value in report.numbers.items()]
        advanced, seconds = (report.done or 0) - self.first[0], now - self.first[1]
        if advanced > 0 and seconds > 0:
            rate = advanced / seconds
            if report.in_bytes:
                parts.append(f"{megabytes(rate)}/s")
            else:
                parts.append(f"{rate:.2f}/s" if rate >= 0.1 else f"{1 / rate:.0f} s each")
            if report.total:
                parts.append(f"{clock((report.total - (report.done or 0)) / rate)} left")
        return " · ".join(parts)


def megabytes(count: float) -> str:
    """Bytes as ``12.3 MB``."""
    return f"{count / 1e6:,.1f} MB"


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def watching(stage: str, stream: TextIO | None = None) -> Iterator[None]:
    """Show the progress that is reported in the body, as that of ``stage``; on stderr unless a ``stream`` is given."""
    began, stream = time.monotonic(), stream or sys.stderr
    show = _live_line if stream.isatty() else _plain_lines
    with show(stage, stream) as listener, listening(listener):
        yield
    print(f"{stage:<15} built in {clock(time.monotonic() - began)}", file=stream, flush=True)


@contextmanager
def _live_line(stage: str, stream: TextIO) -> Iterator[Callable[[Report], None]]:
    from rich.console import Console
    from rich.markup import escape

    pace = _Pace()
    with Console(file=stream).status(f"[bold]{stage}[/bold]") as status:

        def listener(report: Report) -> None:
            line = escape(pace.line(report, time.monotonic()))
            status.update(f"[bold]{stage:<15}[/bold] {line}")

        yield listener


@contextmanager
def _plain_lines(stage: str, stream: TextIO) -> Iterator[Callable[[Report], None]]:
    pace, shown, doing = _Pace(), -PLAIN_SECONDS, ""
    print(f"{stage:<15} …", file=stream, flush=True)

    def listener(report: Report) -> None:
        nonlocal shown, doing
        now = time.monotonic()
        line = pace.line(report, now)
        if now - shown >= PLAIN_SECONDS or report.doing != doing:
            shown, doing = now, report.doing
            print(f"{stage:<15} {line}", file=stream, flush=True)

    yield listener
