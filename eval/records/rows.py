"""From measurements of rows to the records of ``results.json``: value, interval and n, overall, by language, by topic.

Rows are joined by ``row_id``, never by their place in a list; a row without a measurement is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from core.errors import ArtifactError
from core.markdown import counted
from datasets_prep.schema import FORGOTTEN, SPLITS
from eval.catalog import CATALOG, ROW_FAMILIES, Metric, of_family
from eval.config import EvalConfig
from eval.records import against_holdout, tofu
from eval.records.facts import fact_of, number_of_facts, strata_of, truth_ratios
from eval.schema import Record
from eval.statistics import formulas, intervals
from eval.statistics.formulas import Floats
from eval.statistics.intervals import Strata

Sample = Mapping[str, Any]

CUT = "cut"
"""Where a sample says that its true answer has more tokens than a generation may have."""
FORGET_QUALITY = [metric for metric in of_family("ks") if metric.needs_gold]  # p-value and statistic, in this order
LONGER = "more tokens than a generation may have"
OF_WHOLE_ANSWERS = ("rouge_l_recall", "rouge_l_f1")
UNBOUNDED = ("generation_nll",)  # in nats; all other metrics of rows lie between 0 and 1
UTILITY_PARTS = {
    "retain": ("answer_probability", "rouge_l_recall", "truth_ratio"),
    "general": ("probability_with_options", "truth_ratio"),
}


def all_records(samples: Sequence[Sample], gold: Sequence[Sample] | None, config: EvalConfig) -> list[Record]:
    """Every record of one model. Raises ArtifactError if gold was evaluated on other rows."""
    utilities = [*model_utility_records(samples, config), *tofu.utility_records(samples, config)]
    return [*row_records(samples, config), *set_records(samples, gold, config), *utilities]


def row_records(samples: Sequence[Sample], config: EvalConfig, only: str | None = None) -> list[Record]:
    """The mean of each row metric over the rows of a split that have it: overall, by language and by topic.

    ``only`` asks for the overall record of that metric alone.
    """
    records = []
    for split in (*SPLITS, FORGOTTEN, "general"):
        of_split = [sample for sample in samples if sample["split"] == split]
        for by, rows in groups(of_split, whole=split == "general" or only is not None):
            for metric in of_family(*ROW_FAMILIES):
                measured = [row for row in rows if metric.name in row] if only in (None, metric.name) else []
                if metric.name in UNBOUNDED and len(set(map(fact_of, measured))) < 2:
                    continue  # of values without an end, one says nothing of how far off it is
                if measured and split in metric.splits:
                    records.append(_mean_record(metric, split, measured, by, config))
    return records


def set_records(
    samples: Sequence[Sample], gold: Sequence[Sample] | None, config: EvalConfig, only: str | None = None
) -> list[Record]:
    """Membership inference (forget against holdout) and, if gold's samples are given, the comparisons with gold.

    Overall, and for each language and topic its forget rows against its own holdout rows. Without holdout rows there is
    no membership inference. ``only`` asks for the overall record of that metric and those that come with it.
    Raises ArtifactError if gold was evaluated on other rows.
    """
    model_rows, gold_rows = (
        [sample for sample in of_model or () if sample["split"] in ("forget", "holdout")]
        for of_model in (samples, gold)
    )
    return [
        replace(record, by=by)
        for by, rows in groups(model_rows, whole=only is not None)
        if any(row["split"] == "forget" for row in rows)  # a topic may have holdout rows alone
        for record in _set_records(rows, None if gold is None else gold_rows, config, only)
    ]


def _set_records(
    samples: Sequence[Sample], gold: Sequence[Sample] | None, config: EvalConfig, only: str | None
) -> list[Record]:
    forget, holdout = _split(samples, "forget"), _split(samples, "holdout")
    records = []
    for metric in [metric for metric in of_family("membership") if holdout and only in (None, metric.name)]:
        members, others = membership_scores(metric, forget), membership_scores(metric, holdout)
        interval = intervals.auc_interval(
            members, others, config.bootstrap_samples, config.seed, (_strata(forget), _strata(holdout))
        )
        n, facts = min(len(members), len(others)), number_of_facts(forget.values(), holdout.values())
        records.append(Record.of(metric, "forget", formulas.auc(members, others), interval, n, facts=facts))
    if only in (None, *(metric.name for metric in against_holdout.METRICS)):
        records += against_holdout.holdout_records(samples)
    if gold is not None:
        if only in (None, *(metric.name for metric in FORGET_QUALITY)):
            records += _forget_quality_records(forget, _split(gold, "forget"))
        if holdout and only in (None, "privacy_leak"):
            records.append(_privacy_leak_record(forget, holdout, gold, config))
    return records


def model_utility_records(samples: Sequence[Sample], config: EvalConfig) -> list[Record]:
    """TOFU's harmonic mean over the parts that were measured; its note names them.

    ``n`` is that of the part with the fewest rows, which limits the mean, and so are its facts.
    """
    sets: list[tuple[list[Floats], Strata]] = []
    means: dict[str, float] = {}
    told: list[list[Sample]] = []
    for split, parts in UTILITY_PARTS.items():
        rows = _split(samples, split)
        columns = {part: _with_gaps(rows, part, split) for part in parts}
        columns = {part: column for part, column in columns.items() if np.isfinite(column).any()}
        means |= {f"{part} {split}": float(np.nanmean(column)) for part, column in columns.items()}
        if columns:
            sets.append((list(columns.values()), _strata(rows)))
            has_value = map(np.isfinite, columns.values())
            told += [[row for row, has in zip(rows.values(), of, strict=True) if has] for of in has_value]
    if not means:
        return []
    interval = intervals.model_utility_interval(sets, config.bootstrap_samples, config.seed)
    value = formulas.model_utility(list(means.values()))
    note = f"harmonic mean of {', '.join(means)}"
    n, facts = min(map(len, told)), number_of_facts(*told)
    fewer = facts if facts is not None and facts < n else None
    return [Record.of(CATALOG["model_utility"], "retain+general", value, interval, n, note=note, facts=fewer)]


def groups(rows: list[Sample], *, whole: bool = False) -> Iterable[tuple[dict[str, str] | None, list[Sample]]]:
    """All rows, then the rows of each language and of each topic, unless ``whole``. A row may have neither."""
    yield None, rows
    for key, column in (("language", "language"), ("topic", "topic_id")):
        for name in () if whole else sorted({row[column] for row in rows if row[column] is not None}):
            yield {key: name}, [row for row in rows if row[column] == name]


def row_values(metric: str, split: str, values: Sequence[float] | Floats) -> Floats:
    """The values to average over rows: the measurements, or for truth ratios TOFU's form for the split."""
    if metric != "truth_ratio":
        return np.asarray(values, dtype=np.float64)
    return formulas.forget_truth_ratios(values) if split == "forget" else formulas.retain_truth_ratios(values)


