"""Intervals: against scipy and by brute force, seeded, and never degenerate where that would mislead."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.config import EvalConfig, Sampling
from eval.records.audited import audit_records
from eval.records.rows import row_records
from eval.schema import find_record
from eval.statistics import formulas, intervals
from eval.statistics.power import ks_critical

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
    value = np.mean([0.1] * 17)  # rounded: a little more than 0.1
    assert intervals.mean_interval([0.1] * 17, 1000, 0) == (value, value) == pytest.approx((0.1, 0.1))


def test_mean_interval_of_few_values_without_an_end_is_students():
    few = VALUES[:6]
    theirs = stats.t.interval(0.95, 5, few.mean(), stats.sem(few))
    assert intervals.mean_interval(few, 1000, 0) == pytest.approx(theirs)
    with pytest.raises(ValueError, match="one fact says nothing"):
        intervals.mean_interval(few[:1], 1000, 0)


def test_proportion_interval_has_width_at_the_ends():
    low, high = intervals.proportion_interval([1.0] * 40)
    z2 = stats.norm.ppf(0.975) ** 2
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(40 / (40 + z2))  # Wilson's bound in closed form
    assert intervals.proportion_interval([0.0] * 40)[1] == pytest.approx(z2 / (40 + z2))


def test_auc_interval_is_that_of_resampled_rows():
    members, others = RNG.random(12), RNG.random(11)
    rng = np.random.default_rng(7)
    rows = _resampled_rows(intervals._counts(12, 200, rng)), _resampled_rows(intervals._counts(11, 200, rng))
    aucs = [formulas.auc(members[m], others[o]) for m, o in zip(*rows, strict=True)]
    assert intervals.auc_interval(members, others, 200, 7) == pytest.approx(tuple(np.percentile(aucs, [2.5, 97.5])))


def _exceeding(rows: int, others: int) -> float:
    """The exact probability that equal distributions are further apart than the margin: over all orders of the rows."""
    margin = intervals.ks_intervals(0.0, rows, others)[1][1]
    orders = list(itertools.combinations(range(rows + others), rows))
    steps = np.full((len(orders), rows + others), -1 / others)
    np.put_along_axis(steps, np.array(orders), 1 / rows, axis=1)
    return float((np.abs(steps.cumsum(axis=1)).max(axis=1) > margin + 1e-9).mean())


@pytest.mark.parametrize(("rows", "others"), [(1, 1), (4, 1), (4, 4), (5, 4), (7, 6), (8, 8), (12, 3), (14, 4)])
def test_equal_distributions_are_within_the_margin_in_95_percent_of_all_orders(rows, others):
    assert _exceeding(rows, others) <= 0.05


@pytest.mark.parametrize("rows", [*range(1, 60), 100, 400, 3200])
def test_the_ks_margin_is_next_to_the_exact_critical_value(rows):
    margin = intervals.ks_intervals(0.0, rows, rows)[1][1]
    critical = ks_critical(rows, 0.05)  # 1 where no statistic rejects
    assert critical - 1 / rows - 1e-9 <= margin
    assert margin < critical + max(1 / rows, 0.05 * critical)


def _drawn(shape: str, distance: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    first, second = rng.normal(2 * stats.norm.ppf((1 + distance) / 2), 1, 40), rng.normal(0, 1, 50)
    if shape == "known":  # a share of the rows has values that the others never have
        first = np.where(rng.random(40) < distance, -9.0, rng.normal(0, 1, 40))
    return (first, 0.7 * first[:40] + 0.7 * second[:40]) if shape == "same rows" else (first, second)


@pytest.mark.parametrize(
    ("shape", "distance"), [("shift", 0.0), ("shift", 0.3), ("shift", 0.8), ("known", 0.2), ("same rows", 0.0)]
)
def test_ks_intervals_hold_the_true_distance_as_often_as_they_say(shape, distance):
    """At distance 0 a percentile bootstrap never does."""
    rng = np.random.default_rng(6)
    held = []
    for _ in range(300):
        first, second = _drawn(shape, distance, rng)
        value = stats.ks_2samp(first, second).statistic
        low, high = intervals.ks_intervals(value, first.size, second.size)[1]
        assert low <= value <= high
        held.append(low <= distance <= high)
    assert np.mean(held) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 300)


@pytest.mark.parametrize("height", [0, 3, 12, 13, 20, 39, 40])
def test_the_interval_of_a_p_value_is_that_of_its_statistic(height):
    p_values, (low, high) = intervals.ks_intervals(height / 40, 40, 40)
    ladder = np.arange(40.0)
    assert p_values == pytest.approx(tuple(stats.kstwo.sf([high, low], 20)))
    assert p_values[0] <= formulas.forget_quality(ladder, ladder + height - 0.5)[0] <= p_values[1]
    assert (low == 0) == (height <= 12)  # from 13 on the exact test rejects at 5 %


def test_languages_of_few_rows_are_drawn_from_together():
    """One row of a language never varies by itself, so an interval of such rows would have no width."""
    languages = ["DE"] * 20 + ["EN", "ES", "FR", "IT"]
    counts = intervals._counts(24, 200, np.random.default_rng(0), languages)
    assert (counts[:, :20].sum(axis=1) == 20).all()
    assert (counts[:, 20:].sum(axis=1) == 4).all()
    assert np.ptp(counts[:, 20:], axis=0).min() > 0
    alone = [intervals._counts(4, 200, np.random.default_rng(0), groups) for groups in (languages[20:], None)]
    assert (alone[0] == alone[1]).all()


@pytest.mark.parametrize(("rows", "covered"), [(1, 0.8), (2, 0.86), (3, 0.87), (8, 0.9)])
def test_an_interval_of_few_rows_a_language_holds_the_mean_nearly_as_often_as_it_says(rows, covered):
    rng, languages = np.random.default_rng(1), list("abcde") * rows
    found = [intervals.mean_interval(rng.random(5 * rows), 200, 0, languages) for _ in range(400)]
    assert np.mean([low <= 0.5 <= high for low, high in found]) > covered


@given(st.integers(1, 300), st.sampled_from([0.0, 1.0]))
def test_a_share_of_none_or_all_rows_has_the_width_of_clopper_and_pearsons(rows, value):
    exact = stats.binomtest(round(value * rows), rows).proportion_ci(method="exact")
    assert intervals.share_interval([value] * rows, 100, 0) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("rows", [1, 5, 40, 300])
def test_values_that_are_all_the_same_have_a_width_too(rows):
    """Answers of one token have the same extraction strength, and none says what the next fact's is."""
    missed = 1 - 0.025 ** (1 / rows)  # as many of other facts may be anywhere
    assert intervals.share_interval([0.5] * rows, 100, 0) == pytest.approx((0.5 - missed / 2, 0.5 + missed / 2))
    assert intervals.difference_interval([0.0] * rows, 100, 0) == pytest.approx((-missed, missed))
    of_ties = intervals.auc_interval([0.5] * rows, [0.5] * 50, 100, 0)
    missed = max(missed, 1 - 0.025 ** (1 / 50))
    assert of_ties == pytest.approx((0.5 - missed / 2, 0.5 + missed / 2))


