"""The false answers that an unlearning reads, and whether it reads any. Imports nothing heavy: the preflight asks."""

from __future__ import annotations

from pathlib import Path

from core.errors import InputError
from datasets_prep.schema import Row, read_perturbed
from pipeline.unlearn.config import UnlearnConfig


def false_answers(config: UnlearnConfig, data: Path, forget: list[Row]) -> list[tuple[str, ...]]:
    """The false answers to each forget row's question; an empty list if neither a level nor the method reads them.

    Raises InputError if a row has none.
    """
    if "false_answers" not in config.named_levels and not config.trains_on_false_answers:
        return []
    answers = {row.row_id: row.answers for row in read_perturbed(data / "guides.jsonl")}
    without = [row.row_id for row in forget if not answers.get(row.row_id)]
    if without:
        raise InputError(
            f"unlearn: {len(without)} of {len(forget)} forget rows (first {without[0]}) have no false answer for the "
            "unlearning: the evaluation gets its own first, and answers of trained rows cannot be used. Set "
            "data.perturbed.for_unlearning to 1 or more, lower per_row, give false answers (a column "
            "`perturbed_answers`; in scripts without spaces none are mixed), or use a method and levels without them."
        )
    return [answers[row.row_id] for row in forget]