def _with_gaps(rows: dict[str, Sample], metric: str, split: str) -> Floats:
    """A value for each row, NaN if it has none."""
    column = np.array([row.get(metric, np.nan) for row in rows.values()], dtype=np.float64)
    has_value = np.isfinite(column)
    column[has_value] = row_values(metric, split, column[has_value])
    return column


def _mean_record(
    metric: Metric, split: str, rows: Sequence[Sample], by: dict[str, str] | None, config: EvalConfig
) -> Record:
    values = row_values(metric.name, split, [row[metric.name] for row in rows])
    strata = strata_of(rows)
    if metric.interval == "Wilson":
        interval = intervals.proportion_interval(values, strata)
    else:
        interval_of = intervals.mean_interval if metric.name in UNBOUNDED else intervals.share_interval
        interval = interval_of(values, config.bootstrap_samples, config.seed, strata)
    note = None
    if metric.name == "truth_ratio":
        paraphrased = sum(row["truth_ratio_of"] == "paraphrase" for row in rows)
        of = counted(paraphrased, "row")
        note = f"against a paraphrase of the answer in {of}, against the answer itself in the others"
    if metric.name in OF_WHOLE_ANSWERS and (cut := sum(CUT in row for row in rows)):
        note = f"{cut} of {counted(len(rows), 'true answer')} {'has' if cut == 1 else 'have'} {LONGER}"
    return Record.of(metric, split, float(values.mean()), interval, values.size, by, note, number_of_facts(rows))


