"""What a recipe may ask of an audit. Imports pydantic only, as config.py does."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from core.strict import Strict


class Relearn(Strict):
    """How an attacker brings knowledge back: plain fine-tuning (AdamW, constant rate, all weights).

    It is done twice: on a part of the forget rows, and on as many retain rows, drawn by the seed. Both times the forget
    rows that were not relearned are probed.
    """

    forget_share: float = Field(default=0.1, gt=0, lt=1, description="Share of the forget rows that are relearned.")
    steps: int = Field(default=10, ge=1, description="Steps of the training.")
    batch_rows: int = Field(default=4, ge=1, description="Rows of a step.")
    learning_rate: float = Field(default=2e-5, gt=0, le=1, description="Learning rate.")


class Robustness(Strict):
    """Attacks on a model, or on its questions, after which the forget rows are read again."""

    quantize: list[Literal["int8", "nf4", "fp4"]] = Field(
        default_factory=list,
        description="Formats that the weights are rounded to, those of bitsandbytes: `int8` has 8 bits, `nf4` and "
        "`fp4` have 4.",
    )
    relearn: Relearn | None = Field(default=None, description="Trains the model again on some rows.")
    paraphrase: bool = Field(default=False, description="Asks the questions in other words.")
    first_words: float | None = Field(
        default=None, gt=0, lt=1, description="Share of an answer's words that the prompt gives away."
    )
    other_language: bool = Field(default=False, description="Asks the questions in another language.")

    def attacks(self) -> list[str]:
        """The names of the attacks that are asked for, ``untreated`` first: it tells what an attack adds."""
        asked = {
            "relearn_forget": self.relearn is not None,
            "relearn_retain": self.relearn is not None,
            "paraphrase": self.paraphrase,
            "first_words": self.first_words is not None,
            "other_language": self.other_language,
        }
        return ["untreated", *self.quantize, *(name for name, wanted in asked.items() if wanted)]


class Sampling(Strict):
    """Answers to the forget questions are drawn, and those that state the fact are counted."""

    samples: int = Field(ge=1, description="Answers to each question.")
    temperature: float = Field(default=1.0, gt=0, description="Temperature of the softmax.")
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Tokens are drawn from the likeliest ones that have this probability together.",
    )
    k: list[Literal[1, 2, 4, 8, 16, 32, 64, 128]] = Field(
        min_length=1, description="leak@k is measured for each: the probability that one of k answers states the fact."
    )

    @model_validator(mode="after")
    def _is_possible(self) -> Sampling:
        if max(self.k) > self.samples:
            raise ValueError(f"k is {max(self.k)} and there are {self.samples} samples; k is at most their number")
        return self


class Relative(Strict):
    """The relative test: where the unlearned model stands on the line from gold (0) to base (1), and how far off it."""

    leak_limit: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="Place on the line; the upper end of the model's one-sided 95 % interval must lie below it.",
    )
    damage_margin: float = Field(
        default=0.1,
        ge=0,
        description="How much further from the line than any gold the model may be, in lengths of the line.",
    )
