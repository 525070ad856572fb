"""The files of an upload, which report how much of them was sent."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

from core.progress import byte_reporter


class Upload:
    """``with Upload(folder, names) as files``: ``files[name]`` is open for the client; :meth:`started` starts counting.

    The client reads each file twice, first for its digest. Files that are sent again count once, and those that the
    Hub has already, not at all.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._paths = {name: folder / name for name in names}
        self._sent: dict[str, int] = {}
        self._report: Callable[[int], None] | None = None
        self._lock, self._open = Lock(), ExitStack()

    def __enter__(self) -> Self:
        self._files = {name: self._open.enter_context(_Counted(path, name, self)) for name, path in self._paths.items()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def __getitem__(self, name: str) -> io.BufferedReader:
        return self._files[name]

    def started(self, doing: str) -> None:
        """The digests are known: what is read from now on is sent, and reported as ``doing``."""
        self._report = byte_reporter(doing, sum(path.stat().st_size for path in self._paths.values()))

    def moved(self, name: str, position: int) -> None:
        """A file was read up to this place, in one of the client's threads."""
        if self._report is not None:
            with self._lock:
                self._sent[name] = max(position, self._sent.get(name, 0))
                self._report(sum(self._sent.values()))


class _Counted(io.BufferedReader):
    def __init__(self, path: Path, name: str, upload: Upload) -> None:
        super().__init__(io.FileIO(path))
        self._name, self._upload = name, upload

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._upload.moved(self._name, self.tell())
        return data
