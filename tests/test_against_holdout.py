"""Forget rows against holdout rows: the records, and what they do with known distributions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from eval.records.against_holdout import holdout_records


def _samples(**ratios: Any) -> list[dict[str, Any]]:
    return [
        {"row_id": f"{split}-{i}", "split": split, "truth_ratio": float(value)}
        for split, values in ratios.items()
        for i, value in enumerate(values)
    ]


def _found(**ratios: Any) -> dict[str, Any]:
    return {record.metric: record for record in holdout_records(_samples(**ratios))}


def test_the_values_are_those_of_the_two_sample_test_on_sets_of_different_sizes():
    rng = np.random.default_rng(0)
    forget, holdout = rng.lognormal(-1, 1, 40), rng.lognormal(0, 1, 53)
    found = _found(forget=forget, holdout=holdout, retain=rng.lognormal(-3, 1, 9))
    expected = ks_2samp(forget, holdout)
    assert found["forget_against_holdout"].value == pytest.approx(expected.pvalue)
    assert found["forget_against_holdout_ks"].value == pytest.approx(expected.statistic)
    assert {record.n for record in found.values()} == {40}
    for record in found.values():
        assert 0 <= record.ci_low <= record.value <= record.ci_high <= 1


def test_n_is_that_of_the_smaller_set():
    found = _found(forget=np.arange(40.0), holdout=np.arange(7.0))
    assert found["forget_against_holdout"].n == 7


def test_rows_that_are_treated_alike_pass_and_known_or_destroyed_ones_do_not():
    rng = np.random.default_rng(1)
    holdout = rng.lognormal(0, 1, 50)
    p_values = {
        name: _found(forget=rng.lognormal(mean, 1, 40), holdout=holdout)["forget_against_holdout"].value
        for name, mean in (("alike", 0.0), ("known", -2.0), ("destroyed", 2.0))
    }
    assert p_values["alike"] > 0.05
    assert p_values["known"] < 1e-6
    assert p_values["destroyed"] < 1e-6


@pytest.mark.parametrize("ratios", [{"forget": [1.0]}, {"holdout": [1.0]}, {"retain": [1.0]}])
def test_without_both_sets_there_is_nothing_to_compare(ratios):
    assert holdout_records(_samples(**ratios)) == []


def test_rows_in_another_order_give_the_same_records():
    rng = np.random.default_rng(2)
    samples = _samples(forget=rng.lognormal(0, 1, 20), holdout=rng.lognormal(0, 1, 30))
    assert holdout_records(samples[::-1]) == holdout_records(samples)
