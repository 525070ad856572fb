"""Whether a generation is language at all: a model that answers noise has not forgotten, it is broken.

Words are letters only, in lower case. A word is known where a spelling dictionary of the row's language has it
(pyspellchecker, which carries lists for the five languages of FAME) or where any row of that language does: names of
invented people and places are in no dictionary. Where nothing but numbers is said, they must be those of rows: a year
is an answer, and any digits are not. See docs/decisions/0020.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from datasets_prep.schema import LANGUAGES, PerturbedRow, Row
from eval.scoring.probes import Encoder, Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD = re.compile(r"[^\W\d_]+")
TOKEN = re.compile(r"\w+")
NGRAM = 3


def alphabetic_words(text: str) -> list[str]:
    """The words of a text: runs of letters, in lower case."""
    return WORD.findall(text.lower())


def repeated_ngrams(text: str) -> float:
    """The share of the text's runs of three words (digits count as words here) that occurred in it before.

    The runs of a shorter text are one word shorter than the text, so that "the the" and "the the the" repeat one too.
    """
    tokens = TOKEN.findall(text.lower())
    size = min(NGRAM, len(tokens) - 1)
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)] if size > 0 else []
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


class Vocabulary:
    """The words that are known in each language: those of a dictionary, and those of the rows with their numbers."""

    def __init__(self, rows: Iterable[Row], perturbed: Iterable[PerturbedRow]) -> None:
        self._of_rows: dict[str | None, set[str]] = {}
        language_of: dict[str, str | None] = {}
        for row in rows:
            language_of[row.row_id] = row.language
            self._add(row.language, f"{row.question} {row.answer}")
        for false in perturbed:
            if false.row_id in language_of:
                self._add(language_of[false.row_id], " ".join(false.answers))

    def _add(self, language: str | None, text: str) -> None:
        self._of_rows.setdefault(language, set()).update(alphabetic_words(text), re.findall(r"\d+", text))

    def unknown(self, text: str, language: str | None) -> float:
        """The share of the text's words that are not known; of a row without a language, in none of the languages.

        A text without words has a share of 1, unless all of its numbers are some row's.
        """
        found = alphabetic_words(text)
        own = self._of_rows.get(language, set())
        if not found:
            return float(not own.issuperset(TOKEN.findall(text)))
        unknown = [word for word in found if word not in own and not _in_dictionary(word, language)]
        return len(unknown) / len(found)


def _in_dictionary(word: str, language: str | None) -> bool:
    return any(word in _dictionary(name) for name in ([language] if language else LANGUAGES))


@cache
def _dictionary(language: str) -> frozenset[str]:
    """The words of a language; none where the library has no list for it, and then the rows' own words decide."""
    from spellchecker import SpellChecker

    try:
        return frozenset(SpellChecker(language=language.lower(), distance=1).word_frequency.dictionary)
    except ValueError:
        return frozenset()


def measure(generation: str, language: str | None, vocabulary: Vocabulary) -> dict[str, float]:
    """``empty_generation``, ``repeated_ngrams``, ``unknown_words``, and ``fluency``, which is 1 where none of it is.

    Fluency is 0 for an empty generation, else (1 - repeated n-grams) x (1 - unknown words).
    """
    empty = not re.search(r"\w", generation)
    repeated, unknown = repeated_ngrams(generation), vocabulary.unknown(generation, language)
    return {
        "empty_generation": float(empty),
        "repeated_ngrams": repeated,
        "unknown_words": unknown,
        "fluency": 0.0 if empty else (1.0 - repeated) * (1.0 - unknown),
    }


def generation_losses(
    samples: Iterable[Mapping[str, Any]],
    questions: Mapping[str, str],
    scorer: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    encode: Encoder,
) -> dict[str, float]:
    """Mean NLL of each generation that is not empty, in nats per token, under the scorer's model; by ``row_id``.

    Scored is the text without special tokens and without the white space around it.
    """
    special = list(tokenizer.get_added_vocab())
    texts = {}
    for sample in samples:
        text = sample.get("generation", "")
        for token in special:  # a model can spell one out of other tokens, and a chat row must not hold it
            text = text.replace(token, " ")
        if text := text.strip():  # some templates trim an answer, and what they trim cannot be scored
            texts[sample["row_id"]] = text
    scores = scorer.score([encode(questions[row_id], text) for row_id, text in texts.items()])
    return {row_id: float(-found.logprobs.mean()) for row_id, found in zip(texts, scores, strict=True)}
