"""Where a stage runs: in this process, in one beside it, or on several that `accelerate launch` starts.

The launched command is always ``python -m pipeline run STAGE RECIPE …``. The first of its processes holds the lock,
builds the artifact and reports progress. The others wait for the first one's call, take part in the stage's work, and
write nothing. An error reaches the launching process through a file, since the launcher's exit code says only that a
process failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import yaml

from core.errors import ERROR_FILE, InputError, SystemLimitError, left_error
from core.ranks import first_ranks, world_size
from core.strict import Strict
from pipeline.engine.machine import reset_peak_memory
from pipeline.engine.runner import Stage, Store
from pipeline.recipe import Recipe

CONFIGS = Path(__file__).parents[1] / "accelerate"
LONGEST_WAIT = timedelta(days=30)  # of a process for the others; torch's own would be 10 or 30 minutes
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def launch_config(where: str) -> Path:
    """The accelerate configuration that ``--launch`` names. Raises InputError if it cannot be used from here."""
    one_node = sorted(file.stem for file in CONFIGS.glob("*.yaml") if not file.stem.endswith("-nodes"))
    if where.endswith((".yaml", ".yml")):
        if not Path(where).is_file():
            raise InputError(
                f"--launch {where}: no such file. Give a configuration of accelerate, or {', '.join(one_node)}."
            )
        return Path(where).resolve()
    if where == "local":
        return CONFIGS / "ddp.yaml"
    if where.endswith("-nodes"):
        raise InputError(
            f"--launch {where}: one command cannot start several nodes. Start the stage on each of them, with the "
            f"store on a shared disk: accelerate launch --config_file pipeline/accelerate/{where}.yaml --machine_rank "
            "N --main_process_ip HOST -m pipeline run STAGE RECIPE. Then `release` continues from there."
        )
    if where not in one_node:
        raise InputError(
            f"--launch {where}: unknown. Give local, {', '.join(one_node)} or the path of an accelerate configuration."
        )
    return CONFIGS / f"{where}.yaml"


def check_device(where: str) -> None:
    """Raise InputError if this machine cannot shard the weights as ``--launch`` asks."""
    if where not in ("fsdp2", "zero3"):
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"--launch {where}: sharded weights need GPUs, and torch sees none here. Use --launch ddp.")
    if where == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            "--launch zero3: the package deepspeed is not installed. Install it with pip install deepspeed."
        )


def check_launch(where: str, config: Path, recipe: Recipe, stages: Sequence[Stage], waiting: Collection[str]) -> None:
    """Raise InputError if no stage would be launched by ``--launch``, or if a ``waiting`` one cannot run that way."""
    try:
        read = yaml.safe_load(config.read_bytes())
        shards, precision = read.get("distributed_type") in ("FSDP", "DEEPSPEED"), read.get("mixed_precision") or "no"
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise InputError(f"--launch {where}: cannot be read as a configuration of accelerate ({error}).") from error
    if precision != "no":
        raise InputError(
            f"--launch {where}: its mixed_precision is {precision!r}, and it may only be 'no', since the recipe's "
            '`precision` decides and is in the keys. Write mixed_precision: "no", or leave the line out.'
        )
    able = [stage for stage in stages if stage.shardable or not shards]
    if where != "local" and all(stage.processes == 1 for stage in able):
        raise InputError(
            f"--launch {where}: no stage of this run has `processes` above 1, so nothing would be launched. Give for "
            "example --set unlearn.processes=2, or leave --launch out."
        )
    unlearn = recipe.unlearn
    if not shards or unlearn.processes == 1 or "unlearn" not in waiting:
        return
    if unlearn.keep == "closest" or unlearn.gradient_norms_every:
        what = "keep: closest" if unlearn.keep == "closest" else "gradient_norms_every"
        raise InputError(
            f"--launch {where} shards the weights, and unlearn.{what} needs all of them on each process. Use --launch "
            "ddp, or set keep: last and gradient_norms_every: 0."
        )


def command_line(
    config: Path, stage: Stage, recipe: str, overrides: Sequence[str], store: Path, remote: str | None
) -> list[str]:
    """The words after ``python`` that run a stage, on its several processes if it has more than one.

    If the stage is not shardable, each process has the whole model, even if ``config`` shards the trainings.
    """
    command = ["-m", "pipeline", "run", stage.name, recipe, "--store", str(store), "--json"]
    command += [word for value in overrides for word in ("--set", value)]
    command += ["--remote-store", remote] if remote else []
    if stage.processes == 1:
        return command
    if not stage.shardable and config.parent == CONFIGS:
        config = CONFIGS / "ddp.yaml"
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [*launcher, "--num_processes", str(stage.processes), "--main_process_port", "0", *command]


class Children:
    """Processes that run stages for this one. Used as a context, they end with it."""

    def __init__(self, threads: int | None = None) -> None:
        """``threads`` is how many each process may use, None for what this one may."""
        self._threads = {} if threads is None else {name: str(threads) for name in THREADS}
        self._running: set[subprocess.Popen[str]] = set()
        self._on_term: Any = None
        self._starting = threading.Lock()  # a start changes the environment of this process for a moment

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            # So that it ends by way of __exit__.
            self._on_term = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        return self

    def __exit__(self, *error: object) -> None:
        if self._on_term is not None:
            signal.signal(signal.SIGTERM, self._on_term)
        for process in list(self._running):
            process.terminate()  # a launcher ends its processes then

    def launch(self, config: Path, stage: Stage, options: argparse.Namespace, store: Store) -> None:
        """Run a stage on its processes, on this machine. Raises the error of the process that failed first."""
        remote = store.remote.url if store.remote else None
        argv = [
            sys.executable,
            *command_line(config, stage, options.recipe, options.set, store.root.absolute(), remote),
        ]
        reset_peak_memory()  # the first of them may be on the GPU that this process has used, which keeps what it freed
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "error.json"
            with self._starting, stage.credentials():
                process = subprocess.Popen(
                    argv,
                    env=os.environ | self._threads | {ERROR_FILE: str(file)},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                )
                self._running.add(process)
            try:
                last = _pass_on(process, stage.name, debug=options.debug)
                code = process.wait()
            finally:
                if process.poll() is None:  # we were interrupted
                    process.terminate()
                    process.wait()
                self._running.discard(process)
            if error := left_error(file):
                raise error
        if code:
            which = "its process" if stage.processes == 1 else f"one of {stage.processes} processes"
            raise SystemLimitError(
                f"{stage.name}: {which} ended with code {code}. The last line of output: {last or 'none'}. Run "
                f"`{' '.join(argv[1:])}` to see everything."
            )


def _pass_on(process: subprocess.Popen[str], stage: str, *, debug: bool) -> str:
    """Show the lines of progress, which begin with the stage's name, and no lines of launcher and libraries."""
    last = ""
    for line in process.stderr or ():
        if debug or line.startswith(f"{stage} "):
            sys.stderr.write(line)
            sys.stderr.flush()
        last = line.strip() or last
    return last


