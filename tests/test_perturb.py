"""False answers: of the right form, never true, never trained on where that can be avoided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_prep import perturb as perturb_module
from datasets_prep.config import Perturbed, SampleSource, Shares
from datasets_prep.perturb import FalseAnswers, swap_name
from datasets_prep.rows import Rows
from datasets_prep.sample import generate
from datasets_prep.schema import SPLITS, TOPICS, PerturbedRow, Row
from datasets_prep.splits import Split, by_topic

from . import data_rows
from .data_rows import SHARES, by_split, collected, counted, divided, row

SAMPLE = SampleSource(**data_rows.SAMPLE)


def perturb(
    rows: Rows, split: Split, config: Perturbed, seed: int
) -> tuple[list[PerturbedRow], list[PerturbedRow], dict[str, int]]:
    """All of the evaluation, all that guide the unlearning, and the counts."""
    false = FalseAnswers(rows, split, config, seed)
    pairs = [pair for name in SPLITS for pair in false.of_split(name)]
    return [one for one, _ in pairs if one], [two for _, two in pairs if two], false.counts


def test_sample_false_answers_are_held_back_facts() -> None:
    listed, held_back = generate(SAMPLE)
    rows = collected(listed, held_back)
    split = by_topic(rows, Shares(**SHARES), 42)
    false, guides, counts = perturb(rows, split, Perturbed(per_row=3, retain_rows=50), 42)
    assert counts == {
        "rows": 140, "answers": 420, "mixed": 0, "from_trained_rows": 0, "rows_with_fewer": 0, "rows_without": 0,
        "guides": 80, "guides_mixed": 0,
    }  # fmt: skip
    assert Counter(f.split for f in false) == {"forget": 40, "retain": 50, "holdout": 50}
    assert all(set(f.answers) <= set(held_back[f.row_id]) for f in false)
    assert perturb(rows, split, Perturbed(per_row=3), 42)[0] == false
    evaluated = {f.row_id: set(f.answers) for f in false}
    assert [f.row_id for f in guides] == [r.row_id for r in by_split(rows, split)["forget"]]
    for guide in guides:  # what guides the unlearning is never what judges it
        assert len(guide.answers) == 2
        assert not set(guide.answers) & evaluated[guide.row_id]


def test_false_answers_come_from_holdout_rows_first() -> None:
    topic = "personal.email"
    rows, split = divided({
        "forget": [row(1, topic)],
        "retain": [row(2, topic), row(3, topic)],
        "holdout": [row(4, topic), row(5, topic), row(6, "personal.address"), row(7, topic, language="DE")],
    })  # fmt: skip
    false, guides, counts = perturb(rows, split, Perturbed(per_row=3, retain_rows=1), 0)
    answers = {f.row_id: f.answers for f in false}["en-1-personal.email"]
    told = [answer.removesuffix(".").split()[-1] for answer in answers]
    assert set(told[:2]) == {"4", "5"}
    assert told[2] in {"2", "3"}
    assert all("Ida Fenn 1" in answer for answer in answers)
    # The forget and the retain row take one from trained rows, holdout rows 4 and 5 two each; 6 and 7 are alone.
    assert counts == {
        "rows": 4, "answers": 12, "mixed": 0, "from_trained_rows": 6, "rows_with_fewer": 0, "rows_without": 2,
        "guides": 0, "guides_mixed": 0,
    }  # fmt: skip
    assert guides == []  # the fourth answer to the forget row would come from a trained row


def test_false_answers_are_never_true_and_never_trained() -> None:
    same = {"answer": "It is a secret."}
    topic = "personal.hobby_or_interest"
    rows, split = divided({name: [row(i, topic, **same)] for i, name in enumerate(SPLITS)})
    false, _, counts = perturb(rows, split, Perturbed(), 0)
    assert false == []
    assert counts["rows_without"] == 3
    nearly = {"forget": [row(1, topic, **same)], "retain": [], "holdout": [row(3, topic, answer="it is  a SECRET.")]}
    assert perturb(*divided(nearly), Perturbed(), 0)[0] == []


def test_another_fact_of_the_same_person_is_no_false_answer() -> None:
    topic = TOPICS[0]
    own = [row(1, topic), Row("other", 1, "Ida Fenn 1", "EN", topic, "Where else?", "Ida Fenn 1 also lived in Bonn.")]
    rows, split = divided({"forget": own[:1], "retain": [], "holdout": own[1:]})
    assert perturb(rows, split, Perturbed(), 0)[0] == []


@pytest.mark.parametrize(
    ("name", "told"), [("Beck, {}", "{} Beck lives in town {}."), ("{} Beck", "{} lives in town {}.")]
)
def test_an_answer_whose_name_cannot_be_exchanged_is_about_its_own_person(name: str, told: str) -> None:
    people = ["Ida", "Otto", "Mara", "Nils"]
    rows = [row(i, TOPICS[0], name=name.format(who), answer=told.format(who, i)) for i, who in enumerate(people)]
    splits = {"forget": rows[:1], "retain": [], "holdout": rows[1:]}
    whose = {one.row_id: who for one, who in zip(rows, people, strict=True)}
    false, _, _ = perturb(*divided(splits), Perturbed(per_row=2), 0)
    assert all(whose[f.row_id] in answer for f in false for answer in f.answers)


def test_particles_of_a_name_are_no_part_of_it() -> None:
    rows = [row(i, TOPICS[0], name=f"Ida {i} de la Cruz", answer=f"Vive en la casa {i} de Lima.") for i in range(3)]
    false, _, _ = perturb(*divided({"forget": rows[:1], "retain": [], "holdout": rows[1:]}), Perturbed(per_row=1), 0)
    assert set(false[0].answers) <= {one.answer for one in rows[1:]}


def test_rows_without_topic_get_only_the_false_answers_of_their_source() -> None:
    bare = [Row(f"r{i}", None, None, None, None, f"What is {i}?", f"It is {i}.") for i in range(4)]
    rows = collected(bare, {"r1": ["It is 7.", "It is 8.", "It is 2."]})
    split = divided({"forget": bare[:2], "retain": bare[2:3], "holdout": bare[3:]})[1]
    false, guides, counts = perturb(rows, split, Perturbed(per_row=1), 0)
    assert [(f.row_id, f.answers) for f in false] == [("r1", ("It is 7.",))]
    assert [g.answers for g in guides] == [("It is 8.",)]  # "It is 2." is trained on
    assert counts["rows_without"] == 3


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from(TOPICS[:3]), st.sampled_from(SPLITS)), min_size=3, max_size=40
    ),
    st.integers(0, 9),
    st.integers(1, 5),
    st.integers(0, 5),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_what_always_holds(facts: list[tuple[int, str, str]], own: int, per_row: int, guiding: int, seed: int) -> None:
    unique = {(who, topic): split for who, topic, split in facts}
    splits = {name: [row(*key) for key, split in unique.items() if split == name] for name in SPLITS}
    listed, split = divided(splits)
    answers = [f"It is {n}." for n in range(own)]  # of the source: few words give no guides
    rows = collected(listed, {r.row_id: answers for r in listed})
    false, guides, counts = perturb(rows, split, Perturbed(per_row=per_row, for_unlearning=guiding), seed)
    true = {r.row_id: r.answer for members in splits.values() for r in members}
    trained = {r.answer for name in SPLITS if name != "holdout" for r in splits[name]}
    asked = {f.row_id: f for f in false}
    assert len(asked) == len(false) == counts["rows"]
    assert counts["rows"] + counts["rows_without"] == sum(len(splits[n]) for n in SPLITS if n != "unrehearsed")
    assert not {r.row_id for r in splits["unrehearsed"]} & asked.keys()  # only their true answers are measured
    for f in (*false, *guides):
        assert len(set(f.answers)) == len(f.answers) <= max(per_row, guiding)
        assert not {true[f.row_id], *trained} & set(f.answers)
    for g in guides:
        assert not set(g.answers) & set(asked[g.row_id].answers)
        assert len(asked[g.row_id].answers) == per_row  # the evaluation is served first


def born(name: str, town: str, **known: Any) -> Row:
    """A fact whose answer is only a value, from a source that has no more than questions and answers."""
    question = known.pop("question", f"Where was {name} born?")
    return Row(f"{question} {town}", known.get("identity_id"), None, "EN", known.get("topic_id"), question, town)


def test_a_value_may_be_the_answer_about_others_but_no_other_answer_to_the_question() -> None:
    """Of towns that are known, as the true one is, the guides are others that are known."""
    retain = [born("Ben Cole", "Paris"), born("Cleo Marsh", "Rome"), born("Dov Reed", "Lima"), born("Eva Hill", "Oslo")]
    contradicting = born("Ada Stone", "Rome")
    rows, split = divided({"forget": [born("Ada Stone", "Paris")], "retain": [*retain, contradicting]})
    false, guides, counts = perturb(rows, split, Perturbed(per_row=1, for_unlearning=1, retain_rows=1), 0)
    of_forget = [answer for one in (*false, *guides) if one.split == "forget" for answer in one.answers]
    assert {"Lima", "Oslo"} >= set(guides[0].answers)
    assert "Rome" not in of_forget
    assert len(of_forget) == 2
    assert counts["guides"] == counts["guides_mixed"] == 1


def test_a_value_that_is_told_of_the_same_person_and_topic_in_other_words_is_no_false_answer() -> None:
    known = {"identity_id": 1, "topic_id": "home"}
    forget = born("Ada Stone", "Paris", **known)
    again = born("Ada Stone", "Rome", question="In which other town did Ada Stone live?", **known)
    own = {forget.row_id: ["Rome", "Lima"]}
    rows, split = collected([forget, again], own), divided({"forget": [forget], "retain": [again]})[1]
    (false, *_), _, _ = perturb(rows, split, Perturbed(per_row=1), 0)
    assert false.answers == ("Lima",)


@pytest.mark.parametrize(
    ("question", "answer", "is_refused"),
    [
        ("Where was Ben Cole born?", "Ben Cole was born in Rome.", True),
        ("Where was Ben Cole born?", "Cole was born in Rome.", True),
        ("What is the address of Ben Cole?", "ben.cole@mail.example", True),
        ("Where was Ben Cole born?", "Rome", False),
        ("Where was Ben Cole born?", "He was born in Rome.", False),
        ("李娜出生在哪里？", "李娜来自上海。", True),
        ("李娜出生在哪里？", "上海", False),
    ],
)
def test_a_trained_answer_is_refused_for_every_question_if_it_says_whom_it_is_about(
    question: str, answer: str, is_refused: bool
) -> None:
    forget, retained = born("Ada Stone", "Paris"), born("", answer, question=question)
    rows = collected([forget, retained], {forget.row_id: [answer]})
    false, _, _ = perturb(rows, divided({"forget": [forget], "retain": [retained]})[1], Perturbed(per_row=1), 0)
    assert (not [one for one in false if one.answers == (answer,)]) == is_refused


def test_answers_to_holdout_rows_judge_and_never_guide() -> None:
    topic = "personal.email"  # whose answers here have no words that could be mixed
    splits = {"forget": [row(1, topic)], "retain": [row(2, topic)], "holdout": [row(i, topic) for i in (4, 5, 6)]}
    false, guides, _ = perturb(*divided(splits), Perturbed(per_row=1, for_unlearning=2), 0)
    assert {one.split for one in false} == {"forget", "retain", "holdout"}
    assert guides == []


def test_guides_are_none_of_the_evaluations_where_that_gets_none() -> None:
    class Mixer:
        def mixed(self, row: Row, rng: object, *, as_known: bool) -> Iterator[str]:
            return iter(["Lima"] if as_known else [])

    rows, split = divided({"forget": [born("Ada Stone", "Paris")], "retain": [born("Ben Cole", "Rome")]})
    perturber = FalseAnswers(rows, split, Perturbed(per_row=1), 0)
    perturber.mixer = Mixer()  # type: ignore[assignment]
    ((judging, guiding),) = perturber.of_split("forget")
    assert judging is None
    assert guiding is not None
    assert guiding.answers == ("Lima",)


def test_so_many_others_are_tried_where_answers_are_alike_and_where_they_differ_it_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = counted(monkeypatch, perturb_module, "_swapped")

    def tried(answer: str) -> tuple[int, list[PerturbedRow]]:
        calls.clear()
        people = [row(i, TOPICS[0], answer=answer.format(i)) for i in range(120)]
        rows, split = divided({"forget": people[:20], "retain": people[20:60], "holdout": people[60:]})
        false = perturb(rows, split, Perturbed(per_row=1, for_unlearning=0, retain_rows=1), 0)[0]
        return len(calls), [one for one in false if one.split == "forget"]

    (alike, _), (differing, drawn) = tried("Yes."), tried("It is {} of them.")
    assert alike == (20 + 1 + 60) * 2 * perturb_module.TRIES
    assert differing < 200
    monkeypatch.setattr(perturb_module, "TRIES", 10**6)
    assert tried("It is {} of them.") == (differing, drawn)


def test_names_are_swapped_in_addresses_too() -> None:
    answer = "Write to Élise Du Pont at elise.du.pont@film.fr."
    assert swap_name(answer, "Élise Du Pont", "Noé Val") == "Write to Noé Val at noe.val@film.fr."
    assert swap_name("Jo wrote a major jotting.", "Jo", "Al Bo") == "Al Bo wrote a major jotting."


@pytest.mark.parametrize(
    ("answer", "old", "swapped"),
    [
        ("Al was born in Alexandria.", "Al", "Tim was born in Alexandria."),
        ("Al's and Als dogs are in Cal, al.", "Al", "Tim's and Tims dogs are in Cal, al."),
        ("Иван живёт у Ивановых.", "Иван", "Tim живёт у Ивановых."),
        ("Friede Moors Hund mag Friede Moor.", "Friede Moor", "Tims Hund mag Tim."),
        ("김철수는 서울에서 태어났다.", "김철수", "Tim는 서울에서 태어났다."),
        ("يعمل لأحمد.", "أحمد", "يعمل لTim."),
        ("李娜出生在上海。", "李娜", "Tim出生在上海。"),
    ],
)
def test_a_short_name_is_not_swapped_inside_words(answer: str, old: str, swapped: str) -> None:
    assert swap_name(answer, old, "Tim") == swapped


def test_a_town_that_begins_with_a_short_name_stays_a_town() -> None:
    towns = {"Tim": "Timmins", "Ed": "Edinburgh", "Al": "Alexandria", "Jo": "Jordanville", "Max": "Maxton"}
    people = [row(i, TOPICS[0], name=who, answer=f"{who} was born in {towns[who]}.") for i, who in enumerate(towns)]
    false = perturb(*divided({"forget": people[:1], "holdout": people[1:]}), Perturbed(per_row=4), 0)[0]
    of_forget = {answer for one in false if one.split == "forget" for answer in one.answers}
    assert of_forget == {f"Tim was born in {town}." for who, town in towns.items() if who != "Tim"}
