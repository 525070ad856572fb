"""Products on oneDNN: the values and gradients of PyTorch's own, wherever oneDNN can be used."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from core import onednn
from pipeline.train.fit import load


class Doubled(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (the base class's name)
        return 2 * super().forward(input)


def on_onednn(layer: torch.nn.Linear) -> torch.nn.Module:
    other = copy.deepcopy(layer)
    onednn.install(other)
    assert type(other) is onednn.Linear
    return other


def step(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor | None]:
    """The output, and the gradients of the input and of the parameters for an arbitrary one of the output."""
    x = x.clone().requires_grad_()
    found = layer(x)
    if found.requires_grad:
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
    return [found.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


@given(st.lists(st.integers(0, 9), max_size=3), st.integers(1, 70), st.integers(1, 40), st.booleans(), st.booleans())
def test_values_and_gradients_are_those_of_a_linear_layer(
    before: list[int], inner: int, outer: int, bias: bool, frozen: bool
) -> None:
    torch.manual_seed(inner)
    plain = torch.nn.Linear(inner, outer, bias=bias).requires_grad_(not frozen)
    x = torch.randn(*before, inner)
    for expected, found in zip(step(plain, x), step(on_onednn(plain), x), strict=True):
        if expected is None:
            assert found is None
        else:
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_an_expanded_gradient_and_a_turned_input() -> None:
    """What autograd hands over need not lie in memory in its own order."""
    plain = torch.nn.Linear(6, 4)
    other, x = on_onednn(plain), torch.randn(6, 3).T
    for layer in (plain, other):
        layer(x).sum().backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_other_types_devices_and_classes_are_left_to_pytorch() -> None:
    model = torch.nn.Sequential(Doubled(2, 2), torch.nn.Linear(2, 2))
    onednn.install(model)
    assert [type(layer) for layer in model] == [Doubled, onednn.Linear]
    layer, x = model[1], torch.randn(3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.to("meta")(x.to("meta")).device.type == "meta"


@pytest.mark.parametrize("wrong", [torch.randn(3, 5), torch.randn(3, 0)])
def test_a_wrong_shape_is_an_error(wrong: torch.Tensor) -> None:
    layer = on_onednn(torch.nn.Linear(4, 2))
    with pytest.raises(RuntimeError):
        layer(wrong)


def test_a_loaded_model_trains_on_it_and_has_the_same_gradients(tiny_model: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    ours, _ = load(tiny_model)
    assert sum(isinstance(module, onednn.Linear) for module in ours.modules()) == 7 * plain.config.num_hidden_layers + 1
    ours.set_attn_implementation("sdpa")  # rows are not packed here
    ids = torch.arange(12)[None]
    for model in (plain, ours):
        model(ids, labels=ids).loss.backward()
    for (name, one), two in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, atol=1e-5, rtol=1e-4, msg=name)
