"""Computed time and sizes: against PyTorch's own counts of operations, published sizes, and what has to hold anyway."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from core.errors import InputError, SystemLimitError
from datasets_prep.schema import Encoded
from pipeline.cost import devices, memory, resources, time, work
from pipeline.cost.fits import refuse_what_does_not_fit
from pipeline.cost.memory import Batch
from pipeline.cost.resources import Asked, Resources, given
from pipeline.cost.rows import FAME_TEXT, per_byte_of, row_of
from pipeline.cost.shape import parameters, read_shape, shape_of
from pipeline.cost.work import Cost
from pipeline.engine.plan import planned
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from pipeline.train.attention import ROWS_SDPA
from pipeline.train.config import ModelConfig, Shape, TrainConfig
from pipeline.train.fit import freeze_below
from pipeline.train.lora import add_adapters
from pipeline.train.packed import completion_log_probs, pack

H100 = devices.named("H100 80GB")
FAME = "fame-topics-gd-llama32-3b"
FAME_CSD = "fame-topics-csd-llama32-3b"
LLAMA_3B = load_recipe(FAME).model.shape
LLAMA_8B = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip


def costs_of(recipe: Any, device: devices.Device = H100) -> dict[str, Cost]:
    known = planned(recipe, {}, device)
    return {stage.name: stage.costs(stage.config, known) for stage in stages(recipe)}


# Shapes


def test_shapes_have_the_published_numbers_of_parameters() -> None:
    assert LLAMA_3B
    assert parameters(LLAMA_3B) == 3_212_749_824
    assert parameters(Shape.model_validate(LLAMA_8B)) == 8_030_261_248


def test_a_shape_is_read_from_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"name": "a/b", "license": "apache-2.0"}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B | {"architectures": ["LlamaForCausalLM"]}))
    expected = Shape.model_validate(LLAMA_8B)
    assert shape_of(ModelConfig.model_validate(config | {"path": str(tmp_path)}), None) == expected
    hub = {"hub": {"id": "a/b", "revision": "0" * 40}}
    assert shape_of(ModelConfig.model_validate(config | hub), None) is None
    assert shape_of(ModelConfig.model_validate(config | hub), tmp_path) == expected
    assert shape_of(ModelConfig.model_validate(config | hub | {"shape": LLAMA_8B}), None) == expected
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "config.json"))
    assert shape_of(ModelConfig.model_validate(config | hub), None) == expected
    for text in ("{}", "[]", "no json", "[" * 200_000):
        (tmp_path / "config.json").write_text(text)
        assert read_shape(tmp_path / "config.json") is None


@pytest.mark.parametrize("experts", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_a_mixture_of_experts_is_no_plain_decoder(tmp_path: Path, experts: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA_8B | {experts: 8}))
    assert read_shape(file) is None
    file.write_text(json.dumps(LLAMA_8B | {experts: 0}))  # as GraniteMoeHybrid's dense ones have it
    assert read_shape(file)


def test_embeddings_are_tied_unless_the_file_says_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({key: value for key, value in LLAMA_8B.items() if key != "tie_word_embeddings"}))
    read = read_shape(file)
    assert read
    assert read.tie_word_embeddings


@pytest.mark.parametrize(("count", "fits"), [(3_240_000_000, True), (3_400_000_000, False)])
def test_a_shape_with_another_number_of_parameters_is_not_counted_from(
    count: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engine.plan.shape_of", lambda *_: LLAMA_3B)  # as a config.json may seem to have it
    recipe = load_recipe("demo", ["model.shape=null", f"model.parameters={count}", "base.train.train_from_layer=0"])
    known = planned(recipe, {}, H100)
    assert (known.shape is not None, known.parameters) == (fits, count)
    assert (costs_of(recipe)["base"].memory == 16 * count) is not fits


# Operations


ROWS, LENGTH, ANSWER = 4, 20, 8


@pytest.fixture(scope="module")
def shape() -> Shape:
    return Shape(
        num_hidden_layers=4, hidden_size=64, intermediate_size=192, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=500, tie_word_embeddings=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"train_from_layer": 2}, {"lora": {"r": 1, "alpha": 1}}, {"args": {"gradient_checkpointing": True}}],
)
def test_operations_are_those_that_pytorch_counts(shape: Shape, changes: dict[str, Any]) -> None:
    config = TrainConfig.model_validate(changes)
    model: Any = LlamaForCausalLM(LlamaConfig(**shape.model_dump(exclude_none=True), attn_implementation=ROWS_SDPA))
    freeze_below(model, config.train_from_layer)
    if config.lora:
        model = add_adapters(model, config.lora, 0)
    if config.args:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = pack([Encoded(tuple(range(i, i + LENGTH)), LENGTH - ANSWER) for i in range(ROWS)])
    with FlopCounterMode(display=False) as counted, torch.autocast("cpu", dtype=torch.bfloat16):
        completion_log_probs(model, batch).sum().backward()
    computed = time.step_operations(shape, config, Batch(ROWS * LENGTH, ROWS * ANSWER))
    assert computed == pytest.approx(counted.get_total_flops(), rel=0.1)  # attention and adapters are left out


def test_a_token_of_the_large_model_takes_what_is_known_of_it() -> None:
    assert LLAMA_3B
    body = time.step_operations(LLAMA_3B, TrainConfig(), Batch(1000, 0)) / 1000
    answer = time.step_operations(LLAMA_3B, TrainConfig(), Batch(0, 100)) / 100
    assert (round(body / 1e9, 1), round(answer / 1e9, 1)) == (16.9, 2.4)  # six operations for each weight


# Costs


def test_every_stage_of_every_known_shape_has_its_cost() -> None:
    recipe = load_recipe(FAME)
    costs = costs_of(recipe)
    for name, cost in costs.items():
        assert cost.seconds is not None
        assert math.isfinite(cost.seconds)
        if name.startswith(("base", "gold", "unlearn", "eval")):
            assert 6.4e9 < cost.memory < H100.memory
            assert cost.seconds > 60
    assert costs["eval-gold"].parts["moments"] == 8 * 3_212_749_824  # the fullest moment is the relearning
    assert costs["eval-gold-seed-43"].memory < 12e9
    assert costs["base"].scratch == 2 * 12 * 3_212_749_824  # a checkpoint, and the next one being written
    assert costs["model"].download == costs["publish"].download == 2 * 3_212_749_824


def test_smaller_batches_and_checkpoints_need_less_and_slower_devices_more_time() -> None:
    assert LLAMA_3B
    recipe = load_recipe(FAME)
    row = row_of(FAME_TEXT, per_byte_of(LLAMA_3B))
    train = recipe.base.train
    assert train

    def needs(**changes: Any) -> int:
        args = train.args | changes
        batch = row.batch(args["per_device_train_batch_size"])
        return sum(memory.of_training(LLAMA_3B, train.model_copy(update={"args": args}), batch, bf16=True).values())

    assert needs(per_device_train_batch_size=8) < needs() < needs(gradient_checkpointing=False)
    fast, slow = (costs_of(recipe, devices.named(name)) for name in ("H100 80GB", "A100 80GB"))
    for name, cost in fast.items():
        assert (cost.seconds or 0) <= (slow[name].seconds or 0)
        assert cost.memory == slow[name].memory


def test_of_a_model_of_unknown_shape_weights_gradients_and_moments_are_counted() -> None:
    recipe = load_recipe("demo", ["model.shape=null", "model.parameters=1000000000", "gold.train.lora={r: 1, alpha: 1}",
                                  "gold.train.train_from_layer=0", "base.train.train_from_layer=0"])  # fmt: skip
    costs = costs_of(recipe)
    assert (costs["base"].memory, costs["gold"].memory, costs["eval-base"].memory) == (16e9, 4e9, 4e9)
    assert costs["base"].seconds is None
    assert work.total(list(costs.values()), H100)["seconds"] is None


@pytest.mark.parametrize(("optimizer", "bytes_each"), [("adamw_torch_fused", 8), ("adamw_bnb_8bit", 2), ("sgd", 0)])
def test_moments_are_those_of_the_optimizer(optimizer: str, bytes_each: int) -> None:
    whole = ["base.train.train_from_layer=0", f"base.train.args={{optim: {optimizer}, save_strategy: epoch}}"]
    known = costs_of(load_recipe("demo", whole))["base"]
    in_float32 = 49_152 * 576 if "bnb" in optimizer else 0  # the embedding
    assert known.parts["moments"] == bytes_each * 134_515_008 + (8 - bytes_each) * in_float32
    assert known.scratch == 2 * (4 * 134_515_008 + known.parts["moments"])
    unknown = load_recipe("demo", [*whole, "model.shape=null", "model.parameters=1000000000"])
    assert costs_of(unknown)["base"].memory == (8 + bytes_each) * 1e9


@pytest.mark.parametrize(("name", "change"), [(FAME, "forget_cap=gold"), (FAME_CSD, "train_from_layer=0")])
def test_levels_of_another_model_have_two_in_memory(name: str, change: str) -> None:
    """Gold's loss as a cap, or csd's levels, which the novice gives."""
    recipe = load_recipe(name, [f"unlearn.{change}", "unlearn.lora={r: 8, alpha: 16}"])
    assert costs_of(recipe)["unlearn"].parts["a second model"] == 4 * 3_212_749_824


def test_a_plan_for_one_small_gpu_says_what_does_not_fit_and_what_helps() -> None:
    small = devices.named("RTX 4090 24GB")
    shape = ", ".join(f"{key}: {str(value).lower()}" for key, value in LLAMA_8B.items())
    changes = [f"model.shape={{{shape}}}", "model.parameters=null", "eval.robustness.relearn=null"]
    changes += [f"{key}.lora={{r: 16, alpha: 32}}" for key in ("base.train", "gold.train", "unlearn")]
    gates = [gate.model_dump() for gate in load_recipe(FAME).gates if "relearn" not in gate.metric]
    recipe = load_recipe(FAME, [*changes, f"gates={json.dumps(gates)}"])
    costs = costs_of(recipe, small)
    known = {stage.name: (stage.config, costs[stage.name]) for stage in stages(recipe)}
    with pytest.raises(SystemLimitError) as caught:
        refuse_what_does_not_fit(known)
    said = str(caught.value)
    assert "base, gold, gold-seed-43, gold-seed-44: 3" in said  # float32 weights under the adapters: 32.1 GB
    assert "adamw_bnb_8bit" not in said  # an adapter's moments are small
    assert "eval-" not in said  # 16.1 GB in bf16, and each attacked copy alone
    assert costs["eval-base"].memory < small.memory


def test_vllm_has_its_share_of_the_gpu_beside_the_attacks() -> None:
    """It keeps it to the end of the evaluation, and relearning takes 48 GB."""
    recipe, own = load_recipe(FAME, ["eval.backend=vllm"]), load_recipe(FAME)
    device = devices.named("H100 80GB")
    costs = costs_of(recipe, device)
    assert costs["eval-base"].memory == costs_of(own, device)["eval-base"].memory + 40 * 2**30
    with pytest.raises(SystemLimitError, match=r"9\d.*vLLM 42.9.* do not fit .*What helps: eval.backend: hf"):
        refuse_what_does_not_fit({"eval-base": (recipe.eval, costs["eval-base"])})


def test_each_process_needs_a_gpu() -> None:
    recipe = load_recipe(FAME, ["base.train.processes=4", "unlearn.processes=8", "eval.processes=8"])
    costs = costs_of(recipe)
    known = {stage.name: (stage.config, costs[stage.name]) for stage in stages(recipe)}
    refuse_what_does_not_fit(known)  # nobody knows how many there will be
    refuse_what_does_not_fit(known, 8)
    with pytest.raises(SystemLimitError) as caught:
        refuse_what_does_not_fit(known, 4)
    said = str(caught.value)
    assert "eval-unlearned: each of its 8 processes needs a GPU, and there are 4. Set processes to 4 or less" in said
    assert " base" not in said  # which has 4


def test_a_processor_keeps_memory_for_what_lies_between_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("demo")
    unlearn = costs_of(recipe, devices.cpu())["unlearn"]

    def plan(total: float) -> None:
        has = psutil.virtual_memory()._replace(total=round(total))
        monkeypatch.setattr(psutil, "virtual_memory", lambda: has)
        refuse_what_does_not_fit({"unlearn": (recipe.unlearn, costs_of(recipe, devices.cpu())["unlearn"])})

    plan(1.7 * unlearn.memory)
    with pytest.raises(SystemLimitError, match=r"unlearn: .* do not fit into"):
        plan(1.6 * unlearn.memory)


def test_devices_are_found_by_their_names() -> None:
    assert devices.named("a100 40gb").bf16 == 312e12
    assert devices.here() == devices.cpu() or devices.here().is_gpu
    with pytest.raises(InputError, match="Did you mean H100 80GB"):
        devices.named("H100")


# What a job is given


def test_a_job_on_a_gpu_has_memory_for_the_weights_of_each_process() -> None:
    recipe = load_recipe(FAME)
    unlearn, count = costs_of(recipe)["unlearn"], parameters(LLAMA_3B)
    one, two = (given(recipe.resources, "unlearn", processes, unlearn, count) for processes in (1, 2))
    assert (one.gpus, two.gpus, one.cpus) == (1, 2, 8)
    assert one.memory > 8 * count
    assert two.memory == 2 * one.memory


def test_a_processor_has_the_cores_of_this_process_and_a_job_those_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    recipe = load_recipe("demo")
    of_eight = costs_of(recipe, devices.cpu())["base"]
    assert devices.cpu().fp32 == 8 * devices.CORE_FLOPS
    two, eight, many = (given(Resources(cpus=n), "base", 1, of_eight, recipe.model.parameters) for n in (None, 8, 64))
    limits = [job.seconds - resources.START_SECONDS for job in (two, eight, many)]
    assert two.cpus == 2
    assert limits[0] == pytest.approx(4 * limits[1], abs=4)
    assert limits[1] == limits[2]  # not all of a stage is the faster for more
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert devices.cpu().fp32 == 2 * devices.CORE_FLOPS


def test_a_job_for_a_model_of_unknown_size_is_refused_unless_its_memory_is_given() -> None:
    recipe = load_recipe("demo", ["model.parameters=null", "model.shape=null"])
    costs = costs_of(recipe)
    for stage in ("base", "unlearn", "eval-base"):
        with pytest.raises(InputError, match=rf"Give model\.parameters, or resources\.stages\.{stage}\.memory_gb"):
            given(recipe.resources, stage, 1, costs[stage], None)
    assert given(Resources(memory_gb=30), "base", 1, costs["base"], None).memory == 30e9
    assert given(Resources(stages={"base": Asked(gpus=3)}), "gate", 1, costs["gate"], None).gpus == 0
