"""Linear layers on oneDNN: the same numbers, for as long as it lasts, and only where they can be."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from eval.scoring.packed_linear import packed


class Doubled(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (the base class's name)
        return 2 * super().forward(input)


def runs_packed(layer: torch.nn.Module) -> bool:
    return "forward" in vars(layer)


@given(st.integers(1, 9), st.integers(1, 70), st.integers(1, 40), st.booleans())
def test_it_is_the_same_product(rows: int, inner: int, outer: int, bias: bool) -> None:
    torch.manual_seed(rows)
    layer, x = torch.nn.Linear(inner, outer, bias=bias), torch.randn(2, rows, inner)
    expected = layer(x)
    with torch.no_grad(), packed(layer):
        assert runs_packed(layer)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    assert not runs_packed(layer)
    assert layer(x).equal(expected)


def test_logits_of_a_model_are_the_same_and_it_can_be_trained_after(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ids = torch.arange(10)[None]
    expected = model(ids).logits
    with torch.no_grad(), packed(model):
        assert sum(map(runs_packed, model.modules())) == 7 * model.config.num_hidden_layers + 1
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
        with packed(model):  # within another one nothing changes
            model(ids)
        assert any(map(runs_packed, model.modules()))
    assert not any(map(runs_packed, model.modules()))
    model(ids).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_after_an_error_the_layers_are_their_own_again() -> None:
    layer = torch.nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="halt"), packed(layer):
        raise RuntimeError("halt")
    assert not runs_packed(layer)


def test_new_weights_are_packed_anew() -> None:
    layer, x = torch.nn.Linear(3, 3), torch.randn(1, 3)
    with torch.no_grad():
        for _ in range(2):
            with packed(layer):
                torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
            layer.weight.mul_(2)


def test_only_plain_float32_layers_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    hooked = torch.nn.Linear(2, 2)
    hooked.forward = lambda x: x  # type: ignore[method-assign]
    model = torch.nn.Sequential(Doubled(2, 2), torch.nn.Linear(2, 2).bfloat16(), torch.nn.Linear(2, 2, device="meta"))
    own = hooked.forward
    with packed(model), packed(hooked):
        assert not any(map(runs_packed, model))
        assert hooked.forward is own
    plain = torch.nn.Linear(2, 2)
    x = torch.randn(1, 2)
    with torch.no_grad(), packed(plain), torch.autocast("cpu", dtype=torch.bfloat16):
        assert plain(x).dtype == torch.bfloat16
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=15))
    with packed(plain):
        assert not runs_packed(plain)
