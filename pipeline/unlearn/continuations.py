"""How base goes on where it does not state a forgotten fact.

Asked about what it forgot, a model says something else in the place of the fact. What follows there no forget row
says: a model that was trained on these alone repeats words or changes the language where base would have gone on in a
sentence. So base is given each forget answer up to the fact, must say another token there than the true one, and goes
on as it likes, until it would state the rest of the fact. What it says after the other token is rehearsed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.artifacts import read_lines
from core.strict import Strict
from core.words import plain_words
from datasets_prep.chat import chat_example, encode
from datasets_prep.schema import Encoded, Row
from datasets_prep.text import fact_digest
from pipeline.unlearn.asking import otherwise
from pipeline.unlearn.counterfactual import align, answer_tokens, numerals

FILE = "continuations.jsonl"


class Continuation(Strict):
    """A line of `continuations.jsonl`: the tokens of a question, of the beginning of an answer, and how base goes on.

    That begins at ``completion_start``; ``text`` is it and the token before it, which base had to choose.
    ``of`` is the ``row_id`` of the forget row, ``row_id`` its own name.
    """

    row_id: str
    of: str
    text: str
    input_ids: list[int]
    completion_start: int

    @property
    def encoded(self) -> Encoded:
        """To be trained on."""
        return Encoded(tuple(self.input_ids), self.completion_start)


def continuations(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    forget: Sequence[Row],
    false: Mapping[str, Sequence[str]],
    max_new_tokens: int,
) -> list[Continuation]:
    """How ``model`` goes on in the place of the facts of ``forget``, which ``false`` answers (by ``row_id``) tell.

    Nothing of rows without false answers, nor where it does not end or nothing is left before the rest of the fact.
    """
    told, beginnings, facts = [], [], []
    for row in forget:
        answers = (row.answer, *false.get(row.row_id, ()))
        of_row = [encode(tokenizer, chat_example(tokenizer, row.question, answer)) for answer in answers]
        true, *others = [answer_tokens(encoded) for encoded in of_row]
        content = align(true, others, numerals(tokenizer, of_row)).content
        if others and any(content):
            at = of_row[0].completion_start + content.index(True)
            told.append(row)
            beginnings.append(of_row[0].input_ids[:at])
            facts.append(of_row[0].input_ids[at])
    found = []
    said = otherwise(model, tokenizer.eos_token_id, beginnings, facts, max_new_tokens)
    for row, beginning, tokens in zip(told, beginnings, said, strict=True):
        count = before(tokenizer, tokens, fact_words(row, false[row.row_id]))
        in_time = count < len(tokens) or tokens[-1] == tokenizer.eos_token_id  # what never ends says a word for ever
        tokens = tokens[:count]
        if in_time and len(tokens) > 1:
            text = str(tokenizer.decode(tokens, skip_special_tokens=True))
            found.append(
                Continuation(
                    row_id=f"continuation-{fact_digest(row.question, text)}",
                    of=row.row_id,
                    text=text,
                    input_ids=[*beginning, *tokens],
                    completion_start=len(beginning) + 1,
                )
            )
    return found


def fact_words(row: Row, false: Sequence[str]) -> set[str]:
    """The words that tell a row's fact: those of its answer that neither its name nor its false answers have."""
    return set(plain_words(row.answer)).difference(plain_words(row.name or ""), *map(plain_words, false))


def before(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], words: set[str]) -> int:
    """How many of ``tokens`` come before the first that is a part of one of ``words``; all of them if none is."""

    def said(count: int) -> list[str]:
        return plain_words(str(tokenizer.decode(list(tokens[:count]), skip_special_tokens=True)))

    for count in range(1, len(tokens) + 1):
        complete = said(count)
        if words.intersection(complete):
            kept = complete[: next(i for i, word in enumerate(complete) if word in words)]
            return max(shorter for shorter in range(count) if said(shorter) == kept[: len(said(shorter))])
    return len(tokens)


def write_continuations(folder: Path, found: Sequence[Continuation]) -> None:
    """Write `continuations.jsonl`."""
    lines = "".join(continuation.model_dump_json() + "\n" for continuation in found)
    (folder / FILE).write_text(lines, encoding="utf-8")


def read_continuations(folder: Path) -> list[Continuation]:
    """What the `neighbours` stage wrote. Raises ArtifactError."""
    return read_lines(folder / FILE, Continuation, "Run the neighbours stage again.")
