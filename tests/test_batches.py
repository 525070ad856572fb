"""Batches of an evaluation: bounded by the bytes of their largest tensor, with the results of unbounded ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from eval.scoring import batches
from eval.scoring.batches import cache_bytes, in_batches, logits_bytes, rows_at_once
from eval.scoring.harness import BoundedLM

TEXTS = ["Where was Ana born?", "Who?" * 30, "Où est né l'acteur? " * 6, "Who directed the film? " * 3, "?"]


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=40), st.integers(1, 2**21), st.integers(1, 50))
def test_each_text_is_in_one_batch_and_no_batch_is_too_large(lengths: list[int], each: int, most: int) -> None:
    made = in_batches(lengths, each, most)
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    for batch in made:
        longest = max(lengths[i] for i in batch)
        assert len(batch) <= most
        assert len(batch) == 1 or len(batch) * longest * each <= batches.FORWARD_BYTES
    assert [lengths[i] for batch in made for i in batch] == sorted(lengths, reverse=True)


def test_questions_of_three_thousand_tokens_over_a_large_vocabulary_go_alone() -> None:
    assert rows_at_once(3000, 128_256 * 6, 128) == 1
    assert rows_at_once(100, 128_256 * 6, 128) == 27


def test_the_bytes_of_a_position_are_those_of_the_tensors(loaded: tuple[Any, Any]) -> None:
    model = loaded[0]
    with torch.inference_mode():
        output = model(torch.ones(2, 5, dtype=torch.long), use_cache=True)
    assert output.logits.nbytes == 10 * logits_bytes(model)
    layers = output[1].layers  # the cache, whatever transformers calls it
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) == 10 * cache_bytes(model)
    assert logits_bytes(model, softmax=True) == 2 * logits_bytes(model)


def asked(kind: str) -> list[Instance]:
    """Requests as lm-eval makes them; the choices of a question differ in their last token."""
    if kind == "generate_until":
        given = [(text, {"until": [], "max_gen_toks": 7}) for text in TEXTS]
    else:
        given = [(text, choice) for text in TEXTS for choice in (" A", " B", " in Rome", " in Köln")]
    return [Instance(kind, {}, arguments, i) for i, arguments in enumerate(given)]


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_bounded_batches_give_what_lm_eval_gives(
    loaded: tuple[Any, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64, softmax_dtype="float32")
    expected = getattr(theirs, kind)(asked(kind), disable_tqdm=True)
    each = logits_bytes(model, softmax=True) if kind == "loglikelihood" else cache_bytes(model)
    monkeypatch.setattr(batches, "FORWARD_BYTES", 100 * each)  # a hundred tokens
    shapes: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda _module, args, kwargs: shapes.append(tuple([*args, *kwargs.values()][0].shape)), with_kwargs=True
    )
    found = getattr(BoundedLM(model, tokenizer, 64), kind)(asked(kind), disable_tqdm=True)
    hook.remove()
    shapes = [shape for shape in shapes if shape[1] > 1]  # a generation goes on with one token a row
    assert any(rows > 1 for rows, _ in shapes)
    assert all(rows == 1 or rows * tokens <= 100 for rows, tokens in shapes)
    if kind == "generate_until":
        assert found == expected
        return
    assert len(shapes) < len(expected)  # two choices of one token share a forward
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], abs=1e-4)
