"""Texts for the checks: whether two are the same, their language, and the contact data in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cache

from core.words import folded, plain_words

_CONTACTS = {
    # From the start of a run of its characters alone: from each of them, a long run would take minutes.
    "e-mail address": re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]*\w"),
    # A plus or a leading zero, then seven digits or more with the usual separators: dates and counts have neither.
    "phone number": re.compile(r"(?<![\w.,])(?:\+|\(?0)\d(?:[ ().\-/]{0,2}\d){6,14}(?!\w)"),
}

_WORDS = re.compile(r"[^\W_]+")

CERTAIN = 0.8  # measured on FAME: docs/measurements/data.md
LONGEST_VALUE = 3  # words; in a script without cases, a value has letters of its question too


def same(text: str) -> str:
    """The text without differences of case and spacing; equal results mean the same question or answer."""
    return " ".join(text.split()).casefold()


def same_name(text: str) -> str:
    """A name without differences of spelling (:func:`core.words.folded`); one without letters and digits is itself."""
    return folded(text) or same(text)


def says_whom(question: str, answer: str, name: str | None) -> bool:
    """Whether the answer says whom it is about: it holds a word of the name, or one of the question that could be.

    Such a word does not begin in lower case. In a script without cases each letter counts: not all of them have spaces.
    """
    asked = _WORDS.findall(f"{question[:1].lower()}{question[1:]} {name or ''}")
    could_be = {word.casefold() for word in asked if not word[0].islower()}
    letters = {letter for letter in "".join(could_be) if letter.lower() == letter.upper() and letter.isalpha()}
    said = answer.casefold()
    return not (could_be.isdisjoint(_WORDS.findall(said)) and letters.isdisjoint(said))


def told(question: str, answer: str, name: str | None) -> tuple[str, ...]:
    """What a row tells, as words: equal for all rows that tell one fact, in whatever words it is asked for.

    Equal answers tell one fact if they say whom they are about; values, such as towns, if the questions are equal too.
    Case, accents and punctuation make no difference.
    """
    words = plain_words(answer)
    is_sentence = len(words) > LONGEST_VALUE and says_whom(question, answer, name)
    return (*words, *(() if is_sentence else ("\0", *plain_words(question))))


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
