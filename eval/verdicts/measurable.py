"""Gates that rows cannot carry: told once the data are known, and not after hours of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from core.errors import DataError
from datasets_prep.schema import FORGOTTEN, DataFacts
from eval.catalog import CATALOG, Metric
from eval.config import EvalConfig, Gate, relearned

OF_FALSE_ANSWERS = ("options", "choice", "ks")


def check(gates: Sequence[Gate], config: EvalConfig, rows: Mapping[str, int], data: DataFacts | None) -> None:
    """Raise DataError if a gate could only fail, since the ``rows`` of a split or their false answers are too few.

    ``data`` is None as long as only the numbers of rows are known.
    """
    problems = [
        f"gates[{i}] ({gate.metric} on {gate.split}): {why}"
        for i, gate in enumerate(gates)
        for why in _why(gate, config, rows, data)
    ]
    if problems:
        raise DataError(
            "These gates cannot be measured on the rows, so the release would be refused:\n" + "\n".join(problems)
        )


def _why(gate: Gate, config: EvalConfig, rows: Mapping[str, int], data: DataFacts | None) -> Iterator[str]:
    """Why the gate cannot be measured, and what to do."""
    metric = CATALOG.get(gate.metric)
    if data:
        rows = {**rows, FORGOTTEN: data.rows_forgotten or 0}
    if metric is None:
        return  # of a suite, which has questions of its own
    probed = _after_relearning(metric, config, rows)
    if probed is not None and probed < gate.min_n:
        yield (
            f"it needs {gate.min_n} rows, and relearning leaves {probed} of {rows['forget']} to probe. Give more rows, "
            "set min_n to that number if so few can carry a verdict, or lower eval.robustness.relearn.forget_share."
        )
    elif gate.split in rows and rows[gate.split] < gate.min_n:
        yield (
            f"it needs {gate.min_n} rows, and the split has {rows[gate.split]}. Give more rows, or set min_n to the "
            f"number of rows if so few can carry a verdict{_remedy(gate.split)}."
        )
    attacked = metric.attack is not None and metric.attack.needs_holdout
    of_holdout = metric.needs_holdout or attacked or any(reference.of == "holdout" for reference in gate.references)
    if of_holdout and not rows["holdout"]:
        yield (
            "it compares with holdout rows, and there are none. Give rows that no model was trained on "
            "(data.request.holdout, or a split holdout), or compare with gold, or remove the gate."
        )
    if data is not None and metric.needs_real_world and not data.real_world:
        yield (
            "it reads questions about the real world, and the source has none. Name the subsets that hold them "
            "(data.source.hub.subsets.real_world), or gate model_utility instead."
        )
    if data is not None and metric.family in OF_FALSE_ANSWERS and gate.split in rows and not data.perturbed.rows:
        yield (
            "it compares true answers with false ones, and there are none. Give false answers (a column "
            "`perturbed_answers`), or gate answer_probability and extraction_strength instead."
        )


def _after_relearning(metric: Metric, config: EvalConfig, rows: Mapping[str, int]) -> int | None:
    """How many forget rows a reading after relearning has, if the metric is one."""
    relearn = config.robustness.relearn if config.robustness else None
    if relearn is None or metric.kind != "relearning":
        return None
    return rows["forget"] - relearned(rows["forget"], relearn.forget_share)


def _remedy(split: str) -> str:
    return ", or keep more of the retain rows apart (data.unrehearsed)" if split == "unrehearsed" else ""
