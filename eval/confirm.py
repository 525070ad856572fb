"""Which rows chose the checkpoint, and what the others say.

A rule that keeps the best of several checkpoints has looked at rows, and looks good on them. The unlearn stage writes
their names; a gate is judged once more on the rows of its split that are not among them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.config import Condition, EvalConfig
from eval.schema import Record, read_samples
from pipeline.errors import ArtifactError

FILE = "selection.json"
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


class OtherRows:
    """The measurements of all models on the rows that chose nothing."""

    def __init__(self, selection: Selection, evaluations: Mapping[str, Path]) -> None:
        self.selection = selection
        self.samples = {
            model: read_samples(folder / "samples.jsonl")
            for model, folder in evaluations.items()
            if (folder / "samples.jsonl").is_file()
        }

    def rows(self, metric: str, split: str) -> list[dict[str, Any]]:
        """The unlearned model's measurements of the rows of ``split`` that have ``metric`` and were not read."""
        read = self.selection.read.get(split, frozenset())
        return [
            row
            for row in self.samples.get("unlearned", [])
            if row["split"] == split and metric in row and row["row_id"] not in read
        ]

    def records(self, gate: Condition) -> dict[str, list[Record]] | None:
        """Records by model for the gate on the other rows; None where its metric is not one of single rows."""
        from eval.records import row_records

        if not any(gate.metric in row for row in self.samples.get("unlearned", [])):
            return None
        names = {row["row_id"] for row in self.rows(gate.metric, gate.split)}
        found = {}
        for model, samples in self.samples.items():
            # holdout rows chose nothing, so a comparison with holdout keeps all of them
            kept = [
                {key: row[key] for key in ("row_id", "split", "language", "topic_id", gate.metric)}
                for row in samples
                if gate.metric in row and (row["row_id"] in names or row["split"] == "holdout" != gate.split)
            ]
            found[model] = [record for record in row_records(kept, EvalConfig()) if record.by is None]
        return found

    def counts(self) -> dict[str, int]:
        """How many forget and retain rows there are."""
        rows = self.samples.get("unlearned", [])
        return {split: sum(row["split"] == split for row in rows) for split in ("forget", "retain")}
