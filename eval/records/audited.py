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
from eval.records.rows import groups
from eval.schema import Record
from eval.statistics import formulas, intervals

Sample = Mapping[str, Any]


def audit_records(
    samples: Sequence[Sample], gold: Sequence[Sample] | None, config: EvalConfig, only: str | None = None
) -> list[Record]:
    """Records of the audit, and with gold's samples the gaps to it; overall, by language and by topic.

    Readings are means over rows, by bootstrap over the same rows. Which attacks there were, the samples say. ``only``
    asks for the overall record of that metric alone, and its gap.
    Raises ArtifactError if gold was not attacked in the same way.
    """
    theirs = _forget(gold) if gold is not None else None
    return [
        replace(record, by=by)
        for by, rows in groups(list(_forget(samples).values()), whole=only is not None)
        for record in _records({row["row_id"]: row for row in rows}, theirs, config, only)
    ]


def _records(
    rows: Mapping[str, Sample], gold: dict[str, Sample] | None, config: EvalConfig, only: str | None
) -> Iterator[Record]:
    for metric, gap in _with_gaps("reading"):
        read = partial(_reading, metric)
        having = {i: row for i, row in rows.items() if metric.attack and metric.attack.name in row.get("attacked", {})}
        if having and only in (None, metric.name, gap.name):
            values = {i: read(row) for i, row in having.items()}
            yield _mean_record(metric, values, rows, config)
            if gold is not None:
                theirs = _of_gold(metric, gold, values, read)
                apart = {i: value - other for (i, value), other in zip(values.items(), theirs, strict=True)}
                yield _mean_record(gap, apart, rows, config)
    sampled = {i: row for i, row in rows.items() if "sampled" in row}
    asked = config.sampling.k if config.sampling and sampled else ()
    for metric, gap in _with_gaps("sampled"):
        if metric.k in asked and only in (None, metric.name, gap.name):
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
    """What is read of gold's same rows, in the same order."""
    try:
        return [read(gold[row_id]) for row_id in row_ids]
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"The evaluation of gold lacks {metric.name} for a row ({error}). Evaluate gold with the same recipe."
        ) from error


def _mean_record(metric: Metric, values: Mapping[str, float], rows: Mapping[str, Sample], config: EvalConfig) -> Record:
    found, languages = list(values.values()), [rows[row_id]["language"] for row_id in values]
    interval = intervals.mean_interval(found, config.bootstrap_samples, config.seed, languages)
    return Record.of(metric, "forget", float(np.mean(found)), interval, len(found))


def _leak_records(
    metric: Metric, gap: Metric, sampled: Mapping[str, Sample], gold: Mapping[str, Sample] | None
) -> Iterator[Record]:
    ours = _leak_record(metric, [row["sampled"] for row in sampled.values()])
    yield ours
    if gold is not None:
        theirs = _of_gold(metric, gold, sampled, lambda row: row["sampled"])
        yield _difference(gap, ours, _leak_record(metric, theirs))


def _leak_record(metric: Metric, sampled: Sequence[Mapping[str, int]]) -> Record:
    n, hits = ([row[key] for row in sampled] for key in ("n", "hits"))
    k = int(metric.k or 0)
    value = float(formulas.leak_at_k(n, hits, k).mean())
    return Record.of(metric, "forget", value, intervals.leak_interval(n, hits, k), len(sampled))


def _difference(metric: Metric, ours: Record, gold: Record) -> Record:
    """Ours minus gold's, whose interval is combined from both, since without a hit the rows do not vary.

    Newcombe's method 10 (Statistics in Medicine 1998;17:873-890; for other intervals than Wilson's known as MOVER): it
    takes the two for independent, which for the same rows errs on the safe side.
    """
    value = ours.value - gold.value
    low = value - math.hypot(ours.value - ours.ci_low, gold.ci_high - gold.value)
    high = value + math.hypot(ours.ci_high - ours.value, gold.value - gold.ci_low)
    return Record.of(metric, "forget", value, (low, high), ours.n)
