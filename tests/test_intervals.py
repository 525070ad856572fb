"""Intervals: against scipy and by brute force, seeded, and never degenerate where that would mislead."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from eval.statistics import formulas, intervals

RNG = np.random.default_rng(5)
VALUES = RNG.random(60)


def _resampled_rows(counts: np.ndarray) -> list[np.ndarray]:
    return [np.repeat(np.arange(len(row)), row.astype(int)) for row in counts]


def test_mean_interval_agrees_with_scipys_bootstrap():
    theirs = stats.bootstrap((VALUES,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    assert intervals.mean_interval(VALUES, 20000, 0) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_the_seed_decides():
    assert intervals.mean_interval(VALUES, 1000, 3) == intervals.mean_interval(VALUES, 1000, 3)
    assert intervals.mean_interval(VALUES, 1000, 3) != intervals.mean_interval(VALUES, 1000, 4)


def test_mean_interval_covers_the_true_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(2.0, 1.0, size=(300, 50))
    found = [intervals.mean_interval(draw, 300, 0) for draw in draws]
    assert 0.90 < np.mean([low <= 2.0 <= high for low, high in found]) < 0.98


def test_mean_interval_of_equal_values_is_that_value():
    assert intervals.mean_interval([0.1] * 7, 1000, 0) == (0.1, 0.1)


def test_proportion_interval_has_width_at_the_ends():
    low, high = intervals.proportion_interval([1.0] * 40)
    z2 = stats.norm.ppf(0.975) ** 2
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(40 / (40 + z2))  # Wilson's bound in closed form
    assert intervals.proportion_interval([0.0] * 40)[1] == pytest.approx(z2 / (40 + z2))


def test_auc_interval_is_that_of_resampled_rows():
    members, others = RNG.random(12), RNG.random(9)
    rng = np.random.default_rng(7)
    rows = _resampled_rows(intervals._counts(12, 200, rng)), _resampled_rows(intervals._counts(9, 200, rng))
    aucs = [formulas.auc(members[m], others[o]) for m, o in zip(*rows, strict=True)]
    assert intervals.auc_interval(members, others, 200, 7) == pytest.approx(tuple(np.percentile(aucs, [2.5, 97.5])))


@pytest.mark.parametrize("decimals", [1, 8])
def test_forget_quality_intervals_are_those_of_resampled_rows_with_and_without_ties(decimals):
    ours, gold = RNG.random(25).round(decimals), (RNG.random(25) * 1.4).round(decimals)
    rows = _resampled_rows(intervals._counts(25, 150, np.random.default_rng(2)))
    tests = [stats.ks_2samp(ours[r], gold[r]) for r in rows]
    p_values, statistics = intervals.forget_quality_intervals(ours, gold, 150, 2)
    assert p_values == pytest.approx(tuple(np.percentile([t.pvalue for t in tests], [2.5, 97.5])))
    assert statistics == pytest.approx(tuple(np.percentile([t.statistic for t in tests], [2.5, 97.5])))


@pytest.mark.parametrize("decimals", [1, 8])
def test_against_holdout_intervals_are_those_of_resampled_rows_of_each_set(decimals):
    rng = np.random.default_rng(3)
    ours, others = rng.random(24).round(decimals), (rng.random(17) * 1.4).round(decimals)
    draws = np.random.default_rng(4)
    rows = [_resampled_rows(intervals._counts(size, 150, draws)) for size in (24, 17)]
    statistics = [stats.ks_2samp(ours[r], others[o]).statistic for r, o in zip(*rows, strict=True)]
    low, high = np.percentile(statistics, [2.5, 97.5])
    found = intervals.against_holdout_intervals(ours, others, 150, 4)
    assert found[1] == pytest.approx((low, high))
    effective = round(24 * 17 / 41)
    assert found[0] == pytest.approx((stats.kstwo.sf(high, effective), stats.kstwo.sf(low, effective)))


@pytest.mark.parametrize("height", [0, 1, 3, 20])
def test_ks_p_value_from_the_height_alone(height):
    ladder = np.arange(20.0)
    moved = np.concatenate([np.full(height, 99.0), ladder[height:]])
    test = stats.ks_2samp(ladder, moved)
    assert test.statistic == pytest.approx(height / 20)
    assert intervals._ks_p_value(height, 20) == pytest.approx(test.pvalue)


def test_forget_quality_intervals_refuse_models_on_other_rows():
    with pytest.raises(ValueError, match="same rows"):
        intervals.forget_quality_intervals([0.1, 0.2], [0.1], 100, 0)


def test_privacy_leak_of_a_model_with_itself_is_zero_in_every_resample():
    scores = (RNG.random(20), RNG.random(15))
    assert intervals.privacy_leak_interval(scores, scores, 300, 0) == (0.0, 0.0)


LANGUAGE = ["DE"] * 20 + ["EN"] * 25 + [None] * 15  # of VALUES


def test_each_language_is_drawn_as_often_as_it_has_rows():
    shuffled = list(np.random.default_rng(1).permutation(np.array(LANGUAGE, dtype=object)))
    counts = intervals._counts(60, 50, np.random.default_rng(0), shuffled)
    for language in set(shuffled):
        rows = [i for i, name in enumerate(shuffled) if name == language]
        assert (counts[:, rows].sum(axis=1) == len(rows)).all()
    assert (counts.sum(axis=1) == 60).all()


def test_a_difference_between_languages_widens_no_stratified_interval():
    values = np.where(np.array(LANGUAGE, dtype=object) == "DE", 1.0, 0.0) + VALUES * 1e-3
    plain, stratified = intervals.mean_interval(values, 1000, 0), intervals.mean_interval(values, 1000, 0, LANGUAGE)
    assert stratified[1] - stratified[0] < 0.1 * (plain[1] - plain[0])


def test_one_language_is_what_no_language_is():
    assert intervals.mean_interval(VALUES, 500, 0, ["DE"] * 60) == intervals.mean_interval(VALUES, 500, 0)


def test_stratified_interval_agrees_with_resampling_each_language():
    rng = np.random.default_rng(11)
    groups = [VALUES[[i for i, name in enumerate(LANGUAGE) if name == language]] for language in ("DE", "EN", None)]
    drawn = [np.concatenate([rng.choice(g, g.size) for g in groups]).mean() for _ in range(20000)]
    found = intervals.mean_interval(VALUES, 20000, 0, LANGUAGE)
    assert found == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.003)


def test_strata_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="59 strata for 60 rows"):
        intervals.mean_interval(VALUES, 100, 0, LANGUAGE[:-1])


def test_models_are_paired_by_row():
    harder = VALUES * 0.3
    paired = intervals.mean_interval(VALUES + 0.05 - VALUES, 1000, 0, LANGUAGE)
    assert paired == pytest.approx((0.05, 0.05))  # the same gain in every row has no noise
    ours, theirs = (VALUES[:40], VALUES[40:]), (harder[:40], harder[40:])
    # Dividing all scores by one number changes no order, so the AUC of both is that of the same draws.
    assert intervals.privacy_leak_interval(ours, theirs, 200, 0, (LANGUAGE[:40], LANGUAGE[40:])) == (0.0, 0.0)


def test_model_utility_interval_is_that_of_resampled_rows():
    first, second = RNG.random(12), RNG.random(7)
    with_gap = np.where(np.arange(12) % 3 == 0, np.nan, first**2)
    sets = [([first, with_gap], ["DE"] * 6 + ["EN"] * 6), ([second], None)]
    rng = np.random.default_rng(4)
    rows = _resampled_rows(intervals._counts(12, 200, rng, sets[0][1])), _resampled_rows(intervals._counts(7, 200, rng))
    values = [
        stats.hmean([first[a].mean(), np.nanmean(with_gap[a]), second[b].mean()]) for a, b in zip(*rows, strict=True)
    ]
    assert intervals.model_utility_interval(sets, 200, 4) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
