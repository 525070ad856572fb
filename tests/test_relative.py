"""The relative test: against double loops, at its known ends, and in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from benchmarks import relative_test as simulation
from core.errors import ArtifactError, DataError
from eval.records.relative import CLIP, MISSING, RelativeTest, features, relative_records, relative_test


def _clouds(rows: int = 30, golds: int = 3, seed: int = 0, shift: float = 0.1) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=(rows, 2))
    return simulation.base_like(rng, effect, shift), [simulation.gold_like(rng, effect, shift) for _ in range(golds)]


def _by_loops(
    u: np.ndarray, o: np.ndarray, golds: list[np.ndarray], every: list[np.ndarray] | None = None
) -> tuple[float, float]:
    """f and r from the definition: one kernel value at a time, over pairs of different rows and different golds.

    Scale and width are those of base and ``every`` gold.
    """
    every = every or golds
    references = np.concatenate([*[o] * len(every), *every])  # base weighs as much as all golds
    centre, scale = references.mean(axis=0), references.std(axis=0)
    every = [np.clip((m - centre) / scale, -CLIP, CLIP) for m in every]
    u, o, *golds = (np.clip((m - centre) / scale, -CLIP, CLIP) for m in (u, o, *golds))
    width = np.median([np.linalg.norm(a - b) for a in o for gold in every for b in gold])

    def product(first: np.ndarray, second: np.ndarray) -> float:
        n = len(first)
        kernels = [
            np.exp(-(np.linalg.norm(first[i] - second[j]) ** 2) / (2 * width**2))
            for i in range(n)
            for j in range(n)
            if i != j
        ]
        return float(np.mean(kernels))

    between = [(a, b) for i, a in enumerate(golds) for j, b in enumerate(golds) if i != j] or [(golds[0], golds[0])]
    gg = np.mean([product(a, b) for a, b in between])
    ug, og = (np.mean([product(m, g) for g in golds]) for m in (u, o))
    a = product(u, o) - ug - og + gg
    b = product(o, o) - 2 * og + gg
    c = product(u, u) - 2 * ug + gg
    return a / b, float(np.sqrt(max(0.0, c / b - (a / b) ** 2)))


@pytest.mark.parametrize("golds", [1, 2, 4])
def test_leak_and_damage_are_what_the_definition_says(golds):
    base, references = _clouds(rows=12, golds=golds)
    model = base * 0.4 + np.random.default_rng(9).normal(size=base.shape)
    test = relative_test(model, base, references)
    leak, damage = _by_loops(model, base, references)
    assert (test.leak, test.damage) == (pytest.approx(leak), pytest.approx(damage))
    for k, (own_leak, own_damage) in enumerate(zip(test.gold_leaks, test.gold_damages, strict=True)):
        others = [gold for i, gold in enumerate(references) if i != k]
        leak, damage = _by_loops(references[k], base, others, references)
        assert (own_leak, own_damage) == (pytest.approx(leak), pytest.approx(damage))
    assert len(test.gold_leaks) == (golds if golds > 1 else 0)


def test_gold_itself_is_at_zero_and_base_at_one():
    base, (gold,) = _clouds(golds=1)
    at_gold, at_base = (relative_test(model, base, [gold]) for model in (gold, base))
    assert (at_gold.leak, at_gold.damage, at_gold.se) == (pytest.approx(0), pytest.approx(0), pytest.approx(0))
    assert (at_base.leak, at_base.damage, at_base.se) == (
        pytest.approx(1),
        pytest.approx(0, abs=1e-6),
        pytest.approx(0),
    )
    assert simulation.within_gates(at_gold)
    assert not simulation.within_gates(at_base)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_the_leak_reads_as_the_share_of_rows_that_are_as_in_base(share):
    rng = np.random.default_rng(1)
    effect = rng.normal(size=(1500, 2))
    golds = [simulation.gold_like(rng, effect, 0) for _ in range(2)]
    base, model = simulation.base_like(rng, effect, 0), simulation.leaking(rng, effect, share, 0)
    test = relative_test(model, base, golds)
    assert test.leak == pytest.approx(share, abs=0.06)
    assert test.damage < 0.1


@given(st.integers(0, 10_000), st.integers(1, 3))
def test_order_of_rows_and_golds_and_units_do_not_matter(seed, golds):
    rng = np.random.default_rng(seed)
    base, references = _clouds(rows=15, golds=golds, seed=seed)
    model = rng.normal(size=base.shape) * rng.choice([0.1, 1, 50])
    found = relative_test(model, base, references)
    order = rng.permutation(len(base))
    factor, offset = rng.uniform(0.01, 100, size=2) * [-1, 1], rng.normal(size=2) * 10
    moved = [m[order] * factor + offset for m in (model, base, *reversed(references))]
    again = relative_test(moved[0], moved[1], moved[2:])
    assert np.isfinite(found.leak)
    assert np.isfinite(found.damage)
    for name in ("leak", "damage", "se", "bound"):
        assert getattr(again, name) == pytest.approx(getattr(found, name), abs=1e-6)
    assert sorted(again.gold_leaks) == pytest.approx(sorted(found.gold_leaks), abs=1e-6)


def test_the_error_from_rows_is_the_spread_of_f_over_draws_of_rows():
    rng = np.random.default_rng(3)
    found = [simulation.trial(rng, 100, 2, 0.3, shift=0) for _ in range(300)]
    spread = np.std([test.leak for test in found])
    assert np.mean([test.se for test in found]) == pytest.approx(spread, rel=0.2)


def test_the_error_from_golds_is_the_spread_of_f_over_trainings():
    rng = np.random.default_rng(4)
    found = [simulation.trial(rng, 200, 4, 0.0, shift=0.4) for _ in range(100)]
    spread = np.std([test.leak for test in found])
    predicted = np.sqrt(np.mean([test.gold_sd**2 * (1 + 1 / 4) for test in found]))  # of one more gold to their mean
    assert predicted == pytest.approx(spread, rel=0.25)
    assert np.mean([test.se for test in found]) < spread / 2


def test_several_golds_take_the_bias_of_one_away(monkeypatch):
    """With one gold its own variance V stands in both products: a safe model has f = V / (D + V) and not 0."""
    monkeypatch.setattr(simulation, "BASE", np.array([4.0, 2.0]))
    rng = np.random.default_rng(5)
    one, several = ([simulation.trial(rng, 60, k, 0.0, shift=0.7) for _ in range(250)] for k in (1, 3))
    leaks = {k: np.array([test.leak for test in found]) for k, found in ((1, one), (3, several))}
    errors = {k: values.std() / np.sqrt(250) for k, values in leaks.items()}
    assert abs(leaks[3].mean()) < 3 * errors[3]
    assert leaks[1].mean() > 3 * errors[1]


def _tested(model: np.ndarray, base: np.ndarray, golds: list[np.ndarray]) -> RelativeTest:
    """The test's result; an example of hypothesis whose few rows cannot tell base from gold is left out."""
    try:
        return relative_test(model, base, golds)
    except DataError:
        reject()


