"""Statistical power: the smallest difference that a test on a number of rows finds in four of five samples.

A gate that passes on few rows has shown little; this says how little. Standard errors come from the bootstrap's 95 %
interval (its width is 2 x 1.96 standard errors), so every metric is treated alike.
"""

from __future__ import annotations

import math

from core.markdown import counted
from eval.catalog import CATALOG, is_of
from eval.config import Condition, Reference
from eval.schema import ALPHA, Record

POWER = 0.8


def smallest_difference(error: float) -> float:
    """(z(1 - alpha / 2) + z(power)) x standard error: what a two-sided z test at 5 % sees with a power of 80 %.

    The usual formula of sample sizes, for example in Chow, Shao and Wang, *Sample Size Calculations in Clinical
    Research*, solved for the difference.
    """
    from scipy.stats import norm

    return float(norm.ppf(1 - ALPHA / 2) + norm.ppf(POWER)) * error


def smallest_margin(error: float) -> float:
    """(z(1 - alpha) + z(1 - (1 - power) / 2)) x standard error: the narrowest margin that equivalence can be shown for.

    For two one-sided tests at 5 % each (Schuirmann 1987) with a power of 80 % if the true difference is 0 (the same
    book).
    """
    from scipy.stats import norm

    return float(norm.ppf(1 - ALPHA) + norm.ppf(1 - (1 - POWER) / 2)) * error


def smallest_share(rows: int) -> float:
    """The share of facts of which four of five samples of ``rows`` have at least one: 1 - 0.2^(1/n)."""
    return float(1 - (1 - POWER) ** (1 / rows))


def ks_critical(rows: int, alpha: float) -> float:
    """The smallest statistic with p < alpha of the exact two-sample Kolmogorov-Smirnov test of ``rows`` values each.

    1 if no statistic has p < alpha.
    """
    from scipy.stats import ks_2samp

    def p_value(height: int) -> float:
        ladder = range(rows)
        return float(ks_2samp(ladder, [step + height - 0.5 for step in ladder]).pvalue) if height else 1.0

    low, high = 0, rows  # p falls with the height: halve the range in which it crosses alpha
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if p_value(middle) < alpha else (middle + 1, high)
    return low / rows


def smallest_ks_distance(rows: int, critical: float) -> float | None:
    """The distance D at which two distribution functions, whatever their shape, are told apart in 4 of 5 samples.

    The statistic is at least the gap at the point where the distributions are D apart. That gap is about normal with
    mean D and variance (F(1 - F) + G(1 - G)) / n, which is at most (1 - D^2) / (2n), whatever the distributions. So
    D - z(power) x sqrt((1 - D^2) / (2n)) = critical, solved for D, is on the safe side. A plain shift is seen at three
    quarters of it. None if no distance is enough.
    """
    from scipy.stats import norm

    if critical >= 1:
        return None
    k = float(norm.ppf(POWER)) ** 2 / (2 * rows)
    return (critical + math.sqrt(k * (1 + k - critical**2))) / (1 + k)


def power_of(gate: Condition, record: Record, references: list[tuple[Reference, Record]]) -> tuple[float | None, str]:
    """The smallest difference that the gate's rows could have shown, and the sentence that says so.

    ``references`` are the records of the gate's measured bounds; the least certain one counts. They are treated as
    independent of the record, which is on the safe side if the rows are the same.
    """
    if record.n < 1:
        return None, "The number of rows is not known, and so is not what they could have shown."
    if is_of(gate.metric, "ks"):
        return _ks_power(gate, record)
    errors = [abs(reference.times) * bound.standard_error for reference, bound in references]
    seen = smallest_difference(math.hypot(record.standard_error, max(errors, default=0.0)))
    if gate.metric in CATALOG and CATALOG[gate.metric].gap_of:
        seen = max(seen, smallest_share(record.told))  # rows that are alike vary little, and say nothing of rarer ones
    if not seen > 0:
        return None, "The rows do not vary, so nothing says what difference they could have shown."
    return seen, (
        f"With {counted(record.n, 'row')} a true difference of {seen:.2g} is seen in 80 % of samples, a smaller one "
        "less often."
    )


def _ks_power(gate: Condition, record: Record) -> tuple[float | None, str]:
    rows = record.told  # what the test counts
    what = counted(rows, "row" if record.facts is None else "fact")
    of_statistic = CATALOG[gate.metric].ks == "statistic"
    bound = gate.at_most if of_statistic else gate.at_least
    critical = bound if isinstance(bound, float) and of_statistic else None
    if critical is None:
        critical = ks_critical(rows, bound if isinstance(bound, float) and 0 < bound < 1 else ALPHA)
    seen = smallest_ks_distance(rows, critical)
    if seen is None and CATALOG[gate.metric].needs_holdout:  # ``rows`` are those of the smaller set
        return (
            None,
            f"With {what} in the smaller of both sets, nothing says what difference they could have shown.",
        )
    if seen is None:
        return None, f"With {what} the test cannot fail, whatever the two distributions are."
    return seen, (
        f"With {what} distributions of truth ratios that are {seen:.2g} apart are told apart in at least 80 % of "
        "samples, whatever their shape; a leak of a smaller share of the rows may go unseen."
    )
