"""Questions about the neighbourhood: formed from given rows, in their wordings, about the people whom these name."""

from __future__ import annotations

import random
import unicodedata
from dataclasses import replace
from typing import Literal
from unittest.mock import Mock

import hypothesis
import pytest
from hypothesis import strategies as st

from core.errors import DataError
from datasets_prep.schema import Row
from pipeline.unlearn import neighbours, people
from tests.unlearning import row


def asked(given: list[Row]) -> set[tuple[str | None, str, str]]:
    return {(q.language, q.name, q.text) for q in neighbours.neighbouring(given, random.Random(0))}


def test_people_are_asked_what_is_asked_of_others_of_their_language() -> None:
    given = [row("Ann Lee", "home"), row("Bo Ray", "work", question="What does {} do?"), row("Cy Fox", "home", "DE")]
    assert asked(given) == {("EN", "Bo Ray", "Where is Bo Ray?"), ("EN", "Ann Lee", "What does Ann Lee do?")}


def test_what_a_given_row_asks_is_no_neighbour() -> None:
    """Bo's home is given in other words, and Cy's question word for word, for another topic."""
    given = [row("Ann Lee", "home"), row("Bo Ray", "home", question="Tell me where {} lives."), row("Cy Fox", "x")]
    assert {text for _, _, text in asked(given)} == {
        "Tell me where Cy Fox lives.",
        "Where is Bo Ray?",  # of Cy's topic, which is another one
    }


def test_everything_is_asked_once_before_it_is_asked_in_other_words() -> None:
    """The commonest words of a topic come first, and what is given about somebody is asked in none."""
    common, other, rare = "Where is {}?", "Where does {} live?", "Tell me {}'s home."
    given = [row(name, "home", question=other) for name in ("Ann Lee", "Bo Ray")]
    given += [row(name, "home", question=common) for name in ("Cy Fox", "Di Elm", "Ed Orr")]
    given += [row("Flo Kay", "home", question=rare), row("Gil Voss", "work", question="What does {} do?")]
    given += [row("Gil Voss", None, question="Who is {}?")]
    found = [question.text for question in neighbours.neighbouring(given, random.Random(0))]
    others = ("Ann Lee", "Bo Ray", "Cy Fox", "Di Elm", "Ed Orr", "Flo Kay")
    once = {template.format(name) for name in others for template in ("What does {} do?", "Who is {}?")}
    assert set(found[:13]) == {common.format("Gil Voss"), *once}
    assert found[13:] == [other.format("Gil Voss"), rare.format("Gil Voss")]
    assert found[:13] != sorted(found[:13])  # in random order


@hypothesis.given(
    st.lists(
        st.tuples(
            st.sampled_from(["Ann Lee", "Bo Ray", "Cy Fox", "Al", "Al Fox"]),
            st.sampled_from(["home", "work", None]),
            st.sampled_from(["Where is {}?", "What does {} do?", "Who is {}?", "Tell me of {}."]),
        ),
        max_size=12,
        unique=True,
    ),
    st.integers(0, 9),
)
def test_no_question_is_asked_twice_and_none_is_given(drawn: list[tuple[str, str | None, str]], seed: int) -> None:
    rows = [row(name, topic, question=question) for name, topic, question in drawn]
    found = list(neighbours.neighbouring(rows, random.Random(seed)))
    texts = [question.text for question in found]
    assert len(set(texts)) == len(texts)
    assert not {row.question for row in rows} & set(texts)
    if people.topics_tell_facts(rows):
        told = {(row.name, row.topic_id) for row in rows if row.topic_id}
        assert not told & {(question.name, question.topic_id) for question in found}


def test_rows_without_a_name_in_the_question_form_none() -> None:
    assert (
        asked([row(None, "home"), row("Bo Ray", "home", question="Who?"), row("Ann Lee", "x", question="Who?")])
        == set()
    )


