"""The machine: what a manifest records about it (none of which enters a key), and errors of disk and memory."""

from __future__ import annotations

import errno
import gc
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core import heap
from core.errors import ReleaseError, SystemLimitError
from core.packages import package_versions
from core.places import ROOT

# Instructions, as Linux names them. Products in bf16 depend on these, and so do the last bits of the demo's weights.
BF16 = ("avx512_bf16", "amx_bf16")
# What says that a disk or a quota is full where there is no errno: safetensors and tokenizers, and torch's own files.
FULL = ("No space left", "quota exceeded", "File too large", "PytorchStreamWriter", "unexpected pos")
COMMIT = "UNLEARN_RELEASE_COMMIT"  # an image names the commit that it was built from: it has no .git


def provenance() -> dict[str, Any]:
    """Git commit and dirty flag, package versions, device and command line of this process."""
    return {
        "git": _commit(),
        "packages": package_versions(),
        "device": device(),
        "argv": sys.argv,
    }


def _commit() -> dict[str, Any]:
    if commit := _git("rev-parse", "HEAD"):
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain"))}
    built_from = os.environ.get(COMMIT, "")
    return {"commit": built_from.removesuffix("-dirty") or None, "dirty": built_from.endswith("-dirty")}


def _git(*words: str) -> str | None:
    """Git's output, or None if this is not a checkout or git is not installed."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def device() -> str:
    """The accelerator's name if torch was loaded and has one, else the processor and torch's threads.

    On some processors weights have other last bits with another number of threads.
    """
    if cuda := _cuda():
        return str(cuda.get_device_name())
    name, torch = processor()["name"], sys.modules.get("torch")
    return f"cpu ({name}, threads: {torch.get_num_threads()})" if torch else f"cpu ({name})"


def processor() -> dict[str, Any]:
    """Name and number of cores; from Linux also whether it has instructions for bf16."""
    lines: dict[str, str] = {}
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    name = lines.get("model name") or platform.processor() or platform.machine()
    flags = lines.get("flags", "").split()
    return {"name": name, "cores": os.cpu_count(), "bf16": [flag for flag in BF16 if flag in flags]}


def reset_peak_memory() -> None:
    """Free what earlier stages left and start a new peak (Linux, CUDA), so that a stage's peak is its own."""
    gc.collect()
    gc.freeze()  # what is left are modules and settings: a stage that frees memory need not look through them again
    if cuda := _cuda():
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()
    heap.trim()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """Peak memory in bytes since the last reset: of the GPU if one was used, else what was resident.

    Where the system has no such reset (other than Linux), the resident peak is that of the whole process.
    """
    if (cuda := _cuda()) and (of_gpu := cuda.max_memory_allocated()):
        return int(of_gpu)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cuda() -> Any:
    """torch.cuda if torch was loaded and there is a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def free_space(folder: Path) -> tuple[Path, int]:
    """The nearest folder that exists, ``folder`` or one above it, and the bytes that are free there."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return place, shutil.disk_usage(place).free


@contextmanager
def disk_limits(root: Path, stage: str) -> Iterator[None]:
    """Turn an error of the operating system into one sentence with the path and the free space there."""
    try:
        yield
    except (ReleaseError, ConnectionError, TimeoutError):
        raise
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(said in str(error) for said in FULL)
        if not full and not isinstance(error, (OSError, MemoryError)):
            raise
        place, free = free_space(root)
        remedy = "Free some space, or give another place with --store" if full else "Check the path and its permissions"
        problem = str(error) or "out of memory"
        raise SystemLimitError(
            f"{stage}: {problem}; {free / 1e9:.1f} GB free at {place}. {remedy}, and run the command again."
        ) from error
