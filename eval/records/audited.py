"""From readings under attack and sampled answers to records: each model's own, and the gaps to gold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from core.errors import ArtifactError
from eval.catalog import CATALOG, Family, Metric, of_family
from eval.config import EvalConfig
from eval.records.facts import number_of_facts, strata_of
from eval.records.rows import groups
from eval.schema import Record
from eval.statistics import formulas, intervals

Sample = Mapping[str, Any]


def audit_records(
    samples: Sequence[Sample], gold: Sequence[Sample] | None, config: EvalConfig, only: str | None = None
) -> list[Record]:
    """Records of the audit, and with gold's samples the gaps to it; overall, by language and by topic.

    Readings are means over rows, with bootstrap intervals over the same rows. The samples say which attacks there were.
    ``only`` asks for the overall record of that metric and its gap alone. Raises ArtifactError if gold was not attacked
    in the same way.
    """
    gold_rows = _forget(gold) if gold is not None else None
    return [
        replace(record, by=by)
        for by, rows in groups(list(_forget(samples).values()), whole=only is not None)
        for record in _records({row["row_id"]: row for row in rows}, gold_rows, config, only)
    ]


def _records(
    rows: Mapping[str, Sample], gold: dict[str, Sample] | None, config: EvalConfig, only: str | None
) -> Iterator[Record]:
    for metric, gap in _with_gaps("reading"):
        read = partial(_reading, metric)
        attack = metric.attack.name if metric.attack else ""
        attacked = {i: row for i, row in rows.items() if attack in row.get("attacked", {})}
        if attacked and only in (None, metric.name, gap.name):
            values = {i: read(row) for i, row in attacked.items()}
            yield _mean_record(metric, values, rows, config)
            if gold is not None:
                gold_values = _of_gold(metric, gold, values, read)
                gaps = {i: value - other for (i, value), other in zip(values.items(), gold_values, strict=True)}
                yield _mean_record(gap, gaps, rows, config)
    sampled = {i: row for i, row in rows.items() if "sampled" in row}
    ks = config.sampling.k if config.sampling and sampled else ()
    for metric, gap in _with_gaps("sampled"):
        if metric.k in ks and only in (None, metric.name, gap.name):
            yield from _leak_records(metric, gap, sampled, gold)


def _with_gaps(family: Family) -> list[tuple[Metric, Metric]]:
    """The metrics of a family, each with its gap to gold."""
    gaps = {metric.gap_of: metric for metric in of_family(family) if metric.gap_of}
    return [(CATALOG[name], gap) for name, gap in gaps.items()]


def _forget(samples: Sequence[Sample]) -> dict[str, Sample]:
    return {sample["row_id"]: sample for sample in samples if sample["split"] == "forget"}


def _reading(metric: Metric, row: Sample) -> float:
    return float(row["attacked"][metric.attack.name][metric.reading])  # type: ignore[union-attr]


def _of_gold(
    metric: Metric, gold: Mapping[str, Sample], row_ids: Iterable[str], read: Callable[[Sample], Any]
) -> list[Any]:
    """The readings of gold's same rows, in the same order."""
    try:
        return [read(gold[row_id]) for row_id in row_ids]
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"The evaluation of gold lacks {metric.name} for a row ({error}). Evaluate gold with the same recipe."
        ) from error


def _mean_record(metric: Metric, values: Mapping[str, float], rows: Mapping[str, Sample], config: EvalConfig) -> Record:
    numbers, read = list(values.values()), [rows[row_id] for row_id in values]
    interval_of = intervals.difference_interval if metric.gap_of else intervals.share_interval
    interval = interval_of(numbers, config.bootstrap_samples, config.seed, strata_of(read))
    value, facts = float(np.mean(numbers)), number_of_facts(read)
    return Record.of(metric, "forget", value, interval, len(numbers), facts=facts)


def _leak_records(
    metric: Metric, gap: Metric, sampled: Mapping[str, Sample], gold: Mapping[str, Sample] | None
) -> Iterator[Record]:
    record = _leak_record(metric, [row["sampled"] for row in sampled.values()], sampled)
    yield record
    if gold is not None:
        gold_sampled = _of_gold(metric, gold, sampled, lambda row: row["sampled"])
        yield _difference(gap, record, _leak_record(metric, gold_sampled, sampled))


def _leak_record(metric: Metric, sampled: Sequence[Mapping[str, int]], rows: Mapping[str, Sample]) -> Record:
    n, hits = ([row[key] for row in sampled] for key in ("n", "hits"))
    k = int(metric.k or 0)
    value = float(formulas.leak_at_k(n, hits, k).mean())
    interval = intervals.leak_interval(n, hits, k, strata_of(rows.values()))
    return Record.of(metric, "forget", value, interval, len(sampled), facts=number_of_facts(rows.values()))


def _difference(metric: Metric, record: Record, gold: Record) -> Record:
    """The model's value minus gold's. The interval is combined from both, since rows without a hit do not vary.

    Newcombe's method 10 (Statistics in Medicine 1998;17:873-890), known as MOVER for intervals other than Wilson's. It
    treats the two as independent, which is on the safe side if the rows are the same.
    """
    value = record.value - gold.value
    low = value - math.hypot(record.value - record.ci_low, gold.ci_high - gold.value)
    high = value + math.hypot(record.ci_high - record.value, gold.value - gold.ci_low)
    return Record.of(metric, "forget", value, (low, high), record.n, facts=record.facts)
