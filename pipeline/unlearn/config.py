"""How a model is unlearned: the `unlearn` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from core.errors import RecipeError
from core.ranks import split_of_step
from core.strict import Strict
from pipeline.train.config import TrainConfig

Named = Literal["gold", "holdout", "false_answers"]


class AboveLevel(Strict):
    """A named level plus a margin, in nats per answer token."""

    of: Named
    plus: float


Level = Named | Annotated[float, Field(gt=0)] | AboveLevel
"""A loss in nats per answer token, with which the forget loss is compared.

``gold`` is gold's mean on the forget rows, ``holdout`` base's mean on the holdout rows. ``false_answers`` is not one
number: it is what the model that is being trained gives to false answers to the same questions (`guides.jsonl`, which
no evaluation uses), measured anew at every check, row by row where a row is judged.
"""


def level_name(level: Level | None) -> str | None:
    """The named level that ``level`` rests on; None where it is a number or not given."""
    if isinstance(level, AboveLevel):
        return level.of
    return level if isinstance(level, str) else None


class StopRule(Strict):
    """When the ascent ends. Checked on ``forget_rows`` and ``retain_rows`` rows of the splits every ``every`` steps.

    Within its bound the mean retain loss is at most ``retain_loss_above_base`` nats per token above base's on the same
    rows. The training stops when the mean forget loss has reached ``forget_loss`` and retain is within its bound, or
    when it was not at three checks in a row. With ``held_out`` these retain rows are taken out of the training, so that
    rows which were not trained on pick the checkpoint. Without ``forget_rows`` all forget rows are checked, and none is
    left on which the gates could be confirmed.
    """

    every: int = Field(gt=0)
    forget_loss: Level
    retain_loss_above_base: float = Field(gt=0)
    forget_rows: int | None = Field(default=None, gt=0)
    retain_rows: int = Field(default=40, gt=0)
    held_out: bool = False


class DualWeight(Strict):
    """A retain weight that follows the retain loss L of each step: weight = max(0, weight + rate x (L - bound)).

    The bound is base's loss on the retain rows plus ``retain_loss_above_base``, nats per token. The weight starts at
    ``retain_weight``. (Gradient ascent on the multiplier of the constraint L <= bound.)
    """

    rate: float = Field(gt=0)
    retain_loss_above_base: float = Field(ge=0)


_BOTH = {"forget_weight": 1.0, "retain_weight": 1.0, "retain_rows_per_forget_row": 1}
_LOSS = {"retain_loss": "nll", "dual": None}
PARAMETERS: dict[str, dict[str, Any]] = {
    # What each method reads beyond what all read, and the value where the recipe gives none.
    "ft": {"retain_rows_per_forget_row": 1},
    "ga": {"forget_cap": None},
    "gd": {**_BOTH, **_LOSS, "forget_cap": None},
    "klm": {**_BOTH, "forget_cap": None},
    "po": {**_BOTH, "refusal_seed": 0},
    "npo": {**_BOTH, **_LOSS, "beta": 0.1},
    "simnpo": {**_BOTH, **_LOSS, "beta": 2.5, "gamma": 0.0},
    "wga": {**_BOTH, **_LOSS, "forget_cap": None, "beta": 1.0},
}
ASCENDING = frozenset(PARAMETERS) - {"ft", "po"}  # methods that push the forget loss up


class UnlearnConfig(TrainConfig):
    """An unlearning run: minimise ``forget_weight`` x forget term + ``retain_weight`` x retain term.

    The terms of each ``method`` are in :mod:`pipeline.unlearn.losses`: ``ft`` retain alone; ``ga`` ascent alone; ``gd``
    ascent and retain; ``klm`` ascent and KL from base on retain; ``po`` a refusal in place of the forget answer, and
    retain; ``npo``, ``simnpo`` and ``wga`` bounded forms of the ascent, and retain. :data:`PARAMETERS` says which of
    the fields from ``forget_weight`` to ``refusal_seed`` a method reads; another one is an error, null is as not given.

    ``forget_cap`` takes a forget row out of the ascent while its own mean loss is at or above that level.
    ``loss_normalization: step_tokens`` takes means over the answer tokens of the whole optimizer step (for npo and
    simnpo, which judge rows, over its forget rows); ``microbatch_mean`` means over each micro-batch, and then their
    mean, as published code does: it depends on how a step is split. ``gradient_norms_every`` logs the norms of both
    terms' gradients every so many steps (one more backward pass then); 0 never does. ``keep`` names the checkpoint
    that is released: the ``last`` step, or of the checked steps within the retain bound the one whose forget loss is
    ``closest`` to the level of the stopping rule. ``epochs`` counts passes over the forget rows. The rest is as in a
    fine-tune.
    """

    method: Literal["ft", "ga", "gd", "klm", "po", "npo", "simnpo", "wga"]
    epochs: int = Field(gt=0)
    forget_weight: float | None = Field(default=None, ge=0)
    retain_weight: float | None = Field(default=None, ge=0)
    retain_rows_per_forget_row: int | None = Field(default=None, gt=0)
    retain_loss: Literal["nll", "kl"] | None = None
    dual: DualWeight | None = None
    forget_cap: Level | None = None
    beta: float | None = Field(default=None, gt=0)
    gamma: float | None = Field(default=None, ge=0)
    refusal_seed: int | None = None
    loss_normalization: Literal["step_tokens", "microbatch_mean"] = "step_tokens"
    gradient_norms_every: int = Field(default=0, ge=0)
    stop: StopRule | None = None
    keep: Literal["last", "closest"] = "last"
    pairing_seed: int = 0

    def check_share(self, processes: int) -> None:
        """Raise RecipeError where ``processes`` cannot share a step, or would change what it means."""
        super().check_share(processes)
        parts = split_of_step(self.args)[1]
        if self.loss_normalization == "microbatch_mean" and parts % processes:
            raise RecipeError(
                f"loss_normalization: microbatch_mean depends on the micro-batches, and {parts} "
                f"(args.gradient_accumulation_steps) cannot be shared out over {processes} processes as they are"
            )

    @property
    def retain_kl(self) -> bool:
        """Whether the retain term is the KL divergence from base."""
        return self.method == "klm" or self.retain_loss == "kl"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, values: Any) -> Any:
        """Write the method's own values where none are given, so that the card and the key show what is used."""
        if not isinstance(values, dict) or values.get("method") not in PARAMETERS:
            return values
        own = PARAMETERS[values["method"]]
        return values | {name: value for name, value in own.items() if values.get(name) is None}

    @model_validator(mode="after")
    def _method_uses_them(self) -> UnlearnConfig:
        every = {name for own in PARAMETERS.values() for name in own}
        unused = sorted(n for n in every - PARAMETERS[self.method].keys() if getattr(self, n) is not None)
        if unused:
            readers = [method for method, own in PARAMETERS.items() if set(unused) <= own.keys()]
            who = f" ({', '.join(readers)} would)" if readers else ""
            raise ValueError(
                f"method {self.method} does not use {', '.join(unused)}{who}; take it out or set it to null. It uses: "
                f"{', '.join(PARAMETERS[self.method])}"
            )
        if self.dual and self.retain_loss != "nll":
            raise ValueError("dual bounds the retain loss itself; set retain_loss: nll, or take dual out")
        if self.forget_weight == 0 and self.retain_weight == 0:
            raise ValueError("forget_weight and retain_weight are both 0, so nothing is trained; give one of them more")
        if (self.dual or self.gradient_norms_every) and self.forget_weight == 0:
            raise ValueError("forget_weight is 0, so there is nothing to weigh; say method: ft, or give it a weight")
        if self.gradient_norms_every and self.method in ("ft", "ga"):
            raise ValueError(
                f"gradient_norms_every tells two terms apart, and method {self.method} has one; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> UnlearnConfig:
        if self.keep == "closest" and self.stop is None:
            raise ValueError(
                "keep: closest needs a stop rule, whose level it compares with; give `stop`, or keep: last"
            )
        moving = level_name(self.forget_cap) == "false_answers"
        if moving and self.stop is None:
            raise ValueError("forget_cap: false_answers is measured at the checks of a stop rule; give `stop`")
        if "num_train_epochs" in self.args or "max_steps" in self.args:
            raise ValueError(
                "the number of steps follows from `epochs`; take num_train_epochs and max_steps out of args"
            )
        save = self.args.get("save_steps", 500)  # the trainer's own number
        every = self.stop.every if self.stop and moving and self.args.get("save_strategy") == "steps" else None
        if every and (type(save) is not int or save < 1 or save % every):
            raise ValueError(
                f"args.save_steps is {save!r} and stop.every is {every}; with forget_cap: false_answers a "
                "checkpoint must fall on a check, or a resumed run would differ: make save_steps a multiple of "
                "stop.every"
            )
        return self
