"""Processes for tests that need one of their own: they begin with the heavy packages, which one server imports for all.

A fresh interpreter takes seconds to import torch, transformers, trl and lm-eval. The server (multiprocessing's
forkserver) imports them once, runs nothing and forks itself, so a child costs milliseconds.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.conftest import PATIENCE

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "tests.conftest",
        "pipeline.commands.release",
        "pipeline.unlearn.run",
        "pipeline.train.fine_tune",
        "eval.suite",
        "s3fs",
    ]
)


def kill_one(begun: list[ForkServerProcess], chance: random.Random, least: float, most: float) -> int:
    """Kill one of these processes after so many seconds, and take it out of them. Returns its id."""
    time.sleep(chance.uniform(least, most))
    process = chance.choice(begun)
    process.kill()
    begun.remove(process)
    return process.pid or 0


def start(work: Callable[..., None], *arguments: Any, said: Path, **variables: str) -> ForkServerProcess:
    """Run ``work(*arguments)`` in a child with these environment variables; its stderr is the file ``said``."""
    process = _SERVER.Process(target=_child, args=(work, arguments, said, os.environ | variables), daemon=True)
    process.start()
    return process


def _child(work: Callable[..., None], arguments: tuple[Any, ...], said: Path, variables: dict[str, str]) -> None:
    gc.freeze()  # as in conftest.py
    os.environ.clear()
    os.environ.update(variables)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    work(*arguments)


def main(words: list[str]) -> None:
    """The command line; the child ends with its exit code."""
    from pipeline.__main__ import main as run

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(run(words))


def on_two_ranks(work: Callable[..., None], *arguments: Any, folder: Path) -> None:
    """Run ``work(*arguments)`` on two processes, as `accelerate launch` would start them without a GPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    files = [folder / f"said-{rank}" for rank in "01"]
    ranks = [
        start(_joined, work, *arguments, said=said, **together, RANK=rank, LOCAL_RANK=rank)
        for rank, said in zip("01", files, strict=True)
    ]
    for rank, said in zip(ranks, files, strict=True):
        rank.join(PATIENCE)
        assert rank.exitcode == 0, said.read_text()[-3000:]


def _joined(work: Callable[..., None], *arguments: Any) -> None:
    """Meet the other rank first, as ``Lead`` and ``follow`` do, and then work."""
    from pipeline.engine import launch

    launch._word(None)
    work(*arguments)
