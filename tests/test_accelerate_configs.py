"""The configurations of accelerate, read, merged and turned into plugins by accelerate itself; that needs no GPU."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from pipeline.engine.launch import CONFIGS

NAMES = ("ddp", "fsdp2", "zero3")
FILES = sorted(CONFIGS.glob("*.yaml"))


def launch_arguments(name: str, *more: str) -> argparse.Namespace:
    """What `accelerate launch` makes of the file for our command."""
    argv = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--main_process_port", "0", *more]
    parsed = launch_command_parser().parse_args([*argv, "-m", "pipeline", "run", "unlearn", "demo"])
    args, _, _ = _validate_launch_command(parsed)
    assert args.module
    assert [args.training_script, *args.training_script_args] == ["pipeline", "run", "unlearn", "demo"]
    return args


def test_there_is_one_for_each_way_and_number_of_nodes() -> None:
    assert {path.stem for path in FILES} == {*NAMES, *(f"{name}-nodes" for name in NAMES)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_it_and_knows_every_key(path: Path) -> None:
    config = ClusterConfig.from_yaml_file(str(path))  # raises on an unknown key
    kinds = {"ddp": DistributedType.MULTI_GPU, "fsdp2": DistributedType.FSDP, "zero3": DistributedType.DEEPSPEED}
    assert config.distributed_type == kinds[path.stem.split("-")[0]]
    assert config.mixed_precision == "no"  # the recipe's precision decides
    options = {action.dest for action in launch_command_parser()._actions}
    nested = {**(config.fsdp_config or {}), **(config.deepspeed_config or {})}
    assert nested.keys() <= options  # a misspelt key inside would be ignored in silence
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("name", NAMES)
def test_on_several_nodes_it_is_the_same_but_for_the_nodes(name: str) -> None:
    one, several = (yaml.safe_load((CONFIGS / f"{each}.yaml").read_text()) for each in (name, f"{name}-nodes"))
    of_nodes = {"num_machines", "num_processes", "machine_rank", "main_process_ip", "main_process_port", "rdzv_backend"}
    differ = {key for key in several if one.get(key) != several[key]}
    assert differ <= of_nodes | {"same_network"} | ({"deepspeed_config"} if name == "zero3" else set())
    assert several["num_machines"] == 2


def environment(args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = prepare_multi_gpu_env(args)
    for key, value in found.items():
        if os.environ.get(key) != value:
            monkeypatch.setenv(key, value)
    return found


def test_ddp_starts_the_given_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    args = launch_arguments("ddp", "--num_processes", "3")
    found = environment(args, monkeypatch)
    assert args.multi_gpu
    assert args.nproc_per_node == "3"
    assert found["ACCELERATE_MIXED_PRECISION"] == "no"
    assert "ACCELERATE_USE_FSDP" not in found


def test_fsdp2_is_a_plugin_that_shards_the_layers_of_a_llama(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    environment(launch_arguments("fsdp2", "--num_processes", "4"), monkeypatch)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert not plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    plugin.set_auto_wrap_policy(model)
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]  # type: ignore[union-attr]
    assert wrapped == {type(model.model.layers[0])}


def test_several_nodes_share_out_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    more = ("--num_processes", "16", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    for name in ("ddp-nodes", "fsdp2-nodes"):
        args = launch_arguments(name, *more)
        environment(args, monkeypatch)
        assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
        assert args.main_process_ip == "10.0.0.1"


@pytest.mark.parametrize("name", ["zero3", "zero3-nodes"])
def test_zero3_is_passed_to_deepspeed(name: str) -> None:
    args = launch_arguments(name, "--num_processes", "16", "--machine_rank", "0", "--main_process_ip", "10.0.0.1")
    assert args.use_deepspeed
    args.deepspeed_fields_from_accelerate_config = ""  # set by the launcher itself
    command, found = prepare_deepspeed_cmd_env(args)
    wanted: dict[str, Any] = {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto",
        "ACCELERATE_GRADIENT_CLIPPING": "auto",
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert command is None or "deepspeed" not in command[0]  # each node starts its own processes
