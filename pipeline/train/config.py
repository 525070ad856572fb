"""How a model is trained: what every training of a recipe may say."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from core.errors import RecipeError
from core.ranks import share_of_step
from core.strict import Strict

WITHOUT_EFFECT = {"use_cpu", "dataloader_num_workers", "dataloader_pin_memory", "report_to"}
"""Fields of ``args`` that change no result: they enter no key, and a run that was cut off may go on with others."""


class Lora(Strict):
    """Low-rank adapters (peft), merged into the weights at the end. The head and the embeddings take none."""

    r: int = Field(gt=0, description="Rank of the adapters.")
    alpha: float = Field(gt=0, description="What an adapter adds is scaled by alpha / r.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of an adapter's inputs that are set to 0.")
    target_modules: Literal["all-linear"] | list[str] = Field(
        default="all-linear", description="Where adapters go: all linear layers, or the ends of the names of some."
    )

    @model_validator(mode="after")
    def _not_on_the_head(self) -> Lora:
        outer = {"lm_head", "embed_tokens"}
        named = [name for name in self.target_modules if name.split(".")[-1] in outer]
        if not isinstance(self.target_modules, str) and (named or not self.target_modules):
            raise ValueError(
                f"target_modules is {self.target_modules}: name at least one linear layer, and neither head nor "
                "embeddings (they may be one tensor, which cannot be merged twice); or say all-linear"
            )
        return self


class TrainConfig(Strict):
    """A training on question-answer rows."""

    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Precision of the matrix products; the weights that are trained are always float32. `auto` is bf16 "
        "if the device computes it natively, else fp32.",
    )
    train_from_layer: int = Field(
        default=0,
        ge=0,
        description="Embeddings, head and the layers before this one are frozen. 0 trains everything.",
    )
    lora: Lora | None = Field(default=None, description="Trains adapters instead of whole layers.")
    processes: int = Field(
        default=1,
        gt=0,
        description="Processes that share each step. The result does not depend on how many they are, and no stage's "
        "key names them.",
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="Any field of TRL's SFTConfig by its own name, for example `learning_rate`, except those that the "
        "pipeline sets. Defaults are SFTConfig's, but for these: nothing is saved before the end (`save_strategy: "
        "no`), nothing is reported to a tracker, and gradients are not checkpointed.",
    )

    def check_share(self, processes: int) -> None:
        """Raise RecipeError where ``processes`` cannot share a step."""
        share_of_step(self.args, processes)

    def identity(self) -> dict[str, Any]:
        """What of the configuration decides the result."""
        plain = self.model_dump(mode="json", exclude={"processes"})
        return plain | {"args": {key: value for key, value in plain["args"].items() if key not in WITHOUT_EFFECT}}

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        if self.lora and self.train_from_layer:
            raise ValueError(
                "lora trains adapters alone and train_from_layer chooses whole layers; give one of the two "
                "(lora.target_modules chooses where adapters go)"
            )
        try:
            self.check_share(self.processes)
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self
