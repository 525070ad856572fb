"""What stays on this machine: rows, what each model says to them, and the course of the unlearning.

The plots draw numbers of it, the report shows it to the maker of a release, and no card repeats any of its texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.artifacts import read_lines
from core.errors import ArtifactError
from datasets_prep.schema import FORGOTTEN, SPLITS, DataFacts, Row, read_data_facts, read_forgotten, read_rows
from eval.schema import evaluations, read_samples

RELATIVE = "relative.json"


@dataclass(frozen=True)
class Step:
    """Losses of one logged optimizer step, in nats per answer token; None for rows that the method does not train on.

    ``refusal_loss`` is the loss of the refusals that replace forget answers. ``level`` is what a check compared the
    forget loss with.
    """

    step: int
    forget_loss: float | None
    retain_loss: float | None
    refusal_loss: float | None = None
    level: float | None = None


@dataclass(frozen=True)
class Local:
    """The rows of each split, the measurements of each model's rows, the course of the unlearning, the data's checks.

    ``steps`` are losses on the rows of training steps, ``checks`` those of the stopping rule on all its rows.
    ``golds`` are leak and damage of each gold against the others, from the relative test.
    """

    rows: dict[str, list[Row]]
    samples: dict[str, list[dict[str, Any]]]
    steps: list[Step]
    checks: list[Step]
    golds: list[tuple[float, float]]
    data: DataFacts

    def secret_rows(self) -> list[Row]:
        """The rows that no card may repeat: those of this request, and of the ones before it."""
        return [*self.rows["forget"], *self.rows[FORGOTTEN]]


def read_local(inputs: Mapping[str, Path]) -> Local:
    """Read it from the artifacts that :func:`model_card.facts.collect` reads. Raises ArtifactError."""
    log = read_lines(inputs["unlearn"] / "log.jsonl", dict[str, Any], "Run the unlearn stage again.")
    return Local(
        rows={split: read_rows(inputs["data"] / f"{split}.jsonl") for split in SPLITS}
        | {FORGOTTEN: read_forgotten(inputs["data"])},
        samples={model: read_samples(folder / "samples.jsonl") for model, folder in evaluations(inputs).items()},
        steps=_losses(log, ""),
        checks=_losses(log, "probe_"),
        golds=_golds(inputs["eval-unlearned"] / RELATIVE),
        data=read_data_facts(inputs["data"]),
    )


def _golds(file: Path) -> list[tuple[float, float]]:
    if not file.is_file():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if "why" in found:  # base and gold could not be told apart, so no gold has a place either
            return []
        return list(zip(found["gold_leaks"], found["gold_damages"], strict=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{file}: cannot be read as a relative test ({error!r}). Run the evaluation again."
        ) from error


def _losses(log: list[dict[str, Any]], prefix: str) -> list[Step]:
    names = ("forget_loss", "retain_loss", "refusal_loss", "level")
    logged = [(int(entry["step"]), {name: entry.get(f"{prefix}{name}") for name in names}) for entry in log]
    return [Step(step, **losses) for step, losses in logged if any(loss is not None for loss in losses.values())]
