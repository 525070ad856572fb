"""Two evaluations side by side: differences on the same rows, and equivalence by two one-sided tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, ttest_rel

from core.errors import ArtifactError
from eval.catalog import CATALOG
from eval.config import EvalConfig
from eval.records.rows import row_records, set_records
from eval.schema import Record, read_records, write_measured, write_records, write_samples
from eval.statistics.intervals import clopper_pearson, resampled_means
from eval.verdicts.compare import RESAMPLES, Config, _differences, _of_few, compare, equivalence

CONFIG = Config({"answer_probability": 0.05, "mia_min_k_auc": 0.05, "utility": 0.05}, seed=0)


def _samples(shift: float, seed: int = 0, rows: int = 60, noise: float = 0.02) -> list[dict[str, Any]]:
    """Rows whose level depends on the row far more than on the model."""
    levels, own = np.random.default_rng(7), np.random.default_rng(seed)
    samples = []
    for split in ("forget", "retain", "holdout"):
        for i in range(rows):
            level = levels.uniform(0.2, 0.8)
            value = level + shift + own.normal(0, noise)
            samples.append(
                {
                    "row_id": f"{split}-{i}", "split": split, "language": ("DE", "EN", "ES")[i % 3], "topic_id": "x",
                    "answer_probability": value, "min_k": np.log(level + 0.1 * (split == "forget")), "loss": 1 - level,
                    "truth_ratio": float(np.exp(own.normal())),
                    "truth_ratio_of": "answer", "min_k_plus_plus": own.normal(), "zlib": own.normal(),
                }
            )  # fmt: skip
    return samples


def _write(folder: Path, samples: list[dict[str, Any]], utility: float = 0.7) -> Path:
    folder.mkdir()
    config = EvalConfig(bootstrap_samples=100)
    records = [*row_records(samples, config), *set_records(samples, None, config)]
    records.append(Record("utility", "general", utility, utility - 0.08, utility + 0.08, 110, True, 1))
    write_records(folder / "results.json", records)
    write_samples(folder / "samples.jsonl", samples)
    return folder


def _compared(tmp_path: Path, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    entries = compare(_write(tmp_path / "ours", ours), _write(tmp_path / "theirs", theirs), CONFIG)
    return {(entry.metric, entry.split): entry for entry in entries}


def test_a_checkpoint_equals_itself(tmp_path):
    samples = _samples(0)
    entries = _compared(tmp_path, samples, samples)
    for (metric, _), entry in entries.items():
        if metric in ("answer_probability", "mia_min_k_auc"):
            assert entry.difference == 0
            assert entry.ci_low <= 0 <= entry.ci_high
            assert entry.verdict == "equivalent"
            assert entry.paired
    assert entries["utility", "general"].verdict == "not shown"  # 110 questions do not show a margin of 0.05
    assert entries["utility", "general"].smallest_margin > 0.05
    assert entries["truth_ratio", "forget"].verdict == "not compared"  # no margin
    assert entries["forget_against_holdout", "forget"].difference is None  # a difference of p-values


def test_the_same_weights_are_equivalent_on_few_rows_too(tmp_path):
    samples = _samples(0, rows=30)
    folders = [_write(tmp_path / name, samples) for name in ("ours", "theirs")]

    def verdicts(*weights: str) -> dict[str, str]:
        for folder, digest in zip(folders, weights, strict=False):
            write_measured(folder, digest * 64)
        found = {entry.metric: entry for entry in compare(*folders, CONFIG) if entry.split in ("forget", "general")}
        return {metric: found[metric].verdict for metric in ("answer_probability", "utility")}

    assert verdicts() == verdicts("a", "b") == {"answer_probability": "not shown", "utility": "not shown"}
    assert verdicts("a", "a") == {"answer_probability": "equivalent", "utility": "equivalent"}
    folders[1] = _write(tmp_path / "elsewhere", _samples(0.2, seed=1, rows=30), utility=0.65)
    assert verdicts("a", "a") == {"answer_probability": "different", "utility": "not shown"}  # on another device, say


@pytest.mark.parametrize(("shift", "verdict"), [(0.01, "equivalent"), (0.05, "not shown"), (-0.2, "different")])
def test_the_verdict_follows_the_difference(tmp_path, shift, verdict):
    entry = _compared(tmp_path, _samples(shift, 1), _samples(0, 2))["answer_probability", "retain"]
    assert entry.difference == pytest.approx(shift, abs=0.01)
    assert entry.verdict == verdict


def test_the_interval_of_paired_rows_is_that_of_the_paired_t_test(tmp_path):
    ours, theirs = _samples(0.03, 1), _samples(0, 2)
    entry = _compared(tmp_path, ours, theirs)["answer_probability", "forget"]
    columns = [[row["answer_probability"] for row in s if row["split"] == "forget"] for s in (ours, theirs)]
    expected = ttest_rel(*columns).confidence_interval(0.95)
    assert (entry.ci_low, entry.ci_high) == pytest.approx((expected.low, expected.high), abs=2e-3)
    # pairing is what makes it narrow: rows differ by far more than the models
    assert entry.ci_high - entry.ci_low < 0.3 * (2 * 1.96 * np.std(columns[0]) / np.sqrt(60))


@pytest.mark.parametrize("rows", [30, 40, 50, 80, 110])
@pytest.mark.parametrize("only_theirs", [0.0, 0.02])
def test_rows_of_0_and_1_show_equivalence_as_seldom_as_they_should(rows, only_theirs):
    """The true difference is the margin: resamples of such rows would find 21 % of samples of 30 rows equivalent."""
    rng = np.random.default_rng(0)
    shares = [only_theirs + 0.05, only_theirs, 0.95 - 2 * only_theirs]
    draws = rng.choice([1.0, -1.0, 0.0], p=shares, size=(1500, rows))
    found = [equivalence(_of_few(draw), 0.05, rows)["verdict"] for draw in draws]
    assert np.mean([verdict == "equivalent" for verdict in found]) < 0.07


@pytest.mark.parametrize("rows", [30, 40])
@pytest.mark.parametrize("size", [1.0, 0.6])
def test_few_rows_that_differ_show_equivalence_as_seldom_whatever_the_others_are(rows, size):
    """One row that is neither 0 nor 1 is enough for resamples, which find 8 to 22 % of these samples equivalent."""
    rng = np.random.default_rng(0)
    keys = [("forget", f"row-{i}") for i in range(rows)]

    def verdict() -> str:
        theirs = np.array([0.95, *[1.0] * (rows - 1)])
        ours = np.clip(theirs - size * (rng.random(rows) < 0.05 / size), 0, 1)
        samples = [
            {key: {"answer_probability": value, "language": "EN"} for key, value in zip(keys, values, strict=True)}
            for values in (ours, theirs)
        ]
        found = _differences("answer_probability", "forget", samples, 0)
        return str(equivalence(found.resampled, 0.05, found.n)["verdict"])

    assert np.mean([verdict() == "equivalent" for _ in range(400)]) < 0.07


@pytest.mark.parametrize("leaking", ["forget", "holdout"])
@pytest.mark.parametrize(("forget", "holdout"), [(30, 30), (40, 50), (100, 30)])
def test_aucs_that_few_rows_move_show_equivalence_as_seldom(forget, holdout, leaking):
    """Resamples of AUCs of 1 do not vary: they find up to 22 % of these samples equivalent."""
    rng = np.random.default_rng(0)
    keys = [(split, str(i)) for split, rows in (("forget", forget), ("holdout", holdout)) for i in range(rows)]
    scores = np.array([10.0 * (split == "forget") for split, _ in keys]) + rng.normal(size=len(keys))
    beyond = {"forget": -20.0, "holdout": 30.0}[leaking]

    def verdict() -> str:
        moved = np.array([split == leaking for split, _ in keys]) & (rng.random(len(keys)) < 0.05)
        samples = [
            {key: {"min_k": value, "language": "EN"} for key, value in zip(keys, of_model, strict=True)}
            for of_model in (scores, np.where(moved, beyond, scores))
        ]
        found = _differences("mia_min_k_auc", "forget", samples, 0)
        return str(equivalence(found.resampled, 0.05, found.n)["verdict"])

    assert np.mean([verdict() == "equivalent" for _ in range(200)]) < 0.07


@pytest.mark.parametrize("difference", [0.5, 1.0])
def test_a_difference_that_all_rows_have_is_known_as_well_as_they_are_many(difference):
    """Answers of one token differ by the same where one model knows them all: every resample is that difference."""
    keys = [("forget", f"row-{i}") for i in range(40)]
    ours, theirs = (
        {key: {"extraction_strength": value, "language": "EN"} for key in keys} for value in (difference, 0.0)
    )
    members = [("forget", f"row-{i}") for i in range(40)] + [("holdout", f"row-{i}") for i in range(40)]
    scored = [
        {key: {"min_k": sign * (key[0] == "forget"), "language": "EN"} for key in members} for sign in (1.0, -1.0)
    ]
    for metric, samples in (("extraction_strength", [ours, theirs]), ("mia_min_k_auc", scored)):
        found = _differences(metric, "forget", samples, 0)
        low, high = np.percentile(found.resampled, [2.5, 97.5])
        assert low + 0.1 < found.value < high + 1e-9
        assert equivalence(found.resampled, 0.05, found.facts)["verdict"] == "different"


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1])
def test_rows_without_a_difference_show_about_what_the_exact_bound_does(margin):
    shown = next(n for n in range(30, 400) if equivalence(_of_few(np.zeros(n)), margin, n)["verdict"] == "equivalent")
    exact = next(n for n in range(1, 400) if clopper_pearson(0, n, 0.9)[1] < margin)
    assert shown == pytest.approx(max(exact, 30), rel=0.08)


def test_value_and_interval_are_of_the_rows_that_both_models_have(tmp_path):
    """A model that says nothing has no measurement of what it said; the others' rows are not the same rows."""
    ours, theirs = _samples(0.0, 1), _samples(0.0, 2)
    for row in ours[:20]:
        row["answer_probability"] -= 0.5
        del theirs[ours.index(row)]["answer_probability"]
    entry = _compared(tmp_path, ours, theirs)["answer_probability", "forget"]
    assert (entry.n, entry.paired) == (40, True)
    assert entry.ci_low <= entry.difference <= entry.ci_high
    assert entry.difference == pytest.approx(0, abs=0.02)