def _forget_quality_records(forget: dict[str, Sample], gold: dict[str, Sample]) -> list[Record]:
    """Forget quality and its KS statistic over the forget rows that have false answers; no record without such rows.

    The test takes a value for each fact: it would take copies of a row for rows of their own.
    """
    rows = {row_id: row for row_id, row in forget.items() if "truth_ratio" in row}
    if not rows:
        return []
    gold_rows = _same_rows(gold, list(rows))
    _column(gold_rows, "truth_ratio")  # raises where gold has none
    ratios = truth_ratios(rows.values())
    values = formulas.forget_quality(ratios, truth_ratios(gold_rows.values()))
    both = intervals.ks_intervals(values[1], ratios.size, ratios.size)
    facts = number_of_facts(rows.values())
    return [
        Record.of(metric, "forget", value, interval, len(rows), facts=facts)
        for metric, value, interval in zip(FORGET_QUALITY, values, both, strict=True)
    ]


def _privacy_leak_record(
    forget: dict[str, Sample], holdout: dict[str, Sample], gold: Sequence[Sample], config: EvalConfig
) -> Record:
    scores = _column(forget, "min_k"), _column(holdout, "min_k")
    gold_forget = _same_rows(_split(gold, "forget"), list(forget))
    gold_holdout = _same_rows(_split(gold, "holdout"), list(holdout))
    gold_scores = _column(gold_forget, "min_k"), _column(gold_holdout, "min_k")
    pairs = len(forget) * len(holdout)
    value = float(formulas.privacy_leak(formulas.auc(*scores), formulas.auc(*gold_scores), pairs))
    interval = intervals.privacy_leak_interval(
        scores, gold_scores, config.bootstrap_samples, config.seed, (_strata(forget), _strata(holdout))
    )
    n, facts = min(len(forget), len(holdout)), number_of_facts(forget.values(), holdout.values())
    return Record.of(CATALOG["privacy_leak"], "forget", value, interval, n, facts=facts)


def _split(samples: Sequence[Sample], split: str) -> dict[str, Sample]:
    return {sample["row_id"]: sample for sample in samples if sample["split"] == split}


def _strata(rows: Mapping[str, Sample]) -> Strata:
    return strata_of(rows.values())


def _same_rows(rows: dict[str, Sample], row_ids: list[str]) -> dict[str, Sample]:
    """``rows`` in the order of ``row_ids``."""
    missing = [row_id for row_id in row_ids if row_id not in rows]
    if missing:
        raise ArtifactError(
            f"The gold evaluation lacks {len(missing)} of {len(row_ids)} rows, for example {missing[0]}. "
            "Evaluate gold on the same data."
        )
    return {row_id: rows[row_id] for row_id in row_ids}


def membership_scores(metric: Metric, rows: Mapping[Any, Sample]) -> Floats:
    """The rows' scores for a membership metric; a higher score means a likelier member."""
    scores = _column(rows, str(metric.score))
    return -scores if metric.members_score_low else scores


def _column(rows: Mapping[Any, Sample], measure: str) -> Floats:
    try:
        return np.array([row[measure] for row in rows.values()], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"The gold evaluation's samples lack a measurement ({error}). Evaluate gold again."
        ) from error