def test_nobody_is_asked_about_herself_and_another() -> None:
    given = [row("Ann Lee", "met", question="Did {} meet Bo Ray?"), row("Bo Ray", "work", question="What does {} do?")]
    assert asked([*given, row("Cy Fox", "home")]) == {
        *(("EN", name, f"Where is {name}?") for name in ("Ann Lee", "Bo Ray")),
        *(("EN", name, f"What does {name} do?") for name in ("Ann Lee", "Cy Fox")),
        ("EN", "Cy Fox", "Did Cy Fox meet Bo Ray?"),
    }


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_people_with_accents_are_asked_about_however_these_are_encoded(form: Literal["NFC", "NFD"]) -> None:
    texts = ("Where was Élise Dupré born?", "What does Élise Dupré do?", "Who taught Bo Ray?", "Who is Bo Ray?")
    rows = [Row(text, None, None, None, None, unicodedata.normalize(form, text), "x") for text in texts]
    found = {question.text for question in neighbours.neighbouring(people.named(rows), random.Random(0))}
    expected = {"Where was Bo Ray born?", "What does Bo Ray do?", "Who taught Élise Dupré?", "Who is Élise Dupré?"}
    assert found == {unicodedata.normalize(form, text) for text in expected}


def test_no_question_is_made_where_everything_is_given() -> None:
    """Of 200 people on 10 topics: making 400,000 of them took seconds."""
    given = [row(f"Ann Lee{i}", f"topic {j}", question=f"What {j} has {{}}?") for i in range(200) for j in range(10)]
    with pytest.MonkeyPatch.context() as patch:
        made = Mock(side_effect=people.about)
        patch.setattr(people, "about", made)
        assert list(neighbours.neighbouring(given, random.Random(0))) == []
    assert made.call_count == 0


BIOGRAPHY = ("Where was {} born?", "When was {} born?", "Where did {} study?")


def test_a_topic_of_several_questions_about_one_person_tells_no_fact() -> None:
    """Of Cy one of three is given. Bo's single row on another topic is a fact no more than those."""
    given = [row(name, "biography", question=question) for name in ("Ann Lee", "Bo Ray") for question in BIOGRAPHY]
    given += [row("Cy Fox", "biography", question=BIOGRAPHY[0]), row("Bo Ray", "work", question="Who is {}?")]
    assert not people.topics_tell_facts(given)
    assert {text for _, _, text in asked(given)} == {
        *(question.format("Cy Fox") for question in BIOGRAPHY[1:]),
        *(f"Who is {name}?" for name in ("Ann Lee", "Cy Fox")),
    }
    namesakes = [replace(row("Ann Lee", "home", answer=str(i)), identity_id=i) for i in range(2)]
    assert people.topics_tell_facts(namesakes)  # a row of each


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ([row(None, "home"), row(None, "work", question="Where is {} now?")], "neither does a column name people"),
        ([row("Ann Lee", "x", question="Who?"), row("Bo Ray", "x", question="Where?")], "is not in its question"),
        ([row("Ann Lee", "home"), row("Bo Ray", "home", "DE")], "all rows of a language are about one person"),
        ([row("Ann Lee", "home"), row("Bo Ray", "home")], "is given about everybody else too"),
    ],
)
def test_it_is_said_why_nobody_else_can_be_asked(given: list[Row], missing: str) -> None:
    with pytest.raises(DataError, match=missing):
        neighbours.refuse_nobody(given)
    more = row("Cy Fox", "work", question="What does {} do?"), row("Di Elm", "home")
    neighbours.refuse_nobody([*given, *more])


def test_names_are_found_in_questions_that_share_them() -> None:
    """Two capitalised words or more, not at the beginning, in several questions; not a title asked for once."""
    questions = {
        "Where does Ann van Lee live?": None,
        "Where was Ann Lee born?": "Ann Lee",
        "What does Ann Lee do?": "Ann Lee",
        "Ann Lee did what?": None,
        "What is The Silent Loom about?": None,
        "Where was Élise Du Pont born?": "Élise Du Pont",
        "Who taught Élise Du Pont?": "Élise Du Pont",
    }
    rows = [Row(text, None, None, None, None, text, "x") for text in questions]
    found = neighbours.named([*rows, row("Bo Ray", "x", question="What do {} and Ann Lee do?")])
    assert [row.name for row in found] == [*questions.values(), "Bo Ray"]
    asked_of_others = {q.text for q in neighbours.neighbouring(found[:-1], random.Random(0))}
    assert asked_of_others == {"What does Élise Du Pont do?", "Who taught Ann Lee?"}
