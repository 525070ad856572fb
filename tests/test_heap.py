"""Freed memory stays with the process until it is given back."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil
import pytest
import torch

from core import heap
from tests.conftest import PATIENCE
from tests.processes import start

SIZE = 2**27  # bytes: more than glibc would keep


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library is not told anything")
def test_freed_memory_is_kept_until_it_is_trimmed(tmp_path: Path) -> None:
    """In a process of its own: a thread that once asked in vain gets another arena, which keeps no such block."""
    child = start(keep_and_trim, said=tmp_path / "said")
    child.join(PATIENCE)
    assert child.exitcode == 0, (tmp_path / "said").read_text()


def keep_and_trim() -> None:
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