SHAPES = {
    "low": (lambda rng, n: rng.beta(2, 8, n), 0.2),
    "near 1": (lambda rng, n: rng.beta(9, 0.5, n), 9 / 9.5),
    "at both ends": (lambda rng, n: rng.beta(0.5, 0.5, n), 0.5),
    "one in ten lost": (lambda rng, n: np.where(rng.random(n) < 0.1, 0.2, 0.98), 0.902),
    "nine in ten": (lambda rng, n: (rng.random(n) < 0.9).astype(float), 0.9),
}


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_interval_of_few_rows_holds_the_mean_as_often_as_it_says(rows, shape):
    """Resampled ones of five rows did so in 39 to 85 % of samples, and one of one row had no width."""
    draw, truth = SHAPES[shape]
    rng = np.random.default_rng(8)
    found = [
        (values.mean(), *intervals.share_interval(values, 100, 0)) for values in (draw(rng, rows) for _ in range(400))
    ]
    assert all(0 <= low <= value <= high <= 1 for value, low, high in found)
    assert np.mean([low <= truth <= high for _, low, high in found]) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400)


@pytest.mark.parametrize("rows", [1, 2, 5, 9])
@pytest.mark.parametrize("leaking", [0.05, 0.3])
def test_an_interval_of_few_differences_holds_the_mean_as_often_as_it_says(rows, leaking):
    rng = np.random.default_rng(9)
    found = [intervals.difference_interval(rng.random(rows) < leaking, 100, 0) for _ in range(400)]
    assert np.mean([low <= leaking <= high for low, high in found]) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400)


@pytest.mark.parametrize(("rows", "others"), [(1, 50), (2, 50), (5, 50), (5, 5), (40, 3)])
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_an_auc_of_few_rows_has_an_interval_that_holds_it_as_often_as_it_says(rows, others, shift):
    rng, truth = np.random.default_rng(10), stats.norm.cdf(shift / np.sqrt(2))
    found = [intervals.auc_interval(rng.normal(shift, 1, rows), rng.normal(0, 1, others), 100, 0) for _ in range(200)]
    assert np.mean([low <= truth <= high for low, high in found]) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)


def test_what_is_made_of_few_rows_goes_as_far_as_the_intervals_of_its_parts():
    members, others = (RNG.random(3), RNG.random(20)), (RNG.random(3), RNG.random(20))
    ours, gold = (intervals.auc_interval(*of_model, 200, 0) for of_model in (members, others))
    leak = intervals.privacy_leak_interval(members, others, 200, 0)
    expected = [formulas.privacy_leak(*aucs, 60) for aucs in ((ours[1], gold[0]), (ours[0], gold[1]))]
    assert leak == pytest.approx(tuple(map(float, expected)))
    gaps = np.where(np.arange(20) < 16, np.nan, VALUES[:20])  # four have a value
    low, high = intervals.model_utility_interval([([VALUES[:20], gaps], None)], 200, 0)
    ends = [intervals.share_interval(part, 200, 0) for part in (VALUES[:20], gaps[16:])]
    assert (low, high) == pytest.approx(tuple(stats.hmean(end) for end in zip(*ends, strict=True)))


