"""95 % intervals, seeded.

*Bootstrap* (means, AUC, privacy leak, KS): rows are drawn with replacement as often as there are rows, the value is
computed anew, and the 2.5th and 97.5th percentiles of these values are the interval. Drawing n rows is drawing how
often each row counts, so a resample is a vector of counts and all resamples are one matrix product.
*Wilson's score interval* (proportions): the bootstrap of an accuracy of 0 or 1 has no width however few the rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.metrics import Floats, forget_quality, pairs_won, privacy_leak

Interval = tuple[float, float]


def _counts(rows: int, samples: int, rng: np.random.Generator) -> Floats:
    """(samples, rows): how often each row was drawn in each resample."""
    return rng.multinomial(rows, np.full(rows, 1.0 / rows), size=samples).astype(np.float64)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_interval(values: ArrayLike, samples: int, seed: int) -> Interval:
    """Bootstrap interval of the mean over rows."""
    rows = np.asarray(values, dtype=np.float64)
    resampled = _counts(rows.size, samples, np.random.default_rng(seed)) @ rows / rows.size
    # A sum of counts x value rounds; no mean lies outside the values, and one of equal values is that value.
    return _percentiles(np.clip(resampled, rows.min(), rows.max()))


def proportion_interval(values: ArrayLike) -> Interval:
    """Wilson's score interval of the share of ones among ``values``, each 0 or 1."""
    from scipy.stats import binomtest

    flags = np.asarray(values, dtype=bool)
    interval = binomtest(int(flags.sum()), flags.size).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def auc_interval(members: ArrayLike, others: ArrayLike, samples: int, seed: int) -> Interval:
    """Bootstrap interval of the AUC; members and non-members are resampled independently."""
    return _percentiles(_resampled_aucs([(members, others)], samples, seed)[0])


def privacy_leak_interval(
    scores: tuple[ArrayLike, ArrayLike], gold_scores: tuple[ArrayLike, ArrayLike], samples: int, seed: int
) -> Interval:
    """Bootstrap interval of the privacy leak from (member scores, other scores) of the model and of gold.

    Both models are resampled on the same rows: the order of the rows must agree.
    """
    model, gold = _resampled_aucs([scores, gold_scores], samples, seed)
    return _percentiles(privacy_leak(model, gold, np.size(scores[0]) * np.size(scores[1])))


def _resampled_aucs(sets: list[tuple[ArrayLike, ArrayLike]], samples: int, seed: int) -> list[Floats]:
    rng = np.random.default_rng(seed)
    members, others = np.size(sets[0][0]), np.size(sets[0][1])
    member_counts, other_counts = _counts(members, samples, rng), _counts(others, samples, rng)
    return [((member_counts @ pairs_won(m, o)) * other_counts).sum(axis=1) / (members * others) for m, o in sets]


def forget_quality_intervals(
    ratios: ArrayLike, gold_ratios: ArrayLike, samples: int, seed: int
) -> tuple[Interval, Interval]:
    """Bootstrap intervals of the KS test's p-value and of its statistic; the models are resampled on the same rows.

    Resampling repeats values and so moves the two samples apart: statistics are biased upwards and p-values downwards.
    The interval shows how much hangs on single rows; the verdict belongs to the p-value itself.
    """
    ours, gold = np.asarray(ratios, dtype=np.float64), np.asarray(gold_ratios, dtype=np.float64)
    if ours.shape != gold.shape:
        raise ValueError(f"the models have {ours.size} and {gold.size} truth ratios; they must be on the same rows")
    counts = _counts(ours.size, samples, np.random.default_rng(seed))
    steps = np.concatenate([counts, -counts], axis=1)
    pooled = np.concatenate([ours, gold])
    order = np.argsort(pooled, kind="stable")
    gaps = np.cumsum(steps[:, order], axis=1)
    last_of_tie = np.append(np.diff(pooled[order]) > 0, True)  # the distributions are compared after a tied group
    heights = np.abs(gaps[:, last_of_tie]).max(axis=1).astype(int)
    distinct, inverse = np.unique(heights, return_inverse=True)
    p_values = np.array([_ks_p_value(int(height), ours.size) for height in distinct])[inverse]
    return _percentiles(p_values), _percentiles(heights / ours.size)


def _ks_p_value(height: int, rows: int) -> float:
    """The p-value of two samples of ``rows`` values whose distributions are ``height`` rows apart."""
    ladder = np.arange(rows, dtype=np.float64)
    return forget_quality(ladder, ladder + height - 0.5)[0] if height else 1.0
