"""From measurements of rows to the records of ``results.json``: value, interval and n, overall, by language, by topic.

Rows are joined by ``row_id`` and a row without a measurement is left out by name, never by its place in a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from datasets_prep.schema import SPLITS
from eval import intervals, metrics
from eval.against_holdout import holdout_records
from eval.config import METRICS, EvalConfig, higher_is_better
from eval.intervals import Interval
from eval.metrics import Floats
from eval.schema import Record
from pipeline.errors import ArtifactError

Sample = Mapping[str, Any]

ROW_METRICS = tuple(name for name, spec in METRICS.items() if spec.splits == SPLITS)


def row_records(samples: Sequence[Sample], config: EvalConfig) -> list[Record]:
    """The mean of each row metric over each split, overall, by language and by topic, where any row has it."""
    records = []
    for split in SPLITS:
        for by, rows in _groups([sample for sample in samples if sample["split"] == split]):
            for metric in ROW_METRICS:
                values = [row[metric] for row in rows if metric in row]
                if values:
                    records.append(_mean_record(metric, split, _values(metric, split, values), by, config))
    return records


def set_records(samples: Sequence[Sample], gold: Sequence[Sample] | None, config: EvalConfig) -> list[Record]:
    """Membership inference (forget against holdout) and, where gold's samples are given, the comparisons with gold.

    Raises ArtifactError where gold was evaluated on other rows.
    """
    forget, holdout = _split(samples, "forget"), _split(samples, "holdout")
    records = []
    for metric, score in (("mia_min_k_auc", _min_k), ("mia_loss_auc", _minus_loss)):
        members, others = _column(forget, score), _column(holdout, score)
        interval = intervals.auc_interval(members, others, config.bootstrap_samples, config.seed)
        n = min(len(members), len(others))
        records.append(_record(metric, "forget", metrics.auc(members, others), interval, n))
    records += holdout_records(samples, config)
    if gold is not None:
        records += _forget_quality_records(forget, _split(gold, "forget"), config)
        records.append(_privacy_leak_record(forget, holdout, gold, config))
    return records


def utility_record(answers: Sequence[float], config: EvalConfig) -> Record:
    """Accuracy on the general-knowledge questions."""
    return _mean_record("utility", "general", np.asarray(answers, dtype=np.float64), None, config)


def _groups(rows: list[Sample]) -> Iterable[tuple[dict[str, str] | None, list[Sample]]]:
    yield None, rows
    for key, column in (("language", "language"), ("topic", "topic_id")):
        for name in sorted({row[column] for row in rows}):
            yield {key: name}, [row for row in rows if row[column] == name]


def _values(metric: str, split: str, values: list[float]) -> Floats:
    if metric != "truth_ratio":
        return np.asarray(values, dtype=np.float64)
    return metrics.forget_truth_ratios(values) if split == "forget" else metrics.retain_truth_ratios(values)


def _mean_record(metric: str, split: str, values: Floats, by: dict[str, str] | None, config: EvalConfig) -> Record:
    if metric in ("multiple_choice_accuracy", "utility"):
        interval = intervals.proportion_interval(values)
    else:
        interval = intervals.mean_interval(values, config.bootstrap_samples, config.seed)
    return _record(metric, split, float(values.mean()), interval, values.size, by)


def _record(
    metric: str, split: str, value: float, interval: Interval, n: int, by: dict[str, str] | None = None
) -> Record:
    better, version = higher_is_better(metric, split), METRICS[metric].version
    return Record(metric, split, value, *interval, n, better, version, by)


def _forget_quality_records(forget: dict[str, Sample], gold: dict[str, Sample], config: EvalConfig) -> list[Record]:
    """Forget quality and its KS statistic over the forget rows that have false answers; none where there are none."""
    row_ids = [row_id for row_id, row in forget.items() if "truth_ratio" in row]
    if not row_ids:
        return []
    ours = _column({row_id: forget[row_id] for row_id in row_ids}, _truth_ratio)
    theirs = _column(_same_rows(gold, row_ids), _truth_ratio)
    values = metrics.forget_quality(ours, theirs)
    both = intervals.forget_quality_intervals(ours, theirs, config.bootstrap_samples, config.seed)
    names = ("forget_quality", "forget_quality_ks")
    return [_record(n, "forget", v, i, len(row_ids)) for n, v, i in zip(names, values, both, strict=True)]


def _privacy_leak_record(
    forget: dict[str, Sample], holdout: dict[str, Sample], gold: Sequence[Sample], config: EvalConfig
) -> Record:
    ours = _column(forget, _min_k), _column(holdout, _min_k)
    gold_forget = _same_rows(_split(gold, "forget"), list(forget))
    gold_holdout = _same_rows(_split(gold, "holdout"), list(holdout))
    theirs = _column(gold_forget, _min_k), _column(gold_holdout, _min_k)
    pairs = len(forget) * len(holdout)
    value = float(metrics.privacy_leak(metrics.auc(*ours), metrics.auc(*theirs), pairs))
    interval = intervals.privacy_leak_interval(ours, theirs, config.bootstrap_samples, config.seed)
    return _record("privacy_leak", "forget", value, interval, len(forget))


def _split(samples: Sequence[Sample], split: str) -> dict[str, Sample]:
    return {sample["row_id"]: sample for sample in samples if sample["split"] == split}


def _same_rows(rows: dict[str, Sample], row_ids: list[str]) -> dict[str, Sample]:
    """``rows`` in the order of ``row_ids``."""
    missing = [row_id for row_id in row_ids if row_id not in rows]
    if missing:
        raise ArtifactError(
            f"The gold evaluation lacks {len(missing)} of {len(row_ids)} rows, for example {missing[0]}. "
            "Evaluate gold on the same data."
        )
    return {row_id: rows[row_id] for row_id in row_ids}


def _column(rows: dict[str, Sample], measure: Callable[[Sample], float]) -> Floats:
    try:
        return np.array([measure(row) for row in rows.values()], dtype=np.float64)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"The gold evaluation's samples lack a measurement ({error}). Evaluate gold again."
        ) from error


def _min_k(row: Sample) -> float:
    return float(row["min_k"])


def _minus_loss(row: Sample) -> float:
    return -float(row["loss"])


def _truth_ratio(row: Sample) -> float:
    return float(row["truth_ratio"])