def _welch_degrees(of_rows: float, of_golds: float, rows: int, golds: int) -> float:
    """The degrees of scipy's own test of two samples whose means have these variances, from its p-value at t = 2."""
    apart = 2 * np.sqrt(of_rows + of_golds)
    spreads = np.sqrt(of_rows * rows), np.sqrt(of_golds * golds)
    p = stats.ttest_ind_from_stats(apart, spreads[0], rows, 0.0, spreads[1], golds, equal_var=False).pvalue
    return float(optimize.brentq(lambda degrees: 2 * stats.t.sf(2.0, degrees) - p, 0.5, rows + golds))


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(15, 40), st.floats(0.0, 0.3))
@settings(max_examples=40)
def test_the_quantile_is_students_with_the_degrees_of_rows_and_golds(seed, golds, rows, shift):
    base, references = _clouds(rows=rows, golds=golds, seed=seed, shift=shift)
    test = _tested(references[0] + 0.3, base, references)
    assert test.gold_sd**2 == pytest.approx((golds - 1) / golds * np.mean(np.square(test.gold_leaks)))
    between = test.gold_sd**2 * (1 + 1 / golds)
    error = np.sqrt(test.se**2 + between)
    degrees = _welch_degrees(test.se**2, between, rows, golds)
    assert min(rows, golds) - 1 <= degrees * (1 + 1e-9)
    assert degrees <= rows + golds - 2 + 1e-9
    assert test.bound == pytest.approx(test.leak + stats.t.ppf(0.95, degrees) * error, rel=1e-6)
    assert test.high == pytest.approx(test.leak + stats.t.ppf(0.975, degrees) * error, rel=1e-6)
    assert (test.low + test.high) / 2 == pytest.approx(test.leak)
    # No wider than with the golds' degrees alone, as it was before: the rows' part is known from more of them.
    assert test.bound <= test.leak + stats.t.ppf(0.95, golds - 1) * error + 1e-9


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_few_rows_carry_no_relative_test(rows):
    """Of two rows both have one pair, so their error would be zero; of one there is no pair at all."""
    base, references = _clouds(rows=rows, golds=3)
    with pytest.raises(DataError, match=rf"has {rows} forget rows?,.*at least 6"):
        relative_test(references[0] + 0.1, base, references)


