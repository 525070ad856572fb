"""A header that all rows begin with is computed once, and nothing else changes: not a loss, not a gradient."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from datasets_prep.schema import Encoded
from pipeline.train.attention import ROWS_SDPA, row_layout
from pipeline.train.packed import HEADER_FROM, completion_log_probs, pack, row_losses, row_means, shared_header
from pipeline.train.trainer import CompletionTrainer, collate, row_dataset

VOCABULARY = 50


def tiny(heads: int, key_value_heads: int, attention: str = ROWS_SDPA, **more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        attn_implementation=attention,
        **{"tie_word_embeddings": True, **more},
    )
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # large enough that a wrong position or a lost row shows
    return model


GROUPED = tiny(4, 2)
PLAIN = tiny(4, 4)


def rows_with(header: int, sizes: list[tuple[int, int]], seed: int) -> list[Encoded]:
    """Rows of ``header`` common tokens, then an own prompt and an answer of the given sizes."""
    rng = random.Random(seed)
    common = [rng.randrange(VOCABULARY) for _ in range(header)]
    return [
        Encoded((*common, *(rng.randrange(VOCABULARY) for _ in range(prompt + answer))), header + prompt)
        for prompt, answer in sizes
    ]


def gradients(model: LlamaForCausalLM, rows: list[Encoded], header: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The mean loss of each row, and the gradient of their weighted sum (every row another weight and sign).

    The weights do not cancel where rows are equal: a gradient of nothing but rounding would have no size to compare.
    """
    model.zero_grad()
    batch = pack(rows, header)
    means = row_means(-completion_log_probs(model, batch), batch["row"], len(rows))
    (means * torch.arange(1, len(rows) + 1) * torch.tensor([1.0, -0.3]).repeat(len(rows))[: len(rows)]).sum().backward()
    return means.detach(), [parameter.grad.clone() for parameter in model.parameters()]


SIZES = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 8)), min_size=1, max_size=6)


@settings(max_examples=60)
@given(st.integers(1, 14), SIZES, st.booleans(), st.data())
def test_a_header_computed_once_changes_no_loss_and_no_gradient(
    common: int, sizes: list[tuple[int, int]], grouped: bool, data: st.DataObject
) -> None:
    model = GROUPED if grouped else PLAIN
    rows = rows_with(common, sizes, seed=len(sizes))
    header = data.draw(st.integers(0, common))
    expected, plain = gradients(model, rows, 0)
    found, shared = gradients(model, rows, header)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    size = torch.cat([gradient.flatten() for gradient in plain]).norm()
    for one, other in zip(shared, plain, strict=True):
        assert (one - other).norm() <= 1e-5 * size


@pytest.mark.parametrize("model", [GROUPED, PLAIN])
def test_it_equals_ordinary_forwards_of_the_rows(model: LlamaForCausalLM) -> None:
    rows = rows_with(11, [(3, 4), (0, 6), (5, 1)], seed=3)
    ordinary = tiny(model.config.num_attention_heads, model.config.num_key_value_heads, "sdpa")
    ordinary.load_state_dict(model.state_dict())
    for row, found in zip(rows, gradients(model, rows, 11)[0].tolist(), strict=True):
        logits = ordinary(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        places = range(row.completion_start, len(row.input_ids))
        alone = -sum(logits[i - 1, row.input_ids[i]] for i in places) / len(places)
        assert found == pytest.approx(float(alone.detach()), abs=1e-5)


def test_the_header_is_there_once_and_positions_go_on_after_it() -> None:
    rows = rows_with(9, [(1, 2), (2, 3)], seed=1)
    batch = pack(rows, 9)
    assert batch["input_ids"].shape == (1, 9 + 3 + 5)
    assert batch["position_ids"][0].tolist() == [*range(9), *range(9, 12), *range(9, 14)]
    assert batch["targets"].tolist() == [token for row in rows for token in row.input_ids[row.completion_start :]]
    assert batch["predict_from"].tolist() == [9, 10, 13, 14, 15]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_the_layout_is_its_own_inverse(own: list[int], data: st.DataObject) -> None:
    header = data.draw(st.integers(0, 5))
    layout = row_layout([header + size for size in own], header)
    tokens = header + sum(own)
    assert layout["rows_packed"].shape == (tokens,)
    assert layout["rows_padded"].flatten()[layout["rows_packed"]].tolist() == list(range(tokens))
    assert layout["rows_padded"][:, :header].tolist() == [list(range(header))] * len(own)


@given(st.integers(0, 30), SIZES, st.integers(0, 10**6))
def test_the_header_is_what_all_prompts_begin_with(common: int, sizes: list[tuple[int, int]], seed: int) -> None:
    rows = [row for row in rows_with(common, sizes, seed) if row.completion_start]
    if not rows:
        return
    prompts = [row.input_ids[: row.completion_start] for row in rows]
    shared = len(os.path.commonprefix(prompts))  # noqa: RUF071 (of any sequences)
    assert shared_header(rows) == (shared if shared >= HEADER_FROM and len(rows) > 1 else 0)


def test_batches_take_a_long_header_and_leave_a_short_one() -> None:
    for common, expected in ((HEADER_FROM - 1, 0), (HEADER_FROM, HEADER_FROM)):
        rows = [Encoded((*range(common), 40 + i, 7), common + 1) for i in range(3)]
        batch = collate(list(row_dataset(rows)))
        assert batch["input_ids"].shape[1] == expected + 3 * (common + 2 - expected)


def test_scores_do_not_depend_on_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_with(12, [(2, 3), (4, 5), (1, 7), (3, 3)], seed=5)
    found = row_losses(GROUPED, rows)
    monkeypatch.setattr("pipeline.train.packed.HEADER_FROM", 1000)
    assert row_losses(GROUPED, rows) == pytest.approx(found, abs=1e-5)


def test_a_model_with_another_attention_is_refused() -> None:
    with pytest.raises(ValueError, match=ROWS_SDPA):
        CompletionTrainer(tiny(4, 2, "sdpa"))
