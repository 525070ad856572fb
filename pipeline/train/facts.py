"""What the stages that fetch or train a model say of it in their manifests."""

from __future__ import annotations

from typing import Literal

from core.strict import Strict


class Products(Strict):
    """The precision that matrix products are faster in on the device, and the seconds measured; None if none were."""

    precision: Literal["fp32", "bf16"]
    fp32_seconds: float | None
    bf16_seconds: float | None

    @classmethod
    def unmeasured(cls, precision: Literal["fp32", "bf16"]) -> Products:
        """A precision that follows from the device alone."""
        return cls(precision=precision, fp32_seconds=None, bf16_seconds=None)


class ModelFacts(Strict):
    """The start model: Hub name, licence, the number of its weights, and their types as safetensors names them.

    ``products`` is what the precision ``auto`` of every training of the release stands for.
    """

    name: str
    license: str
    parameters: int
    dtypes: list[str]
    products: Products


class PublishedFacts(Strict):
    """A published model at a pinned commit, in the place of one trained here."""

    hub: str
    revision: str | None
    parameters: int
    dtypes: list[str]


class TrainingSeeds(Strict):
    """Where a training's random numbers come from."""

    training: int


class TrainingFacts(Strict):
    """A fine-tuning: the number of its rows and optimizer steps, the splits, the seeds."""

    rows: int
    steps: int
    splits: list[str]
    seeds: TrainingSeeds
