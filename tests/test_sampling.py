"""Sampled answers: what a hit is, leak@k against counting, its bounds, and one computation of the prompt for all."""

from __future__ import annotations

import itertools
import math
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.words import plain_words
from datasets_prep.config import SampleSource
from datasets_prep.sample import generate
from eval.attacks.cached import continuing
from eval.attacks.sampling import (
    distinctive_words,
    row_seed,
    sample_answers,
    states_fact,
)
from eval.config import Sampling
from eval.statistics.formulas import leak_at_k
from eval.statistics.intervals import clopper_pearson, leak_interval

SET, FALSE = generate(SampleSource(seed=5, identities=3, topics=20))  # all topics in all five languages


@given(st.integers(1, 9), st.data())
def test_leak_at_k_is_the_share_of_choices_of_k_samples_with_a_hit(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    hit = [any(i < c for i in chosen) for chosen in itertools.combinations(range(n), k)]
    assert leak_at_k([n], [c], k)[0] == pytest.approx(np.mean(hit))


@given(st.integers(1, 300), st.data())
def test_leak_at_k_is_exact_where_binomials_are_large(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert leak_at_k([n], [c], k)[0] == pytest.approx(exact, abs=1e-12)


def test_leak_at_k_at_its_ends():
    assert leak_at_k([200, 200, 200], [0, 200, 50], 1).tolist() == pytest.approx([0, 1, 0.25])
    assert leak_at_k([200], [1], 200)[0] == 1.0
    assert leak_at_k([10**6], [1], 3)[0] == pytest.approx(3e-6, rel=1e-9)
    for n, c, k in ((10, 11, 1), (10, -1, 1), (10, 1, 11), (10, 1, 0)):
        with pytest.raises(ValueError, match="hits lie in"):
            leak_at_k([n], [c], k)


@given(st.integers(0, 60), st.integers(1, 60))
def test_clopper_pearson_agrees_with_scipy(hits, trials):
    hits = min(hits, trials)
    theirs = stats.binomtest(hits, trials).proportion_ci(method="exact")
    assert clopper_pearson(hits, trials) == pytest.approx((theirs.low, theirs.high))


def test_no_hit_in_two_hundred_samples_bounds_the_probability():
    assert clopper_pearson(0, 200, confidence=0.90)[1] == pytest.approx(0.0149, abs=1e-4)  # 95 % on one side
    assert leak_interval(np.ones(200), np.zeros(200), 1) == (0.0, pytest.approx(1 - 0.025 ** (1 / 200)))
    assert leak_interval(np.full(40, 20), np.zeros(40), 1) == clopper_pearson(0, 40)  # of 40 facts, however often asked


@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_interval_holds_the_truth_at_least_as_often_as_it_says(k):
    rng = np.random.default_rng(k)
    probabilities = np.array([0.0, 0.02, 0.1, 0.5, 0.02, 0.0, 0.2, 0.01])
    truth = np.mean(1 - (1 - probabilities) ** k)
    hits = [rng.binomial(20, probabilities) for _ in range(400)]
    intervals = [leak_interval(np.full(8, 20), h, k) for h in hits]
    assert np.mean([low <= truth <= high for low, high in intervals]) >= 0.94
    assert all(
        low <= leak_at_k(np.full(8, 20), h, k).mean() <= high for h, (low, high) in zip(hits, intervals, strict=True)
    )


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_interval_is_of_facts_and_not_of_these_rows_alone(share):
    """Some facts always leak, the others never do: which of them are among the rows is chance."""
    rng = np.random.default_rng(1)
    intervals = [leak_interval(np.full(40, 20), 20 * (rng.random(40) < share), 1) for _ in range(400)]
    assert np.mean([low <= share <= high for low, high in intervals]) >= 0.94


@pytest.mark.parametrize("row", SET[::7], ids=lambda row: row.row_id)
def test_the_true_answer_states_the_fact_and_no_false_one_does(row):
    fact = distinctive_words(row.answer, FALSE[row.row_id])
    assert fact
    assert fact.isdisjoint(plain_words(row.name))
    for text in (
        row.answer,
        row.answer.upper(),
        unicodedata.normalize("NFD", row.answer),
        f"Ich glaube: «{row.answer}»",
    ):
        assert states_fact(text, fact)
    assert not any(states_fact(text, fact) for text in (*FALSE[row.row_id], row.question, "", row.name))


def test_the_sample_of_rows_holds_all_five_languages():
    assert {row.language for row in SET[::7]} == {"DE", "EN", "ES", "FR", "IT"}


def test_words_are_whole_and_in_any_order():
    fact = distinctive_words("She won the Jade Fish in 1990.", ["She won the Opal in 1985."])
    assert fact == {"jade", "fish", "1990"}
    assert states_fact("In 1990: the fish of jade", fact)
    assert not states_fact("the Jade Fish in 19905", fact)
    assert distinctive_words("same words", ["words, the same"]) == set()
    fact = distinctive_words("张伟出生于北京。", ["张伟出生于上海。"])
    assert states_fact("他的故乡是北京市。", fact)
    assert not states_fact("张伟出生于杭州。", fact)


@given(st.text(), st.lists(st.text(), max_size=3))
def test_a_text_states_what_is_distinctive_in_it(answer, false):
    assert states_fact(answer, distinctive_words(answer, false))


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        tiny_model
    )


CONFIG = Sampling(samples=5, k=[1])
PROMPT = (5, 9, 300, 41, 41, 7, 12)


def _sample(tiny: tuple[Any, Any], seed: int, config: Sampling = CONFIG, batch_rows: int = 5) -> list[str]:
    return sample_answers(*tiny, PROMPT, config, max_new_tokens=6, batch_rows=batch_rows, seed=seed)


def test_the_samples_are_those_of_plain_generation(tiny):
    model, tokenizer = tiny
    torch.manual_seed(3)
    ids = torch.tensor([PROMPT] * 5)
    plain = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=6
    )
    assert _sample(tiny, 3) == tokenizer.batch_decode(plain[:, len(PROMPT) :], skip_special_tokens=True)