def test_other_shares_have_their_bootstrap_interval():
    assert intervals.share_interval(VALUES, 200, 0) == intervals.mean_interval(VALUES, 200, 0)


def test_an_auc_that_every_pair_shows_has_the_width_that_its_fewer_rows_leave():
    low, high = intervals.auc_interval(RNG.random(40) + 2, RNG.random(30), 200, 0)
    assert (low, high) == pytest.approx((0.025 ** (1 / 30), 1.0))
    assert intervals.auc_interval(RNG.random(40) - 2, RNG.random(50), 200, 0)[1] == pytest.approx(1 - 0.025 ** (1 / 40))


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
    first, second = RNG.random(18), RNG.random(11)
    with_gap = np.where(np.arange(18) % 3 == 0, np.nan, first**2)
    sets = [([first, with_gap], ["DE"] * 9 + ["EN"] * 9), ([second], None)]
    rng = np.random.default_rng(4)
    rows = (
        _resampled_rows(intervals._counts(18, 200, rng, sets[0][1])),
        _resampled_rows(intervals._counts(11, 200, rng)),
    )
    values = [
        stats.hmean([first[a].mean(), np.nanmean(with_gap[a]), second[b].mean()]) for a, b in zip(*rows, strict=True)
    ]
    assert intervals.model_utility_interval(sets, 200, 4) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))


def _sampled(hits: list[int], n: int = 20) -> list[dict[str, Any]]:
    return [
        {"row_id": str(i), "split": "forget", "language": None, "topic_id": None, "sampled": {"n": n, "hits": count}}
        for i, count in enumerate(hits)
    ]


LEAKS = EvalConfig(sampling=Sampling(samples=20, k=[16]))


def test_a_gap_without_any_hit_is_as_uncertain_as_its_rows_are_few():
    """No hit in 40 trials of either model: the gap is known to their upper bound of 8.8 %, and not exactly."""
    for rows, bound in ((40, 0.0881), (400, 0.0092)):
        gap = find_record(audit_records(_sampled([0] * rows), _sampled([0] * rows), LEAKS), "leak_at_16_gap", "forget")
        assert (gap.value, gap.n) == (0, rows)
        assert (gap.ci_low, gap.ci_high) == pytest.approx((-bound, bound), abs=1e-4)


@pytest.mark.parametrize(("ours", "gold"), [(0.0, 0.0), (0.001, 0.0), (0.003, 0.003), (0.01, 0.002), (0.05, 0.01)])
def test_the_interval_of_a_gap_holds_the_truth_at_least_as_often_as_it_says(ours, gold):
    rng = np.random.default_rng(7)
    truth = (1 - gold) ** 16 - (1 - ours) ** 16
    held = []
    for _ in range(200):
        drawn = [_sampled(rng.binomial(20, p, size=40).tolist()) for p in (ours, gold)]
        gap = find_record(audit_records(*drawn, LEAKS), "leak_at_16_gap", "forget")
        assert gap.ci_low <= gap.value <= gap.ci_high
        held.append(gap.ci_low <= truth <= gap.ci_high)
    assert np.mean(held) >= 0.95


def _attacked(strengths: list[float]) -> list[dict[str, Any]]:
    return [
        {"row_id": str(i), "split": "forget", "language": None, "topic_id": None, "generation_nll": 1 + strength}
        | {"attacked": {"untreated": {"extraction_strength": strength, "answer_probability": strength}}}
        for i, strength in enumerate(strengths)
    ]


def test_rows_that_are_as_golds_have_a_gap_that_other_rows_need_not_have():
    alike = audit_records(_attacked([0.5] * 40), _attacked([0.5] * 40), LEAKS)
    gap = find_record(alike, "extraction_strength_untreated_gap", "forget")
    assert (gap.value, gap.ci_low, gap.ci_high) == pytest.approx((0, -0.0881, 0.0881), abs=1e-4)
    one = find_record(audit_records(_attacked([0.5]), _attacked([0.2]), LEAKS), gap.metric, "forget")
    assert (one.ci_low, one.ci_high) == pytest.approx((0.3 * 0.025 - 0.975, 0.3 * 0.025 + 0.975))


def test_a_value_without_an_end_is_not_measured_on_one_row():
    for rows, measured in (([0.1], False), ([0.1, 0.3], True)):
        record = find_record(row_records(_attacked(rows), LEAKS), "generation_nll", "forget")
        assert (record is not None) == measured
    assert record.ci_low < 1.2 < record.ci_high
