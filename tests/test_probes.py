"""The scoring pass against plain transformers, one row at a time, and what it must not do."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config

from core.errors import DataError, ModelError
from datasets_prep.chat import chat_example, encode
from datasets_prep.schema import Encoded, Row
from eval.scoring import probes
from eval.scoring.probes import Encoder, Scorer, Scores, probe
from eval.statistics import formulas
from tests.eval_rows import build_perturbed, build_rows, sharpened

ROWS = build_rows()
ALL_ROWS = [row for split in ROWS.values() for row in split]
PERTURBED = build_perturbed(ROWS)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def model(tiny_model: Path) -> Any:
    return sharpened(tiny_model)


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


def _agree(scores: Scores, plain: Scores) -> None:
    np.testing.assert_allclose(scores.logprobs, plain.logprobs, atol=2e-4)
    np.testing.assert_allclose(scores.z_scores, plain.z_scores, atol=2e-3, rtol=1e-3)
    assert (scores.correct == plain.correct).all()


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])  # one text, a few, all of them in a batch
def test_scores_equal_plain_forwards_whatever_the_batch(model, tokenizer, batch_tokens):
    examples = _examples(tokenizer)
    scored = Scorer(model, batch_tokens).score(examples)
    padded = _padded(model, examples, tokenizer.pad_token_id)
    for example, scores, row in zip(examples, scored, padded, strict=True):
        _agree(scores, _plain(model, example))
        np.testing.assert_allclose(scores.logprobs, row, atol=2e-4)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("cut", ["left", "right", "none"])
def test_texts_that_were_cut_are_scored_as_they_stand(model, tokenizer, batch, cut):
    """Nothing here truncates; whoever hands in a text without its beginning or end gets the scores of that text."""
    examples = [
        {
            "left": Encoded(e.input_ids[5:], e.completion_start - 5),
            "right": Encoded(e.input_ids[:-4], e.completion_start),
            "none": e,
        }[cut]
        for e in _examples(tokenizer)[:8]
    ]
    batch_tokens = 1 if batch == 1 else sum(len(e.input_ids) for e in examples)
    for example, scores in zip(examples, Scorer(model, batch_tokens).score(examples), strict=True):
        _agree(scores, _plain(model, example))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizers_sides_change_nothing(model, tokenizer, tiny_model, side):
    other = AutoTokenizer.from_pretrained(tiny_model, padding_side=side, truncation_side=side, model_max_length=20)
    assert [_encode(other, row) for row in ALL_ROWS] == [_encode(tokenizer, row) for row in ALL_ROWS]


def test_a_text_beyond_the_models_context_is_an_error_and_not_cut(model, tokenizer):
    context = model.config.max_position_embeddings
    long = _encode(tokenizer, ALL_ROWS[0], "Málaga " * context)
    with pytest.raises(DataError, match=f"context holds {context}"):
        Scorer(model, 512).score([long])


def test_a_context_is_that_of_the_text_where_a_model_reads_pictures_too():
    reads = {"max_position_embeddings": 8, "num_hidden_layers": 1, "hidden_size": 16, "head_dim": 8}
    model = SimpleNamespace(config=Gemma3Config(text_config=reads))
    with pytest.raises(DataError, match="A row has 9 tokens, but the model's context holds 8"):
        Scorer(model, 512)._check_lengths([Encoded(tuple(range(9)), 4)])


def test_memory_does_not_grow_with_the_rows_and_probabilities_come_in_small_pieces(model, tokenizer, monkeypatch):
    pieces: list[tuple[int, ...]] = []
    whole = probes._vocabulary_sums
    monkeypatch.setattr(probes, "_vocabulary_sums", lambda logits: pieces.append(tuple(logits.shape)) or whole(logits))
    bodies: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _module, inputs, _output: bodies.append(inputs[0].shape[1]))
    largest = []
    for copies in (1, 4):
        pieces.clear()
        bodies.clear()
        rows = [replace(row, question=f"{row.question} {n}") for n in range(copies) for row in ALL_ROWS]
        Scorer(model, 150).score([_encode(tokenizer, row) for row in rows])
        assert max(rows for rows, _ in pieces) <= probes.POSITIONS
        largest.append(max(bodies))
    assert largest[1] <= max(largest[0], 150)


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.size = max(self.size, *(t.nbytes for t in pytree.tree_leaves(made) if isinstance(t, torch.Tensor)), 0)
        return made


def test_no_tensor_of_a_forward_grows_with_the_square_of_its_tokens(model, tokenizer):
    examples = [_encode(tokenizer, replace(row, question=f"{n} {row.question}")) for n in range(24) for row in ALL_ROWS]
    tokens = sum(len(example.input_ids) for example in examples)
    with Largest() as largest:
        Scorer(model, tokens).score(examples)
    assert largest.size <= 4 * tokens * model.config.vocab_size  # the logits, in float32
    assert 4 * tokens * tokens > 5 * largest.size  # what a mask would have been


def test_generation_works_before_and_after_a_scoring(model, tokenizer):
    prompt = torch.tensor([_encode(tokenizer, ALL_ROWS[0]).input_ids])
    said = []
    for _ in range(2):
        said.append(model.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=1).tolist())
        Scorer(model, 512).score([_encode(tokenizer, ALL_ROWS[0])])
    assert said[0] == said[1]


def test_an_attention_that_cannot_be_replaced_is_an_error(model, tokenizer, monkeypatch):
    monkeypatch.setattr(model, "_can_set_attn_implementation", lambda: False)
    with pytest.raises(ModelError, match="attention of its own"):
        Scorer(model, 512).score([_encode(tokenizer, ALL_ROWS[0])])


def test_a_forward_is_also_bounded_by_its_predictions_and_by_its_padding():
    even = [Encoded((n, *range(9)), 4) for n in range(8)]
    assert [len(batch) for batch in probes._batches(even, 80, 100)] == [8]
    assert [len(batch) for batch in probes._batches(even, 80, 18)] == [3, 3, 2]  # six answer tokens each
    long = Encoded((9, *range(40)), 4)
    assert [len(batch) for batch in probes._batches([long, *even], 41, 1000)] == [1, 4, 4]
    small = [Encoded((n, 1), 1) for n in range(20)]
    assert [len(batch) for batch in probes._batches([Encoded((0,) * 40, 4), *small], 80, 1000)] == [16, 5]


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


@pytest.mark.parametrize("limit", [2, 50])
def test_an_answer_known_by_heart_is_what_greedy_decoding_gives(model, tokenizer, limit):
    prompt = _encode(tokenizer, ALL_ROWS[0]).input_ids[: _encode(tokenizer, ALL_ROWS[0]).completion_start]
    with torch.no_grad():
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
    end = whole[7]  # whatever token stands there ends the turn here
    answer = whole[: whole.index(end) + 1]
    scorer = Scorer(model, 512)
    assert scorer.greedy(prompt, end, limit) is None
    scorer.score([Encoded((*prompt, *answer[:-2]), len(prompt))])
    assert (scorer.greedy(prompt, end, limit) is None) == (limit > len(answer) - 2)
    wrong = (answer[0] + 1) % len(tokenizer)
    scorer.score([Encoded((*prompt, wrong, *answer), len(prompt))])
    scorer.score([Encoded((*prompt, *answer, wrong), len(prompt))])  # what comes after the end does not matter
    assert scorer.greedy(prompt, end, limit) == tuple(answer[:-1][:limit])


def test_two_models_never_share_scores(model, tiny_model, tokenizer):
    example = _encode(tokenizer, ALL_ROWS[0])
    other = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    (first,), (second,) = Scorer(model, 512).score([example]), Scorer(other, 512).score([example])
    assert not np.allclose(first.logprobs, second.logprobs)


def _encoder(tokenizer: Any) -> Encoder:
    return lambda question, answer: encode(tokenizer, chat_example(tokenizer, question, answer))


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_each_rows_measures_equal_those_of_plain_forwards(model, tokenizer, batch_tokens):
    measured = probe(Scorer(model, batch_tokens), ALL_ROWS, PERTURBED, _encoder(tokenizer), min_k=0.4)
    false_answers = {p.row_id: p.answers for p in PERTURBED}
    assert list(measured) == [row.row_id for row in ALL_ROWS]
    for row in ALL_ROWS:
        true = _plain(model, _encode(tokenizer, row))
        values = measured[row.row_id]
        assert values["answer_probability"] == pytest.approx(float(np.exp(true.logprobs.mean())), abs=1e-5)
        assert values["exact_memorization"] == true.correct.mean()
        assert values["extraction_strength"] == formulas.extraction_strength(true.correct)
        lowest = np.sort(true.logprobs)[: max(1, int(0.4 * len(true.logprobs)))]
        assert values["min_k"] == pytest.approx(lowest.mean(), abs=1e-3)
        lowest = np.sort(true.z_scores)[: len(lowest)]
        assert values["min_k_plus_plus"] == pytest.approx(lowest.mean(), rel=1e-3, abs=1e-3)
        assert values["zlib"] == pytest.approx(true.logprobs.mean() / len(zlib.compress(row.answer.encode())), rel=1e-4)
        if row.row_id not in false_answers:
            assert "truth_ratio" not in values
            continue
        losses = [-_plain(model, _encode(tokenizer, row, a)).logprobs.mean() for a in false_answers[row.row_id]]
        assert values["perturbed_losses"] == pytest.approx(losses, abs=1e-4)
        assert values["truth_ratio"] == pytest.approx(np.exp(-true.logprobs.mean() - np.mean(losses)), rel=1e-3)
        assert values["truth_ratio_of"] == "answer"
        true_mass, false_masses = np.exp(true.logprobs.mean()), np.exp(-np.array(losses))
        assert values["probability_with_options"] == pytest.approx(
            true_mass / (true_mass + false_masses.sum()), rel=1e-3
        )


def test_the_truth_ratio_is_against_the_paraphrase_where_there_is_one(model, tokenizer):
    with_false = {p.row_id: p.answers for p in PERTURBED}
    row, same = [row for row in ALL_ROWS if row.row_id in with_false][:2]
    without = next(row for row in ALL_ROWS if row.row_id not in with_false)
    said = {row.row_id: "Málaga is where it was.", same.row_id: same.answer, without.row_id: "Anything."}
    measured = probe(Scorer(model, 512), ALL_ROWS, PERTURBED, _encoder(tokenizer), 0.4, said)
    plain = probe(Scorer(model, 512), ALL_ROWS, PERTURBED, _encoder(tokenizer), 0.4)
    loss = -_plain(model, _encode(tokenizer, row, said[row.row_id])).logprobs.mean()
    losses = [-_plain(model, _encode(tokenizer, row, a)).logprobs.mean() for a in with_false[row.row_id]]
    assert measured[row.row_id]["truth_ratio_of"] == "paraphrase"
    assert measured[row.row_id]["truth_ratio"] == pytest.approx(np.exp(loss - np.mean(losses)), rel=1e-3)
    assert measured[row.row_id]["loss"] == pytest.approx(plain[row.row_id]["loss"], abs=1e-5)
    assert measured[same.row_id]["truth_ratio_of"] == "answer"
    assert "truth_ratio" not in measured[without.row_id]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(model, tokenizer, bad):
    with torch.no_grad():
        model.model.norm.weight.fill_(bad)
    with pytest.raises(ModelError, match="not finite"):
        Scorer(model, 512).score([_encode(tokenizer, ALL_ROWS[0])])


@pytest.mark.parametrize("of_answer", [True, False])
def test_one_logit_that_is_not_finite_is_an_error(model, tokenizer, of_answer):
    """The sum over the vocabulary hides a -inf: the answer is then impossible, or its z-scores are no numbers."""
    example = _encode(tokenizer, ALL_ROWS[0])
    token = example.input_ids[-2] if of_answer else next(i for i in range(600) if i not in example.input_ids)
    place = torch.tensor([token])
    model.lm_head.register_forward_hook(lambda _module, _args, logits: logits.index_fill(-1, place, -torch.inf))
    with pytest.raises(ModelError, match="not finite"):
        Scorer(model, 512).score([example])
