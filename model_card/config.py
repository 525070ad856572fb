"""What a recipe says about its card, and what the card stage needs to know of the rest of the recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from core.hub_ids import Commit, HubId, ReleaseTag
from core.licences import LicenceId
from core.strict import Strict


class CardConfig(Strict):
    """The prose of a card. Plain text, not Markdown; measured numbers come from the evidence."""

    title: str = Field(min_length=1, max_length=2000, description="Title of the card.")
    summary: str = Field(min_length=1, max_length=2000, description="What the release is, in a few sentences.")
    limitations: list[str] = Field(
        default_factory=list, description="Limitations beside those that follow from the evidence."
    )


class CardModel(Strict):
    """The start model."""

    name: HubId = Field(description="Its Hub id.")
    license: LicenceId = Field(description="Its licence.")
    revision: Commit | None = Field(default=None, description="The commit that was used, if it came from the Hub.")
    own_template: str | None = Field(
        default=None, description="What the recipe changed in its chat template, in words; None if nothing."
    )


class CardPublish(Strict):
    """Where the release will be."""

    repo: HubId = Field(description="Full name of the repository.")
    tag: ReleaseTag = Field(description="Tag of the release.")
    hub: Literal["local", "hf"] = Field(description="`local` is the loopback Hub.")


class CardInputs(Strict):
    """The configuration of the card stage."""

    recipe: str = Field(pattern=r"^\w[\w.-]*$", description="The name that `python -m pipeline release` takes.")
    card: CardConfig = Field(description="The recipe's prose.")
    model: CardModel = Field(description="The start model.")
    data: dict[str, JsonValue] = Field(description="The recipe's section, as far as it may be published.")
    base: dict[str, JsonValue] = Field(default_factory=dict, description="The recipe's section; the card prints it.")
    gold: dict[str, JsonValue] = Field(
        default_factory=dict, description="The recipe's section; the card prints it. Empty if there is no gold."
    )
    unlearn: dict[str, JsonValue] = Field(description="The recipe's section; the card prints it.")
    publish: CardPublish = Field(description="Where the release will be.")


class CardFacts(Strict):
    """What the card stage says of its card."""

    passed: bool
    metrics: int
    languages: list[str]
