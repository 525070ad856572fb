"""Freed memory stays with the process until it is given back."""

from __future__ import annotations

import platform

import psutil
import pytest
import torch

from core import heap

SIZE = 2**27  # bytes: more than glibc would keep


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library is not told anything")
def test_freed_memory_is_kept_until_it_is_trimmed() -> None:
    heap.keep_freed()
    heap.trim()
    before = _resident()
    block = torch.ones(SIZE // 4)
    assert _resident() - before > 0.9 * SIZE
    del block
    assert _resident() - before > 0.9 * SIZE
    heap.trim()
    assert _resident() - before < 0.1 * SIZE


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: object())
    heap.keep_freed()
    heap.trim()


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)