def test_with_one_gold_the_quantile_has_the_degrees_of_the_rows():
    base, (gold,) = _clouds(rows=12, golds=1)
    test = relative_test(gold + 0.3, base, [gold])
    assert test.bound == pytest.approx(test.leak + stats.t.ppf(0.95, 11) * test.se)


@given(st.integers(0, 10_000), st.integers(2, 4), st.floats(-0.5, 1.5))
@settings(max_examples=40)
def test_the_damage_gap_is_what_is_beyond_the_most_damaged_gold(seed, golds, weight):
    base, references = _clouds(rows=15, golds=golds, seed=seed, shift=0.3)
    rng = np.random.default_rng(seed)
    model = weight * base + rng.normal(size=base.shape)
    test = _tested(model, base, references)
    largest = max(test.gold_damages)
    assert len(test.gold_damages) == golds
    assert test.damage_gap == pytest.approx(test.damage - largest)
    record = next(r for r in relative_records(test) if r.metric == "damage_gap")
    assert (record.value, record.n, record.split) == (test.damage_gap, 15, "forget")
    assert record.ci_low == pytest.approx(test.damage_low - largest)
    assert record.ci_high == pytest.approx(test.damage_high - largest)
    assert record.ci_low - 1e-12 <= record.value <= record.ci_high + 1e-12
    assert record.higher_is_better is False


def test_five_golds_hold_the_size_and_the_variance_of_rows_alone_does_not():
    leaking = simulation.passes(200, 5, 0.25, trials=60)
    assert leaking["passed"] <= 0.05
    assert simulation.passes(400, 1, 0.25, trials=100)["rows_only"] > 0.08
    assert simulation.passes(200, 5, 0.0, trials=30)["passed"] >= 0.7
    assert simulation.passes(100, 5, None, trials=30)["passed"] == 0.0
    assert simulation.ks_rejections(3200, trials=60) > 0.5 > simulation.ks_rejections(40, trials=60)


def test_the_demos_three_golds_and_forty_rows_hold_the_size_and_show_something():
    assert simulation.passes(40, 3, 0.25, trials=200)["passed"] <= 0.025
    # Half of the safe models passed in 200 trials (docs/measurements/relative-test.md).
    assert simulation.passes(40, 3, 0.0, trials=100)["passed"] >= 0.4


def test_a_destroyed_model_is_damaged_and_not_safe():
    rng = np.random.default_rng(2)
    test = simulation.trial(rng, 100, 3, None)
    assert test.bound < simulation.LEAK_LIMIT
    assert test.damage > 0.5
    assert not simulation.within_gates(test)


def test_a_base_that_is_like_gold_has_no_way_to_measure():
    _, golds = _clouds(golds=3)
    with pytest.raises(DataError, match="told apart"):
        relative_test(golds[0], golds[1], golds[2:])


def test_one_gold_says_what_is_missing():
    base, (gold,) = _clouds(golds=1)
    test = relative_test(gold + 0.1, base, [gold])
    assert (test.gold_sd, test.missing) == (None, MISSING)
    assert test.damage_gap == test.damage  # there is no gold beside it
    assert [record.metric for record in relative_records(test)] == ["leak_coordinate_one_gold", "damage"]
    several = relative_test(gold + 0.1, base, [gold, gold + 0.2, gold - 0.1])
    assert several.missing is None
    names = [record.metric for record in relative_records(several)]
    assert names == ["leak_coordinate", "damage", "damage_gap"]
    assert all(record.ci_low <= record.value <= record.ci_high for record in relative_records(several))


def _sample(row_id: str, **more: float) -> dict[str, object]:
    return {"row_id": row_id, "split": "forget", "loss": 1.0, "min_k": -2.0, "extraction_strength": 0.5, **more}


def test_features_join_rows_by_name_and_use_what_all_rows_have():
    ours = [_sample("b", loss=2.0, truth_ratio=1.0), _sample("a", truth_ratio=1.0)]
    gold = [_sample("a", truth_ratio=np.e), _sample("b", truth_ratio=1.0), {"row_id": "x", "split": "retain"}]
    found = features({"unlearned": ours, "gold": gold})
    assert found["unlearned"].tolist() == [[1.0, -2.0, 0.5, 0.0], [2.0, -2.0, 0.5, 0.0]]
    assert found["gold"][0, 3] == pytest.approx(1.0)
    assert features({"unlearned": ours, "gold": [_sample("a"), _sample("b")]})["gold"].shape == (2, 3)
    with pytest.raises(ArtifactError, match="other forget rows"):
        features({"unlearned": ours, "gold": gold[:1]})
