"""95 % intervals, seeded.

*Bootstrap* (means, AUC, privacy leak, model utility): as many rows as there are are drawn with replacement, the value
is computed anew, and the 2.5th and 97.5th percentiles of these values are the interval. ``strata`` names the group of
each row, which is its language. Each group keeps its number of rows in every resample, so the mixture of languages adds
no noise; groups of fewer than `TOGETHER` rows are drawn from together, since one row by itself never varies. Rows that
tell one fact in several wordings (:class:`Told`) are drawn together: they are no evidence of other facts. A resample is
a vector of counts, one per row, and all resamples together are one matrix product. Two models are compared on the same
draws, that is, paired by row.
*An adjusted interval* (of fewer than `FEW` facts, :func:`_adjusted`): resamples of so few vary too little, and of
one not at all.
*Clopper and Pearson's interval* (shares, differences and AUCs that are the same on every row): a bootstrap of equal
values has no width, even with few rows.
*Wilson's score interval* (proportions), for the same reason.
*The test's own critical value* (Kolmogorov-Smirnov): a bootstrap repeats values, and so moves two samples apart.

Every interval contains its own value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.schema import FEW, Z_95
from eval.statistics.formulas import Floats, auc, leak_at_k, model_utility, pairs_won, privacy_leak

Interval = tuple[float, float]


class Told(NamedTuple):
    """What a row tells, where rows tell one fact in several wordings, and its group."""

    fact: str
    group: str | None


Strata = Sequence[str | None] | Sequence[Told] | None
"""The group of each row; None if all rows are one group."""
TOGETHER = 5
"""Rows of a group that is drawn from by itself, at least."""
ADDED = 1.5
"""Rows that are added at each end of the values where they are few."""


def _counts(rows: int, samples: int, rng: np.random.Generator, strata: Strata = None) -> Floats:
    """(samples, rows): how often each row was drawn in each resample."""
    if strata is None:
        return rng.multinomial(rows, np.full(rows, 1.0 / rows), size=samples).astype(np.float64)
    if len(strata) != rows:
        raise ValueError(f"{len(strata)} strata for {rows} rows; give one for each row")
    if told := _facts(strata):
        drawn = _counts(len(told), samples, rng, [fact.group for fact in told])
        return drawn[:, [told[fact] for fact in strata]]
    sizes = Counter(strata)
    own = np.array([str(name) if sizes[name] >= TOGETHER else "" for name in strata])
    counts = np.empty((samples, rows))
    for name in np.unique(own):
        places = np.flatnonzero(own == name)
        counts[:, places] = _counts(places.size, samples, rng)
    return counts


def _facts(strata: Strata) -> dict[Any, int]:
    """The number of each fact; none if each row tells its own."""
    told = dict.fromkeys(each for each in strata or () if isinstance(each, Told))
    return {fact: number for number, fact in enumerate(told)}


def independent(rows: int, strata: Strata) -> int:
    """How many facts so many rows tell."""
    return len(_facts(strata)) or rows


def by_fact(values: ArrayLike, strata: Strata) -> Floats:
    """The mean over the rows of each fact; the values themselves if each row tells its own."""
    rows, told = np.asarray(values, dtype=np.float64), _facts(strata)
    if not told:
        return rows
    places = [told[fact] for fact in strata or ()]
    return np.bincount(places, weights=rows) / np.bincount(places)


@lru_cache(maxsize=2)  # all metrics of the same rows are resampled alike, one after another
def _seeded_counts(rows: int, samples: int, seed: int, strata: tuple[str | None, ...] | None) -> Floats:
    counts = _counts(rows, samples, np.random.default_rng(seed), strata)
    counts.flags.writeable = False
    return counts


def _resamples(rows: int, samples: int, seed: int, strata: Strata) -> Floats:
    return _seeded_counts(rows, samples, seed, None if strata is None else tuple(strata))


@lru_cache(maxsize=2)
def _seeded_counts_of_two(
    rows: int, others: int, samples: int, seed: int, strata: tuple[Any, Any]
) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    both = _counts(rows, samples, rng, strata[0]), _counts(others, samples, rng, strata[1])
    for counts in both:
        counts.flags.writeable = False
    return both


def _counts_of_two(
    rows: int, others: int, samples: int, seed: int, strata: tuple[Strata, Strata]
) -> tuple[Floats, Floats]:
    """Draws from two sets of rows, each by itself; the last ones are kept, for the next metric of the same rows."""
    first, second = (None if names is None else tuple(names) for names in strata)
    return _seeded_counts_of_two(rows, others, samples, seed, (first, second))


def _percentiles(resampled: NDArray[np.float64], value: float) -> Interval:
    """From the 2.5th to the 97.5th percentile, and to ``value`` if very few rows leave it outside."""
    ends = (float(end) for end in np.percentile(resampled, [2.5, 97.5]))
    # The mean of the rows themselves rounds in another way than that of a resample.
    low, high = (value if math.isclose(end, value, rel_tol=1e-12) else end for end in ends)
    return min(low, value), max(high, value)


def mean_interval(values: ArrayLike, samples: int, seed: int, strata: Strata = None) -> Interval:
    """Bootstrap interval of the mean over rows, of values without an end.

    Of fewer than `FEW` facts it is Student's, which one fact has not: ValueError.
    """
    rows, of_facts = np.asarray(values, dtype=np.float64), by_fact(values, strata)
    if of_facts.size >= FEW:
        return _percentiles(resampled_means(rows, samples, seed, strata), float(rows.mean()))
    if of_facts.size < 2:
        raise ValueError("one fact says nothing of how facts differ; give two")
    from scipy.stats import t

    half = float(t.ppf(0.975, of_facts.size - 1) * of_facts.std(ddof=1) / math.sqrt(of_facts.size))
    return float(rows.mean()) - half, float(rows.mean()) + half


def share_interval(values: ArrayLike, samples: int, seed: int, strata: Strata = None) -> Interval:
    """Interval of the mean over rows, of values between 0 and 1: a bootstrap where they are many and not all equal."""
    return _between(0.0, 1.0, values, samples, seed, strata)


def difference_interval(values: ArrayLike, samples: int, seed: int, strata: Strata = None) -> Interval:
    """As :func:`share_interval`, of differences from -1 to 1: two models' row by row, so it is the paired one."""
    return _between(-1.0, 1.0, values, samples, seed, strata)


