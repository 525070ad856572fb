"""Forget rows against rows that the model never saw, for releases without a gold model.

If forget and holdout rows were drawn alike, a model that has forgotten treats them alike: the truth ratios of both come
from one distribution (two-sample Kolmogorov-Smirnov test on different rows), their answers are equally likely, and no
membership score tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.catalog import of_family
from eval.records.facts import number_of_facts, truth_ratios
from eval.schema import Record
from eval.statistics.formulas import forget_quality
from eval.statistics.intervals import ks_intervals

METRICS = [metric for metric in of_family("ks") if metric.needs_holdout]  # p-value and statistic, in this order
LIMITS = (
    "This compares forgotten rows with rows that the same model never saw, and shows that it treats them alike. It "
    "does not show what a model that never knew would say: a model that lost everything passes, so retained rows must "
    "be gated too; and it takes forget and holdout rows to be alike but for the training."
)
LIMITS_OF_START = (
    "This compares how forgotten rows stand to rows that no model saw with how they did for the start model, which had "
    "seen neither. It does not show what a model that never knew would say: a model that lost everything may pass, so "
    "retained rows must be gated too; and it takes the start model not to know the forgotten facts."
)


def holdout_records(samples: Sequence[Mapping[str, Any]]) -> list[Record]:
    """p-value and statistic of the KS test between the truth ratios of forget and of holdout rows.

    ``n`` is the number of rows of the smaller set, which limits the test. No record if a set has no truth ratios.
    """
    forget, holdout = (
        [row for row in samples if row["split"] == split and "truth_ratio" in row] for split in ("forget", "holdout")
    )
    if not forget or not holdout:
        return []
    ratios = truth_ratios(forget), truth_ratios(holdout)
    values = forget_quality(*ratios)
    both = ks_intervals(values[1], *(of_set.size for of_set in ratios))
    n, facts = min(len(forget), len(holdout)), number_of_facts(forget, holdout)
    return [
        Record.of(metric, "forget", value, interval, n, facts=facts)
        for metric, value, interval in zip(METRICS, values, both, strict=True)
    ]
