"""Gates that rows cannot carry: told once the data are known, and not after hours of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import comb

from core.errors import DataError
from core.markdown import counted, listed
from datasets_prep.schema import FORGOTTEN, DataFacts
from eval.catalog import CATALOG, Metric
from eval.config import EvalConfig, Gate, relearned

FEW = 20
"""With more rows than this on both sides, no p-value of the KS test is too large for a gate."""
OF_FALSE_ANSWERS = ("options", "choice", "ks")


def check(
    gates: Sequence[Gate],
    config: EvalConfig,
    rows: Mapping[str, int],
    data: DataFacts | None,
    false: Mapping[str, int] | None = None,
    told: Mapping[str, int] | None = None,
) -> None:
    """Raise DataError if a gate could only fail or only pass, as there are too few ``rows`` or false answers.

    ``data``, ``false``, the number of rows of each split that have false answers, and ``told``, how many facts its rows
    tell, are None as long as only the numbers of rows are known. Where ``told`` is given, ``false`` counts facts too.
    """
    if data:
        rows = {**rows, FORGOTTEN: data.rows_forgotten or 0}
    facts = {**rows, **(told or {})}
    several = {split for split, n in rows.items() if facts[split] < n}
    problems = [
        f"gates[{i}] ({gate.metric} on {gate.split}): {why}"
        for i, gate in enumerate(gates)
        for why in _why(gate, config, facts, data, false)
    ]
    if problems and several:
        problems.append(
            f"Several {listed(sorted(several))} rows tell one fact in other words. They are counted as one, since they "
            "are no evidence of other facts."
        )
    if problems:
        raise DataError("The rows cannot carry these gates:\n" + "\n".join(problems))


def _why(
    gate: Gate,
    config: EvalConfig,
    rows: Mapping[str, int],
    data: DataFacts | None,
    false: Mapping[str, int] | None,
) -> Iterator[str]:
    """Why the gate cannot be measured, and what to do."""
    metric = CATALOG.get(gate.metric)
    if metric is None:
        return  # of a suite, which has questions of its own
    yield from _too_few(metric, gate, config, rows, false)
    attacked = metric.attack is not None and metric.attack.needs_holdout
    compared = "holdout" in rests_on(gate) - {gate.split}
    if (compared or attacked) and not rows["holdout"]:
        yield (
            "it compares with holdout rows, and there are none. Give rows that no model was trained on "
            "(data.request.holdout, or a split holdout), or compare with gold, or remove the gate."
        )
    elif compared and rows["holdout"] < gate.min_n:
        yield (
            f"it needs {gate.min_n} rows, and compares with holdout rows, of which there are {rows['holdout']}. Hold "
            "out more (data.request.holdout, or a split holdout), or set min_n to that number if so few can carry a "
            "verdict."
        )
    elif compared and metric.family in OF_FALSE_ANSWERS and false is not None and false.get("holdout", 0) < gate.min_n:
        yield (
            f"it needs {gate.min_n} rows, and compares with holdout rows that have false answers, of which there are "
            f"{false.get('holdout', 0)} of {rows['holdout']}. Give more false answers, or set min_n to that number if "
            "so few can carry a verdict."
        )
    yield from _cannot_fail(metric, gate, rows if false is None else false)
    yield from _of_one(metric, gate, rows)
    if data is not None and metric.needs_real_world and not data.real_world:
        yield (
            "it reads questions about the real world, and the source has none. Name the subsets that hold them "
            "(data.source.hub.subsets.real_world), or gate model_utility instead."
        )


def rests_on(gate: Gate) -> set[str]:
    """The splits of which a gate needs ``min_n`` rows each: its own, and holdout if it compares with those rows."""
    metric = CATALOG.get(gate.metric)
    compares = metric is not None and metric.needs_holdout
    return {gate.split, *(("holdout",) if compares or any(ref.of == "holdout" for ref in gate.references) else ())}


def _cannot_fail(metric: Metric, gate: Gate, rows: Mapping[str, int]) -> Iterator[str]:
    """Why a gate on a p-value of the KS test passes every model, if it does.

    The smallest p-value of n against m rows, of samples that do not overlap, is 2 / (n + m choose n).
    """
    ours = rows.get(gate.split, 0)
    theirs = rows.get("holdout", 0) if metric.needs_holdout else ours
    if metric.ks != "p-value" or not isinstance(gate.at_least, float) or not 0 < min(ours, theirs) <= FEW:
        return
    smallest = 2 / comb(ours + theirs, ours)
    if smallest >= gate.at_least > 0:
        yield (
            f"no model can fail it: of {counted(ours, 'row')} against {theirs}, no p-value is below {smallest:.2g}. "
            f"Give more rows, or gate {metric.name}_ks (at_most), or remove the gate."
        )


def _of_one(metric: Metric, gate: Gate, rows: Mapping[str, int]) -> Iterator[str]:
    """Why an end of a measured interval cannot be a bound, if it is that of one fact."""
    for of in dict.fromkeys(reference.of for reference in gate.references if reference.bound != "value"):
        splits = {"holdout" if of == "holdout" else gate.split, *(("holdout",) if metric.needs_holdout else ())}
        if one := sorted(split for split in splits if rows.get(split) == 1):
            yield (
                f"its bound is an end of {of}'s interval on one {one[0]} row, and the interval of one fact allows "
                "nearly every value. Compare with the value (bound: value), or give more rows, or remove the gate."
            )


def _too_few(
    metric: Metric, gate: Gate, config: EvalConfig, rows: Mapping[str, int], false: Mapping[str, int] | None
) -> Iterator[str]:
    """Why the rows of the gate's own split are too few, and what to do."""
    if gate.split not in rows:
        return  # questions of ours, or about the real world
    probed = _after_relearning(metric, config, rows)
    with_false = None if false is None else false.get(gate.split, 0)
    if probed is not None and probed < gate.min_n:
        yield (
            f"it needs {gate.min_n} rows, and relearning leaves {probed} of {rows['forget']} to probe. Give more rows, "
            "set min_n to that number if so few can carry a verdict, or lower eval.robustness.relearn.forget_share."
        )
    elif rows[gate.split] < gate.min_n:
        yield (
            f"it needs {gate.min_n} rows, and the split has {rows[gate.split]}. Give more rows, or set min_n to the "
            f"number of rows if so few can carry a verdict{_remedy(gate.split)}."
        )
    elif with_false == 0 and metric.family in OF_FALSE_ANSWERS:
        yield (
            "it compares true answers with false ones, and there are none. Give false answers (a column "
            "`perturbed_answers`), or gate answer_probability and extraction_strength instead."
        )
    elif with_false and with_false < gate.min_n and _reads_rows_with_false_answers(metric, gate.split):
        yield (
            f"it needs {gate.min_n} rows, and reads those of the split that have false answers, which are {with_false} "
            f"of {rows[gate.split]}. Give more false answers{_ASKED.get(gate.split, '')}, or set min_n to that number "
            "if so few can carry a verdict."
        )


_ASKED = {"retain": " (data.perturbed.retain_rows says to how many retain rows)"}


def _reads_rows_with_false_answers(metric: Metric, split: str) -> bool:
    """Retain rows are many: only those with false answers are asked for a generation, if there are any."""
    return metric.family in OF_FALSE_ANSWERS or (metric.family == "generation" and split == "retain")


def _after_relearning(metric: Metric, config: EvalConfig, rows: Mapping[str, int]) -> int | None:
    """How many forget rows a reading after relearning has, if the metric is one."""
    relearn = config.robustness.relearn if config.robustness else None
    if relearn is None or metric.kind != "relearning":
        return None
    return rows["forget"] - relearned(rows["forget"], relearn.forget_share)


def _remedy(split: str) -> str:
    return ", or keep more of the retain rows apart (data.unrehearsed)" if split == "unrehearsed" else ""
