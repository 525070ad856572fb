"""Devices that a release may be planned for: their memory and their speed.

Numbers are those of the makers' data sheets, for dense products with sums in float32: NVIDIA H100 (SXM), A100 (SXM) and
L40S data sheets, the Ada whitepaper for the RTX 4090; for the RTX 3060, 112 tensor cores x 128 operations x 1.78 GHz.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core import host
from core.errors import InputError
from core.yaml_source import did_you_mean

GIB = 2**30
USABLE = 0.93
"""Share of a GPU's memory that tensors can have; the driver and gaps between tensors take the rest. Ours."""
USABLE_OF_HOST = 0.6
"""The same of a processor's: trainings take up to 1.7 times what is computed (docs/measurements/time-and-memory.md)."""
CORE_FLOPS = 1.6e11
"""Products in float32 of one core: 320 GFLOP/s were measured on two (docs/measurements/time-and-memory.md)."""
HOST_BANDWIDTH = 2e10
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and those of Windows below Linux


@dataclass(frozen=True)
class Device:
    """``memory`` is what tensors can have, in bytes. Rates are in FLOP/s and bytes/s; None if they are not known."""

    name: str
    memory: int
    bf16: float | None
    fp32: float | None
    bandwidth: float | None
    is_gpu: bool = True


def _gpu(name: str, gib: int, bf16: float, fp32: float, bandwidth: float) -> Device:
    return Device(name, round(gib * GIB * USABLE), bf16 * 1e12, fp32 * 1e12, bandwidth * 1e9)


GPUS = [
    _gpu("H100 80GB", 80, 989.4, 66.9, 3350),
    _gpu("A100 80GB", 80, 312, 19.5, 2039),
    _gpu("A100 40GB", 40, 312, 19.5, 1555),
    _gpu("L40S 48GB", 48, 362, 91.6, 864),
    _gpu("RTX 4090 24GB", 24, 165.2, 82.6, 1008),
    _gpu("RTX 3060 12GB", 12, 25.5, 12.7, 360),
]


def named(name: str) -> Device:
    """The device of that name. Raises InputError, with the names that there are."""
    devices = {device.name: device for device in [*GPUS, cpu()]}
    found = {key.lower(): device for key, device in devices.items()}.get(name.lower())
    if found is None:
        raise InputError(f"No device is called {name!r}.{did_you_mean(name, devices)} There are: {', '.join(devices)}.")
    return found


def cpu() -> Device:
    """The processor of this machine, with the cores and the memory that this process may use."""
    rate = host.cores() * CORE_FLOPS
    memory = round(host.memory() * USABLE_OF_HOST)
    return Device("CPU", memory, rate, rate, HOST_BANDWIDTH, is_gpu=False)


def here() -> Device:
    """The GPU of this machine, or its processor if it has none. A GPU that the table lacks has no known speed."""
    if not any(Path(node).exists() for node in DRIVERS):
        return cpu()
    import torch  # seconds, and hundreds of megabytes

    if not torch.cuda.is_available():
        return cpu()
    name, total = str(torch.cuda.get_device_name()), torch.cuda.mem_get_info()[1]
    alike = [gpu for gpu in GPUS if all(word in name for word in gpu.name.split()[:-1])]
    known = alike[0] if alike else Device(name, 0, None, None, None)
    return Device(name, round(total * USABLE), known.bf16, known.fp32, known.bandwidth)


def gpus_here() -> int:
    """How many GPUs this machine has for us."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
