"""Words without case and accents, for the checks of the data and for the facts in sampled answers."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.words import MARKS, folded, plain_words, without_accents, words_and_pairs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Málaga, l'Île-de-Ré!", ["malaga", "l", "ile", "de", "re"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("Ma\u0301laga ﬁlm", ["malaga", "film"]),
        ("+999 1-00321", ["999", "1", "00321"]),
        ("שָׁלוֹם", ["שלום"]),  # points of other scripts are accents, too
        ("", []),
        ("1990年、ＮＡＳＡで京都へ", ["1990", "年", "nasa", "で", "京", "都", "へ"]),  # each character is one
        ("ที่น่าน ปี ๒๕๓๓", ["ท", "ี", "น", "า", "น", "ป", "ี", "๒๕๓๓"]),
        ("मीना का जन्म", ["मीना", "का", "जनम"]),  # a vowel sign is a letter, and a virama an accent
        ("বাংলা, தமிழ்!", ["বাংলা", "தமிழ"]),
        ("서울에서 살았다", [unicodedata.normalize("NFKD", word) for word in ("서울에서", "살았다")]),
    ],
)
def test_words_have_neither_case_nor_accents(text: str, expected: list[str]) -> None:
    assert plain_words(text) == expected


@given(st.text(alphabet=st.characters(max_codepoint=0x24F)))
def test_it_does_not_matter_how_letters_are_encoded(text: str) -> None:
    assert plain_words(unicodedata.normalize("NFD", text)) == plain_words(unicodedata.normalize("NFC", text))


@given(st.text(alphabet=st.characters(max_codepoint=0xDFF)))
def test_where_words_have_spaces_they_are_runs_of_letters_and_digits(text: str) -> None:
    runs = re.findall(rf"\w[\w{MARKS}]*", without_accents(text).casefold())
    assert plain_words(text) == words_and_pairs(text) == runs


def test_characters_that_are_words_have_pairs_as_they_stand_together() -> None:
    assert words_and_pairs("MIT在北京 A区") == ["mit", "在", "在北", "北", "北京", "京", "a", "区"]


@given(st.text(alphabet="ab 北京都てのน่า,1"), st.integers(0, 20))
def test_the_pairs_of_a_beginning_are_the_first_of_the_whole(text: str, count: int) -> None:
    """But for a word that is cut, which may be another one."""
    begun = words_and_pairs(text[:count])
    assert begun[:-1] == words_and_pairs(text)[: max(len(begun) - 1, 0)]


@given(st.text())
def test_no_combining_character_stays_and_none_comes_back(text: str) -> None:
    plain = without_accents(text)
    assert not any(map(unicodedata.combining, plain))
    assert without_accents(plain) == plain


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("मीना", "मोना"),
        ("राज", "राजू"),
        ("கமல", "கமலா"),
        ("กิน", "กัน"),
        ("シン", "ジン"),
        ("ベル", "ペル"),
        ("はた", "はだ"),
    ],
)
def test_words_that_differ_in_a_letter_are_others(one: str, other: str) -> None:
    assert folded(one) != folded(other)
    assert plain_words(one) != plain_words(other)


def test_voiced_kana_are_the_same_in_any_form() -> None:
    forms = {unicodedata.normalize(form, "ガード・ペル") for form in ("NFC", "NFD", "NFKC", "NFKD")} | {"ｶﾞｰﾄﾞ・ﾍﾟﾙ"}
    assert {folded(text) for text in forms} == {"ガ ー ド ペ ル"}
    assert {" ".join(plain_words(text)) for text in forms} == {"ガ ー ド ペ ル"}


@pytest.mark.parametrize("text", ["jose_nunez", "José_Núñez", "JOSE—NUN\u0303EZ"])
def test_an_underscore_parts_words_whatever_else_is_there(text: str) -> None:
    assert folded(text) == "jose nunez"
