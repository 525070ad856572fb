"""Measurements on a part of the rows: those that did not choose the checkpoint, and parts of the unrehearsed rows.

A rule that keeps the best of several checkpoints looks good on the rows that it read. The unlearn stage writes the ids
of these rows, and a gate is judged once more on the other rows of its split. A method that asks base about questions of
its own may hit on unrehearsed rows, so these rows are read apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.markdown import counted
from core.unlearning import CheckpointSelection
from eval.config import Condition, EvalConfig
from eval.records.audited import audit_records
from eval.records.rows import row_records, set_records
from eval.schema import Record, read_samples

ROWS = 30
"""The fewest rows for a confirmation: the mean of fewer is mostly chance."""


def gate_records(
    gate: Condition, samples: Mapping[str, Sequence[Mapping[str, Any]]], config: EvalConfig
) -> dict[str, list[Record]]:
    """The records of the gate's metric for the unlearned model and the models that the gate refers to, by model.

    ``samples`` are each model's rows. The relative test, which needs several golds, is not among them.
    """
    records = {}
    for model in samples.keys() & {"unlearned", *(reference.of for reference in gate.references)}:
        rows, gold = samples[model], samples.get("gold") if model != "gold" else None
        records[model] = [
            *row_records(rows, config, gate.metric),
            *set_records(rows, gold, config, gate.metric),
            *audit_records(rows, gold, config, gate.metric),
        ]
    return records


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
        return gate_records(gate, kept, self.config)

    def _kept(self, rows: list[dict[str, Any]], split: str, left_out: Collection[str]) -> list[dict[str, Any]]:
        """The rows of ``split`` that are not ``left_out``, and all holdout rows, which chose and trained nothing."""
        return [r for r in rows if r["split"] == "holdout" or (r["split"] == split and r["row_id"] not in left_out)]

    def row_ids(self, split: str) -> frozenset[str]:
        """The rows of ``split`` that the unlearned model was measured on."""
        return frozenset(row["row_id"] for row in self.samples.get("unlearned", []) if row["split"] == split)

    def sentence(self) -> str:
        """Which rows chose the checkpoint, as a sentence."""
        rows = self.samples.get("unlearned", [])
        counts = {split: sum(row["split"] == split for row in rows) for split in ("forget", "retain")}
        of = {split: counted(count, f"{split} row") for split, count in counts.items()}
        parts = [f"{len(self.selection.rows(split))} of {count}" for split, count in of.items()]
        return f"The kept checkpoint was chosen by a rule ({self.selection.rule}) that read {' and '.join(parts)}."
