"""Packed rows against rows alone, batches, the collator, and the pairing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from core.errors import DataError, ModelError
from core.loading import skeleton
from datasets_prep.schema import Encoded
from eval import suite
from pipeline.train import packed
from pipeline.train.attention import ROWS_SDPA
from pipeline.train.fit import load
from pipeline.train.packed import batches_by_length, completion_log_probs, pack, row_losses, row_means
from pipeline.train.trainer import collate, counts_of
from pipeline.unlearn.pairing import Pair, draw_alternates, pair_rows
from pipeline.unlearn.trainer import pair_dataset
from tests.unlearning import of_type, plain_log_probs, some_rows

LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}


@pytest.mark.parametrize("attention", [ROWS_SDPA, "sdpa"])
def test_packed_rows_equal_rows_alone(tiny_model: Path, attention: str) -> None:
    rows = some_rows(7)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.testing.assert_close(
        completion_log_probs(model, pack(rows)), torch.cat(plain_log_probs(plain, rows)), atol=1e-5, rtol=1e-5
    )


def test_row_losses_do_not_depend_on_the_batch(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = some_rows(9)
    model, _ = load(tiny_model)
    expected = [
        -float(values.mean().detach())
        for values in plain_log_probs(AutoModelForCausalLM.from_pretrained(tiny_model), rows)
    ]
    for budget in (1, 40, 10_000):
        monkeypatch.setattr(packed, "CPU_TOKENS", budget)
        assert row_losses(model, rows) == pytest.approx(expected, abs=1e-5)


@given(st.lists(st.integers(3, 30), min_size=1, max_size=40), st.integers(1, 100))
def test_batches_hold_every_row_once_within_the_budget(sizes: list[int], budget: int) -> None:
    rows = [Encoded(tuple(range(size)), 1) for size in sizes]
    batches = batches_by_length(rows, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    assert all(sum(sizes[i] for i in batch) <= budget or len(batch) == 1 for batch in batches)


def test_row_means() -> None:
    assert row_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2).tolist() == [2, 5]


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("qwen3_5_text", {"layer_types": ["linear_attention", "full_attention"], "head_dim": 16, **LINEAR}),
        ("bamba", {"attn_layer_indices": [1], **MAMBA}),
        ("stablelm", {}),  # its forward keeps the layout of the rows from its layers
        ("lfm2", {"layer_types": ["conv", "full_attention"], "initializer_range": 0.01}),  # less than rounding allows
    ],
)
def test_a_model_whose_rows_see_each_other_is_refused(
    model_type: str, more: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    folder = of_type(model_type, tiny_model, tmp_path / "model", **more)
    for prepared_by in (load, lambda checkpoint: suite.load(checkpoint, "cpu")):
        with pytest.raises(ModelError, match=f"{model_type} are not supported"):
            prepared_by(folder)


def test_a_model_whose_attention_cannot_be_replaced_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load(of_type("falcon", tiny_model, tmp_path / "model"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_hidden_layers": 4}, r"18 weights that its config.json asks for are not in it \(model.layers.2.*…\)"),
        ({"intermediate_size": 8}, "cannot be loaded as a causal language model .*mismatch"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_no_model(
    changed: dict[str, int], said: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    for prepared_by in (load, lambda checkpoint: suite.load(checkpoint, "cpu")):
        with pytest.raises(ModelError, match=said):
            prepared_by(folder)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        '{"model_type": "no_such_type"}',
        '{"model_type": "clip"}',
        '{"model_type": "bamba", "mamba_n_heads": 7}',
    ],
)
def test_what_describes_no_model_has_no_skeleton(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="describes no model that can be trained here"):
        skeleton(tmp_path / "config.json")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("model_type", "more"), [("qwen3", {}), ("olmoe", EXPERTS)])
def test_rounding_is_no_reason_to_refuse_a_model(
    model_type: str, more: dict[str, Any], dtype: torch.dtype, tiny_model: Path, tmp_path: Path
) -> None:
    folder = of_type(model_type, tiny_model, tmp_path / "model", **more)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=ROWS_SDPA)
    packed.check_rows_apart(model)


def test_collator_puts_forget_rows_first() -> None:
    forget, retain = some_rows(2, 1), some_rows(3, 2)
    batch = collate(list(pair_dataset([Pair(0, 0, (2, 0)), Pair(0, 1, (1, 2))], forget, retain)))
    order = [*forget, retain[2], retain[0], retain[1], retain[2]]
    assert batch["input_ids"][0].tolist() == [token for row in order for token in row.input_ids]
    changes = batch["is_forget"].int().diff()
    assert batch["is_forget"][0]
    assert changes.abs().sum() == 1
    assert batch["forget_row"].tolist() == [0, 1, -1, -1, -1, -1]
    assert batch["retain_row"].tolist() == [-1, -1, 2, 0, 1, 2]
    assert batch["targets"].tolist() == [t for row in order for t in row.input_ids[row.completion_start :]]
    tokens = [sum(len(r.input_ids) - r.completion_start for r in rows) for rows in (forget, order[2:])]
    assert counts_of(batch).tolist() == [*tokens, 2, 1]


def test_collator_puts_alternatives_between_forget_and_retain_rows() -> None:
    forget, retain, guides = some_rows(2, 1), some_rows(3, 2), [some_rows(3, 3), some_rows(2, 4)]
    pairs = [Pair(0, 1, (2,), alternate=1), Pair(0, 0, (0,), alternate=2)]
    batch = collate(list(pair_dataset(pairs, forget, retain, guides)))
    order = [forget[1], forget[0], guides[1][1], guides[0][2], retain[2], retain[0]]
    assert batch["input_ids"][0].tolist() == [token for row in order for token in row.input_ids]
    assert batch["forget_row"].tolist() == [1, 0, -1, -1, -1, -1]
    assert batch["alternate_row"].tolist() == [-1, -1, 4, 2, -1, -1]  # in the list of all false answers
    assert batch["retain_row"].tolist() == [-1, -1, -1, -1, 2, 0]
    tokens = [sum(len(r.input_ids) - r.completion_start for r in rows) for rows in (forget, order[2:4], order[4:])]
    assert [int(batch[f"is_{kind}"].sum()) for kind in ("forget", "retain")] == [tokens[0], tokens[2]]
    assert counts_of(batch).tolist() == [tokens[0], tokens[2], 2, 1]  # alternatives count as neither


def test_alternates_are_drawn_anew_in_each_epoch_and_leave_the_pairing_as_it_is() -> None:
    pairs = pair_rows(20, 30, epochs=6, retain_per_forget=1, seed=5)
    counts = [1 + i % 3 for i in range(20)]
    drawn = draw_alternates(pairs, counts, seed=5)
    assert [replace(pair, alternate=None) for pair in drawn] == pairs
    of_row = {i: {pair.alternate for pair in drawn if pair.forget == i} for i in range(20)}
    assert all(found <= set(range(count)) for found, count in zip(of_row.values(), counts, strict=True))
    assert len([i for i, found in of_row.items() if len(found) > 1]) > 10
    assert drawn == draw_alternates(pairs, counts, seed=5) != draw_alternates(pairs, counts, seed=6)
    assert draw_alternates([Pair(0, None, (1,))], counts, seed=5) == [Pair(0, None, (1,))]


def test_a_pair_may_have_one_kind_of_rows_only() -> None:
    forget, retain = some_rows(2, 1), some_rows(2, 2)
    retained = collate(list(pair_dataset([Pair(0, None, (0, 1))], forget, retain)))
    assert not retained["is_forget"].any()
    forgotten = collate(list(pair_dataset([Pair(0, 1, ())], forget, retain)))
    assert forgotten["is_forget"].all()
    assert forgotten["forget_row"].tolist() == [1]


@given(st.integers(1, 30), st.integers(1, 60), st.integers(1, 5), st.integers(0, 4), st.integers(0, 10**6))
def test_pairing(forget: int, retain: int, epochs: int, each: int, seed: int) -> None:
    if retain < each:
        with pytest.raises(DataError, match="retain rows"):
            pair_rows(forget, retain, epochs=epochs, retain_per_forget=each, seed=seed)
        return
    pairs = pair_rows(forget, retain, epochs=epochs, retain_per_forget=each, seed=seed)
    assert pairs == pair_rows(forget, retain, epochs=epochs, retain_per_forget=each, seed=seed)
    for epoch in range(epochs):
        assert sorted(p.forget for p in pairs if p.epoch == epoch) == list(range(forget))
    assert all(len(set(p.retain)) == each for p in pairs)
    uses = Counter(i for p in pairs for i in p.retain)
    assert max(uses.values(), default=0) - min(uses.get(i, 0) for i in range(retain)) <= 1
