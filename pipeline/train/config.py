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
    """Low-rank adapters (peft), merged into the weights at the end. The head and the embeddings take none.

    ``target_modules`` is ``all-linear``, or the ends of the names of linear layers.
    """

    r: int = Field(gt=0)
    alpha: float = Field(gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str] = "all-linear"

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
    """A training on question-answer rows.

    ``train_from_layer`` freezes embeddings, head and the layers before that one; 0 trains everything. ``lora`` trains
    adapters instead. ``args`` takes any field of TRL's SFTConfig. ``precision`` is that of the matrix products; the
    weights that are trained are always float32. ``auto`` is bf16 where the device computes it natively, else fp32.
    ``processes`` share each step; what comes out does not depend on how many they are, and the key does not name them.
    """

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    train_from_layer: int = Field(default=0, ge=0)
    lora: Lora | None = None
    processes: int = Field(default=1, gt=0)
    args: dict[str, Any] = Field(default_factory=dict)

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
