"""Whom rows are about, and the beginnings of the same answers about others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from datasets_prep.chat import chat_example, encode, load_tokenizer
from datasets_prep.prepare import prepare
from datasets_prep.schema import FORGET, RETAIN, Row
from pipeline.recipe import load_recipe
from pipeline.unlearn.config import OTHERS
from pipeline.unlearn.neighbours import neighbouring
from pipeline.unlearn.people import Begun, Other, about_others, named, rename


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


def test_parts_of_letters_keep_their_bytes_where_a_name_is_replaced(tiny_model: Path) -> None:
    """A fact may begin inside a letter, where true and false ones share its first byte; base may say broken ones."""
    tokenizer = load_tokenizer(tiny_model)

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    first, second = tokens("Т")[-2:]

    def told_of(name: str) -> list[list[int]]:
        whole, begun, cut = tokens(f" {name} живёт в "), [first], [second]
        return [whole + begun, cut + whole, whole + begun + begun + whole]

    for of_ann, of_bo in zip(told_of("Ann Lee"), told_of("Bo Ray"), strict=True):
        assert "\ufffd" in tokenizer.decode(of_ann)
        assert rename(tokenizer, of_ann, "Ann Lee", "Bo Ray") == of_bo


def test_a_question_that_names_nobody_has_no_others(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    forget = [row("Ann Lee", "home", question="Who?"), row(None, "home")]
    begins = [begun(tokenizer, each, 0) for each in forget]
    assert about_others(tokenizer, begins, forget, [row("Bo Ray", "work")], []) == [[], []]


def unnamed(question: str, answer: str = "x") -> Row:
    return Row(question, None, None, "EN", None, question, answer)


def asking(names: list[str], *questions: str, answer: str = "x") -> list[Row]:
    """Rows without names that ask each of the questions about each of the people."""
    return [unnamed(question.format(name), answer.format(name)) for question in questions for name in names]


PEOPLE = ["Ada Stone", "Ben Cole", "Cleo Marsh"]


@pytest.mark.parametrize(
    ("names", "questions"),
    [
        (PEOPLE, ["Where was {} born?", "What is {}'s job?", "What is {}’s hobby?"]),
        (["ADA STONE", "BEN COLE"], ["Where was {} born?", "Where is {}'S house?"]),
        (["Chris Jones", "Ada Stone"], ["Where was {} born?", "Where is {}' house?"]),
        (["John F. Kennedy", "J. R. R. Tolkien", "J.-P. Morel", "Malcolm X"], ["Where was {} born?", "Who knew {}."]),
        (["Anna Maria van Schurman", "Juan de la Cruz"], ["When did {} die?", "Who taught {}?"]),
        (["Jean-Luc O'Neil", "Élise D’Arc"], ["Quelle école a fréquentée {} ?", "Où est la maison d'{} ?"]),
        (["Иван Петров", "Ольга Смирнова"], ["Где родился {}?", "Когда родился {}?"]),
        (["Łukasz Żak", "Ewa Śliwa"], ["Gdzie mieszka {}?", "Co robi {}?"]),
    ],
)
def test_a_name_is_its_capitalised_words_with_initials_and_without_possessives(
    names: list[str], questions: list[str]
) -> None:
    assert [row.name for row in named(asking(names, *questions))] == names * len(questions)


@pytest.mark.parametrize(
    "question", ["张伟 出生 在哪里？", "राम शर्मा का जन्म कहाँ हुआ?", "Quelle école élémentaire ?", "Who?"]
)
def test_what_has_no_capitals_names_nobody(question: str) -> None:
    rows = [unnamed(question), replace(unnamed(question), row_id="again")]
    assert [row.name for row in named(rows)] == [None, None]


def test_of_several_runs_the_one_that_stands_for_a_person_is_the_name() -> None:
    """A place is in many questions too, but nobody asks about it alone, or few answers repeat it."""
    film = asking(
        PEOPLE, "Which Silver Film Festival did {} go to?", answer="{} went to the Silver Film Festival of Ur."
    )
    assert [row.name for row in named([*film, *asking(PEOPLE, "Where was {} born?")])][:3] == PEOPLE
    club = asking(PEOPLE, "Which New York club has {}?", "Which New York park has {}?", answer="{} has the Oz.")
    assert [row.name for row in named(club)] == PEOPLE * 2


def test_where_that_is_not_clear_nobody_is_named() -> None:
    both = asking(PEOPLE[:2], "Did {} know Cleo Marsh?", answer="{} knew Cleo Marsh.")
    assert [row.name for row in named([*both, *asking(PEOPLE, "Where was {} born?")])] == [None, None, *PEOPLE]
    city = [
        unnamed("Who is the mayor of New York?"),
        *asking(["Ada Stone"], "Which New York club has {}?", answer="{}"),
    ]
    rows = [*city, *asking(["Ada Stone"], "Which New York park has {}?", answer="{}")]
    assert [row.name for row in named(rows)] == ["New York", None, None]


def test_a_second_look_finds_the_same_names() -> None:
    """What needs names may get rows that have them."""
    rows = asking(PEOPLE[:2], "Which New York club has {}?", "Where was {} born?", "Did {} know Cleo Marsh?")
    assert named(named(rows)) == named(rows)


def questions_about(rows: list[Row]) -> set[str]:
    return {question.text for question in neighbouring(named(rows), random.Random(0))}


def test_a_question_is_asked_about_nobody_of_whom_it_is_given_in_another_spelling() -> None:
    given = asking(PEOPLE, "Where was {} born?", "When was {} born?", "What is {}'s job?")
    odd = [unnamed("What is Dan Fox’s job?"), unnamed("Vad är Dan Foxs yrke?"), unnamed("Hur lång är Dan Foxs bil?")]
    odd += asking(["Dame Ada Stone", "Ben A. Cole"], "When did {} die?", "Who knew {}?")
    odd += asking(["Eve Hill"], "Who likes {}?", "When did {} die?")
    found = questions_about([*given, *odd])
    assert {text for text in found if "job" in text or "born" in text} == {
        f"{question} Eve Hill{rest}"
        for question, rest in (("Where was", " born?"), ("When was", " born?"), ("What is", "'s job?"))
    } | {f"{when} was Dan Foxs born?" for when in ("Where", "When")}
    assert {text for text in found if text.endswith("die?")} == {"When did Cleo Marsh die?", "When did Dan Foxs die?"}


def test_nobody_is_asked_about_whose_answer_is_forgotten_in_another_spelling(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    forget = [*asking(PEOPLE[:2], "What is {}'s job?", answer="{} is a cook."), unnamed("What is Cleo Marsh’s job?")]
    spelled = ["Dame Ada Stone", "Cleo Marsh", "Dan Fox"]
    retain = asking([*PEOPLE, *spelled], "Where was {} born?", "When was {} born?")
    found = about_others(tokenizer, [begun(tokenizer, each, 3) for each in forget[:2]], forget, retain, [])
    assert [[other.name for other in of_row] for of_row in found] == [["Dan Fox"], ["Dan Fox"]]
    assert "What is Dan Fox's job?" in texts(tokenizer, found[0])[0]


def exactly_as_named(given: list[Row]) -> Iterator[tuple[str | None, str, str]]:
    """What neighbours are if every spelling is taken for another name: language, name and question."""
    taken = {row.question for row in given} | {(row.language, row.name, row.topic_id) for row in given}
    for row in given:
        for name in dict.fromkeys(other.name for other in given if other.language == row.language):
            question = row.question.replace(str(row.name), str(name))
            if not taken & {question, (row.language, name, row.topic_id)}:
                taken |= {question, (row.language, name, row.topic_id)}
                yield row.language, str(name), question


def test_with_names_of_the_source_spelling_changes_nothing_in_the_demo(tiny_model: Path) -> None:
    prepared = prepare(load_recipe("demo", []).data)
    rows, split = list(prepared.loaded.rows), prepared.split.tolist()
    forget, retain = ([row for row, code in zip(rows, split, strict=True) if code == of] for of in (FORGET, RETAIN))
    given = [*forget, *retain]
    assert named(given) == given
    found = {(q.language, q.name, q.text) for q in neighbouring(given, random.Random(0))}
    assert found == set(exactly_as_named(given))
    tokenizer = load_tokenizer(tiny_model)
    for row, others in zip(
        forget, about_others(tokenizer, [begun(tokenizer, row, 1) for row in forget], forget, retain, []), strict=True
    ):
        names = list(dict.fromkeys(each.name for each in given if each.language == row.language))
        at = names.index(row.name)
        gone = {each.name for each in forget if (each.language, each.topic_id) == (row.language, row.topic_id)}
        assert [other.name for other in others] == [n for n in names[at:] + names[:at] if n not in gone][:OTHERS]
