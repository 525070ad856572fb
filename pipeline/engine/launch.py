"""Where a stage runs: in this process, or on several that `accelerate launch` starts with the same command line.

The command that is launched is always ``python -m pipeline run STAGE RECIPE …``. Of its processes the first one holds
the lock, builds the artifact and talks; the others wait for its word, take part in the stage's own work, and write
nothing. An error is handed to whoever launched through a file, since a launcher's exit code says only that one failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from core import errors
from core.errors import ERROR_FILE, InputError, SystemLimitError
from core.ranks import first_ranks, world_size
from core.strict import Strict
from pipeline.engine.runner import Stage
from pipeline.recipe import Recipe

CONFIGS = Path(__file__).parents[1] / "accelerate"


def launch_config(where: str) -> Path:
    """The accelerate configuration that ``--launch`` names. Raises InputError where it cannot be used from here."""
    one_node = sorted(file.stem for file in CONFIGS.glob("*.yaml") if not file.stem.endswith("-nodes"))
    if where.endswith((".yaml", ".yml")):
        if not Path(where).is_file():
            raise InputError(f"--launch {where}: no such file. Give a configuration of accelerate, or {one_node}.")
        return Path(where).resolve()
    if where == "local":
        return CONFIGS / "ddp.yaml"
    if where.endswith("-nodes"):
        raise InputError(
            f"--launch {where}: one command cannot start several nodes. Start the stage on each of them, with the "
            f"store on a shared disk: accelerate launch --config_file pipeline/accelerate/{where}.yaml --machine_rank "
            "N --main_process_ip HOST -m pipeline run STAGE RECIPE; then `release` goes on from there."
        )
    if where not in one_node:
        raise InputError(f"--launch {where}: there are local, {', '.join(one_node)}, and the path of a configuration.")
    return CONFIGS / f"{where}.yaml"


def check_device(where: str) -> None:
    """Raise InputError where this machine cannot run the way of sharding that ``--launch`` names."""
    if where not in ("fsdp2", "zero3"):
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"--launch {where}: sharded weights need GPUs, and torch sees none here. Take --launch ddp.")
    if where == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise InputError("--launch zero3: the package deepspeed is not installed. Say pip install deepspeed.")


def check_launch(where: str, config: Path, recipe: Recipe, stages: Sequence[Stage], waiting: Collection[str]) -> None:
    """Raise InputError where ``--launch`` names a way that no stage would go, or that a ``waiting`` one cannot."""
    try:
        shards = yaml.safe_load(config.read_bytes()).get("distributed_type") in ("FSDP", "DEEPSPEED")
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise InputError(f"--launch {where}: cannot be read as a configuration of accelerate ({error}).") from error
    able = [stage for stage in stages if stage.shardable or not shards]
    if where != "local" and all(stage.processes == 1 for stage in able):
        raise InputError(
            f"--launch {where}: no stage of this run has `processes` above 1, so nothing would be launched. Say for "
            "example --set unlearn.processes=2, or leave --launch out."
        )
    unlearn = recipe.unlearn
    if not shards or unlearn.processes == 1 or "unlearn" not in waiting:
        return
    if unlearn.keep == "closest" or unlearn.gradient_norms_every:
        what = "keep: closest" if unlearn.keep == "closest" else "gradient_norms_every"
        raise InputError(
            f"--launch {where} shards the weights, and unlearn.{what} needs them whole on each process. Take --launch "
            "ddp, or set keep: last and gradient_norms_every: 0."
        )


def launch(config: Path, stage: Stage, options: argparse.Namespace, store: Path) -> None:
    """Run a stage on its several processes, on this machine. Raises the error of the process that failed first.

    Each has the whole model if the stage is not shardable, however ``config`` would shard it for a training.
    """
    if not stage.shardable and config.parent == CONFIGS:
        config = CONFIGS / "ddp.yaml"
    launcher = ["accelerate.commands.launch", "--config_file", str(config), "--num_processes", str(stage.processes)]
    command = ["pipeline", "run", stage.name, options.recipe, "--store", str(store.absolute()), "--json"]
    command += [word for value in options.set for word in ("--set", value)]
    argv = [sys.executable, "-m", *launcher, "--main_process_port", "0", "-m", *command]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "error.json"
        process = subprocess.Popen(
            argv,
            env=os.environ | {ERROR_FILE: str(file)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            last = _pass_on(process, stage.name, debug=options.debug)
            code = process.wait()
        finally:
            if process.poll() is None:  # we are leaving before it: the launcher ends its processes on SIGTERM
                process.terminate()
                process.wait()
        if file.exists():
            said = json.loads(file.read_text(encoding="utf-8"))
            raise getattr(errors, said["kind"])(said["message"])
    if code:
        raise SystemLimitError(
            f"{stage.name}: a process of {stage.processes} ended with code {code}. The last that was heard: "
            f"{last or 'nothing'}. Run `{' '.join(argv[1:])}` to see everything."
        )


def _pass_on(process: subprocess.Popen[str], stage: str, *, debug: bool) -> str:
    """Show the lines of progress, which begin with the stage's name, and not what launcher and libraries say."""
    last = ""
    for line in process.stderr or ():
        if debug or line.startswith(f"{stage} "):
            sys.stderr.write(line)
            sys.stderr.flush()
        last = line.strip() or last
    return last


class Lead:
    """The first of several processes: where it runs the stage, it calls the others to run it too.

    ``stage`` is what it builds; of one process alone, the stage as it is.
    """

    def __init__(self, stage: Stage) -> None:
        self._own = stage
        self._called = world_size() == 1
        self.stage = stage if world_size() == 1 else replace(stage, run=self._run)

    def _run(self, config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
        self._called = True
        _word({"inputs": {name: str(path) for name, path in inputs.items()}, "out": str(out)})
        facts = self._own.run(config, inputs, out)
        _word(None)  # others may still read in `out`, which is about to get its final name
        return facts

    def dismiss(self) -> None:
        """Tell the others that there is nothing to do, if they still wait."""
        if not self._called:
            _word(None)


def follow(stage: Stage) -> None:
    """What each but the first of several processes does: its share of the stage, on the first one's word."""
    word = _word(None)
    if word:
        inputs = {name: Path(path) for name, path in word["inputs"].items()}
        stage.run(stage.config, inputs, Path(word["out"]))
        _word(None)


def _word(word: dict[str, Any] | None) -> dict[str, Any] | None:
    """The first process's word, on all of them."""
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())
    return first_ranks(word)