class Lead:
    """The first of several processes: when it runs the stage, it calls the others to run it too.

    ``stage`` is the stage to build. With one process, it is the stage unchanged.
    """

    def __init__(self, stage: Stage) -> None:
        self._own = stage
        self._called = world_size() == 1
        self.stage = stage if world_size() == 1 else replace(stage, run=self._run)

    def _run(self, config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
        self._called = True
        _word({"inputs": {name: str(path) for name, path in inputs.items()}, "out": str(out)})
        facts = self._own.run(config, inputs, out)
        _word(None)  # waits for the others: they may still read `out`, which is about to be renamed
        return facts

    def dismiss(self) -> None:
        """Tell the others that there is nothing to do, if they are still waiting."""
        if not self._called:
            _word(None)


def follow(stage: Stage) -> None:
    """Run a process that is not the first: wait for the first one's call, then do a share of the stage."""
    word = _word(None)
    if word:
        inputs = {name: Path(path) for name, path in word["inputs"].items()}
        with stage.credentials():
            stage.run(stage.config, inputs, Path(word["out"]))
        _word(None)


def _word(word: dict[str, Any] | None) -> dict[str, Any] | None:
    """Send the first process's message to all processes, and return it.

    The first may wait for another runner's build before it says anything, and the others wait with it.
    """
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    return first_ranks(word)
