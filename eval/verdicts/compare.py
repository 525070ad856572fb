"""Two checkpoints under the same suite: the difference of each metric, and whether it is small enough not to matter.

Metrics of single rows are compared row by row: the bootstrap, stratified by language, draws rows and takes the
difference of both models on the same rows. Where few rows differ or none, resamples vary too little
(:func:`_of_few`). Equivalence is shown by two one-sided tests (Schuirmann 1987): the difference is above -margin and
below +margin, each at 5 %. "Not shown" does not mean "different".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from core.errors import ArtifactError
from eval.catalog import CATALOG, is_of
from eval.records.facts import strata_of
from eval.records.rows import membership_scores, row_values
from eval.schema import (
    ALPHA,
    ComparedMetric,
    Comparison,
    ComparisonFacts,
    Record,
    find_record,
    read_measured,
    read_records,
    read_samples,
    write_comparison,
)
from eval.statistics.formulas import Floats, auc, pairs_won
from eval.statistics.intervals import by_fact, independent, resampled_aucs, resampled_means
from eval.statistics.power import smallest_margin

Samples = dict[tuple[str, str], dict[str, Any]]
"""Measurements of rows by split and ``row_id``."""

RESAMPLES = 2000
ROWS = 30
"""The fewest rows for a conclusion."""
DIFFERENT = 10
"""The fewest rows that differ for which rows are resampled."""
ADDED = 1.5
"""Rows that are added with the largest difference of each sign where fewer differ."""


class Config(NamedTuple):
    """Margins by metric, and the seed of the bootstrap."""

    margins: Mapping[str, float]
    seed: int


def run(config: Config, inputs: Mapping[str, Path], out: Path) -> ComparisonFacts:
    """Compare the evaluations ``ours`` and ``theirs`` and write ``compare.json``: one entry for each metric and split.

    Raises ArtifactError if they measured different rows.
    """
    compared = compare(inputs["ours"], inputs["theirs"], config)
    write_comparison(out, Comparison(metrics=compared))
    names = {
        verdict: [f"{entry.metric} on {entry.split}" for entry in compared if entry.verdict == verdict]
        for verdict in ("equivalent", "different")
    }
    return ComparisonFacts(**names)


def compare(ours: Path, theirs: Path, config: Config) -> list[ComparedMetric]:
    """An entry for every metric and split that either evaluation has over all rows.

    Where the same weights have the same value, no other rows would show a difference.
    """
    records = [read_records(folder / "results.json") for folder in (ours, theirs)]
    samples = [_by_row(folder) for folder in (ours, theirs)]
    if samples[0].keys() != samples[1].keys():
        raise ArtifactError(f"{ours} and {theirs} measured different rows. Evaluate both on the same data.")
    keys = dict.fromkeys((r.metric, r.split) for of_model in records for r in of_model if r.by is None)
    same = read_measured(ours) == read_measured(theirs) is not None
    compared = []
    for metric, split in keys:
        pair = [find_record(of_model, metric, split) for of_model in records]
        found = _differences(metric, split, samples, config.seed)
        compared.append(_entry(metric, split, pair, found, config.margins.get(metric), same=same))
    return compared


def _by_row(folder: Path) -> Samples:
    return {(row["split"], row["row_id"]): row for row in read_samples(folder / "samples.jsonl")}


class _Differences(NamedTuple):
    """Ours minus theirs on ``n`` rows that both have and that tell so many ``facts``; the same difference resampled."""

    value: float
    n: int
    resampled: Floats
    facts: int


def _differences(metric: str, split: str, samples: Sequence[Samples], seed: int) -> _Differences | None:
    """The difference on the same rows; None if the metric has no values of single rows."""
    if is_of(metric, "membership"):
        return _auc_differences(metric, samples, seed)
    rows = [key for key, row in samples[0].items() if key[0] == split and metric in row and metric in samples[1][key]]
    if not rows:  # not a metric of single rows
        return None
    ours, theirs = (row_values(metric, split, [of_model[key][metric] for key in rows]) for of_model in samples)
    differences, strata = ours - theirs, strata_of([samples[0][key] for key in rows])
    of_facts = by_fact(differences, strata)
    if np.isin([ours, theirs], (0, 1)).all() or _vary_too_little(of_facts):
        resampled = _of_few(of_facts)
    else:
        resampled = resampled_means(differences, RESAMPLES, seed, strata)
    return _Differences(float(differences.mean()), len(rows), resampled, len(of_facts))


def _vary_too_little(differences: Floats) -> bool:
    """Whether few differ, or all by the same, as answers of one token may."""
    return int(np.count_nonzero(differences)) < DIFFERENT or bool(np.ptp(differences) < 1e-12)


def _of_few(differences: Floats) -> Floats:
    """(RESAMPLES,): quantiles of the mean of differences from -1 to 1, of which few are not 0, by a normal curve.

    Its mean and variance are those with ``ADDED`` rows more of each of -1 and 1, after the adjusted interval for
    matched pairs of Agresti and Min (2005), who add half a row. They have rows of 0 and 1; smaller differences vary
    less than such with the same mean. With 1.5 equivalence is shown wrongly in at most 6.4 % of simulations
    at the margin (with .5: 13 %), and it takes 55 rows without a difference to show a margin of .05 (59 by Clopper and
    Pearson's bound).
    """
    n = differences.size + 2 * ADDED
    mean = differences.sum() / n
    variance = (np.square(differences).sum() + 2 * ADDED) / n - mean**2
    return mean + _normal_quantiles() * float(np.sqrt(variance / n))


def _normal_quantiles() -> Floats:
    from scipy.stats import norm

    return np.asarray(norm.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES))


def _auc_differences(metric: str, samples: Sequence[Samples], seed: int) -> _Differences | None:
    """Both AUCs on the same resampled forget and holdout rows, or as :func:`_of_few` where they differ in few rows."""
    members, others = ([key for key in samples[0] if key[0] == split] for split in ("forget", "holdout"))
    if not members or not others:
        return None
    entry = CATALOG[metric]
    sets = [[{key: rows[key] for key in keys} for keys in (members, others)] for rows in samples]
    scores = [(membership_scores(entry, ours), membership_scores(entry, theirs)) for ours, theirs in sets]
    strata = strata_of([samples[0][key] for key in members]), strata_of([samples[0][key] for key in others])
    value, sizes = auc(*scores[0]) - auc(*scores[1]), (len(members), len(others))
    n, facts = min(sizes), min(map(independent, sizes, strata))
    # Each set's mean is the AUC: a difference that lies in few rows of one set is spread over all of the other.
    won = zip(*(_shares_won(*of_model) for of_model in scores), strict=True)
    by_set = [by_fact(one - other, names) for (one, other), names in zip(won, strata, strict=True)]
    if any(map(_vary_too_little, by_set)):
        return _Differences(value, n, max(map(_of_few, by_set), key=np.std), facts)
    ours, theirs = resampled_aucs(scores, RESAMPLES, seed, strata)
    return _Differences(value, n, ours - theirs, facts)


def _shares_won(members: Floats, others: Floats) -> tuple[Floats, Floats]:
    """Of each member the share of others below it, and of each other the share of members above it."""
    won = pairs_won(members, others)
    return won.mean(axis=1), won.mean(axis=0)


def _entry(
    metric: str,
    split: str,
    pair: Sequence[Record | None],
    found: _Differences | None,
    margin: float | None,
    *,
    same: bool,
) -> ComparedMetric:
    ours, theirs = pair
    entry: dict[str, Any] = {
        "metric": metric,
        "split": split,
        "ours": ours.value if ours else None,
        "theirs": theirs.value if theirs else None,
        "n": found.n if found else min(record.n for record in pair if record),
        "paired": found is not None,
        **dict.fromkeys(("difference", "ci_low", "ci_high", "margin", "p_value", "smallest_margin")),
        "verdict": "not compared",
    }
    p_value = metric in CATALOG and not CATALOG[metric].has_difference
    if ours is None or theirs is None or p_value or ours.version != theirs.version:
        return ComparedMetric(**entry)
    if same and ours.value == theirs.value:
        found = _Differences(0.0, entry["n"], np.zeros(RESAMPLES), min(record.told for record in pair if record))
    elif found is None:  # as if both errors were independent, which makes the interval too wide for the same questions
        value = ours.value - theirs.value
        error = math.hypot(ours.standard_error, theirs.standard_error)
        resampled = value + error * _normal_quantiles()
        found = _Differences(value, entry["n"], resampled, min(record.told for record in pair if record))
    low, high = np.percentile(found.resampled, [2.5, 97.5])
    entry |= {"difference": found.value, "ci_low": float(low), "ci_high": float(high)}
    entry["smallest_margin"] = smallest_margin(float(found.resampled.std()))
    return ComparedMetric(**entry | equivalence(found.resampled, margin, found.facts))


def equivalence(resampled: Floats, margin: float | None, n: int) -> dict[str, Any]:
    """Margin, p-value (the larger one of both one-sided tests) and verdict on the resampled differences.

    ``equivalent``: both tests reject. ``different``: the 95 % interval lies outside the margins. Otherwise, and always
    for fewer than 30 rows or facts, ``not shown``; without a margin ``not compared``.
    """
    if margin is None:
        return {"verdict": "not compared"}
    beyond = max(int((resampled <= -margin).sum()), int((resampled >= margin).sum()))
    p_value = (1 + beyond) / (resampled.size + 1)
    low, high = np.percentile(resampled, [100 * ALPHA / 2, 100 - 100 * ALPHA / 2])
    verdict = "not shown"
    if n >= ROWS:
        verdict = "equivalent" if p_value < ALPHA else "different" if low > margin or high < -margin else "not shown"
    return {"margin": margin, "p_value": p_value, "verdict": verdict}