def _between(least: float, most: float, values: ArrayLike, samples: int, seed: int, strata: Strata) -> Interval:
    rows, of_facts = np.asarray(values, dtype=np.float64), by_fact(values, strata)
    value = float(rows.mean())
    if np.ptp(of_facts) < 1e-12:  # the mean of a fact's rows rounds
        return with_a_width(value, of_facts.size, least, most)
    if of_facts.size < FEW:
        return _adjusted(of_facts, value, least, most)
    return _percentiles(resampled_means(rows, samples, seed, strata), value)


def with_a_width(value: float, rows: int, least: float = 0.0, most: float = 1.0) -> Interval:
    """The interval of a mean of values from ``least`` to ``most`` that are all the same on so many rows.

    If n rows of n have it, at least Clopper and Pearson's lower end at n of n have it of all rows, and the others are
    somewhere in between. At 0 or 1 this is their interval of none or all of the rows.
    """
    share = clopper_pearson(rows, rows)[0]
    return share * value + (1 - share) * least, share * value + (1 - share) * most


def _adjusted(values: Floats, value: float, least: float, most: float) -> Interval:
    """The interval of a mean of few values: a normal one of theirs with `ADDED` more at each end, holding ``value``.

    After Agresti and Coull's of a proportion (1998), who add two at each end. With 1.5 it held the mean in at least
    94 % of simulations of two to nine values, of nine distributions.
    """
    n = values.size + 2 * ADDED
    mean = (values.sum() + ADDED * (least + most)) / n
    variance = (np.square(values).sum() + ADDED * (least**2 + most**2)) / n - mean**2
    half = Z_95 * math.sqrt(variance / n)
    return max(least, min(value, float(mean - half))), min(most, max(value, float(mean + half)))


