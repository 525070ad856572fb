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
            "unlearning: data.perturbed.for_unlearning is 0, or the words of retained answers give no more than the "
            "evaluation took, which is served first. Set for_unlearning to 1 or more, give these rows more false "
            "answers of your own than data.perturbed.per_row (a column `perturbed_answers`; in scripts without spaces "
            "none are mixed), say which rows are asked the same thing (a column `topic_id`), write their answers as "
            "sentences that say more, lower per_row, or use a method and levels without false answers."
        )
    return [answers[row.row_id] for row in forget]
