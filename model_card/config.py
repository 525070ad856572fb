"""A recipe's card section, and what the card stage needs from the rest of the recipe."""

from __future__ import annotations

import shlex
import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue, field_validator

from core.hub_ids import Commit, HubId, HubRef, ReleaseTag
from core.licences import Licensed
from core.strict import Strict

NONE_STATED = "none stated"
WITHHELD = "WITHHELD"

# They set the direction of what follows, so a reader would see another text than the one that is there.
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def _check_text(text: str) -> str:
    for character in text:
        if character in _DIRECTIONS or (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\r\t"):
            raise ValueError(f"holds U+{ord(character):04X}, which no reader sees; remove it")
    return text


Text = Annotated[str, AfterValidator(_check_text)]


class CardDataset(Strict):
    """Name, licence and citation of data of your own. The sample set has its own."""

    name: Text | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Name of the data. Default: the id, if they are on the Hub.",
    )
    license: Text | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="The licence that the data's own card states; `none stated` if it states none.",
    )
    citation: Text | None = Field(
        default=None, pattern=r"^\s*@\w+\s*\{", max_length=10_000, description="BibTeX entry to cite for the data."
    )

    @field_validator("citation")
    @classmethod
    def _stays_in_its_block(cls, citation: str | None) -> str | None:
        if citation and "```" in citation:
            raise ValueError("holds ```, which would end its block on the card; remove it")
        return citation


class CardConfig(Strict):
    """The prose of a card: plain text, not Markdown. Measured numbers come from the evidence.

    A decimal number must be one of them, or stand in the name of the model, of the data or of a licence.
    """

    title: Text = Field(min_length=1, max_length=2000, description="Title of the card.")
    summary: Text = Field(min_length=1, max_length=2000, description="What the release is, in a few sentences.")
    dataset: CardDataset | None = Field(default=None, description="What the card says about data of your own.")
    limitations: list[Text] = Field(
        default_factory=list, description="Limitations in addition to those that follow from the evidence."
    )
    compared: HubRef | None = Field(
        default=None,
        description="Another checkpoint, for example a published one. It is fetched, evaluated with the same suite and "
        "compared, as by the command `compare`; the card then holds the table. Its margins are those of `equivalence`.",
    )
    collection: HubId | None = Field(
        default=None,
        description="The dataset repository with the comparison of a collection, whose members get this key from it.",
    )
    new_version: HubId | None = Field(
        default=None, description="The repository that replaces this one; the Hub then leads readers there."
    )


class CardModel(Licensed):
    """The start model."""

    name: HubId = Field(description="Its Hub id.")
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

    recipe: str = Field(
        min_length=1, description="The name of a recipe of this project, or `./` and the file name of the user's own."
    )
    overrides: list[str] = Field(
        default_factory=list, description="The `--set` values, each `KEY=VALUE` or `KEY=WITHHELD`."
    )
    card: CardConfig = Field(description="The recipe's prose.")
    model: CardModel = Field(description="The start model.")
    data: dict[str, JsonValue] = Field(description="The recipe's section, without what must not be published.")
    base: dict[str, JsonValue] = Field(default_factory=dict, description="The recipe's section; the card prints it.")
    gold: dict[str, JsonValue] = Field(
        default_factory=dict, description="The recipe's section; the card prints it. Empty if there is no gold."
    )
    novice: dict[str, JsonValue] | None = Field(
        default=None, description="The recipe's section; the card prints it. None if the method takes nothing from it."
    )
    unlearn: dict[str, JsonValue] = Field(description="The recipe's section; the card prints it.")
    eval: dict[str, JsonValue] | None = Field(
        default=None, description="The recipe's section; the card prints it. None in cards of earlier versions."
    )
    changed_from_defaults: list[str] = Field(
        default_factory=list, description="The dotted keys of `unlearn` whose values are not the defaults."
    )
    publish: CardPublish = Field(description="Where the release will be.")

    @property
    def trained_alike(self) -> bool:
        """Whether base and gold were both trained here, with the same settings."""
        gold = {key: value for key, value in self.gold.items() if key != "seeds"}
        return bool(gold.get("train")) and gold == self.base

    @property
    def published(self) -> bool:
        """Whether one of the models was trained elsewhere, on what its publisher says."""
        sections = (self.base, self.gold, self.novice or {})
        return any(section.get("hub") or section.get("release") for section in sections)

    @property
    def command(self) -> str:
        """The command line that made the release, quoted for a shell."""
        values = [word for value in self.overrides for word in ("--set", value)]
        return shlex.join(["python", "-m", "pipeline", "release", self.recipe, *values])

    @property
    def withholds(self) -> bool:
        """Whether some values of the command are not shown."""
        return any(value.endswith(f"={WITHHELD}") for value in self.overrides)


OF_RECIPE = ("recipe", "overrides", "model", "data", "base", "gold", "novice", "unlearn", "eval")
"""The fields of :class:`CardInputs` that `release.json` has too, as the recipe that the release was made from."""


class CardFacts(Strict):
    """The card stage's facts, for the manifest."""

    passed: bool
    metrics: int
    languages: list[str]
