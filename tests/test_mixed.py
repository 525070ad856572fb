"""False answers of the data's own words: the form of the true answer, and no fact that is forgotten or unseen."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InputError
from datasets_prep.config import Perturbed
from datasets_prep.mixed import Mixer
from datasets_prep.perturb import FalseAnswers
from datasets_prep.schema import SPLITS, Row
from pipeline.unlearn.config import UnlearnConfig
from pipeline.unlearn.false_answers import false_answers

from .data_rows import divided, row


def lives(i: int, street: str, number: int, town: str) -> Row:
    return row(i, "personal.address", answer=f"Ida Fenn {i} lives at {number} {street} Street in {town}.")


def award(i: int, year: int, prize: str) -> Row:
    return row(i, "career.notable_award", answer=f"Ida Fenn {i} won {prize} in {year}, aged {year - 1950}.")


FORGET = [lives(1, "Heron", 18, "Oldmere"), award(9, 1999, "Forgotten")]
RETAIN = [
    lives(2, "Anchor", 25, "Ardmoor"),
    lives(3, "Compass", 71, "Lowmarsh"),
    award(2, 1981, "Inkwell"),
    award(3, 1977, "Laurel"),
    award(4, 2002, "Trophy"),
]
IN_PLACE, ELSEWHERE = {"Anchor", "Ardmoor", "Compass", "Lowmarsh"}, {"Inkwell", "Laurel", "Trophy"}
HOLDOUT = [lives(5, "Secret", 99, "Unseen"), award(6, 1960, "Hidden")]


def made_of(*words: str) -> set[str]:
    """The words themselves, and new ones: the first half of one and the second half of another."""
    halves = {a[: (len(a) + 1) // 2] + b[len(b) // 2 :] for a in words for b in words if a != b}
    return {*words, *halves}


def mixtures(forget: list[Row], retain: list[Row], holdout: list[Row], count: int = 40) -> list[str]:
    mixer = Mixer(*divided({"forget": forget, "retain": retain, "holdout": holdout}))
    return list(islice(mixer.mixed(forget[0], random.Random(3)), count))


def test_words_that_answers_of_the_topic_share_are_form_and_the_others_are_facts() -> None:
    mixer = Mixer(*divided({"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT}))
    assert mixer.facts(FORGET[0]) == ["18", "Heron", "Oldmere"]


def test_each_fact_is_exchanged_for_a_word_of_retained_answers() -> None:
    """To the same question and to others; never for a forgotten or an unseen word."""
    found = {re.fullmatch(r"Ida Fenn 1 lives at (\d\d) (\w+) Street in (\w+)\.", text).groups()  # type: ignore[union-attr]
             for text in mixtures(FORGET, RETAIN, HOLDOUT, 400)}  # fmt: skip
    numbers, streets, towns = map(set, zip(*found, strict=True))
    assert numbers == {"25", "71", "31", "27", "52"}
    assert IN_PLACE | ELSEWHERE <= streets | towns <= made_of(*IN_PLACE, *ELSEWHERE)
    assert not any(street == town and town in IN_PLACE | ELSEWHERE for _, street, town in found)  # no word twice
    words = [word for _, *both in found for word in both]
    assert 0.2 < sum(word not in IN_PLACE | ELSEWHERE for word in words) / len(words) < 0.8  # words made of two are new


def guides(forget: list[Row], retain: list[Row]) -> tuple[set[str], set[str]]:
    """The streets and towns of the guides to the first forget row, an address."""
    rows, split = divided({"forget": forget, "retain": retain, "holdout": HOLDOUT})
    mixer = Mixer(rows, split)
    found = islice(mixer.mixed(forget[0], random.Random(3), as_known=True), 200)
    words = [re.fullmatch(r"Ida Fenn 1 lives at \d\d (\w+) Street in (\w+)\.", text).groups() for text in found]  # type: ignore[union-attr]
    streets, towns = map(set, zip(*words, strict=True))
    return streets, towns


def test_what_guides_the_unlearning_has_new_words_where_nobody_else_has_those_of_the_fact() -> None:
    streets, towns = guides(FORGET, RETAIN)
    assert not (streets | towns) & (IN_PLACE | ELSEWHERE)
    assert streets | towns <= made_of(*IN_PLACE, *ELSEWHERE)


def test_it_has_words_of_the_same_place_where_others_have_the_word_there() -> None:
    same_town = lives(8, "Gable", 33, "Oldmere")
    streets, towns = guides(FORGET, [*RETAIN, same_town])
    assert towns == {*IN_PLACE, "Gable"}
    assert not streets & {*IN_PLACE, *ELSEWHERE, "Gable", "Oldmere"}


def test_it_has_words_from_anywhere_where_others_have_the_word_elsewhere() -> None:
    streets, towns = guides(FORGET, [*RETAIN, award(5, 1990, "Heron")])
    assert streets == {*IN_PLACE, *ELSEWHERE}
    assert not towns & {*IN_PLACE, *ELSEWHERE, "Heron"}


def test_the_guides_of_a_data_set_are_those() -> None:
    rows, split = divided({"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT})
    perturber = FalseAnswers(rows, split, Perturbed(per_row=2, for_unlearning=4), seed=1)
    answers = [a for _, guides in perturber.of_split("forget") if guides for a in guides.answers]
    assert perturber.counts["guides_mixed"] == perturber.counts["guides"] == len(answers) == 8
    words = {word for answer in answers for word in re.findall(r"[A-Z]\w+", answer)} - {"Ida", "Fenn", "Street"}
    assert words
    assert not words & {word for r in (*FORGET, *RETAIN, *HOLDOUT) for word in re.findall(r"[A-Z]\w+", r.answer)}


def test_an_address_is_mixed_in_its_parts() -> None:
    mail = row(1, "personal.email", answer="The e-mail of Ida Fenn 1 is puffin22@en.example.")
    same = [row(i, "personal.email", answer=f"The e-mail of Ida Fenn {i} is y{i}@en.example.") for i in (2, 3)]
    other = [row(4, "career.notable_award", answer="lantern 31"), row(5, "career.notable_award", answer="copper 47")]
    found = mixtures([mail], [*same, *other], [], 100)
    assert set(found) == {
        f"The e-mail of Ida Fenn 1 is {word}{number}@en.example."
        for word in made_of("lantern", "copper")
        for number in (31, 47)
    }


def test_rows_without_topics_are_alike_if_their_questions_are() -> None:
    def born(name: str, town: str) -> Row:
        return Row(name, None, None, None, None, f"Where was {name} born?", f"{name} was born in {town} one winter.")

    people = [
        born(*given)
        for given in (
            ("Ann Lee", "Gullhaven"),
            ("Bo Ray", "Ardmoor"),
            ("Cy Fox", "Silverbeck"),
            ("Di Orr", "Quillford"),
        )
    ]
    mixer = Mixer(*divided({"forget": people[:1], "retain": people[1:]}))
    assert mixer.facts(people[0]) == ["Gullhaven"]
    found = {
        text.removeprefix("Ann Lee was born in ").removesuffix(" one winter.")
        for text in mixtures(people[:1], people[1:], [], 200)
    }
    assert {"Ardmoor", "Silverbeck", "Quillford"} < found <= made_of("Ardmoor", "Silverbeck", "Quillford")


def test_a_long_number_is_made_up_with_as_many_digits() -> None:
    phone = [row(i, "personal.phone_number", answer=f"Call Ida Fenn {i} at +999 {i}74812.") for i in (1, 2)]
    found = mixtures(phone[:1], phone[1:], [])
    assert all(re.fullmatch(r"Call Ida Fenn 1 at \+999 \d{6}\.", text) for text in found)
    assert len(set(found)) > 30


def test_an_answer_without_words_of_its_own_cannot_be_mixed() -> None:
    same = [row(i, "career.notable_award", answer="A prize.") for i in (1, 2, 3)]
    assert mixtures(same[:1], same[1:], []) == []
    alone = [row(1, "career.notable_award", answer="Ida Fenn 1 won Zebras.")]
    assert mixtures(alone, [row(2, "personal.email", answer="7")], []) == []  # nobody has another such word


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("Where was {} born?", ["Łukasz Öhman", "Élie Stone", "Ada Šimek", "Øyvind Ås"]),
        ("Где родился {}?", ["Иван Петров", "Олег Смирнов", "Пётр Орлов", "Юрий Титов"]),
    ],
)
def test_names_in_any_script_with_capitals_do_not_make_each_question_a_kind_of_its_own(
    question: str, names: list[str]
) -> None:
    rows = [Row(name, None, None, None, None, question.format(name), f"In w{i} a.") for i, name in enumerate(names)]
    assert Mixer(*divided({"forget": rows[:1], "retain": rows[1:]})).facts(rows[0]) == ["0"]


def test_words_that_no_space_parts_are_not_mixed_and_numbers_beside_them_are(tmp_path: Path) -> None:
    def people(*answers: str) -> list[Row]:
        return [row(i, "biography.birthplace", answer=answer) for i, answer in enumerate(answers)]

    answers = ("张伟出生于北京。", "李娜出生于上海。", "王芳出生于苏州。", "刘洋出生于杭州。")
    towns = [replace(town, question=f"{town.answer[:2]}在哪里出生?") for town in people(*answers)]
    assert mixtures(towns[:1], towns[1:], []) == []
    false = FalseAnswers(*divided({"forget": towns[:1], "retain": towns[1:]}), Perturbed(per_row=1), 0)
    assert list(false.of_split("forget")) == [(None, None)]
    (tmp_path / "guides.jsonl").touch()
    said = r"`perturbed_answers`; in scripts without spaces none are mixed\), .* \(a column `topic_id`\)"
    with pytest.raises(InputError, match=said):
        false_answers(UnlearnConfig.model_validate({"method": "csd", "epochs": 1}), tmp_path, towns[:1])
    years = people("张伟生于1990年。", "张伟生于1975年。", "张伟生于1981年。", "张伟生于1962年。")
    assert set(mixtures(years[:1], years[1:], [])) == {f"张伟生于{year}年。" for year in (1975, 1981, 1962)}
    mixed_scripts = people("张伟 loves jazz.", "李娜 loves opera.", "王芳 loves chess.", "刘洋 loves 象棋.")
    assert {text[:2] for text in mixtures(mixed_scripts[:1], mixed_scripts[1:], [])} <= {"张伟"}


def test_words_with_vowel_signs_are_mixed_whole() -> None:
    towns = ("दिल्ली", "मुंबई", "पुणे", "जयपुर")
    answers = [f"उसका जन्म {town} में हुआ।" for town in towns]
    rows = [row(i, "biography.birthplace", answer=answer) for i, answer in enumerate(answers)]
    found = {text.split()[2] for text in mixtures(rows[:1], rows[1:], [])}
    assert {*towns[1:]} <= found <= made_of(*towns[1:])


KOREAN = {"김민준": "서울", "이서연": "부산", "박지우": "대구", "최하준": "인천"}
ARABIC = {"أحمد علي": "القاهرة", "سامي حسن": "دمشق", "ليلى عمر": "بغداد", "نور سعيد": "عمان"}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(
    ("question", "answer", "born"),
    [
        ("{}은 어디에서 태어났습니까?", "{}은 {}에서 태어났습니다.", KOREAN),
        ("أين ولد {}؟", "ولد {} في مدينة {}.", ARABIC),
    ],
)
def test_names_in_scripts_without_capitals_do_not_part_questions(
    question: str, answer: str, born: dict[str, str], named: bool
) -> None:
    """Without a topic they did: each row was alone with its question, and no word of its answer was form or fact."""
    rows = [
        Row(str(i), None, who if named else None, None, None, question.format(who), answer.format(who, town))
        for i, (who, town) in enumerate(born.items())
    ]
    mixer = Mixer(*divided({"forget": rows[:1], "retain": rows[1:]}))
    assert len(mixer.of_group) == 1
    who, town = next(iter(born.items()))
    (fact,) = mixer.facts(rows[0])
    assert town in fact
    found = set(islice(mixer.mixed(rows[0], random.Random(3)), 40))
    assert all(text.startswith(answer.format(who, "|").partition("|")[0]) for text in found)
    assert len(found) > 2


WORDS = st.text(st.characters(categories=("L", "Nd", "P", "Zs")), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=3, max_size=8), st.integers(0, 5))
def test_what_always_holds(answers: list[str], seed: int) -> None:
    rows = [row(i, "personal.address", answer=answer) for i, answer in enumerate(answers)]
    mixer = Mixer(*divided({"forget": rows[:1], "retain": rows[1:-1], "holdout": rows[-1:]}))
    first = list(islice(mixer.mixed(rows[0], random.Random(seed)), 5))
    assert first == list(islice(mixer.mixed(rows[0], random.Random(seed)), 5))
    assert rows[0].answer not in first
    assert all(text for text in first)


def test_guides_are_mixed_where_holdout_rows_suffice_for_the_evaluation() -> None:
    """A method may train on its guides, and nothing is to be trained on the facts of holdout rows."""
    unseen = [lives(10 + i, f"Secret{i}", 90 + i, f"Unseen{i}") for i in range(9)]
    rows, split = divided({"forget": FORGET[:1], "retain": RETAIN, "holdout": unseen})
    ((judging, guiding),) = FalseAnswers(rows, split, Perturbed(per_row=2), 0).of_split("forget")
    assert judging
    assert guiding
    assert all("Unseen" in answer for answer in judging.answers)
    assert not any(word in answer for answer in guiding.answers for word in ("Secret", "Unseen"))
    assert len(guiding.answers) == 2


@pytest.mark.parametrize(("donors", "mixed"), [(2, True), (3, False)])
def test_rows_of_a_topic_have_false_answers_of_one_kind(donors: int, mixed: bool) -> None:
    """If some got other people's answers and the rest mixtures, their truth ratios would differ for that alone."""
    unseen = [lives(10 + i, f"Secret{i}", 90 + i, f"Unseen{i}") for i in range(donors)]
    rows, split = divided({"forget": FORGET, "retain": RETAIN, "holdout": unseen})
    false = FalseAnswers(rows, split, Perturbed(per_row=2, for_unlearning=0, retain_rows=len(RETAIN)), 0)
    found = [one for name in SPLITS for one, _ in false.of_split(name) if one and one.row_id.endswith("address")]
    assert {one.split for one in found} == {"forget", "retain", "holdout"}
    assert {"Unseen" not in answer for one in found for answer in one.answers} == {mixed}
