"""Puts the emulated device into this process, before torch is imported."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_name("device.cpp")
NAME, BYTES = "NVIDIA H100 80GB HBM3", 80 * 2**30


class Device:
    """What the device's tensors hold, and whether operators on large ones compute."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name in ("emulated_held", "emulated_peak"):
            getattr(library, name).restype = ctypes.c_size_t

    @property
    def held(self) -> int:
        """Bytes of all tensors now."""
        return int(self._library.emulated_held())

    @property
    def peak(self) -> int:
        """Bytes of all tensors at the fullest moment since :meth:`reset_peak`."""
        return int(self._library.emulated_peak())

    def reset_peak(self) -> None:
        """Begin to look for the fullest moment anew."""
        self._library.emulated_reset_peak()

    def run_dry(self) -> None:
        """From now on operators on tensors of more than 1 MiB only allocate what they return."""
        importlib.import_module("torch._meta_registrations")  # shapes of operators that are written in Python
        self._library.emulated_dry(True)


def install(builds: Path) -> Device:
    """The device, built in the folder ``builds`` by the C++ compiler of $CXX. Raises SystemExit if torch was imported.

    Afterwards torch says that it has a GPU of CUDA.
    """
    if "torch" in sys.modules:
        raise SystemExit("torch was imported before the emulated device, so it has looked for a GPU already.")
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise SystemExit("torch is not installed. Run `make setup`.")
    torch = Path(found.origin).parent
    library = _built(torch, builds)
    for name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    device = Device(ctypes.CDLL(str(library)))  # torch asks whoever says first that he is CUDA
    _say_that_it_is_there(device)
    return device


def _built(torch: Path, builds: Path) -> Path:
    source = SOURCE.read_bytes() + (torch / "version.py").read_bytes()
    library = builds / f"emulated-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not library.exists():
        builds.mkdir(parents=True, exist_ok=True)
        partial = library.with_suffix(f".{os.getpid()}")
        argv = [os.environ.get("CXX", "c++"), "-std=c++20", "-O1", "-fPIC", "-shared", str(SOURCE), "-o", str(partial)]
        argv += [f"-isystem{torch / 'include' / part}" for part in (".", "torch/csrc/api/include")]
        argv += [f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
        try:
            subprocess.run(argv, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"{SOURCE.name} could not be compiled: {error}. It needs a C++20 compiler.") from error
        partial.rename(library)
    return library


def _say_that_it_is_there(device: Device) -> None:
    """What torch.cuda asks its own library, which is not in this build."""
    import bitsandbytes  # noqa: F401 (before there seems to be a GPU: its kernels for one are not here)
    import torch

    def nothing(*_: Any, **__: Any) -> None:
        return None

    of_host = dict.fromkeys(("set_rng_state", "set_rng_state_all", "manual_seed", "manual_seed_all"), nothing)
    of_host |= {
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
    }
    properties = SimpleNamespace(name=NAME, total_memory=BYTES, major=9, minor=0, multi_processor_count=132)
    answers = of_host | {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: NAME,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: properties,
        "mem_get_info": lambda *_: (BYTES - device.held, BYTES),
        "max_memory_allocated": lambda *_: device.peak,
        "memory_allocated": lambda *_: device.held,
        "memory_reserved": lambda *_: device.held,
        "reset_peak_memory_stats": lambda *_: device.reset_peak(),
        "device": lambda *_: nullcontext(),
        "_is_in_bad_fork": lambda: False,
        **dict.fromkeys(("_lazy_init", "set_device", "synchronize", "empty_cache", "ipc_collect"), nothing),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    for name, answer in of_host.items():
        setattr(torch.cuda.random, name, answer)
    torch._C._cuda_getDevice = lambda: 0
    torch._C._cuda_setDevice = nothing
    _clone_storages()


def _clone_storages() -> None:
    """Storages of CUDA are cloned by code that is not in this build; generators and configurations are deep-copied."""
    import torch

    of_host = torch.UntypedStorage.clone

    def clone(storage: Any) -> Any:
        if storage.device.type == "cpu":
            return of_host(storage)
        return torch.empty(storage.nbytes(), dtype=torch.uint8, device="cuda").untyped_storage().copy_(storage, False)

    torch.UntypedStorage.clone = clone  # type: ignore[method-assign]
