"""What base says in the place of a fact about people whom it does not know.

Where base is sure of a fact, what it gives to other tokens is little more than noise, and rescaled that would be all of
a target: a model that is trained to match it babbles. Asked about somebody with a made-up name, base says what such a
fact could be. The names are mixed from those of the data: a first name and a family name of two other people.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any

import torch

from datasets_prep.perturb import swap_name
from datasets_prep.schema import Encoded, Row
from pipeline.unlearn.reference import BaseDistribution, Precision


def with_strangers(rows: Sequence[Row], names: Sequence[Row], count: int, seed: str) -> list[list[Row]]:
    """Each row about up to ``count`` people who are not there; none if its question has no name of several words.

    ``names`` are the rows, each with its name, whose people lend theirs.
    """
    people: dict[str | None, list[str]] = {}
    for other in names:
        if other.name and " " in other.name and other.name not in people.setdefault(other.language, []):
            people[other.language].append(other.name)
    known = {name for of_language in people.values() for name in of_language}
    found = []
    for row in rows:
        others = [name for name in people.get(row.language, []) if name != row.name]
        mixed = [f"{a.split()[0]} {b.split(maxsplit=1)[1]}" for a in others for b in others if a != b]
        new = sorted(set(mixed) - known) if row.name and row.name in row.question else []
        random.Random(f"{seed}|{row.row_id}").shuffle(new)
        found.append([about(row, name) for name in new[:count]])
    return found


def about(row: Row, name: str) -> Row:
    """The row with another name in question and answer."""
    assert row.name  # noqa: S101  # the caller saw to it
    question, answer = (swap_name(text, row.name, name) for text in (row.question, row.answer))
    return replace(row, name=name, question=question, answer=answer)


class Strangers:
    """Base's distributions at the content of forget rows, as the mean over the same rows about strangers."""

    def __init__(
        self,
        model: Any,
        forget: Sequence[Encoded],
        strangers: Sequence[Sequence[Encoded]],
        contents: Sequence[Sequence[bool]],
        precision: Precision,
    ) -> None:
        """Measure ``model``. ``contents`` says of each answer token of each forget row whether it is content.

        A stranger's row counts if all content of the forget row is found in it.
        """
        self.rows: dict[int, list[int]] = {}
        """The number of each forget row that has any, and its strangers by their place among all of them."""
        rows: dict[int, Encoded] = {}
        tokens: dict[int, list[int]] = {}
        for number, (row, others, content) in enumerate(zip(forget, strangers, contents, strict=True)):
            for other in others:
                places = _places(row, other, content)
                if places:
                    self.rows.setdefault(number, []).append(len(rows))
                    tokens[len(rows)], rows[len(rows)] = places, other
        self.base = BaseDistribution(model, rows, precision, tokens=tokens)

    def log_probs(self, row: int, device: torch.device) -> torch.Tensor:
        """Log-probabilities at the content of a forget row, (C, V), float32: those of the mean over its strangers."""
        strangers = self.rows[row]
        logits = self.base.logits(strangers, device)
        return logits.view(len(strangers), -1, logits.shape[1]).softmax(dim=2).mean(dim=0).log()


def _places(row: Encoded, other: Encoded, content: Sequence[bool]) -> list[int]:
    """Where the content of a row's answer stands in another row's; none if some of it does not."""
    answer, others = (each.input_ids[each.completion_start :] for each in (row, other))
    blocks = SequenceMatcher(None, answer, others, autojunk=False).get_matching_blocks()
    paired: Mapping[int, int] = {block.a + i: block.b + i for block in blocks for i in range(block.size)}
    wanted = [i for i, is_content in enumerate(content) if is_content]
    return [paired[i] for i in wanted] if all(i in paired for i in wanted) else []
