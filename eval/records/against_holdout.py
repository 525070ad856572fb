"""Forget rows against rows that the model never saw, for releases without a gold model.

Where forget and holdout rows were drawn alike, a model that has forgotten treats them alike: the truth ratios of both
come from one distribution (two-sample Kolmogorov-Smirnov test on different rows), their answers are equally likely, and
no membership score tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.config import METRICS, higher_is_better
from eval.schema import Record
from eval.statistics.formulas import forget_quality
from eval.statistics.intervals import ks_intervals

LIMITS = (
    "This compares forgotten rows with rows that the same model never saw, and shows that it treats them alike. It "
    "does not show what a model that never knew would say: a model that lost everything passes, so retained rows must "
    "be gated too; and it takes forget and holdout rows to be alike but for the training."
)
METRIC_NAMES = ("forget_against_holdout", "forget_against_holdout_ks")


def holdout_records(samples: Sequence[Mapping[str, Any]]) -> list[Record]:
    """p-value and statistic of the KS test between the truth ratios of forget and of holdout rows.

    ``n`` is the number of rows of the smaller set: the other cannot make up for it. Nothing where a set has no truth
    ratios.
    """
    forget, holdout = (
        np.array([row["truth_ratio"] for row in samples if row["split"] == split and "truth_ratio" in row])
        for split in ("forget", "holdout")
    )
    if not forget.size or not holdout.size:
        return []
    found = []
    values = forget_quality(forget, holdout)
    both = ks_intervals(values[1], forget.size, holdout.size)
    for metric, value, interval in zip(METRIC_NAMES, values, both, strict=True):
        better = higher_is_better(metric, "forget")
        n = min(forget.size, holdout.size)
        found.append(Record(metric, "forget", value, *interval, n, better, METRICS[metric].version))
    return found
