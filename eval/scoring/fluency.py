"""Whether a generation is language at all: a model that answers noise has not forgotten, it is broken.

Words are letters only, in lower case; of a script without spaces each character is one. A word is known if a spelling
dictionary of the row's language has it (pyspellchecker has lists for the five languages of FAME), or if any row of that
language does: names of invented people and places are in no dictionary. If a generation has numbers only, they must
occur in the rows: a year can be an answer, arbitrary digits cannot. See docs/decisions/0020.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from core.words import UNSPACED, word_of
from datasets_prep.chat import chat_example, encode
from datasets_prep.schema import LANGUAGES, PerturbedRow, Row
from eval.scoring.probes import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WORD = re.compile(rf"[{UNSPACED}]|" + word_of(rf"[^\W\d_{UNSPACED}]"))
TOKEN = re.compile(rf"[{UNSPACED}]|" + word_of(rf"[^\W{UNSPACED}]"))
NGRAM = 3


def alphabetic_words(text: str) -> list[str]:
    """The words of a text: runs of letters in lower case, and each character of a script without spaces."""
    return WORD.findall(unicodedata.normalize("NFC", text).lower())


def repeated_ngrams(text: str) -> float:
    """The share of the text's 3-grams of words (numbers included) that occurred in it before.

    A text of up to three words is cut into n-grams that are one word shorter than the text, so that "the the" and
    "the the the" have a repetition too.
    """
    tokens = TOKEN.findall(unicodedata.normalize("NFC", text).lower())
    size = min(NGRAM, len(tokens) - 1)
    ngrams = [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)] if size > 0 else []
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


class Vocabulary:
    """The known words of each language: those of a dictionary, and the words and numbers of the rows."""

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
        """The share of the text's words that are not known. Without a language, any language's dictionary counts.

        A text without words has a share of 0 if all of its numbers occur in the rows, else 1.
        """
        words = alphabetic_words(text)
        own = self._of_rows.get(language, set())
        if not words:
            return float(not own.issuperset(TOKEN.findall(text)))
        unknown = [word for word in words if word not in own and not _in_dictionary(word, language)]
        return len(unknown) / len(words)


def _in_dictionary(word: str, language: str | None) -> bool:
    return any(word in _dictionary(name) for name in ([language] if language else LANGUAGES))


@cache
def _dictionary(language: str) -> frozenset[str]:
    """The words of a language; none if the library has no list for it, so that only the rows' own words count."""
    from spellchecker import SpellChecker

    try:
        return frozenset(SpellChecker(language=language.lower(), distance=1).word_frequency.dictionary)
    except ValueError:
        return frozenset()


def measure(generation: str, language: str | None, vocabulary: Vocabulary) -> dict[str, float]:
    """``empty_generation``, ``repeated_ngrams`` and ``unknown_words``, and ``fluency``, which is 1 if all three are 0.

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
) -> dict[str, float]:
    """Mean NLL of each generation that is not empty, in nats per token, under the scorer's model; by ``row_id``.

    ``tokenizer``, that of the scorer's model, writes the chats. The scored text has no special tokens and no white
    space around it.
    """
    special = list(tokenizer.get_added_vocab())
    texts = {}
    for sample in samples:
        text = sample.get("generation", "")
        for token in special:  # a model can spell one out of other tokens, and a chat row must not hold it
            text = text.replace(token, " ")
        if text := text.strip():  # some templates trim an answer, and what they trim cannot be scored
            texts[sample["row_id"]] = text
    chats = [chat_example(tokenizer, questions[row_id], text) for row_id, text in texts.items()]
    scores = scorer.score([encode(tokenizer, chat) for chat in chats])
    return {row_id: float(-of_row.logprobs.mean()) for row_id, of_row in zip(texts, scores, strict=True)}
