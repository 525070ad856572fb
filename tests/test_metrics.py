"""Formulas against known answers and few-line computations of their definitions."""

from __future__ import annotations

import math
import statistics
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from eval.statistics import formulas

logprobs = st.lists(st.floats(-50, 0), min_size=1, max_size=30)
flags = st.lists(st.booleans(), min_size=1, max_size=30)
scores = st.lists(st.integers(-5, 5), min_size=1, max_size=12)


@given(logprobs)
def test_answer_probability_is_the_geometric_mean(values):
    product = math.prod(math.exp(value / len(values)) for value in values)
    assert formulas.answer_probability(values) == pytest.approx(product, rel=1e-9)


@given(flags)
def test_extraction_strength_counts_the_prefix_that_must_be_given(correct):
    k = next(k for k in range(len(correct) + 1) if all(correct[k:]))
    assert formulas.extraction_strength(correct) == 1 - k / len(correct)


def test_extraction_strength_is_zero_when_nothing_is_predicted():
    assert formulas.extraction_strength([False] * 5) == 0.0
    assert formulas.extraction_strength([True, True, True, True, False]) == 0.0
    assert formulas.extraction_strength([True] * 5) == 1.0


@given(flags)
def test_exact_memorization_is_the_share_of_right_tokens(correct):
    assert formulas.exact_memorization(correct) == pytest.approx(sum(correct) / len(correct))


@given(logprobs, st.floats(0.05, 1))
def test_min_k_averages_the_lowest_share(values, share):
    count = max(1, math.floor(round(share * len(values), 6)))
    assert formulas.min_k(values, share) == pytest.approx(sum(sorted(values)[:count]) / count)


@given(st.floats(0, 30), st.lists(st.floats(0, 30), min_size=1, max_size=5))
def test_probability_with_options_is_the_share_of_the_true_one(true, false):
    masses = [math.exp(-loss) for loss in (true, *false)]
    assert formulas.probability_with_options(true, false) == pytest.approx(masses[0] / sum(masses))
    assert formulas.probability_with_options(true, [true] * 3) == pytest.approx(0.25)


def test_probability_with_options_of_a_destroyed_model_is_finite():
    assert formulas.probability_with_options(5000.0, [1.0]) == pytest.approx(0.0)
    assert formulas.probability_with_options(0.0, [5000.0]) == 1.0


def test_zlib_score_is_the_loss_for_each_compressed_byte():
    answer = "Née à Málaga " * 9
    assert formulas.zlib_score(2.0, answer) == -2.0 / len(zlib.compress(answer.encode()))
    assert formulas.zlib_score(1.0, answer) > formulas.zlib_score(2.0, answer)  # a member scores higher


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=9))
def test_model_utility_is_the_harmonic_mean(parts):
    assert formulas.model_utility(parts) == pytest.approx(statistics.harmonic_mean(parts))
    assert formulas.model_utility([*parts, 0.0]) == 0.0


@given(st.floats(0, 30), st.lists(st.floats(0, 30), min_size=1, max_size=5))
def test_truth_ratio_is_the_ratio_of_geometric_means(true, perturbed):
    false_probability = math.prod(math.exp(-loss) for loss in perturbed) ** (1 / len(perturbed))
    assert formulas.truth_ratio(true, perturbed) == pytest.approx(false_probability / math.exp(-true), rel=1e-6)


def test_truth_ratio_of_a_destroyed_model_is_finite():
    assert math.isfinite(formulas.truth_ratio(5000.0, [1.0, 2.0]))
    assert np.isfinite(formulas.forget_truth_ratios([formulas.truth_ratio(5000.0, [0.0]), 0.0])).all()


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=10))
def test_aggregated_truth_ratios(ratios):
    assert formulas.forget_truth_ratios(ratios) == pytest.approx([min(r, 1 / r) for r in ratios])
    assert formulas.retain_truth_ratios(ratios) == pytest.approx([max(0, 1 - r) for r in ratios])


@given(scores, scores)
def test_auc_is_the_share_of_pairs_won_and_what_scikit_learn_says(members, others):
    won = sum((m > o) + 0.5 * (m == o) for m in members for o in others) / len(members) / len(others)
    assert formulas.auc(members, others) == pytest.approx(won)
    labels = [1] * len(members) + [0] * len(others)
    assert formulas.auc(members, others) == pytest.approx(roc_auc_score(labels, members + others))


def test_forget_quality_of_a_model_with_itself_is_one():
    assert formulas.forget_quality([0.1, 0.5, 2.0], [0.1, 0.5, 2.0]) == (1.0, 0.0)


@pytest.mark.parametrize("rows", [5, 13, 36])  # scipy's exact value is above 1 by rounding
def test_forget_quality_of_a_few_rows_that_hardly_differ_is_one_without_a_warning(rows, recwarn):
    ladder = np.arange(float(rows))
    assert formulas.forget_quality(ladder, ladder + 0.5) == (pytest.approx(1.0), pytest.approx(1 / rows))
    assert not recwarn


@pytest.mark.parametrize(("auc", "expected"), [(0.5, 0.0), (1.0, -100.0), (0.0, 100.0)])
def test_privacy_leak_is_negative_for_members_and_positive_for_the_over_forgotten(auc, expected):
    assert float(formulas.privacy_leak(auc, 0.5, pairs=100)) == pytest.approx(expected)


def test_privacy_leak_is_finite_where_gold_separates_perfectly():
    assert np.isfinite(formulas.privacy_leak(0.5, 1.0, pairs=100))