def resampled_means(values: ArrayLike, samples: int, seed: int, strata: Strata = None) -> Floats:
    """(samples,): the mean over the rows of each resample."""
    rows = np.asarray(values, dtype=np.float64)
    counts = _resamples(rows.size, samples, seed, strata)
    resampled = counts @ rows / counts.sum(axis=1)  # facts may have different numbers of rows
    # A sum of counts x value rounds; no mean lies outside the values, and one of equal values is that value.
    return np.clip(resampled, rows.min(), rows.max())


def model_utility_interval(sets: Sequence[tuple[Sequence[ArrayLike], Strata]], samples: int, seed: int) -> Interval:
    """Bootstrap interval of the harmonic mean of means; each set is its columns of values and the strata of its rows.

    The columns of a set have the same rows, which are drawn together; a row without a value has NaN. Where a column has
    values of fewer facts than `FEW`, it is from the least to the most that the intervals of all means allow.
    """
    apart = [_with_value(column, strata) for columns, strata in sets for column in columns]
    if min(independent(rows.size, names) for rows, names in apart) < FEW:
        ends = [share_interval(rows, samples, seed, names) for rows, names in apart]
        low, high = (model_utility(end) for end in zip(*ends, strict=True))
        return low, high
    rng = np.random.default_rng(seed)
    parts, means = [], []
    for columns, strata in sets:
        table = np.array([np.asarray(column, dtype=np.float64) for column in columns])
        has_value = np.isfinite(table)
        counts = _counts(table.shape[1], samples, rng, strata)
        drawn = np.maximum(counts @ has_value.T, 1.0)  # a resample that draws no row with a value counts as zero
        parts.append(counts @ np.where(has_value, table, 0.0).T / drawn)
        means += [float(np.nanmean(column)) for column in table]
    resampled = np.array([model_utility(row) for row in np.concatenate(parts, axis=1)])
    return _percentiles(resampled, model_utility(means))


def _with_value(column: ArrayLike, strata: Strata) -> tuple[Floats, Strata]:
    """The rows that are not NaN, and their strata."""
    rows = np.asarray(column, dtype=np.float64)
    there, names = np.flatnonzero(np.isfinite(rows)), cast(Any, strata)
    return rows[there], None if names is None else [names[place] for place in there]


def proportion_interval(values: ArrayLike, strata: Strata = None) -> Interval:
    """Wilson's score interval of the share of ones among ``values``, each 0 or 1.

    Of rows that share facts it is that of as many as there are facts, with the same share of ones.
    """
    from scipy.stats import binomtest

    flags = np.asarray(values, dtype=bool)
    if (n := independent(flags.size, strata)) < flags.size:
        share, z = float(flags.mean()), Z_95
        middle, room = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        low, high = ((middle + side * room) / (1 + z**2 / n) for side in (-1, 1))
        return max(0.0, min(low, share)), min(1.0, max(high, share))
    interval = binomtest(int(flags.sum()), flags.size).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def auc_interval(
    members: ArrayLike, others: ArrayLike, samples: int, seed: int, strata: tuple[Strata, Strata] = (None, None)
) -> Interval:
    """Bootstrap interval of the AUC; members and non-members are resampled independently, ``strata`` are of both.

    An AUC is the mean of what each member wins of the others, and of what each of these loses. Where a set has fewer
    facts than `FEW`, or all pairs are alike, it is the wider one of both means' intervals.
    """
    won = pairs_won(members, others)
    shares = won.mean(axis=1), won.mean(axis=0)
    facts = [independent(of_set.size, names) for of_set, names in zip(shares, strata, strict=True)]
    if min(facts) < FEW or np.ptp(won) == 0:
        both = [share_interval(of_set, samples, seed, names) for of_set, names in zip(shares, strata, strict=True)]
        return max(both, key=lambda ends: ends[1] - ends[0])
    return _percentiles(resampled_aucs([(members, others)], samples, seed, strata)[0], float(won.mean()))


