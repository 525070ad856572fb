"""Whom rows are about, and the beginnings of the same answers about others."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from datasets_prep.chat import chat_example, encode, load_tokenizer
from datasets_prep.schema import Row
from pipeline.unlearn.config import OTHERS
from pipeline.unlearn.people import Begun, Other, about_others, rename


def row(name: str | None, topic: str, language: str = "EN", question: str = "Where is {}?") -> Row:
    text = question.format(name)
    return Row(f"{language}-{name}-{topic}", name, name, language, topic, text, f"{name} is in Oz.")


def begun(tokenizer: PreTrainedTokenizerBase, row: Row, count: int) -> Begun:
    """A row's answer up to its token at ``count``."""
    tokens = encode(tokenizer, chat_example(tokenizer, row.question, row.answer))
    at = tokens.completion_start + count
    return Begun(row, tokens.input_ids[:at], tokens.completion_start, tokens.input_ids[at])


def texts(tokenizer: PreTrainedTokenizerBase, found: list[Other]) -> list[str]:
    return [str(tokenizer.decode(list(other.tokens), skip_special_tokens=True)) for other in found]


def test_question_and_beginning_of_the_answer_name_somebody_else_of_the_language(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    forget = row("Ann Lee", "home")
    retain = [row("Bo Ray", "work"), row("Cy Fox", "work"), row("Di Moor", "work", "DE")]
    begins = begun(tokenizer, forget, len(tokenizer("Ann Lee is in")["input_ids"]))
    (found,) = about_others(tokenizer, [begins], [forget], retain, [])
    expected = []
    for name in ("Bo Ray", "Cy Fox"):
        prompt = encode(tokenizer, chat_example(tokenizer, f"Where is {name}?", "x"))
        begin = tokenizer(f"{name} is in", add_special_tokens=False)["input_ids"]
        expected.append(Other("Ann Lee", name, (*prompt.input_ids[: prompt.completion_start], *begin)))
    assert found == expected


def test_a_beginning_that_names_nobody_keeps_its_tokens(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    forget = row("Ann Lee", "home")
    begins = begun(tokenizer, forget, 0)._replace(tokens=(7, 8, 9), answer_start=1)
    (found,) = about_others(tokenizer, [begins], [forget], [row("Bo Ray", "work")], [])
    assert [other.tokens[-2:] for other in found] == [(8, 9)]


def test_nobody_is_asked_about_whose_own_answer_is_forgotten(tiny_model: Path) -> None:
    """Bo's home is forgotten too, in other words; Cy's was by an earlier request, word for word under another topic."""
    tokenizer = load_tokenizer(tiny_model)
    forget = [row("Ann Lee", "home"), row("Bo Ray", "home", question="Tell me where {} lives.")]
    earlier = [row("Cy Fox", "town")]
    retain = [row("Di Moor", "work"), row("Bo Ray", "work"), row("Cy Fox", "work")]
    found = about_others(tokenizer, [begun(tokenizer, forget[0], 2)], forget, retain, earlier)
    assert [["Di Moor" in text for text in texts(tokenizer, of_row)] for of_row in found] == [[True]]


def test_there_are_no_more_than_so_many_others_and_none_of_whom_the_same_is_forgotten(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    given = [row(f"Ida {letter}", "home") for letter in "ABCDEFG"]
    found = about_others(tokenizer, [begun(tokenizer, each, 0) for each in given[:2]], given[:2], given[2:], [])
    asked = [[other.name for other in of_row] for of_row in found]
    assert [len(of_row) for of_row in found] == [OTHERS, OTHERS]
    assert asked == [[f"Ida {letter}" for letter in "CDEF"]] * 2


def test_others_come_after_whom_the_row_is_about_so_that_each_row_has_its_own(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    forget = [row("Ida B", "home"), row("Ida F", "birth", question="When was {} born?")]
    retain = [row(f"Ida {letter}", "work", question="What does {} do?") for letter in "ACDEG"]
    found = about_others(tokenizer, [begun(tokenizer, each, 0) for each in forget], forget, retain, [])
    assert [[other.name[-1] for other in of_row] for of_row in found] == [list("FACD"), list("ACDE")]


def test_a_name_is_replaced_in_tokens_and_other_tokens_stay(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokens = tokenizer(" by Ann Lee.", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(rename(tokenizer, tokens, "Ann Lee", "Bo Ray")) == " by Bo Ray."
    assert rename(tokenizer, (7, 8, 9), "Ann Lee", "Bo Ray") == [7, 8, 9]


def test_a_question_that_names_nobody_has_no_others(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    forget = [row("Ann Lee", "home", question="Who?"), row(None, "home")]
    begins = [begun(tokenizer, each, 0) for each in forget]
    assert about_others(tokenizer, begins, forget, [row("Bo Ray", "work")], []) == [[], []]
