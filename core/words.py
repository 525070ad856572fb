"""The words of a text, independent of case, accents and punctuation."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from itertools import pairwise

# Letters that are drawn alike (after Unicode's confusables, UTS 39), and Latin letters that no normal form takes apart.
_LOOKALIKES = str.maketrans(
    "авекмнорстухіјѕһԁԛԝ" + "αβεζηικμνορτυχ" + "օոսհ" + "ɑɡøłđħıŧð",
    "abekmhopctyxijshdqw" + "abeznikmvoptux" + "onuh" + "agoldhitd",
) | str.maketrans({"æ": "ae", "œ": "oe", "þ": "th"})

UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ece\u0edc-\u0edf"  # Thai, Lao
    "\u1000-\u103f\u1050-\u108f\u109a-\u109d\u1780-\u17d3"  # Burmese, Khmer
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""The characters of scripts that put no spaces between words, for a class of `re`. Each is taken for a word."""

MARKS = "\u200c\u200d" + "".join(  # and the joiners between them
    char
    for char in map(chr, (*range(0x300, 0x1E00), *range(0xA600, 0xAC00)))
    if unicodedata.category(char)[0] == "M" and not re.match(f"[{UNSPACED}]", char)
)
"""What stands on or behind a letter in a word, for a class of `re`: its ``\\w`` leaves it out."""


def word_of(letter: str) -> str:
    """The pattern of a word of such letters (a class of `re`), with the marks on them."""
    return f"{letter}+(?:[{MARKS}]+{letter}*)*"


def without_accents(text: str) -> str:
    """``élise`` becomes ``elise``, in any Unicode normal form; ligatures become letters too.

    Vowel signs as those of Hindi stay, and so do the marks of voiced kana: they are marks, and no accents.
    """
    if text.isascii():
        return text
    apart = _with_voiced_kana(unicodedata.normalize("NFKD", text))
    return "".join(c for c in apart if not unicodedata.combining(c))


def plain_words(text: str) -> list[str]:
    """The words of a text, numbers among them, without case, accents and punctuation.

    In scripts without spaces (:data:`UNSPACED`) each character is one.
    """
    return _WORD.findall(without_accents(text).casefold())


def words_and_pairs(text: str) -> list[str]:
    """The plain words, and before each character of a script without spaces its pair with the character before it.

    Such a character alone is in many words: ``北`` and ``京`` are in others too, ``北京`` is one.
    """
    found = []
    for before, word in pairwise(["", *plain_words(text)]):
        if _PAIR.match(before + word):
            found.append(before + word)
        found.append(word)
    return found


@lru_cache(maxsize=1024)
def as_words(text: str) -> re.Pattern[str]:
    """Finds a text where no word goes on before or behind it; where no spaces part words, nothing tells that."""
    unspaced = re.compile(f"[{UNSPACED}]")
    before = "" if unspaced.match(text[0]) else f"(?<!{_LETTER})"
    behind = "" if unspaced.match(text[-1]) else f"(?!{_LETTER})"
    return re.compile(before + re.escape(text) + behind)


def folded(text: str) -> str:
    """The words of a text as they are compared wherever somebody may have written them in another way.

    Letters and digits only, one space between words. As :func:`plain_words`, and independent of compatibility forms
    (full width, ligatures), of letters that are drawn alike, and of characters that are not drawn (soft hyphens,
    zero-width spaces). A vowel sign that a quote or a line break parts from its letter stays.
    """
    if text.isascii():
        return " ".join(_WORDS.findall(text.lower()))
    plain = _with_voiced_kana(unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()))
    return " ".join(_WORDS.findall(_not_drawn().sub("", plain).translate(_LOOKALIKES)))


def _with_voiced_kana(apart: str) -> str:
    """A text whose letters were taken apart, with voiced kana put together again: ``ペル`` is not ``ベル``."""
    return _VOICED.sub(lambda found: unicodedata.normalize("NFC", found[0]), apart)


_LETTER = rf"[^\W{UNSPACED}]|[{MARKS}]"
_WORDS = re.compile(rf"[{UNSPACED}]|" + word_of(rf"[^\W_{UNSPACED}]") + f"|[{MARKS}]+")
_WORD = re.compile(rf"[{UNSPACED}]|" + word_of(rf"[^\W{UNSPACED}]"))
_PAIR = re.compile(f"[{UNSPACED}]{{2}}")
_VOICED = re.compile("[\u3041-\u30ff][\u3099\u309a]")


@cache
def _not_drawn() -> re.Pattern[str]:
    """Marks on letters, and characters that only say how to set a text."""
    plane = map(chr, range(0x10000))  # a class with characters beyond it is a hundred times slower
    unseen = (c for c in plane if unicodedata.category(c) in ("Mn", "Me", "Cf") and not _is_vowel(c))
    listed = "".join(map(re.escape, unseen))
    return re.compile(f"[{listed}]+")


def _is_vowel(mark: str) -> bool:
    """Whether a mark is a letter, as the vowel signs of Hindi, Thai and others, and no accent or Mongolian variant."""
    is_letter = unicodedata.category(mark) != "Cf" and not unicodedata.combining(mark)
    is_spoken = mark in MARKS or re.match(f"[{UNSPACED}]", mark) is not None
    return is_letter and mark >= "\u0900" and is_spoken and not "\u180b" <= mark <= "\u180f"
