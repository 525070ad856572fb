"""TOFU's two headline numbers from logs: forget quality of a model against gold, and the model utility of both.

A log is a JSON object {set: {column: [one value for each row]}} with the sets forget, retain, real_authors and
world_facts, as in the public logs of `locuslab/tofu` (arXiv 2401.06121). No model is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from core import bounded_json
from core.errors import InputError
from eval.statistics import formulas
from eval.statistics.formulas import Floats

FORGET = "forget"
UTILITY_SETS = ("retain", "real_authors", "world_facts")  # in the latter two, false answers are called options
TRUE, PARAPHRASED, PERTURBED, RECALL = (
    "avg_gt_loss",
    "avg_paraphrased_loss",
    "average_perturb_loss",
    "rougeL_recall",
)

Log = dict[str, dict[str, Any]]


def compare_logs(full: Path, retain: Path) -> dict[str, Any]:
    """The result of ``eval from-logs``: ``forget_quality``, ``ks_statistic`` and ``model_utility`` of both models.

    Raises InputError, naming the file and the key, if a log cannot be used.
    """
    logs = {"full": read_log(full), "retain": read_log(retain)}
    p_value, statistic = formulas.forget_quality(*(truth_ratios(log[FORGET]) for log in logs.values()))
    utilities = {}
    for name, log in logs.items():
        parts = utility_parts(log)
        utilities[name] = {"value": formulas.model_utility(list(parts.values())), "parts": parts}
    return {"forget_quality": p_value, "ks_statistic": statistic, "model_utility": utilities}


def truth_ratios(columns: dict[str, Any]) -> Floats:
    """R of each row, against the paraphrased answer."""
    pairs = zip(columns[PARAPHRASED], columns[PERTURBED], strict=True)
    return np.array([formulas.truth_ratio(true, perturbed) for true, perturbed in pairs])


def utility_parts(log: Log) -> dict[str, float]:
    """The nine parts of TOFU's model utility: probability, ROUGE-L recall and truth ratio on three sets.

    The sets of real-world facts use the probability with options, retain uses that of the answer alone.
    """
    parts: dict[str, float] = {}
    for name in UTILITY_SETS:
        columns = log[name]
        if name == "retain":
            probabilities = np.exp(-np.asarray(columns[TRUE], dtype=np.float64))
        else:
            pairs = zip(columns[TRUE], columns[PERTURBED], strict=True)
            probabilities = np.array([formulas.probability_with_options(true, false) for true, false in pairs])
        parts[f"{name}_probability"] = float(probabilities.mean())
        parts[f"{name}_rouge_l_recall"] = float(np.mean(columns[RECALL]))
        parts[f"{name}_truth_ratio"] = float(formulas.retain_truth_ratios(truth_ratios(columns)).mean())
    return parts


def read_log(path: Path) -> Log:
    """A log with all sets and columns, checked. Raises InputError naming the file and the key."""
    try:
        log = bounded_json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}). Give a log of TOFU's shape.") from error
    if not isinstance(log, dict):
        raise InputError(
            f"{path}: holds no JSON object. Give a log of TOFU's shape, an object with the sets {_sets()}."
        )
    for name in (FORGET, *UTILITY_SETS):
        columns = log.get(name)
        if not isinstance(columns, dict):
            raise InputError(f"{path}: {name} is missing, or is no object. Give a log with the sets {_sets()}.")
        _check_columns(columns, f"{path}: {name}")
    return log


def _sets() -> str:
    return ", ".join((FORGET, *UTILITY_SETS))


def _check_columns(columns: dict[str, Any], where: str) -> None:
    required = (TRUE, PARAPHRASED, PERTURBED, RECALL)
    for column in required:
        values = columns.get(column)
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}.{column} is missing, or is not a list. Give a list with a value for each row.")
        for row, value in enumerate(values):
            _check_value(column, value, f"{where}.{column}[{row}]")
    lengths = {column: len(columns[column]) for column in required}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{column} {length}" for column, length in lengths.items())
        raise InputError(
            f"{where}: the columns have different numbers of rows ({counts}). Give one value for each row."
        )


def _check_value(column: str, value: Any, where: str) -> None:
    if column == PERTURBED:
        if not isinstance(value, list) or not value:
            raise InputError(f"{where} is {value!r:.40}; it must be a list with the loss of each false answer.")
        for place, loss in enumerate(value):
            _check_value(TRUE, loss, f"{where}[{place}]")
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    upper = 1.0 if column == RECALL else sys.float_info.max  # an integer of JSON can be larger than any float
    if not number or not 0.0 <= value <= upper:
        allowed = "a number from 0 to 1" if column == RECALL else "a mean token loss in nats, finite and not negative"
        raise InputError(f"{where} is {value!r:.40}; it must be {allowed}.")
