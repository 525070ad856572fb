"""How a model is trained and how it is unlearned: the `train` and `unlearn` sections of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.strict import Strict

Level = Literal["gold", "holdout", "false_answers"] | Annotated[float, Field(gt=0)]
"""A loss in nats per answer token, with which the forget loss is compared.

``gold`` is gold's mean on the forget rows, ``holdout`` base's mean on the holdout rows. ``false_answers`` is not one
number: it is what the model that is being trained gives to false answers to the same questions (`guides.jsonl`, which
no evaluation uses), measured anew at every check, row by row where a row is judged.
"""


class TrainConfig(Strict):
    """A fine-tune on question-answer rows.

    ``train_from_layer`` freezes embeddings, head and the layers before that one; 0 trains everything.
    ``args`` takes any field of TRL's SFTConfig. ``precision`` is that of the matrix products; the weights that are
    trained are always float32. ``auto`` is bf16 where the device computes it natively, and fp32 elsewhere.
    """

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    train_from_layer: int = Field(default=0, ge=0)
    args: dict[str, Any] = Field(default_factory=dict)


class StopRule(Strict):
    """When the ascent ends. Checked on all forget rows and on ``retain_rows`` retain rows every ``every`` steps.

    The training stops when the mean forget loss has reached ``forget_loss``, or when the mean retain loss is more than
    ``retain_loss_above_base`` nats per token above base's on the same rows.
    """

    every: int = Field(gt=0)
    forget_loss: Level
    retain_loss_above_base: float = Field(gt=0)
    retain_rows: int = Field(default=40, gt=0)


class UnlearnConfig(Strict):
    """Gradient Difference: minimise ``retain_weight`` x CE(retain) - ``forget_weight`` x CE(forget).

    Both losses are means over the answer tokens of the whole optimizer step. ``forget_cap``, where given, takes a
    forget row out of the ascent while its own mean loss is at or above that level: a variant that bounds the ascent by
    construction, and not textbook GD. ``keep`` names the checkpoint that is released: the ``last`` step, or of the
    checked steps within the retain bound the one whose forget loss is ``closest`` to the level of the stopping rule.
    ``epochs`` counts passes over the forget rows. The rest is as in a fine-tune.
    """

    method: Literal["gd"]
    epochs: int = Field(gt=0)
    forget_weight: float = Field(default=1.0, ge=0)
    retain_weight: float = Field(default=1.0, ge=0)
    retain_rows_per_forget_row: int = Field(default=1, gt=0)
    forget_cap: Level | None = None
    stop: StopRule | None = None
    keep: Literal["last", "closest"] = "last"
    pairing_seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    train_from_layer: int = Field(default=0, ge=0)
    args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> UnlearnConfig:
        if self.keep == "closest" and self.stop is None:
            raise ValueError(
                "keep: closest needs a stop rule, whose level it compares with; give `stop`, or keep: last"
            )
        if self.forget_cap == "false_answers" and self.stop is None:
            raise ValueError("forget_cap: false_answers is measured at the checks of a stop rule; give `stop`")
        if "num_train_epochs" in self.args or "max_steps" in self.args:
            raise ValueError(
                "the number of steps follows from `epochs`; take num_train_epochs and max_steps out of args"
            )
        save = self.args.get("save_steps")
        if self.forget_cap == "false_answers" and self.stop and isinstance(save, int) and save % self.stop.every:
            raise ValueError(
                f"args.save_steps is {save} and stop.every is {self.stop.every}; with forget_cap: false_answers a "
                "checkpoint must fall on a check, or a resumed run would differ: make save_steps a multiple of "
                "stop.every"
            )
        return self
