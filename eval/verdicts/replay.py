"""Gates over a table of models that somebody has measured: which models would they have let through?

docs/how-it-works.md shows the form of a table. A flat table with one number per key is read too: each column becomes a
metric on the split ``table``. The columns of the study of 150 unlearned Llama-3.2-1B models on TOFU
(gnueaj/unlearning-depth-score, Apache-2.0) are also translated to the metrics of this project, so that a recipe's gates
find them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import bounded_json
from core.errors import InputError
from core.strict import Strict
from eval.catalog import CATALOG, is_of
from eval.config import Condition, Reference
from eval.schema import JudgedGate, Record
from eval.verdicts.gates import judge_gate, rule

FORM = "docs/how-it-works.md shows the form of a table (`gate replay`)."
TABLE = "table"
ROLES = ("start", "base", "gold")
_STUDY_ROLES = {"full": "base", "retain": "gold"}

_STUDY: dict[tuple[str, str], tuple[str, Callable[[float], float]]] = {
    ("extraction_strength", "forget"): ("one_minus_es", lambda value: 1 - value),
    ("exact_memorization", "forget"): ("one_minus_em", lambda value: 1 - value),
    ("fluency", "forget"): ("fluency", lambda value: value),
    # 1 - |AUC - gold's AUC| / gold's AUC: an AUC in units of gold's, folded to the lower side. Fits multiples of gold.
    ("mia_min_k_auc", "forget"): ("s_mink", lambda value: value),
    ("mia_loss_auc", "forget"): ("s_loss", lambda value: value),
    ("answer_probability", "retain"): ("retain_q_prob", lambda value: value),
    ("rouge_l_recall", "retain"): ("retain_q_rouge", lambda value: value),
    ("truth_ratio", "retain"): ("retain_truth_ratio", lambda value: value),
}


@dataclass(frozen=True)
class MeasuredModel:
    """One model of a table."""

    name: str
    method: str
    role: str | None
    records: list[Record]


class JudgedModel(Strict):
    """A model of a table under every gate."""

    model: str
    method: str
    gates: list[JudgedGate]

    @property
    def passed(self) -> bool:
        """Whether all gates passed."""
        return all(gate.passed for gate in self.gates)


@dataclass(frozen=True)
class Table:
    """The models of a file."""

    models: list[MeasuredModel]

    def reference(self, role: str) -> list[Record]:
        """The records of base, gold or the start model; empty if the table has none."""
        return next((model.records for model in self.models if model.role == role), [])

    def unlearned(self) -> list[MeasuredModel]:
        """The models that are no reference."""
        return [model for model in self.models if model.role is None]

    def has_intervals(self, gate: Condition) -> bool:
        """Whether every value that the gate reads, of every model, has an interval and a number of rows."""
        of = {reference.of for reference in gate.references}
        splits = {gate.split, "holdout"} if "holdout" in of else {gate.split}
        return all(
            record.n > 0
            for model in self.models
            for record in model.records
            if record.metric == gate.metric
            and (record.split in splits if model.role is None else model.role in of and record.split == gate.split)
        )


def read_table(path: Path) -> Table:
    """The models of a JSON file. Raises InputError that names the model and the value that cannot be read."""
    try:
        content = bounded_json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair can be written here, and never printed
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}). Give a JSON file with a table of models."
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}). {FORM}") from error
    entries = content.get("models") if isinstance(content, dict) else None
    if not entries or not isinstance(entries, list):
        raise InputError(f"{path}: is no table of models, an object whose key `models` is a list of them. {FORM}")
    models = [_model(path, entry) for entry in entries]
    for role in ROLES:
        if sum(model.role == role for model in models) > 1:
            raise InputError(f"{path}: several models have the role {role}. Give one.")
    if all(model.role for model in models):
        raise InputError(f"{path}: all models are references. Give at least one to be judged.")
    return Table(models)


def _model(path: Path, entry: Any) -> MeasuredModel:
    try:
        name, method = str(entry["model"]), str(entry.get("method", "-"))
        if "values" in entry:
            role, values = entry.get("role"), entry["values"]
        else:
            role = _STUDY_ROLES.get(method) if entry.get("is_reference") else None
            columns = {k: v for k, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)}
            values = _split_columns(columns)
        if role not in (None, *ROLES):
            raise ValueError(f"role is {role!r}; it is {', '.join(ROLES)} or absent")  # noqa: TRY301
        records = [_record(m, split, value) for split, found in values.items() for m, value in found.items()]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        shown = entry.get("model", "?") if isinstance(entry, dict) else entry
        raise InputError(f"{path}: model {shown!r:.200} cannot be read: {_why(error)}. {FORM}") from error
    return MeasuredModel(name, method, role, records)


def _why(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, OverflowError):
        return "a number is too large"
    return str(error) if isinstance(error, ValueError) else "a value is not of the form of a table"


def _split_columns(columns: Mapping[str, float]) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {TABLE: dict(columns)}
    for (metric, split), (column, translate) in _STUDY.items():
        if column in columns:
            values.setdefault(split, {})[metric] = translate(columns[column])
    return values


def _record(metric: str, split: str, value: Any) -> Record:
    version = CATALOG[metric].version if metric in CATALOG else 1
    if isinstance(value, dict):
        point = float(value["value"])
        if {"ci_low", "ci_high", "n"} & value.keys():
            low, high = float(value["ci_low"]), float(value["ci_high"])
            return Record(metric, split, point, low, high, int(float(value["n"])), None, version)
    else:
        point = float(value)
    return Record(metric, split, point, point, point, 0, None, version)


def applied(gates: Sequence[Condition], table: Table) -> tuple[list[Condition], list[Condition]]:
    """The gates that the table can answer, and the others.

    A gate on values without intervals and numbers of rows is judged by the point estimates and without ``min_n``. This
    shows what a threshold decides, but not how far the rows can be trusted.
    """
    usable: list[Condition] = []
    others: list[Condition] = []
    for gate in gates:
        (others if lacking(gate, table) else usable).append(gate if table.has_intervals(gate) else _by_point(gate))
    return usable, others


def lacking(gate: Condition, table: Table) -> str:
    """What the table lacks for a gate; empty if it can answer it."""
    measured = {(record.metric, record.split) for model in table.models for record in model.records}
    flat = any(split == TABLE for _, split in measured)
    if (gate.metric, gate.split) not in measured:
        return "the table does not have it"
    if absent := sorted({r.of for r in gate.references if r.of in ROLES and not table.reference(r.of)}):
        return f"it is compared with {' and '.join(absent)}, and no model of the table has that role"
    if flat and is_of(gate.metric, "membership") and not _multiple_of_gold(gate):
        return "an AUC in units of gold's can only be compared with a multiple of gold's"
    return ""


def _multiple_of_gold(gate: Condition) -> bool:
    bounds = [bound for bound in (gate.at_least, gate.at_most) if bound is not None]
    return all(isinstance(bound, Reference) and bound.of == "gold" and not bound.plus for bound in bounds)


def _by_point(gate: Condition) -> Condition:
    bounds = {
        side: bound.model_copy(update={"bound": "value"})
        for side in ("at_least", "at_most")
        if isinstance(bound := getattr(gate, side), Reference)
    }
    return gate.model_copy(update={**bounds, "must_hold": "point", "min_n": 0})


def replay(gates: Sequence[Condition], table: Table) -> list[JudgedModel]:
    """Every unlearned model under the gates."""
    references = {role: table.reference(role) for role in ROLES}
    return [
        JudgedModel(
            model=model.name,
            method=model.method,
            gates=[judge_gate(gate, {**references, "unlearned": model.records}) for gate in gates],
        )
        for model in table.unlearned()
    ]


def by_method(gates: Sequence[Condition], judged: Sequence[JudgedModel]) -> str:
    """A Markdown table by method: models that pass, models that each gate stops, in brackets those it alone stops."""
    heads = [f"{gate.metric} {gate.split}: {rule(gate)}" for gate in gates]
    lines = [f"| method | models | pass | {' | '.join(heads)} |", f"|---|--:|--:|{'--:|' * len(gates)}"]
    methods = sorted({model.method for model in judged})
    for method in [*methods, None]:
        verdicts = [[gate.passed for gate in model.gates] for model in judged if method in (None, model.method)]
        cells = []
        for i in range(len(gates)):
            stopped = [passed for passed in verdicts if not passed[i]]
            cells.append(f"{len(stopped)} ({sum(passed.count(False) == 1 for passed in stopped)})")
        name = "all" if method is None else method
        lines.append(f"| {name} | {len(verdicts)} | {sum(map(all, verdicts))} | {' | '.join(cells)} |")
    return "\n".join(lines)
