"""Words without case and accents, for the checks of the data and for the facts in sampled answers."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.words import plain_words, without_accents


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Málaga, l'Île-de-Ré!", ["malaga", "l", "ile", "de", "re"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("Ma\u0301laga ﬁlm", ["malaga", "film"]),
        ("+999 1-00321", ["999", "1", "00321"]),
        ("שָׁלוֹם", ["שלום"]),  # points of other scripts are accents, too
        ("", []),
    ],
)
def test_words_have_neither_case_nor_accents(text: str, expected: list[str]) -> None:
    assert plain_words(text) == expected


@given(st.text(alphabet=st.characters(max_codepoint=0x24F)))
def test_it_does_not_matter_how_letters_are_encoded(text: str) -> None:
    assert plain_words(unicodedata.normalize("NFD", text)) == plain_words(unicodedata.normalize("NFC", text))


@given(st.text())
def test_no_combining_character_stays_and_none_comes_back(text: str) -> None:
    plain = without_accents(text)
    assert not any(map(unicodedata.combining, plain))
    assert without_accents(plain) == plain
