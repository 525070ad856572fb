"""Large files on their way in: received beside their place, checked, and moved there."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.localhub.refusal import Refusal

LEFT_OVER = 3600  # seconds after which an upload without new bytes was killed


def remove_leftovers(folder: Path) -> None:
    """Remove what uploads and checks left that were killed. Another Hub may still be at those of the last hour."""
    for path in (*folder.glob("*/*/*.git/lfs/**/*.part"), *folder.glob("*/*/*.git/release-*")):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - LEFT_OVER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def receiving(target: Path, sha256: str, size: int) -> Iterator[Receiver]:
    """Receive a large file into a temporary one, which is moved to ``target`` only if digest and size are right."""
    target.parent.mkdir(parents=True, exist_ok=True)
    receiver = Receiver(target, sha256, size)
    try:
        yield receiver
    finally:
        receiver.discard()


class Receiver:
    """An upload in progress; see :func:`receiving`."""

    def __init__(self, target: Path, sha256: str, size: int) -> None:
        self._target, self._sha256, self._size = target, sha256, size
        self._temporary = target.with_name(f"{sha256}.{time.monotonic_ns()}.part")
        self._file = self._temporary.open("xb")
        self._hash = hashlib.sha256()
        self._received = 0

    def write(self, data: bytes) -> None:
        """Take the next bytes. Refuses more bytes than announced."""
        self._received += len(data)
        if self._received > self._size:
            raise Refusal(400, f"More than the announced {self._size} bytes were sent.")
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """Move the file into place. Refuses it if size or digest are not as announced."""
        self._file.close()
        if self._received != self._size or self._hash.hexdigest() != self._sha256:
            raise Refusal(400, "The bytes that were sent do not have the announced size and sha256.")
        self._temporary.replace(self._target)

    def discard(self) -> None:
        """Remove the rest of an upload that did not finish."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)
