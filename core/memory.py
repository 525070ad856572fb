"""The device's memory: how much there is, giving it back, and what to say when it runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch

from core import heap
from core.errors import SystemLimitError

SAID = ("allocate memory", "not enough memory", "out of memory", "alloc_failed")
"""In messages of errors that have no class of their own: the host's, CUDA's beside PyTorch's allocator, cuBLAS's."""


def device_memory() -> tuple[int, int]:
    """Free and total bytes of the memory that models are computed in: the GPU's, or the machine's if it has none."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def give_back() -> None:
    """Free what nobody uses, so that the next model finds the device's memory whole."""
    gc.collect()
    heap.trim()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def limits(advice: Callable[[str], str]) -> Iterator[None]:
    """Raise SystemLimitError if memory runs out, with ``advice``, which gets what the device has in words."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError, and so is the CPU's
        if not ran_out(error):
            raise
        message = " ".join(str(error).split())[:200]
        free, total = device_memory()
        has = f"the device has {total / 1e9:.1f} GB ({free / 1e9:.1f} free)"
        raise SystemLimitError(f"Out of memory {advice(has)} PyTorch's message: {message or 'none'}.") from error


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or beside it."""
    message = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(said in message for said in SAID)
