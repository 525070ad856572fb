"""The scoring pass against plain transformers, one row at a time, and what it must not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datasets_prep.chat import chat_example, encode
from datasets_prep.schema import Encoded, Row
from eval import metrics
from eval.probes import Scorer, Scores, probe
from pipeline.errors import ModelError
from tests.eval_rows import build_perturbed, build_rows

ROWS = build_rows()
ALL_ROWS = [row for split in ROWS.values() for row in split]
PERTURBED = build_perturbed(ROWS)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def model(tiny_model: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():  # random logits are nearly uniform; sharpen them, so that mistakes show
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def _encode(tokenizer: Any, row: Row, answer: str | None = None) -> Encoded:
    return encode(tokenizer, chat_example(tokenizer, row.question, row.answer if answer is None else answer))


def _examples(tokenizer: Any) -> list[Encoded]:
    by_id = {row.row_id: row for row in ALL_ROWS}
    examples = [_encode(tokenizer, row) for row in ALL_ROWS]
    return examples + [_encode(tokenizer, by_id[p.row_id], answer) for p in PERTURBED for answer in p.answers]


def _plain(model: Any, example: Encoded) -> Scores:
    """One row, no packing, no padding, all logits."""
    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        logprobs = model(ids).logits[0].log_softmax(-1)[example.completion_start - 1 : -1]
    targets = ids[0, example.completion_start :]
    picked = logprobs.gather(1, targets[:, None])[:, 0]
    mean = (logprobs.exp() * logprobs).sum(-1)
    deviation = ((logprobs.exp() * logprobs**2).sum(-1) - mean**2).sqrt()
    z_scores = (picked - mean) / deviation
    return Scores(picked.numpy(), (logprobs.argmax(-1) == targets).numpy(), z_scores.numpy())


def _padded(model: Any, examples: list[Encoded], pad: int) -> list[np.ndarray]:
    """The rows as one batch padded on the right."""
    longest = max(len(e.input_ids) for e in examples)
    ids = torch.tensor([[*e.input_ids, *[pad] * (longest - len(e.input_ids))] for e in examples])
    mask = torch.tensor([[1] * len(e.input_ids) + [0] * (longest - len(e.input_ids)) for e in examples])
    with torch.no_grad():
        logprobs = model(ids, attention_mask=mask).logits.log_softmax(-1)
    picked = logprobs[:, :-1].gather(2, ids[:, 1:, None])[..., 0].numpy()
    return [row[e.completion_start - 1 : len(e.input_ids) - 1] for row, e in zip(picked, examples, strict=True)]


@pytest.mark.parametrize("batch_tokens", [16, 100, 10_000])
def test_scores_equal_plain_forwards_whatever_the_batch(model, tokenizer, batch_tokens):
    examples = _examples(tokenizer)
    scored = Scorer(model, batch_tokens).score(examples)
    padded = _padded(model, examples, tokenizer.pad_token_id)
    for example, scores, row in zip(examples, scored, padded, strict=True):
        plain = _plain(model, example)
        np.testing.assert_allclose(scores.logprobs, plain.logprobs, atol=2e-4)
        np.testing.assert_allclose(scores.logprobs, row, atol=2e-4)
        assert (scores.correct == plain.correct).all()


def test_the_end_of_turn_is_scored_although_it_is_the_padding_token(model, tokenizer):
    assert tokenizer.pad_token == "<|im_end|>"
    example = _encode(tokenizer, ALL_ROWS[0])
    (scores,) = Scorer(model, 512).score([example])
    completion = example.input_ids[example.completion_start :]
    assert tokenizer.eos_token_id in completion
    assert len(scores.logprobs) == len(completion)


def test_the_head_runs_before_answer_tokens_only_and_no_beginning_runs_twice(model, tokenizer):
    heads: list[int] = []
    bodies: list[int] = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: heads.append(inputs[0].shape[1]))
    model.model.embed_tokens.register_forward_hook(lambda _module, inputs, _output: bodies.append(inputs[0].shape[1]))
    examples = _examples(tokenizer)
    Scorer(model, 10_000).score(examples)
    beginnings = {e.input_ids[:end] for e in examples for end in range(1, len(e.input_ids) + 1)}
    predicting = {e.input_ids[:end] for e in examples for end in range(e.completion_start, len(e.input_ids))}
    assert (bodies, heads) == ([len(beginnings)], [len(predicting)])


@pytest.mark.parametrize("batch_tokens", [16, 60, 300])
def test_no_forward_is_larger_than_allowed_unless_one_text_is(model, tokenizer, batch_tokens):
    bodies: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _module, inputs, _output: bodies.append(inputs[0].shape[1]))
    examples = _examples(tokenizer)
    Scorer(model, batch_tokens).score(examples)
    assert max(bodies) <= max(batch_tokens, *(len(e.input_ids) for e in examples))


def test_what_was_scored_is_not_scored_again(model, tokenizer):
    forwards: list[int] = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    scorer = Scorer(model, 10_000)
    example = _encode(tokenizer, ALL_ROWS[0])
    beginning = Encoded(example.input_ids[:-2], example.completion_start)
    whole, again = scorer.score([example, example])
    (part,) = scorer.score([beginning])
    assert len(forwards) == 1
    assert (whole.logprobs == again.logprobs).all()
    np.testing.assert_allclose(part.logprobs, _plain(model, beginning).logprobs, atol=2e-4)


def test_two_models_never_share_scores(model, tiny_model, tokenizer):
    example = _encode(tokenizer, ALL_ROWS[0])
    other = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    (first,), (second,) = Scorer(model, 512).score([example]), Scorer(other, 512).score([example])
    assert not np.allclose(first.logprobs, second.logprobs)


def test_each_rows_measures_equal_those_of_plain_forwards(model, tokenizer):
    def encoder(question: str, answer: str) -> Encoded:
        return encode(tokenizer, chat_example(tokenizer, question, answer))

    measured = probe(Scorer(model, 100), ALL_ROWS, PERTURBED, encoder, min_k=0.4)
    false_answers = {p.row_id: p.answers for p in PERTURBED}
    assert list(measured) == [row.row_id for row in ALL_ROWS]
    for row in ALL_ROWS:
        true = _plain(model, _encode(tokenizer, row))
        values = measured[row.row_id]
        assert values["answer_probability"] == pytest.approx(float(np.exp(true.logprobs.mean())), abs=1e-5)
        assert values["exact_memorization"] == true.correct.mean()
        assert values["extraction_strength"] == metrics.extraction_strength(true.correct)
        lowest = np.sort(true.logprobs)[: max(1, int(0.4 * len(true.logprobs)))]
        assert values["min_k"] == pytest.approx(lowest.mean(), abs=1e-3)
        if row.row_id not in false_answers:
            assert "truth_ratio" not in values
            continue
        losses = [-_plain(model, _encode(tokenizer, row, a)).logprobs.mean() for a in false_answers[row.row_id]]
        assert values["perturbed_losses"] == pytest.approx(losses, abs=1e-4)
        assert values["truth_ratio"] == pytest.approx(np.exp(-true.logprobs.mean() - np.mean(losses)), rel=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(model, tokenizer, bad):
    with torch.no_grad():
        model.model.norm.weight.fill_(bad)
    with pytest.raises(ModelError, match="not finite"):
        Scorer(model, 512).score([_encode(tokenizer, ALL_ROWS[0])])
