"""The words of a text, independent of case, accents and punctuation."""

from __future__ import annotations

import re
import unicodedata


def without_accents(text: str) -> str:
    """``élise`` becomes ``elise``, in any Unicode normal form; ligatures become letters too."""
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def plain_words(text: str) -> list[str]:
    """The words of a text, numbers among them, without case, accents and punctuation."""
    return re.findall(r"\w+", without_accents(text).casefold())
