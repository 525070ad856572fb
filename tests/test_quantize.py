"""Attacks by rounding: the weights are those that bitsandbytes would load."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import ModelError
from eval.attacks.quantize import quantize
from tests.eval_rows import sharpened


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return sharpened(tiny_model)


def quantized(model: Any, form: str) -> Any:
    treated = copy.deepcopy(model)
    quantize(treated, form)
    return treated


def test_linear_layers_of_gpt2_are_rounded_as_bitsandbytes_loads_them():
    """GPT-2 has its weights turned round, in a class of transformers' own."""
    from bitsandbytes import functional
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=50, n_positions=16))
    own, rounded = (m.transformer.h[0].mlp.c_fc.weight for m in (gpt2, quantized(gpt2, "nf4")))
    codes, state = functional.quantize_4bit(own.data.T.contiguous(), quant_type="nf4")
    assert torch.equal(rounded, functional.dequantize_4bit(codes, state).T)
    assert torch.equal(quantized(gpt2, "nf4").lm_head.weight, gpt2.lm_head.weight)


def test_a_model_without_a_layer_to_round_is_refused():
    class Bare(torch.nn.Module):
        def get_output_embeddings(self):
            return None

    with pytest.raises(ModelError, match=r"no linear layer.*Remove eval\.robustness\.quantize"):
        quantize(Bare(), "nf4")


@pytest.mark.parametrize(("form", "error"), [("int8", 0.01), ("nf4", 0.10), ("fp4", 0.14)])
def test_quantized_weights_are_near_and_few(model, form, error):
    treated = quantized(model, form)
    before, after = dict(model.named_parameters()), dict(treated.named_parameters())
    for name, weight in before.items():
        if ".self_attn." in name or ".mlp." in name:
            assert 0 < (after[name] - weight).norm() / weight.norm() < error
        else:  # embeddings, head and norms
            assert torch.equal(after[name], weight), name
    weight = after["model.layers.0.mlp.gate_proj.weight"]
    levels = [row.unique().numel() for row in (weight if form == "int8" else weight.flatten().view(-1, 64))]
    assert max(levels) <= (255 if form == "int8" else 16)


def test_int8_is_the_nearest_of_255_steps_of_a_row(model):
    weight = model.model.layers[0].mlp.up_proj.weight
    rounded = quantized(model, "int8").model.layers[0].mlp.up_proj.weight
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((rounded - weight).abs() <= step * 0.55).all()  # they are float16 first, which moves some over a border
    nearest = (weight / step).round() * step
    assert ((rounded - nearest).abs() < 0.1 * step).float().mean() > 0.95


def test_nf4_is_what_the_layer_of_bitsandbytes_computes_with(model):
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit, Params4bit

    layer = model.model.layers[0].mlp.up_proj
    theirs = Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32)
    theirs.weight = Params4bit(
        layer.weight.detach().clone(), requires_grad=False, quant_type="nf4", compress_statistics=False
    )
    theirs = theirs.to("cpu")
    ours = quantized(model, "nf4").model.layers[0].mlp.up_proj
    assert torch.equal(functional.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state), ours.weight)
    inputs = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(theirs(inputs), ours(inputs), atol=0.02)  # it may multiply in bfloat16