def test_languages_are_resampled_apart():
    differences = np.array([0.0] * 30 + [1.0] * 30)
    halves = ["DE"] * 30 + ["EN"] * 30
    assert np.ptp(resampled_means(differences, 100, 0, halves)) == 0  # no variation within a language
    assert np.ptp(resampled_means(differences, 100, 0, ["DE"] * 60)) > 0


@given(st.floats(-0.2, 0.2), st.floats(0.001, 0.1), st.floats(0.01, 0.2))
def test_equivalence_is_the_rule_of_two_one_sided_tests(mean, error, margin):
    """Against the closed form for a normal estimate: both tests reject at 5 %."""
    resampled = mean + error * norm.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES)
    p_value = max(norm.sf((mean + margin) / error), norm.sf((margin - mean) / error))
    found = equivalence(resampled, margin, 100)
    assert found["p_value"] == pytest.approx(p_value, abs=2 / RESAMPLES)
    if abs(p_value - 0.05) > 2 / RESAMPLES:
        assert (found["verdict"] == "equivalent") == (p_value < 0.05)
    assert equivalence(resampled, margin, 29)["verdict"] == "not shown"


@given(st.floats(0, 0.2), st.floats(0, 0.2), st.floats(0.001, 0.1))
def test_a_larger_difference_never_becomes_equivalent(mean, more, error):
    z = norm.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES)
    near, far = (equivalence(m + error * z, 0.05, 100)["verdict"] for m in (mean, mean + more))
    assert near == "equivalent" or far != "equivalent"


def test_other_rows_and_other_definitions_are_not_compared(tmp_path):
    ours = _write(tmp_path / "a", _samples(0))
    with pytest.raises(ArtifactError, match="different rows"):
        compare(ours, _write(tmp_path / "b", _samples(0)[1:]), CONFIG)
    theirs = _write(tmp_path / "c", _samples(0))
    records = [
        replace(r, version=99) if r.metric == "answer_probability" else r for r in read_records(theirs / "results.json")
    ]
    write_records(theirs / "results.json", records)
    entries = [e for e in compare(ours, theirs, CONFIG) if e.metric == "answer_probability"]
    assert {entry.verdict for entry in entries} == {"not compared"}


def test_every_margin_that_recipes_have_is_of_a_metric():
    from pipeline.recipe import load_recipe

    assert set(load_recipe("demo").equivalence) <= set(CATALOG)
