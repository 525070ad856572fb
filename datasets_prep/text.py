"""Texts for the checks: whether two are the same, their language, and the contact data in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cache

from core.words import folded

_CONTACTS = {
    "e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w"),
    # A plus or a leading zero, then seven digits or more with the usual separators: dates and counts have neither.
    "phone number": re.compile(r"(?<![\w.,])(?:\+|\(?0)\d(?:[ ().\-/]{0,2}\d){6,14}(?!\w)"),
}

CERTAIN = 0.8  # measured on FAME: docs/measurements/data.md


def same(text: str) -> str:
    """The text without differences of case and spacing; equal results mean the same question or answer."""
    return " ".join(text.split()).casefold()


def same_name(text: str) -> str:
    """A name without differences of spelling (:func:`core.words.folded`); one without letters and digits is itself."""
    return folded(text) or same(text)


def fact_digest(question: str, answer: str) -> str:
    """Twelve hex digits that stand for a question and its answer."""
    return hashlib.sha256(f"{question}\0{answer}".encode()).hexdigest()[:12]


def contacts(text: str) -> dict[str, str]:
    """The personal contact data that the text seems to hold: the first of each kind."""
    return {kind: found[0] for kind, pattern in _CONTACTS.items() if (found := pattern.search(text))}


@cache  # the model takes a fifth of a second to unpack
def language_identifier() -> Callable[[str], str | None]:
    """A function that gives the language of a text (``DE``), or None if it is not certain.

    It uses py3langid's model over all of its languages, so it also recognises one that no row declares.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # not its functions: they share one state

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def identify(text: str) -> str | None:
        language, probability = identifier.classify(text)
        return str(language).upper() if probability >= CERTAIN else None

    return identify
