"""What a recipe says about its data: where the rows come from, how they are split, how they become chat rows."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.strict import Strict

Share = Annotated[float, Field(gt=0, lt=1)]


class SampleSource(Strict):
    """The embedded sample set: ``identities`` invented people a language, each with ``topics`` of the 20 topics."""

    seed: int = Field(ge=0)
    identities: int = Field(ge=2, le=100)
    topics: int = Field(ge=1, le=20)

    @model_validator(mode="after")
    def _word_lists_suffice(self) -> Self:
        # The shortest word list has 20 entries: 15 holders of a topic and 5 facts held back for false answers.
        if self.identities * self.topics > 15 * 20:
            raise ValueError(
                f"identities x topics is {self.identities * self.topics}, and the word lists suffice for 300; "
                "lower one of the two, or load a larger set with `file:` or `hub:`"
            )
        return self


class HubSource(Strict):
    """A dataset of the Hub, pinned: a branch name could mean other rows tomorrow."""

    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")


class Source(Strict):
    """Where the rows come from: exactly one of the three keys.

    ``file`` is a Parquet, JSON Lines, JSON or CSV file with the six columns (and ``split``, for ``setting: given``).
    """

    sample: SampleSource | None = None
    file: str | None = Field(default=None, min_length=1)
    hub: HubSource | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("sample", "file", "hub") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"got {' and '.join(given) or 'nothing'}; give exactly one of sample, file, hub")
        return self


class Shares(Strict):
    """The shares of the rows, each above 0, together 1."""

    retain: Share
    forget: Share
    holdout: Share

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.retain + self.forget + self.holdout
        if abs(total - 1) > 1e-9:
            raise ValueError(f"retain + forget + holdout is {total:.10g}; the shares must add up to 1")
        return self


class Perturbed(Strict):
    """False answers: ``per_row`` for each forget and holdout row, and for ``retain_rows`` rows drawn from retain.

    ``for_unlearning`` more for each forget row guide the unlearning, and no evaluation uses them.
    """

    per_row: int = Field(default=3, ge=1, le=5)
    retain_rows: int = Field(default=50, ge=1)
    for_unlearning: int = Field(default=2, ge=0, le=5)


class DataConfig(Strict):
    """The ``data`` part of a recipe.

    ``setting`` is ``topics`` (split each language and topic by ``shares``, so that one identity has retained and
    forgotten facts) or ``given`` (the source's own splits). ``allow_contradictions`` counts questions with two answers
    instead of refusing them.
    """

    source: Source
    setting: Literal["topics", "given"]
    shares: Shares | None = None
    seed: int = Field(default=42, ge=0)
    perturbed: Perturbed = Perturbed()
    allow_contradictions: bool = False

    @model_validator(mode="after")
    def _setting_fits(self) -> Self:
        if self.setting == "topics" and self.shares is None:
            raise ValueError("`setting: topics` needs `shares: {retain: …, forget: …, holdout: …}`")
        if self.setting == "given" and self.shares is not None:
            raise ValueError("`setting: given` takes the source's own splits; remove `shares`")
        if self.setting == "given" and self.source.sample is not None:
            raise ValueError("the sample set has no splits of its own; use `setting: topics`")
        return self
