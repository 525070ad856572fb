"""What the C library does with memory that this process frees. Only glibc is told; others stay as they are."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
MOST = 2**31 - 1


def keep_freed() -> None:
    """Keep freed memory for what is allocated next, until :func:`trim`.

    glibc gives large blocks back at once, such as the logits of a few hundred tokens. Then each page of the next ones
    is mapped and zeroed anew: a fifth of a scoring pass (docs/measurements/time-and-memory.md).
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)  # no block is a mapping of its own, which would end with it
        libc.mallopt(M_TRIM_THRESHOLD, MOST)


def trim() -> None:
    """Give freed memory back to the system; after a training that is gigabytes."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
