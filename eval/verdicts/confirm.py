"""Which rows chose the checkpoint, which retain rows were rehearsed, and what the others say.

A rule that keeps the best of several checkpoints has looked at rows, and looks good on them. The unlearn stage writes
their names; a gate is judged once more on the rows of its split that are not among them. And retain rows that the
unlearning was trained on keep what others lose (docs/measurements/unlearning.md), so these are read by themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from core.unlearning import CheckpointSelection
from eval.config import Condition, EvalConfig
from eval.records.audited import audit_records
from eval.records.rows import row_records, set_records
from eval.schema import Record, read_samples

ROWS = 30
"""Of fewer rows no confirmation is asked: their mean is mostly chance."""


class OtherRows:
    """The measurements of all models on a part of a split's rows, under the settings of the evaluation."""

    def __init__(self, selection: CheckpointSelection, evaluations: Mapping[str, Path], config: EvalConfig) -> None:
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

    def sentence(self) -> str:
        """Which rows chose the checkpoint, for people."""
        rows = self.samples.get("unlearned", [])
        counts = {split: sum(row["split"] == split for row in rows) for split in ("forget", "retain")}
        parts = [f"{len(self.selection.rows(split))} of {count} {split} rows" for split, count in counts.items()]
        return f"The kept checkpoint was chosen by a rule ({self.selection.rule}) that read {' and '.join(parts)}."
