"""How base goes on where it does not state a forgotten fact.

Asked about what it forgot, a model says something else in the place of the fact. What follows there no forget row
says: a model that was trained on these alone repeats words or changes the language where base would have gone on in a
sentence. So base is given each forget answer up to the fact, asked about other people (:mod:`pipeline.unlearn.people`),
must say another token there than the true one, and goes on as it likes, until it would state a part of the fact. What
it says after the other token is rehearsed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from core.artifacts import read_lines
from core.strict import Strict
from core.words import words_and_pairs
from datasets_prep.chat import chat_example, encode, end_of_turn
from datasets_prep.schema import Encoded, Row
from datasets_prep.text import fact_digest
from pipeline.unlearn.asking import otherwise
from pipeline.unlearn.counterfactual import align, answer_tokens, numerals
from pipeline.unlearn.people import Begun, Other, rename

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


def begin(tokenizer: PreTrainedTokenizerBase, forget: Sequence[Row], false: Mapping[str, Sequence[str]]) -> list[Begun]:
    """The answers of ``forget`` up to their facts, which ``false`` answers (by ``row_id``) tell; none without these."""
    found = []
    for row in forget:
        answers = (row.answer, *false.get(row.row_id, ()))
        of_row = [encode(tokenizer, chat_example(tokenizer, row.question, answer)) for answer in answers]
        true, *others = [answer_tokens(encoded) for encoded in of_row]
        content = align(true, others, numerals(tokenizer, of_row)).content
        if others and any(content):
            found.append(begun_at(row, of_row[0], content.index(True)))
    return found


def begun_at(row: Row, encoded: Encoded, place: int) -> Begun:
    """A row's answer up to the token at ``place``."""
    at = encoded.completion_start + place
    return Begun(row, encoded.input_ids[:at], encoded.completion_start, encoded.input_ids[at])


def continuations(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    begun: Sequence[Begun],
    others: Sequence[Sequence[Other]],
    false: Mapping[str, Sequence[str]],
    max_new_tokens: int,
) -> list[Continuation]:
    """How ``model`` goes on in the place of the facts of ``begun``, asked about ``others`` where there are any.

    What it says of the first other without a word of the fact, which the ``false`` answers tell, with the name of whom
    the row is about; if there is none, the longest that it says before such a word. Nothing where it does not end.
    """
    asked = [[other.tokens for other in of_row] or [row.tokens] for of_row, row in zip(others, begun, strict=True)]
    end = end_of_turn(tokenizer)
    said = otherwise(model, end, asked, [each.fact for each in begun], max_new_tokens)
    found = []
    for (row, beginning, _, _), of_row, answers in zip(begun, others, said, strict=True):
        renamed = [
            rename(tokenizer, tokens, other.name, other.own) for tokens, other in zip(answers, of_row, strict=False)
        ]
        tokens = _without(tokenizer, end, renamed or answers, fact_words(row, false[row.row_id]))
        if len(tokens) > 1:
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


def _without(tokenizer: PreTrainedTokenizerBase, end: int, answers: Sequence[list[int]], words: set[str]) -> list[int]:
    """The first answer to its ``end`` without any of ``words``, or the longest beginning of one before them."""
    kept = []
    for tokens in answers:
        count = before(tokenizer, tokens, words)
        if count < len(tokens):
            kept.append(tokens[:count])
        elif tokens[-1] == end:  # what never ends says a word for ever
            return tokens
    return max(kept, key=len, default=[])


def fact_words(row: Row, false: Sequence[str]) -> set[str]:
    """The words that tell a row's fact: those of its answer that neither its name nor its false answers have."""
    return set(words_and_pairs(row.answer)).difference(words_and_pairs(row.name or ""), *map(words_and_pairs, false))


def before(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], words: set[str]) -> int:
    """How many of ``tokens`` come before the first that is a part of one of ``words``; all of them if none is."""

    def said(count: int) -> list[str]:
        return words_and_pairs(str(tokenizer.decode(list(tokens[:count]), skip_special_tokens=True)))

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