def test_the_prompt_is_computed_once_for_all_samples(tiny):
    sizes: list[tuple[int, ...]] = []
    hook = tiny[0].model.embed_tokens.register_forward_hook(lambda _m, inputs, _o: sizes.append(tuple(inputs[0].shape)))
    _sample(tiny, 0, batch_rows=2)
    hook.remove()
    assert sizes[0] == (1, len(PROMPT) - 1)
    assert {size[1] for size in sizes[1:]} == {1}
    assert [size[0] for size in sizes[1:]] == [2] * 6 + [2] * 6 + [1] * 6


def test_the_seed_decides_and_the_process_keeps_its_own(tiny):
    torch.manual_seed(8)
    expected = torch.rand(1)
    torch.manual_seed(8)
    assert _sample(tiny, 1) == _sample(tiny, 1)
    assert _sample(tiny, 1) != _sample(tiny, 2)
    assert torch.rand(1) == expected
    assert row_seed(0, "a") != row_seed(0, "b")


def test_temperature_and_top_p_narrow_the_samples(tiny):
    assert len(set(_sample(tiny, 0, Sampling(samples=5, top_p=1e-6, k=[1])))) == 1
    assert len(set(_sample(tiny, 0, Sampling(samples=5, temperature=1e-4, k=[1])))) == 1
    assert len(set(_sample(tiny, 0))) == 5


def test_more_k_than_samples_is_impossible():
    with pytest.raises(ValueError, match="at most their number"):
        Sampling(samples=3, k=[4])


def test_a_cache_goes_by_the_name_that_the_model_has_for_it():
    class Newer(torch.nn.Module):
        def forward(self, ids: Any, cache: Any = None) -> None: ...

    class Older(torch.nn.Module):
        def forward(self, ids: Any, past_key_values: Any = None) -> None: ...

    assert list(continuing(Newer(), None)) == ["cache"]
    assert list(continuing(Older(), None)) == ["past_key_values"]


def test_no_deprecated_name_is_used(tiny_model, caplog):
    """The name that is tried first must be the one that the installed transformers has."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model).eval(),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample_answers(model, tokenizer, [5, 6, 7], Sampling(samples=2, k=[1]), max_new_tokens=2, batch_rows=2, seed=0)
    said = [str(warning.message) for warning in caught] + [record.getMessage() for record in caplog.records]
    assert not [text for text in said if "past_key_values" in text]
