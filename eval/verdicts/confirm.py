"""Which rows chose the checkpoint, which retain rows were rehearsed, and what the others say.

A rule that keeps the best of several checkpoints has looked at rows, and looks good on them. The unlearn stage writes
their names; a gate is judged once more on the rows of its split that are not among them. And retain rows that the
unlearning was trained on keep what others lose (docs/measurements/unlearning.md), so these are read by themselves.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ArtifactError
from eval.config import Condition, EvalConfig
from eval.records.audited import audit_records
from eval.records.rows import row_records, set_records
from eval.schema import Record, read_samples

FILE = "selection.json"
PAIRING = "pairing.jsonl"
ROWS = 30
"""Of fewer rows no confirmation is asked: their mean is mostly chance."""


@dataclass(frozen=True)
class Selection:
    """The rule in words, and the ``row_id``s by split that it read."""

    rule: str
    read: Mapping[str, frozenset[str]]

    def sentence(self, splits: Mapping[str, int]) -> str:
        """What it read, for people; ``splits`` are the numbers of rows."""
        parts = [f"{len(self.read.get(split, ()))} of {count} {split} rows" for split, count in splits.items()]
        return f"The kept checkpoint was chosen by a rule ({self.rule}) that read {' and '.join(parts)}."


def read_selection(unlearn: Path) -> Selection | None:
    """What the unlearn stage says, or None where it says nothing. Raises ArtifactError."""
    file = unlearn / FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Selection(str(content["rule"]), {split: frozenset(rows) for split, rows in content["read"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error!r}). Run the unlearn stage again.") from error


def read_rehearsed(unlearn: Path) -> frozenset[str]:
    """The retain rows that the unlearning's schedule names, also after the kept step. Raises ArtifactError."""
    file = unlearn / PAIRING
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return frozenset(row_id for line in lines for row_id in line["retain"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error!r}). Run the unlearn stage again.") from error


class OtherRows:
    """The measurements of all models on a part of a split's rows, under the settings of the evaluation."""

    def __init__(self, selection: Selection, evaluations: Mapping[str, Path], config: EvalConfig) -> None:
        self.selection = selection
        self.config = config
        self.samples = {model: read_samples(folder / "samples.jsonl") for model, folder in evaluations.items()}

    def records(self, gate: Condition, left_out: Collection[str]) -> dict[str, list[Record]]:
        """The records of the gate's metric, as an evaluation without the rows ``left_out`` would have them.

        They are those of the unlearned model and of the models that the gate refers to.
        """
        kept = {model: self._kept(rows, gate.split, left_out) for model, rows in self.samples.items()}
        found = {}
        for model in kept.keys() & {"unlearned", *(reference.of for reference in gate.references)}:
            rows, gold = kept[model], kept.get("gold") if model != "gold" else None
            found[model] = [
                *row_records(rows, self.config, gate.metric),
                *set_records(rows, gold, self.config, gate.metric),
                *audit_records(rows, gold, self.config, gate.metric),
            ]
        return found

    def _kept(self, rows: list[dict[str, Any]], split: str, left_out: Collection[str]) -> list[dict[str, Any]]:
        """The rows of ``split`` that are not ``left_out``, and all holdout rows: nothing was done with them."""
        return [r for r in rows if r["split"] == "holdout" or (r["split"] == split and r["row_id"] not in left_out)]

    def counts(self) -> dict[str, int]:
        """How many forget and retain rows there are."""
        rows = self.samples.get("unlearned", [])
        return {split: sum(row["split"] == split for row in rows) for split in ("forget", "retain")}
