"""What the stages that fetch or train a model say of it in their manifests."""

from __future__ import annotations

from core.strict import Strict


class ModelFacts(Strict):
    """The start model: Hub name, licence, the number of its weights, and their types as safetensors names them."""

    name: str
    license: str
    parameters: int
    dtypes: list[str]


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
