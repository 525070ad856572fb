"""How many tokens a release's rows have: from the length of their texts and the tokens of a byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.cost.memory import Batch
from pipeline.train.config import Shape

PER_BYTE = {True: 0.283, False: 0.345}
"""Tokens of a byte with a vocabulary of 100,000 or more, and with a smaller one, where no tokenizer is at hand.

That is of a character of FAME's rows by the tokenizers of Llama 3 and SmolLM2, few of which have two bytes. Bytes are
counted because a character of three takes more tokens.
"""
CHAT = 11
"""Tokens of the chat format around a question, and of the end of an answer (Llama 3)."""
HEADER = 27
"""Tokens of the system header before a question (Llama 3.2), which a batch computes once."""
ANSWERS_APART = 0.6
"""Share of a false answer's tokens that come after what it shares with the others to its question. Ours."""


class Text(NamedTuple):
    """Bytes of a mean question and of a mean answer, and those of the longest row without a mean question."""

    question: float
    answer: float
    longest: float


FAME_TEXT = Text(57.3, 115.4, 288)
SAMPLE_TEXT = Text(37.5, 55.9, 120)


class Row(NamedTuple):
    """Tokens of a mean row: its prompt without a header, its answer with its end.

    ``longest``: those of the longest row without a mean prompt.
    """

    prompt: float
    answer: float
    longest: float

    def batch(self, rows: float) -> Batch:
        """So many rows in one forward."""
        return Batch(round(HEADER + rows * (self.prompt + self.answer)), round(rows * self.answer))

    def fullest(self, rows: float) -> Batch:
        """So many rows in one forward, one of which is the longest."""
        mean, more = self.batch(rows), round(self.longest - self.answer)
        return Batch(mean.tokens + more, mean.answers + more)

    def scored(self, rows: float, false: float = 0) -> Batch:
        """Tokens of a scoring pass over rows and ``false`` further answers to their questions."""
        more = false * self.answer * ANSWERS_APART
        return Batch(round(rows * (self.prompt + self.answer) + more), round(rows * self.answer + more))


def row_of(text: Text, per_byte: float) -> Row:
    """The row of such texts with so many tokens of a byte."""
    return Row(CHAT - 1 + per_byte * text.question, 1 + per_byte * text.answer, 1 + per_byte * text.longest)


def per_byte_of(shape: Shape) -> float:
    """Tokens of a byte by the tokenizer of a model of this shape, as far as its vocabulary tells."""
    return PER_BYTE[shape.vocab_size >= 100_000]


class Lengths(NamedTuple):
    """The row of each split that has any. ``assumed``: they are taken to be as long as FAME's."""

    rows: Mapping[str, Row]
    assumed: bool = False

    def mean(self, counts: Mapping[str, float]) -> Row:
        """The mean of so many rows of each split, and the longest row of these splits."""
        held = {split: count for split, count in counts.items() if count and split in self.rows}
        prompt = sum(count * self.rows[split].prompt for split, count in held.items()) / sum(held.values())
        answer = sum(count * self.rows[split].answer for split, count in held.items()) / sum(held.values())
        return Row(prompt, answer, max(self.rows[split].longest for split in held))
