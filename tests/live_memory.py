"""Bytes of the tensors that are alive while something runs: what a device would have to hold."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class LiveMemory(TorchDispatchMode):
    """``peak`` is the largest number of bytes at one time, of ``held`` tensors and of all that operations return."""

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[Any]] = {}
        for tensor in held:
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._add(tensor)
        return made

    def _add(self, tensor: torch.Tensor) -> None:
        # A tensor that is packed for oneDNN has no storage that one could ask.
        of: Any = tensor if tensor.is_mkldnn else tensor.untyped_storage()
        key, size = (id(of), tensor.numel() * 4) if tensor.is_mkldnn else (of._cdata, of.nbytes())
        if key not in self._alive:
            self.now += size
            self.peak = max(self.peak, self.now)
            self._alive[key] = weakref.ref(of, self._gone(key, size))

    def _gone(self, key: int, size: int) -> Callable[[Any], None]:
        def gone(_: Any) -> None:
            self.now -= size
            self._alive.pop(key, None)

        return gone
