"""Attention of packed rows: the written-out form against PyTorch's, and which of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from core.errors import ModelError
from datasets_prep.schema import Encoded
from eval import suite
from eval.scoring.probes import Scorer
from pipeline.train import attention
from pipeline.train.attention import ROWS_SDPA, written_out
from pipeline.train.fit import load
from pipeline.train.packed import completion_log_probs, pack
from tests.unlearning import of_type, plain_log_probs, some_rows

HEADER = tuple(range(40, 50))
LONG = [Encoded(HEADER + tuple(range(i, i + 13)), 12) for i in (1, 20, 60)]  # 23 tokens, of which 12 in the prompt
EVERY_SECOND = {"layer_types": ["sliding_attention", "full_attention"]}


def heads(rows: int, groups: int, together: int, length: int, dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    """Query, key and value of random numbers, and a gradient of the output."""
    made = torch.Generator().manual_seed(seed)
    every = (groups * together, groups, groups, groups * together)
    return [torch.randn(rows, n, length, 8, generator=made).to(dtype).requires_grad_(True) for n in every]


def with_gradients(form: object, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    *inputs, onto = inputs
    output = form(*inputs)  # type: ignore[operator]
    return [output.detach(), *torch.autograd.grad(output, inputs, onto.detach().to(output.dtype))]


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 20))
def test_the_written_out_form_is_causal_attention(rows: int, groups: int, together: int, length: int) -> None:
    inputs = heads(rows, groups, together, length, torch.float64, seed=length)
    for ours, theirs in zip(with_gradients(written_out, inputs), with_gradients(fused, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_it_takes_the_models_own_scale() -> None:
    query, key, value, _ = heads(2, 2, 1, 7, torch.float64, seed=0)
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.05)
    torch.testing.assert_close(written_out(query, key, value, 0.05), theirs)


def test_in_bfloat16_it_is_as_close_to_the_exact_values_as_rounding_allows() -> None:
    exact = heads(4, 3, 3, 60, torch.float32, seed=1)
    rounded = [tensor.detach().bfloat16().requires_grad_(True) for tensor in exact]
    for ours, theirs in zip(with_gradients(written_out, rounded), with_gradients(fused, exact), strict=True):
        assert ours.dtype == torch.bfloat16
        assert float((ours.float() - theirs).norm() / theirs.norm()) < 0.01  # a rounding is up to 0.004


@pytest.mark.parametrize("longest", [0, 80])
def test_packed_rows_equal_rows_alone_in_both_forms(
    tiny_model: Path, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(attention, "WRITTEN_OUT_TO", {torch.float32: longest})
    monkeypatch.setattr(attention, "written_out", lambda *inputs: calls.append(1) or written_out(*inputs))
    rows = some_rows(5)
    packed = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation=ROWS_SDPA)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    found = completion_log_probs(packed, pack(rows))
    torch.testing.assert_close(found, torch.cat(plain_log_probs(plain, rows)), atol=1e-5, rtol=1e-5)
    assert bool(calls) == bool(longest)


@pytest.mark.parametrize("window", [1, 8, 22, 23])
@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("mistral", {}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
        ("gemma3_text", {"head_dim": 16, **EVERY_SECOND}),
        ("cohere2", EVERY_SECOND),
    ],
)
def test_a_token_sees_no_more_than_its_sliding_window(
    model_type: str, more: dict[str, Any], window: int, tiny_model: Path, tmp_path: Path
) -> None:
    folder = of_type(model_type, tiny_model, tmp_path / "model", sliding_window=window, **more)
    model, plain = load(folder)[0], AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = plain_log_probs(plain, LONG)
    for header in (0, len(HEADER)):
        found = completion_log_probs(model, pack(LONG, header))
        torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-4)
    for scores, row in zip(Scorer(suite.load(folder, "cpu"), 512).score(LONG), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(scores.logprobs).float(), row, atol=1e-4, rtol=1e-4)


def test_a_window_that_no_row_leaves_costs_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[bool] = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention, "WRITTEN_OUT_TO", {})
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *inputs, **given: masks.append("attn_mask" in given) or fused(*inputs, **given),
    )
    for window in (22, 23):
        model, _ = load(of_type("mistral", tiny_model, tmp_path / str(window), sliding_window=window))
        masks.clear()
        completion_log_probs(model, pack(LONG))
        assert masks == [window < 23] * 2


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        (
            "llama4_text",
            {"attention_chunk_size": 20, "head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 64},
        ),
        ("phimoe", {"sliding_window": 20, "num_local_experts": 2}),
    ],
)
def test_rows_longer_than_what_only_the_mask_knows_are_refused(
    model_type: str, more: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    folder = of_type(model_type, tiny_model, tmp_path / "model", **more)
    model, plain = load(folder)[0], AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    short = [Encoded(row.input_ids[:20], 12) for row in LONG]
    found = completion_log_probs(model, pack(short))
    torch.testing.assert_close(found, torch.cat(plain_log_probs(plain, short)), atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match=r"A row has 23 tokens, .* up to 20 only"):
        completion_log_probs(model, pack(LONG))
