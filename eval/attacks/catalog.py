"""What an attack is: one entry each. Its metrics follow from it (eval/catalog.py). Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    """A treatment of the model or of its questions, after which the answers of forget rows are read again.

    ``how`` completes "answer probability …"; ``kind`` is an entry of :data:`KINDS`, None if nothing is done.
    ``version`` is that of the metrics that are read under it.
    """

    name: str
    how: str
    kind: str | None
    needs_holdout: bool = False
    version: int = 1


KINDS = {  # what a card says was not measured, if no metric of the kind was
    "8 bits": "quantization to 8 bits",
    "4 bits": "quantization to 4 bits, which can bring back what was forgotten at full precision",
    "relearning": "relearning, that is, whether a few steps of fine-tuning bring the facts back",
    "paraphrase": "paraphrased questions",
    "first words": "questions that give away the first words of the answer",
    "language": "the same questions in another language",
    "chained questions": "chained questions, which name a person by another fact",
    "language steering": "steering between languages, which adds a direction to a layer",
    "knowledge steering": "steering from unknown to known rows, which adds a direction to a layer",
    "patching": "activation patching, that is, how deep in the layers the facts can still be read",
    "sampling": "repeated sampling, which can say what greedy decoding hides",
}
ATTACKS = (
    Attack("untreated", "without an attack", None),
    Attack("int8", "with weights rounded to 8 bits", "8 bits"),
    Attack("nf4", "with weights rounded to 4 bits (nf4)", "4 bits"),
    Attack("fp4", "with weights rounded to 4 bits (fp4)", "4 bits"),
    Attack("relearn_forget", "after training on other forget rows", "relearning"),
    Attack("relearn_retain", "after training on retain rows", "relearning"),
    Attack("paraphrase", "asked in other words", "paraphrase"),
    # 2: only rows of which something is given; words in scripts without spaces
    Attack("first_words", "with the first words of the answer given", "first words", version=2),
    Attack("other_language", "asked in another language", "language"),
    Attack("chained", "asked about a person who is named by another fact", "chained questions"),
    Attack("steer_language", "steered towards another language", "language steering"),
    Attack("steer_known", "steered from unknown to known rows", "knowledge steering", needs_holdout=True),
)
