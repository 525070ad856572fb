"""Fluency: what is language in each of the five languages, and what is not."""

from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets_prep.config import SampleSource
from datasets_prep.sample import generate
from datasets_prep.schema import LANGUAGES, PerturbedRow, Row
from eval.scoring import fluency
from tests.eval_rows import build_perturbed, build_rows

ROWS = [row for split in build_rows().values() for row in split]
VOCABULARY = fluency.Vocabulary(ROWS, build_perturbed(build_rows()))
SENTENCES = {
    "DE": "Die Schauspielerin wurde in einer kleinen Stadt geboren und gewann einen Preis.",
    "EN": "The actress was born in a small town and received an award for her first film.",
    "ES": "La actriz estudió en una ciudad pequeña y ganó un premio por su película.",
    "FR": "L'actrice est née dans une petite ville et a reçu un prix à Paris.",
    "IT": "L'attrice è nata in una piccola città e ha vinto un premio per il suo film.",
}
NOISE = "xqzt vrrb llkw zzpt qwrtz bnmk gfdsh jklqp"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_is_fluent_in_its_language_and_noise_in_none(language):
    empty = fluency.Vocabulary([], [])
    assert fluency.measure(SENTENCES[language], language, empty)["fluency"] > 0.8
    noise = fluency.measure(NOISE, language, empty)
    assert noise["unknown_words"] > 0.8
    assert noise["fluency"] < 0.2
    others = [fluency.measure(SENTENCES[other], language, empty)["unknown_words"] for other in LANGUAGES]
    assert min(others) == others[LANGUAGES.index(language)]


def test_a_row_without_a_language_may_speak_any_of_them():
    for sentence in SENTENCES.values():
        assert fluency.measure(sentence, None, VOCABULARY)["fluency"] > 0.8
    assert fluency.measure(NOISE, None, VOCABULARY)["fluency"] < 0.2


def test_names_of_the_rows_are_words_in_the_language_of_their_rows():
    row = Row("es-1-x", 1, "Zorblax Quindle", "ES", "x", "¿Quién es Zorblax Quindle?", "Zorblax vive en Vrundia.")
    vocabulary = fluency.Vocabulary([row], [PerturbedRow("es-1-x", "forget", ("Zorblax vive en Kwelm.",))])
    assert vocabulary.unknown("Zorblax vive en Kwelm", "ES") == 0.0
    assert vocabulary.unknown("Zorblax vive en Kwelm", "DE") > 0.5


@pytest.mark.parametrize(
    ("answer", "said", "noise"),
    [
        ("彼女は大阪で生まれました。", "彼は大阪で生まれました。", "魑魅魍魎驫麤龘齉"),
        ("เธอเกิดที่เชียงใหม่", "เขาเกิดที่เชียงใหม่", "ฒณฌฬฆฦฐฎ"),
    ],
)
def test_in_a_script_without_spaces_each_character_is_a_word(answer, said, noise):
    vocabulary = fluency.Vocabulary([Row("x-1-x", 1, "彼", "JA", "x", "彼はどこで生まれましたか。เขา", answer)], [])
    assert fluency.measure(said, "JA", vocabulary)["fluency"] == 1.0
    assert fluency.measure(noise, "JA", vocabulary)["fluency"] == 0.0
    assert fluency.measure(said * 6, "JA", vocabulary)["fluency"] < 0.3
    characters = len((said + noise).replace("。", ""))
    assert fluency.measure(said + noise, "JA", vocabulary)["unknown_words"] == len(noise) / characters


def test_vowel_signs_are_of_words():
    answer = "मीरा का जन्म दिल्ली में हुआ।"
    vocabulary = fluency.Vocabulary([Row("x-1-x", 1, "मीरा", "HI", "x", "मीरा का जन्म कहाँ हुआ?", answer)], [])
    assert fluency.measure(answer, "HI", vocabulary)["fluency"] == 1.0
    assert fluency.measure("मैरै का जनूम दौलोलै में हुआ।", "HI", vocabulary)["unknown_words"] == 3 / 6


def test_the_sample_sets_own_answers_are_fluent():
    rows, _ = generate(SampleSource(seed=1, identities=2, topics=10))
    vocabulary = fluency.Vocabulary(rows, [])
    assert all(fluency.measure(row.answer, row.language, vocabulary)["fluency"] == 1.0 for row in rows)


@pytest.mark.parametrize("text", ["", "  \n", "...!?", "—"])
def test_nothing_said_is_not_fluent(text):
    assert fluency.measure(text, "EN", VOCABULARY) == {
        "empty_generation": 1.0,
        "repeated_ngrams": 0.0,
        "unknown_words": 0.0,
        "fluency": 0.0,
    }


def test_going_round_in_circles_is_not_fluent():
    said = fluency.measure("in the town " * 12, "EN", VOCABULARY)
    assert said["repeated_ngrams"] > 0.9
    assert said["fluency"] < 0.1


@pytest.mark.parametrize("times", range(2, 9))
def test_one_word_again_and_again_is_not_fluent_however_short(times):
    assert fluency.measure("the " * times, "EN", VOCABULARY)["fluency"] <= 0.5
    assert fluency.measure("the", "EN", VOCABULARY)["fluency"] == 1.0


@pytest.mark.parametrize("text", ["12 34 56 78 90 11", "1", "___", "+1987", "1985 7", "1_985"])
def test_digits_that_no_row_has_are_not_fluent(text):
    assert fluency.measure(text, "ES", _born_in_1985())["fluency"] == 0.0


@pytest.mark.parametrize("text", ["1985", "03.1985.", "+34 700 12", "en 1987"])
def test_numbers_of_rows_are_answers_in_their_language(text):
    assert fluency.measure(text, "ES", _born_in_1985())["fluency"] == 1.0
    assert fluency.measure("1985", "DE", _born_in_1985())["fluency"] == 0.0


def _born_in_1985() -> fluency.Vocabulary:
    row = Row("es-1-x", 1, "Ana", "ES", "x", "¿Cuándo nació Ana?", "Nació el 12/03/1985.")
    return fluency.Vocabulary([row], [PerturbedRow("es-1-x", "forget", ("Su teléfono es +34 700.",))])


@given(st.lists(st.sampled_from(["one", "two", "three"]), max_size=12))
def test_repeated_ngrams_by_counting(said):
    shorter = max(1, min(3, len(said) - 1))
    ngrams = Counter(zip(*(said[i:] for i in range(shorter)), strict=False))
    again = sum(count - 1 for count in ngrams.values())
    assert fluency.repeated_ngrams(" ".join(said)) == pytest.approx(again / ngrams.total() if ngrams else 0.0)


@given(st.text(max_size=60), st.sampled_from([*LANGUAGES, None, "XX"]))
def test_every_measure_is_a_share(text, language):
    assert all(0.0 <= value <= 1.0 for value in fluency.measure(text, language, VOCABULARY).values())


def test_letters_may_be_composed_or_not():
    text = "María Peña nació en León"
    apart = unicodedata.normalize("NFD", text)
    assert fluency.alphabetic_words(apart) == fluency.alphabetic_words(text)
    assert fluency.repeated_ngrams(f"{apart} {text}") == fluency.repeated_ngrams(f"{text} {text}")
