"""The thrifty ways to log-probabilities against plain log-softmax: values, gradients, and what they leave in memory."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GemmaConfig, GemmaForCausalLM, LlamaForCausalLM

from pipeline.train import head as heads
from pipeline.train.fit import load
from pipeline.train.packed import completion_log_probs, pack, target_log_probs
from tests.test_shared_header import rows_with, tiny


@settings(max_examples=40)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 10**6))
def test_log_probs_and_their_gradient_are_those_of_a_log_softmax(tokens: int, vocabulary: int, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    logits = (torch.randn(tokens, vocabulary, generator=made) * 5).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=made)
    weights = torch.randn(tokens, generator=made)
    expected = logits.log_softmax(-1)[torch.arange(tokens), targets]
    (gradient,) = torch.autograd.grad(expected @ weights, logits)
    found = target_log_probs(logits, targets)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for _ in range(2):  # the graph stays usable
        (again,) = torch.autograd.grad(found @ weights, logits, retain_graph=True)
        torch.testing.assert_close(again, gradient, atol=1e-5, rtol=1e-5)


def test_nothing_changed_in_the_last_bit() -> None:
    """The figures of earlier releases stay what they were."""
    torch.manual_seed(0)
    logits, targets, weights = torch.randn(150, 3000, requires_grad=True), torch.randint(3000, (150,)), torch.randn(150)
    plain = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)
    found = target_log_probs(logits, targets)
    assert torch.equal(found, plain)
    ours, autograds = (torch.autograd.grad(values @ weights, logits)[0] for values in (found, plain))
    assert torch.equal(ours, autograds)


def model_of(*, tied: bool = True, padding: int | None = 3) -> LlamaForCausalLM:
    return tiny(4, 2, tie_word_embeddings=tied, pad_token_id=padding)


def step(model: LlamaForCausalLM, header: int, *, bf16: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities of two micro-batches, and the gradients that they add up to."""
    found = []
    for seed in (1, 2):
        batch = pack(rows_with(9, [(2, 4), (0, 6), (3, 1)], seed), header)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            log_probs = completion_log_probs(model, batch)
        (log_probs * torch.linspace(-1, 2, len(log_probs))).sum().backward()
        found.append(log_probs.detach())
    return torch.cat(found), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("header", [0, 9])
@pytest.mark.parametrize("tile", [7, 8, 64])
def test_a_head_in_tiles_changes_no_value_and_no_gradient(
    monkeypatch: pytest.MonkeyPatch, tile: int, header: int, tied: bool, frozen: bool
) -> None:
    plain = model_of(tied=tied)
    if frozen:
        plain.get_output_embeddings().requires_grad_(False)
    tiled = copy.deepcopy(plain)
    heads.install(tiled)
    monkeypatch.setattr(heads, "TILE", tile)
    expected, gradients = step(plain, header)
    monkeypatch.setattr(heads, "LOGITS_BYTES", 0)
    found, tiled_gradients = step(tiled, header)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert tiled_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(tiled_gradients[name], gradient, atol=2e-5, rtol=1e-4)


def test_a_head_in_tiles_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = model_of()
    tiled = copy.deepcopy(plain)
    heads.install(tiled)
    expected, gradients = step(plain, 9, bf16=True)
    monkeypatch.setattr(heads, "LOGITS_BYTES", 0)
    found, tiled_gradients = step(tiled, 9, bf16=True)
    torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2)
    for name, gradient in gradients.items():
        assert (tiled_gradients[name] - gradient).norm() < 0.03 * gradient.norm(), name


def test_a_loaded_model_keeps_its_names_and_files(tiny_model: Path, tmp_path: Path) -> None:
    plain = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model, _ = load(tiny_model)
    assert isinstance(model.get_output_embeddings(), heads.AnswerHead)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for each, folder in ((plain, "plain"), (model, "ours")):
        each.save_pretrained(tmp_path / folder)
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()


def test_small_logits_are_kept_and_large_ones_are_not(tiny_model: Path) -> None:
    model, _ = load(tiny_model)
    per_token = 4 * model.config.vocab_size
    assert heads.head_in_tiles(model, heads.LOGITS_BYTES // per_token) is None
    assert heads.head_in_tiles(model, heads.LOGITS_BYTES // per_token + 1) is model.get_output_embeddings()


def test_logits_that_change_after_the_head_are_left_alone() -> None:
    config = GemmaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, head_dim=8
    )
    config.final_logit_softcapping = 30.0
    model = GemmaForCausalLM(config)
    heads.install(model)
    assert not isinstance(model.get_output_embeddings(), heads.AnswerHead)
