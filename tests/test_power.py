"""Power: closed forms against simulation, published figures, and the library's own tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp, norm

from eval.catalog import CATALOG
from eval.config import Gate, Reference
from eval.schema import Record
from eval.statistics import power


def _record(value: float, width: float, n: int, metric: str = "answer_probability") -> Record:
    return Record(metric, "forget", value, value - width / 2, value + width / 2, n, None, CATALOG[metric].version)


def _gate(metric: str = "answer_probability", **bounds: object) -> Gate:
    return Gate.model_validate({"metric": metric, "split": "forget", "min_n": 1, "reason": "a test", **bounds})


@pytest.mark.parametrize(("n", "margin"), [(40, 0.116), (100, 0.073), (400, 0.037), (3200, 0.013)])
def test_equivalence_margins_are_the_known_ones(n, margin):
    """Margins that two one-sided tests reach with a standard deviation of .25, to their three decimals."""
    assert power.smallest_margin(0.25 / np.sqrt(n)) == pytest.approx(margin, abs=5e-4)


def test_the_smallest_difference_is_seen_in_four_of_five_samples():
    rng = np.random.default_rng(1)
    n, sd = 60, 0.25
    seen = power.smallest_difference(sd / np.sqrt(n))
    means = rng.normal(seen, sd, size=(20_000, n)).mean(axis=1)
    rejected = np.abs(means) / (sd / np.sqrt(n)) > norm.ppf(0.975)
    assert rejected.mean() == pytest.approx(0.8, abs=0.01)


def test_the_smallest_margin_is_shown_in_four_of_five_samples():
    rng = np.random.default_rng(2)
    error = 0.25 / np.sqrt(60)
    margin = power.smallest_margin(error)
    means = rng.normal(0.0, error, size=200_000)
    shown = np.abs(means) + norm.ppf(0.95) * error < margin  # the 90 % interval lies within the margins
    assert shown.mean() == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("rows", [5, 40, 100, 3200])
def test_the_critical_statistic_is_where_the_exact_test_begins_to_reject(rows):
    critical = power.ks_critical(rows, 0.05)
    ladder = np.arange(rows)
    at = ks_2samp(ladder, ladder + round(critical * rows) - 0.5)
    before = ks_2samp(ladder, ladder + round(critical * rows) - 1.5)
    assert at.statistic == pytest.approx(critical)
    assert at.pvalue < 0.05 <= before.pvalue


def _shifted(rng: np.random.Generator, n: int, distance: float) -> np.ndarray:
    """Normal values shifted so far that the two distribution functions are ``distance`` apart at most."""
    return rng.normal(2 * norm.ppf((1 + distance) / 2), 1, n)


def _leaked(rng: np.random.Generator, n: int, distance: float) -> np.ndarray:
    """A share of ``distance`` of the rows has values that the others never have: facts that are still known."""
    return np.where(rng.random(n) < distance, -9.0, rng.normal(0, 1, n))


def _wider(rng: np.random.Generator, n: int, distance: float) -> np.ndarray:
    """A mixture of both sides: over- and under-forgotten rows; the widest gap is ``distance``."""
    side = rng.random(n)
    return np.where(side < distance, -9.0, np.where(side > 1 - distance, 9.0, rng.normal(0, 1, n)))


@pytest.mark.parametrize("alternative", [_shifted, _leaked, _wider])
@pytest.mark.parametrize("rows", [40, 100, 400])
def test_ks_distances_are_seen_whatever_the_alternative(alternative, rows):
    rng = np.random.default_rng(rows)
    critical = power.ks_critical(rows, 0.05)
    distance = power.smallest_ks_distance(rows, critical)
    assert distance is not None
    statistics = []
    for _ in range(400):
        ours, gold = np.sort(alternative(rng, rows, distance)), np.sort(rng.normal(0, 1, rows))
        values = np.concatenate([ours, gold])
        gap = np.searchsorted(ours, values, "right") - np.searchsorted(gold, values, "right")
        statistics.append(np.abs(gap).max() / rows)
    seen = np.mean(np.array(statistics) >= critical - 1e-9)
    assert seen >= 0.8 - 3 * np.sqrt(
        0.8 * 0.2 / 400
    )  # the closed form errs on the safe side, within what 400 draws see


def test_the_distance_that_holds_for_every_shape_is_not_far_from_that_of_a_plain_shift():
    """A shift needs about 0.75 of it: the price of a promise that holds for all alternatives."""
    rows = 400
    distance = power.smallest_ks_distance(rows, power.ks_critical(rows, 0.05))
    assert distance is not None
    rng = np.random.default_rng(3)
    weak = [ks_2samp(_shifted(rng, rows, 0.65 * distance), rng.normal(0, 1, rows)).pvalue < 0.05 for _ in range(300)]
    assert np.mean(weak) < 0.8


@settings(max_examples=30)
@given(st.integers(5, 100), st.integers(1, 8), st.floats(0.01, 0.2))
def test_more_rows_see_smaller_differences(rows, more, alpha):
    few, many = (power.smallest_ks_distance(n, power.ks_critical(n, alpha)) for n in (rows, rows * (1 + more)))
    assert many is not None
    assert few is None or many <= few + 1e-9


def test_of_a_bound_that_was_measured_the_uncertainty_counts():
    record, gold = _record(0.1, 0.04, 40), _record(0.2, 0.03, 40)
    alone, _ = power.power_of(_gate(at_most=0.2), record, [])
    reference = Reference(of="gold", times=2.0)
    both, said = power.power_of(_gate(at_most={"of": "gold", "times": 2.0}), record, [(reference, gold)])
    error = np.hypot(0.04, 2 * 0.03) / (2 * norm.ppf(0.975))
    assert both == pytest.approx((norm.ppf(0.975) + norm.ppf(0.8)) * error)
    assert alone is not None
    assert both > alone
    assert "40 rows" in said


def test_rows_that_do_not_vary_say_nothing():
    seen, said = power.power_of(_gate(at_most=0.2), _record(0.0, 0.0, 40), [])
    assert seen is None
    assert "do not vary" in said


@pytest.mark.parametrize(
    ("metric", "bounds", "seen"),
    [
        ("forget_quality", {"at_least": 0.05}, 0.411),
        ("forget_quality_ks", {"at_most": 0.1}, 0.193),
        ("forget_against_holdout", {"at_least": 0.05}, 0.411),
    ],
)
def test_the_power_of_a_ks_gate_is_a_distance_between_distributions(metric, bounds, seen):
    found, said = power.power_of(_gate(metric, **bounds), _record(0.3, 0.1, 40, metric), [])
    assert found == pytest.approx(seen, abs=2e-3)
    assert "leak" in said


def test_a_test_that_cannot_fail_says_so():
    found, said = power.power_of(_gate("forget_quality", at_least=0.05), _record(0.9, 0.1, 3, "forget_quality"), [])
    assert found is None
    assert "cannot fail" in said


def test_of_a_test_between_sets_of_two_sizes_the_smaller_one_says_not_that_it_cannot_fail():
    """3 rows beside 40: the exact test rejects if all stand beyond them."""
    assert ks_2samp([0.0, 0.1, 0.2], np.linspace(1, 2, 40)).pvalue < 0.05
    record = _record(0.001, 0.1, 3, "forget_against_holdout")
    found, said = power.power_of(_gate("forget_against_holdout", at_least=0.05), record, [])
    assert found is None
    assert "cannot fail" not in said
    assert "3 rows in the smaller of both sets" in said


def test_rows_that_are_alike_say_nothing_of_rarer_ones():
    """One of forty differs by .01: a leak of one fact in thirty is still in none of four of ten samples."""
    gate = Gate(metric="extraction_strength_untreated_gap", split="forget", at_most=0.05, min_n=1, reason="-")
    record = Record(gate.metric, "forget", 0.00025, 0.0, 0.00075, 40, None, 1)
    seen, says = power.power_of(gate, record, [])
    assert seen == pytest.approx(1 - 0.2 ** (1 / 40))
    assert "With 40 rows a true difference of 0.039 is seen in 80 % of samples" in says
    caught = (np.random.default_rng(0).random((4000, 40)) < seen).any(axis=1)
    assert caught.mean() == pytest.approx(0.8, abs=0.03)
