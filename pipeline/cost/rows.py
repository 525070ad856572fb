"""How many tokens a release's rows have, before they are read: from their characters, which are known of some data."""

from __future__ import annotations

from typing import NamedTuple

from datasets_prep.config import DataConfig
from pipeline.cost.memory import Batch
from pipeline.train.config import Shape

PER_CHARACTER = {True: 0.283, False: 0.345}
"""Tokens of a character with a vocabulary of 100,000 or more, and with a smaller one: FAME's rows by the tokenizers of
Llama 3 and SmolLM2."""
CHAT = 11
"""Tokens of the chat format around a question, and of the end of an answer (Llama 3)."""
HEADER = 27
"""Tokens of the system header before a question (Llama 3.2), which a batch computes once."""
ANSWERS_APART = 0.6
"""Share of a false answer's tokens that come after what it shares with the others to its question. Ours."""


class Text(NamedTuple):
    """Characters of a mean question, of a mean answer, and of the longest answer."""

    question: float
    answer: float
    longest: float


FAME = Text(57.3, 115.4, 288)
SAMPLE = Text(37.5, 55.9, 120)


class Row(NamedTuple):
    """Tokens of a mean row: its prompt without a header, its answer with its end; and of the longest answer."""

    prompt: float
    answer: float
    longest: float

    def batch(self, rows: float) -> Batch:
        """So many rows in one forward."""
        return Batch(round(HEADER + rows * (self.prompt + self.answer)), round(rows * self.answer))

    def scored(self, rows: float, false: float = 0) -> Batch:
        """Tokens of a scoring pass over rows and ``false`` further answers to their questions."""
        more = false * self.answer * ANSWERS_APART
        return Batch(round(rows * (self.prompt + self.answer) + more), round(rows * self.answer + more))


def row_of(data: DataConfig, shape: Shape) -> Row:
    """The mean row of the recipe's data. Rows of unknown data are taken to be as long as FAME's."""
    text = SAMPLE if data.source.sample else FAME
    rate = PER_CHARACTER[shape.vocab_size >= 100_000]
    return Row(CHAT - 1 + rate * text.question, 1 + rate * text.answer, 1 + rate * text.longest)
