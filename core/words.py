"""The words of a text, independent of case, accents and punctuation."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

# Letters that are drawn alike (after Unicode's confusables, UTS 39), and Latin letters that no normal form takes apart.
_LOOKALIKES = str.maketrans(
    "авекмнорстухіјѕһԁԛԝ" + "αβεζηικμνορτυχ" + "օոսհ" + "ɑɡøłđħıŧð",
    "abekmhopctyxijshdqw" + "abeznikmvoptux" + "onuh" + "agoldhitd",
) | str.maketrans({"æ": "ae", "œ": "oe", "þ": "th"})

SEARCHED = 6  # letters and digits: shorter texts occur in any file by chance, so a search for them says nothing


def without_accents(text: str) -> str:
    """``élise`` becomes ``elise``, in any Unicode normal form; ligatures become letters too."""
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def plain_words(text: str) -> list[str]:
    """The words of a text, numbers among them, without case, accents and punctuation."""
    return re.findall(r"\w+", without_accents(text).casefold())


def folded(text: str) -> str:
    """The words of a text as they are compared wherever somebody may have written them in another way.

    Letters and digits only, one space between words. As :func:`plain_words`, and independent of compatibility forms
    (full width, ligatures), of letters that are drawn alike, and of characters that are not drawn (soft hyphens,
    zero-width spaces).
    """
    if text.isascii():
        return " ".join(_WORDS.findall(text.lower()))
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return " ".join(_WORDS.findall(_not_drawn().sub("", plain).translate(_LOOKALIKES)))


def is_searched(text: str) -> bool:
    """Whether a text is long enough to be searched for in files that are to be published."""
    return sum(map(len, folded(text).split())) >= SEARCHED


_WORDS = re.compile(r"[^\W_]+")


@cache
def _not_drawn() -> re.Pattern[str]:
    """Marks on letters, and characters that only say how to set a text."""
    plane = map(chr, range(0x10000))  # a class with characters beyond it is a hundred times slower
    listed = "".join(re.escape(c) for c in plane if unicodedata.category(c) in ("Mn", "Me", "Cf"))
    return re.compile(f"[{listed}]+")
