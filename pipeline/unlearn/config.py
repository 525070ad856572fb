"""How a model is unlearned: the `unlearn` section of a recipe."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from core.errors import DataError, RecipeError
from core.steps import rows_per_step, split_of_step
from core.strict import Strict
from pipeline.train.config import TrainConfig

Named = Literal["gold", "holdout", "false_answers"]


class AboveLevel(Strict):
    """A named level plus a margin, in nats per answer token."""

    of: Named = Field(description="The named level.")
    plus: float = Field(description="What is added, in nats per answer token.")


Level = Named | Annotated[float, Field(gt=0)] | AboveLevel
"""A loss in nats per answer token; the description of ``StopRule.forget_loss`` says what its names mean."""


def _level_name(level: Level | None) -> str | None:
    """The name of the level that ``level`` refers to; None if it is a number or not given."""
    if isinstance(level, AboveLevel):
        return level.of
    return level if isinstance(level, str) else None


class StopRule(Strict):
    """When the ascent ends: at the check that finds the forget loss at its level and the retain loss within its bound.

    The training also stops if the retain loss was above its bound at three checks in a row.
    """

    every: int = Field(gt=0, description="Steps from one check to the next.")
    forget_loss: Level = Field(
        description="Level that the mean forget loss must reach, in nats per answer token: a number or a name. `gold` "
        "is gold's mean on the forget rows, `holdout` base's mean on the holdout rows. `false_answers` is not one "
        "number: it is what the model that is being trained gives to false answers to the same questions "
        "(`guides.jsonl`, which no evaluation uses), measured anew at every check, row by row if a row is judged."
    )
    retain_loss_above_base: float = Field(
        gt=0,
        description="Bound of the mean retain loss: so many nats per answer token above base's on the same rows.",
    )
    forget_rows: int | None = Field(
        default=None,
        gt=0,
        description="Forget rows that are checked, the same each time. `null` checks them all, and leaves none on "
        "which the gates could be confirmed. Caps of other rows (`forget_cap: false_answers`) move from base's level "
        "as those of the checked rows do on average.",
    )
    retain_rows: int = Field(default=40, gt=0, description="Retain rows that are checked.")
    held_out: bool = Field(
        default=False,
        description="Whether these retain rows are taken out of the training, so that rows which were not trained on "
        "pick the checkpoint.",
    )


class DualWeight(Strict):
    """A retain weight that follows the retain loss L of each step: weight = max(0, weight + rate x (L - bound)).

    The weight starts at ``retain_weight``. L is of all rows that are rehearsed, those of ``neighbours`` too. (Gradient
    ascent on the multiplier of the constraint L <= bound.)
    """

    rate: float = Field(gt=0, description="What a step adds to the weight for each nat per token above the bound.")
    retain_loss_above_base: float = Field(
        ge=0, description="The bound: so many nats per answer token above base's loss on the rehearsed rows."
    )


BEAMS = 2
"""Width of the beam search that finds base's likeliest answer to a neighbour's question."""
OTHERS = 4
"""So many other people base is asked about in the place of each fact, at most."""
BATCH_ROWS = 32
"""Questions that base is asked at once."""


class Neighbours(Strict):
    """Questions that nobody gave, answered by base and rehearsed: what is like the retain rows and not among them.

    A question is that of a given row with the name of another person of the data, if no given row asks it; everything
    is asked once before it is asked in other words. Base gives its likeliest answer that states no forgotten fact (beam
    search); without one, the question is dropped. How base goes on after another word in the place of each forgotten
    fact, asked about other people, is rehearsed too.
    """

    questions: int = Field(gt=0, description="The number of questions at most.")
    seed: int = Field(default=0, description="Seed from which they are drawn.")
    max_new_tokens: int = Field(default=64, ge=1, description="Tokens of an answer at most.")


_BOTH = {"forget_weight": 1.0, "retain_weight": 1.0, "retain_rows_per_forget_row": 1}
_LOSS = {"retain_loss": "nll", "dual": None}
PARAMETERS: dict[str, dict[str, Any]] = {
    # The parameters that each method reads beyond the common ones, with their defaults.
    "ft": {"retain_rows_per_forget_row": 1},
    "ga": {"forget_cap": None},
    "gd": {**_BOTH, **_LOSS, "forget_cap": None},
    "klm": {**_BOTH, "forget_cap": None},
    "po": {**_BOTH, "refusal_seed": 0},
    "npo": {**_BOTH, **_LOSS, "beta": 0.1},
    "simnpo": {**_BOTH, **_LOSS, "beta": 2.5, "gamma": 0.0},
    "altpo": {**_BOTH, **_LOSS, "beta": 0.1},
    "wga": {**_BOTH, **_LOSS, "forget_cap": None, "beta": 1.0},
    "csd": {
        **_BOTH,
        "retain_weight": 32.0,
        "retain_rows_per_forget_row": 2,
        "pull_weight": 1.0,
    },
}
ASCENDING = frozenset(PARAMETERS) - {"ft", "po", "csd"}  # methods that push the forget loss up, and on


def _readers(parameter: str) -> str:
    """The methods that read a parameter, and its default for each; a part of the parameter's description."""
    methods: dict[Any, list[str]] = {}
    for method, own in PARAMETERS.items():
        if parameter in own:
            methods.setdefault(own[parameter], []).append(f"`{method}`")
    groups = [", ".join(m) + ("" if value is None else f", by default {value}") for value, m in methods.items()]
    return f"For {'; '.join(groups)}."


