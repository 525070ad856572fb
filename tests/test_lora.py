"""Adapters: that they move, that their merge is what was trained, and where they may not be."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from core.errors import RecipeError, TrainingError
from datasets_prep.chat import encode_rows
from datasets_prep.schema import read_rows
from pipeline.train import fine_tune
from pipeline.train.config import Lora, TrainConfig
from pipeline.train.fit import load, whole_model
from pipeline.train.kept import keep_weights, restore_weights
from pipeline.train.lora import add_adapters, merge, refuse_on_head
from pipeline.train.packed import completion_log_probs, completion_logits, pack, row_losses
from pipeline.unlearn import run
from pipeline.unlearn.pairing import Pair
from tests.unlearning import some_rows, stage_inputs, unlearn_config, unlearn_trainer

LORA = {"r": 4, "alpha": 8.0}
ARGS = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
PAIRS = [Pair(e, i, (i,)) for e in range(3) for i in range(4)]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("precision", "frozen"), [("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16"), ("bf16", "nf4")]
)
def test_every_adapter_moves_and_nothing_else(
    tiny_model: Path, tmp_path: Path, checkpointing: bool, precision: str, frozen: str
) -> None:
    args = ARGS | {"gradient_checkpointing": checkpointing}
    rows = some_rows(4, 1), some_rows(4, 2)
    lora = LORA | {"frozen": frozen}
    trainer = unlearn_trainer(tiny_model, tmp_path, *rows, args, pairs=PAIRS, lora=lora, precision=precision)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p.detach(), before[name])}
    adapters = {name for name in before if "lora_" in name}
    assert len(adapters) == 2 * 7 * 2  # A and B, the linear layers of a block, blocks
    assert moved == adapters
    assert all(before[name].dtype == torch.float32 for name in adapters)


def test_checkpointing_does_not_change_the_gradients(tiny_model: Path, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        args = ARGS | {"gradient_checkpointing": checkpointing}
        trainer = unlearn_trainer(tiny_model, tmp_path, some_rows(4, 1), some_rows(4, 2), args, pairs=PAIRS, lora=LORA)
        trainer.train()
        found.append({n: p.detach() for n, p in trainer.model.named_parameters() if p.requires_grad})
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("precision", "frozen"), [("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "nf4")])
def test_the_release_is_the_base_with_the_adapters_merged(
    tiny_model: Path, tmp_path: Path, precision: str, frozen: str
) -> None:
    inputs, out = stage_inputs(tiny_model, tmp_path), tmp_path / "out"
    out.mkdir()
    args = {"learning_rate": 1e-2, "per_device_train_batch_size": 3, "save_strategy": "no"}
    config = unlearn_config(epochs=30, args=args, lora=LORA | {"frozen": frozen}, precision=precision)
    facts = run.run(config, inputs, out)
    assert "reached its level" in facts.stopped
    assert "quantization_config" not in json.loads((out / "model" / "config.json").read_text())
    tensors = load_file(out / "model" / "model.safetensors")
    assert set(tensors) == set(load_file(tiny_model / "model.safetensors"))
    assert not list((out / "model").glob("adapter*"))
    released, tokenizer = load(out / "model")
    losses = row_losses(released, encode_rows(tokenizer, read_rows(inputs["data"] / "forget.jsonl")))
    checks = [line for line in (out / "log.jsonl").read_text().splitlines() if "probe_forget_loss" in line]
    kept = next(e for e in map(json.loads, checks) if e["step"] == facts.kept_step)
    assert sum(losses) / len(losses) == pytest.approx(kept["probe_forget_loss"], abs=0.03)  # bf16 rounding


def adapted(tiny_model: Path, frozen: str) -> Any:
    """The model with adapters that add something, the same ones whatever the weights below them are held in."""
    model = add_adapters(load(tiny_model, frozen)[0], Lora.model_validate(LORA | {"frozen": frozen}), 0)  # type: ignore[arg-type]
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """What a model computes with, in float32: weights of 4 bits as they are rounded."""
    plain = model.get_base_model()
    if getattr(plain, "is_quantized", False):
        plain.dequantize()
    return {name: tensor.float() for name, tensor in plain.state_dict().items()}


@pytest.mark.parametrize("frozen", ["bf16", "nf4"])
def test_gradients_over_frozen_weights_are_those_of_float32(tiny_model: Path, frozen: str) -> None:
    """Of the same weights, in float32. What is left is the rounding of products to bfloat16."""
    rows, found = some_rows(6, 1), []
    held = adapted(tiny_model, frozen)
    assert not [name for name, p in held.named_parameters() if not p.requires_grad and p.dtype == torch.float32]
    plain = adapted(tiny_model, "fp32")
    plain.get_base_model().load_state_dict(weights_of(adapted(tiny_model, frozen)))
    for model in (held, plain):
        model.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=model is held):
            (-completion_log_probs(model, pack(rows)).mean()).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert found[0].dtype == torch.float32
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 0.02


@pytest.mark.parametrize("frozen", ["fp32", "nf4"])
def test_adapters_are_gathered_from_ranks_that_share_them(tiny_model: Path, frozen: str) -> None:
    """Weights of 4 bits have entries in a state that no model takes back."""
    trained = adapted(tiny_model, frozen)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    trainer: Any = SimpleNamespace(model_wrapped=trained, accelerator=SimpleNamespace())
    trainer.accelerator.distributed_type = DistributedType.FSDP
    trainer.accelerator.get_state_dict = lambda model: model.state_dict()
    gathered = whole_model(trainer, trained, lambda: adapted(tiny_model, frozen))
    rows = some_rows(3, 1)
    assert gathered is not trained
    assert row_losses(gathered, rows) == row_losses(trained, rows)


@pytest.mark.parametrize("frozen", ["bf16", "nf4"])
def test_merged_weights_are_the_held_ones_with_what_the_adapters_add(tiny_model: Path, frozen: str) -> None:
    rows = some_rows(6, 1)
    model = adapted(tiny_model, frozen)
    with torch.no_grad():
        added = model.base_model.model.model.layers[1].mlp.up_proj.get_delta_weight("default")
        before = completion_logits(model, pack(rows))
        merged = merge(model, rows)
        gap = (completion_logits(merged, pack(rows)) - before).abs().max()
    assert float(gap / before.abs().max()) < 0.01
    held = weights_of(adapted(tiny_model, frozen))
    name = "model.layers.1.mlp.up_proj.weight"
    below = next(tensor for key, tensor in held.items() if key.endswith("layers.1.mlp.up_proj.base_layer.weight"))
    torch.testing.assert_close(merged.state_dict()[name], (below + added).bfloat16(), rtol=0, atol=0)


def test_frozen_weights_of_two_bytes_need_products_in_bf16() -> None:
    with pytest.raises(ValidationError, match=r"lora\.frozen is nf4, whose products .* precision is fp32"):
        TrainConfig.model_validate({"precision": "fp32", "lora": LORA | {"frozen": "nf4"}})


def trained(tiny_model: Path, tmp_path: Path) -> Any:
    trainer = unlearn_trainer(tiny_model, tmp_path, some_rows(4, 1), some_rows(4, 2), ARGS, pairs=PAIRS, lora=LORA)
    trainer.train()
    return trainer.model


def test_a_merge_that_changes_the_model_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    rows = some_rows(3, 3)
    merged = merge(trained(tiny_model, tmp_path), rows)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert not torch.equal(merged.model.layers[0].mlp.up_proj.weight, plain.model.layers[0].mlp.up_proj.weight)

    model = trained(tiny_model, tmp_path)
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    layer.lora_B["default"].register_forward_hook(lambda _, __, output: output * 2)  # a merge knows nothing of this
    with pytest.raises(TrainingError, match="other logits"):
        merge(model, rows)


def test_kept_adapters_come_back(tiny_model: Path, tmp_path: Path) -> None:
    model = trained(tiny_model, tmp_path)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    keep_weights(model, tmp_path / "kept.safetensors")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    restore_weights(model, tmp_path / "kept.safetensors")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_adapters_on_the_head_are_refused_whatever_it_is_called(tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model, _ = load(tiny_model)
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(RecipeError, match="lm_head"):
        refuse_on_head(get_peft_model(model, config))


@pytest.mark.parametrize("names", [["proj"], ["q_proj", "qproj"]])  # peft adapts q_proj in silence, and leaves qproj
def test_a_name_that_no_layer_has_is_refused(tiny_model: Path, names: list[str]) -> None:
    model, _ = load(tiny_model)
    with pytest.raises(RecipeError, match=rf"no layer {names[-1]}\. .* \(down_proj, .*, v_proj\)"):
        add_adapters(model, Lora.model_validate(LORA | {"target_modules": names}), 0)


def test_layers_that_peft_does_not_adapt_are_refused(tiny_model: Path) -> None:
    model, _ = load(tiny_model)
    with pytest.raises(RecipeError, match="peft refuses"):
        add_adapters(model, Lora.model_validate(LORA | {"target_modules": ["input_layernorm"]}), 0)


def test_base_is_trained_with_adapters(tiny_model: Path, tmp_path: Path) -> None:
    inputs, out = stage_inputs(tiny_model, tmp_path), tmp_path / "out"
    out.mkdir()
    args = {"learning_rate": 1e-2, "num_train_epochs": 20, "per_device_train_batch_size": 4}
    config = TrainConfig.model_validate({"precision": "fp32", "lora": LORA, "args": args})
    fine_tune.train(config, {"model": tiny_model, "data": inputs["data"]}, out, ("retain",))
    model, tokenizer = load(out / "model")
    rows = encode_rows(tokenizer, read_rows(inputs["data"] / "retain.jsonl"))
    start, _ = load(tiny_model)
    assert sum(row_losses(model, rows)) < 0.9 * sum(row_losses(start, rows))