def privacy_leak_interval(
    scores: tuple[ArrayLike, ArrayLike],
    gold_scores: tuple[ArrayLike, ArrayLike],
    samples: int,
    seed: int,
    strata: tuple[Strata, Strata] = (None, None),
) -> Interval:
    """Bootstrap interval of the privacy leak from (member scores, other scores) of the model and of gold.

    Both models are resampled on the same rows: the order of the rows must agree. Where a set has fewer facts than
    `FEW`, it is from the least to the most that both AUCs' intervals allow.
    """
    sizes = np.size(scores[0]), np.size(scores[1])
    pairs = sizes[0] * sizes[1]
    if min(map(independent, sizes, strata)) < FEW:
        ours, theirs = (auc_interval(*of_model, samples, seed, strata) for of_model in (scores, gold_scores))
        ends = privacy_leak(np.array(ours[::-1]), np.array(theirs), pairs)
        return float(ends[0]), float(ends[1])
    model, gold = resampled_aucs([scores, gold_scores], samples, seed, strata)
    value = float(privacy_leak(auc(*scores), auc(*gold_scores), pairs))
    return _percentiles(privacy_leak(model, gold, pairs), value)


def resampled_aucs(
    sets: Sequence[tuple[ArrayLike, ArrayLike]], samples: int, seed: int, strata: tuple[Strata, Strata]
) -> list[Floats]:
    """(samples,) for each set of member and other scores; all sets are of the same rows, drawn together."""
    sizes = np.size(sets[0][0]), np.size(sets[0][1])
    member_counts, other_counts = _counts_of_two(*sizes, samples, seed, strata)
    pairs = member_counts.sum(axis=1) * other_counts.sum(axis=1)
    return [((member_counts @ pairs_won(m, o)) * other_counts).sum(axis=1) / pairs for m, o in sets]


def ks_intervals(statistic: float, rows: int, others: int) -> tuple[Interval, Interval]:
    """Intervals of the two-sample Kolmogorov-Smirnov test's p-value and of its statistic, from the sizes of both sets.

    The statistic is off the true distance of two distributions by no more than what sampling adds to their difference
    anywhere. At equal distributions that is the statistic itself, so its critical value at 5 %, sqrt(ln(2 / 0.05) / 2 x
    (1 / n + 1 / m)) (Smirnov 1948), bounds the error in 95 % of samples; in simulations also at other distributions,
    with few rows, ties and pairs (`python -m benchmarks.ks_intervals`). The interval reaches 0 if the test does not
    reject. A p-value estimates nothing: its interval is that of the statistic, each end as the p-value that it has.
    """
    from scipy.stats import kstwo

    margin = math.sqrt(math.log(2 / 0.05) / 2 * (1 / rows + 1 / others))
    low, high = max(0.0, statistic - margin), min(1.0, statistic + margin)
    # The p-value falls as the statistic rises; this is ks_2samp's formula for many rows.
    p_low, p_high = kstwo.sf([high, low], max(round(rows * others / (rows + others)), 1))
    return (float(p_low), float(p_high)), (low, high)


def leak_interval(samples: ArrayLike, hits: ArrayLike, k: int, strata: Strata = None) -> Interval:
    """95 % Clopper-Pearson interval of the mean leak@k of facts like these rows.

    The mean of n values between 0 and 1 varies no more than that of n trials, each a hit or not. A row of fewer than k
    samples is no trial: all rows together are no more than their n // k independent groups of k.
    """
    leaks = leak_at_k(samples, hits, k)
    groups = float((np.broadcast_to(np.asarray(samples), leaks.shape) // k).sum())
    trials = min(groups, float(independent(leaks.size, strata)))
    return clopper_pearson(float(leaks.mean()) * trials, trials)


def clopper_pearson(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """The exact interval of a probability; ``successes`` may lie between whole numbers."""
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = 0.0 if successes <= 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes >= trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high