class UnlearnConfig(TrainConfig):
    """An unlearning run: minimise ``forget_weight`` x forget term + ``retain_weight`` x retain term.

    A key that is only for some methods is an error with another one. With ``null`` it has the method's own default.
    """

    method: Literal["ft", "ga", "gd", "klm", "po", "npo", "simnpo", "altpo", "wga", "csd"] = Field(
        description="What the two terms are. `ft`: retain alone. `ga`: ascent alone. `gd`: ascent and retain. `klm`: "
        "ascent, and KL from base on retain. `po`: a refusal in place of the forget answer, and retain. `npo`, "
        "`simnpo` and `wga`: bounded forms of the ascent, and retain. `altpo`: a false answer preferred to the true "
        "one, and retain. `csd`: counterfactual self-distillation, KL to what base would say without the fact, and KL "
        "from base on retain. The last two need false answers (`data.perturbed.for_unlearning`), and `csd` a "
        "`novice` and a start model (`model`) that do not know the facts."
    )
    epochs: int = Field(
        gt=0,
        description="Passes over the forget rows; the number of steps follows from it. The demo has twenty "
        "for csd; ten over 41 rows and five over 256 left the facts half known.",
    )
    min_steps: int = Field(
        default=0,
        ge=0,
        description="If `epochs` would take fewer optimizer steps than this, there are more passes, so that a request "
        "for a few rows is trained as long as one for many.",
    )
    forget_weight: float | None = Field(
        default=None, ge=0, description=f"Weight of the forget term. {_readers('forget_weight')}"
    )
    retain_weight: float | None = Field(
        default=None, ge=0, description=f"Weight of the retain term. {_readers('retain_weight')}"
    )
    retain_rows_per_forget_row: int | None = Field(
        default=None,
        gt=0,
        description=f"Retain rows that go with each forget row. {_readers('retain_rows_per_forget_row')}",
    )
    retain_loss: Literal["nll", "kl"] | None = Field(
        default=None, description=f"The retain term: cross-entropy, or KL from base. {_readers('retain_loss')}"
    )
    dual: DualWeight | None = Field(
        default=None, description=f"Lets the retain weight follow the retain loss. {_readers('dual')}"
    )
    forget_cap: Level | None = Field(
        default=None,
        description="A forget row is out of the ascent while its own mean loss is at or above this level, a number or "
        f"a name as in `unlearn.stop.forget_loss`. {_readers('forget_cap')}",
    )
    beta: float | None = Field(default=None, gt=0, description=f"β of the method's forget term. {_readers('beta')}")
    gamma: float | None = Field(
        default=None, ge=0, description=f"γ of the method's forget term, in nats per answer token. {_readers('gamma')}"
    )
    pull_weight: float | None = Field(
        default=None,
        ge=0,
        description="Weight of the pull that brings each token of a fact, and the next one, to its level, and those of "
        f"a false answer to what base says of them, beside the KL of the forget term. {_readers('pull_weight')}",
    )
    neighbours: Neighbours | None = Field(
        default=None, description="Questions like the given ones, answered by base and rehearsed with the retain rows."
    )
    refusal_seed: int | None = Field(
        default=None, description=f"Seed from which refusals are drawn. {_readers('refusal_seed')}"
    )
    loss_normalization: Literal["step_tokens", "microbatch_mean"] = Field(
        default="step_tokens",
        description="`step_tokens` takes means over the answer tokens of the whole optimizer step (for npo, simnpo and "
        "altpo, which judge rows, over its forget rows). `microbatch_mean` takes them over each micro-batch, and then "
        "their mean, as published code does: it depends on how a step is split.",
    )
    gradient_norms_every: int = Field(
        default=0,
        ge=0,
        description="Steps from one logging of the norms of both terms' gradients to the next (one more backward pass "
        "each time). 0 never logs them.",
    )
    stop: StopRule | None = Field(default=None, description="When the ascent ends before the schedule does.")
    keep: Literal["last", "closest"] = Field(
        default="last",
        description="The checkpoint that is released: that of the `last` step, or of the checked steps within the "
        "retain bound the one whose forget loss is `closest` to the level of `stop`.",
    )
    pairing_seed: int = Field(
        default=0,
        description="Seed from which retain rows are drawn for each forget row, and for altpo and csd a false answer.",
    )

    @classmethod
    def changed_from_defaults(cls, section: Any) -> list[str]:
        """The keys of a section whose values are not the defaults. Raises ValidationError if it is no such section."""
        return sorted(cls.model_validate(section).model_dump(exclude_defaults=True))

    def check_share(self, processes: int) -> None:
        """Raise RecipeError if ``processes`` cannot share a step, or if sharing would change its loss."""
        super().check_share(processes)
        parts = split_of_step(self.args)[1]
        if self.loss_normalization == "microbatch_mean" and parts % processes:
            raise RecipeError(
                f"loss_normalization: microbatch_mean depends on the micro-batches, and {parts} "
                f"(args.gradient_accumulation_steps) cannot be shared out over {processes} processes. Use a number of "
                f"processes that divides {parts}, or set step_tokens."
            )

    def passes(self, forget_rows: int) -> int:
        """How often the forget rows are gone through: ``epochs``, or more if there are too few rows for the steps."""
        return max(self.epochs, math.ceil(self.min_steps * rows_per_step(self.args) / max(forget_rows, 1)))

    def refuse_rows(self, retain: int, rehearsed: int, holdout: int) -> None:
        """Raise DataError if a level or the early-stopping rule needs more than so many rows.

        ``rehearsed`` are the ``retain`` rows and what base says to neighbours.
        """
        if "holdout" in self.named_levels and not holdout:
            raise DataError("unlearn: the level `holdout` needs holdout rows, but the data have none. Use a number.")
        if self.stop is None or not self.stop.held_out:
            return
        held_out, each = min(self.stop.retain_rows, retain), self.retain_rows_per_forget_row or 0
        if rehearsed - held_out < each:
            raise DataError(
                f"unlearn: stop.held_out takes {held_out} of {rehearsed} retain rows out of the training. The other "
                f"{rehearsed - held_out} are too few for {each} with each forget row. Lower stop.retain_rows."
            )

    @property
    def retain_kl(self) -> bool:
        """Whether the retain term is the KL divergence from base."""
        return self.method in ("klm", "csd") or self.retain_loss == "kl"

    @property
    def measures_base(self) -> bool:
        """Whether base, or a model beside it, is measured before the first step."""
        return bool(self.named_levels or self.stop or self.dual or self.retain_kl or self.method in ("npo", "altpo"))

    @property
    def trains_on_false_answers(self) -> bool:
        """Whether a step reads a false answer beside each forget row."""
        return self.method in ("altpo", "csd")

    @property
    def named_levels(self) -> set[str]:
        """The named levels that the forget cap and the stop rule refer to."""
        given = (self.forget_cap, self.stop.forget_loss if self.stop else None)
        return {name for level in given if (name := _level_name(level))}

    @property
    def caps_move(self) -> bool:
        """Whether each forget row's cap follows the loss of its false answers, measured anew at every check."""
        return _level_name(self.forget_cap) == "false_answers"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, values: Any) -> Any:
        """Fill in the method's own defaults, so that the card and the key show the values that are used."""
        if not isinstance(values, dict) or str(values.get("method")) not in PARAMETERS:
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
                f"method {self.method} does not use {', '.join(unused)}{who}; remove it or set it to null. It uses: "
                f"{', '.join(PARAMETERS[self.method])}"
            )
        if self.dual and self.retain_loss != "nll":
            raise ValueError("dual bounds the retain loss itself; set retain_loss: nll, or remove dual")
        if self.forget_weight == 0 and self.retain_weight == 0:
            raise ValueError("forget_weight and retain_weight are both 0, so nothing is trained; raise one of them")
        if (self.dual or self.gradient_norms_every) and self.forget_weight == 0:
            raise ValueError("forget_weight is 0, so there is nothing to weigh; set method: ft, or raise it")
        if self.neighbours and self.method == "ga":
            raise ValueError("neighbours are rehearsed with the retain rows, but method ga trains on none; remove it")
        if self.gradient_norms_every and self.method in ("ft", "ga"):
            raise ValueError(f"gradient_norms_every compares two terms, but method {self.method} has one; set it to 0")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> UnlearnConfig:
        if self.keep == "closest" and self.stop is None:
            raise ValueError("keep: closest needs the level of a stop rule; give `stop`, or set keep: last")
        if self.caps_move and self.stop is None:
            raise ValueError("forget_cap: false_answers is measured at the checks of a stop rule; give `stop`")
        if "num_train_epochs" in self.args or "max_steps" in self.args:
            raise ValueError(
                "the number of steps follows from `epochs`; remove num_train_epochs and max_steps from args"
            )
        save = self.args.get("save_steps", 500)  # the trainer's own number
        every = self.stop.every if self.stop and self.caps_move and self.args.get("save_strategy") == "steps" else None
        if every and (type(save) is not int or save < 1 or save % every):
            raise ValueError(
                f"args.save_steps is {save!r} and stop.every is {every}; with forget_cap: false_answers a "
                "checkpoint must fall on a check, or a resumed run would differ: make save_steps a multiple of "
                "stop.every"
            )
        return self
