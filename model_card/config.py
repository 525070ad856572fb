"""What a recipe says about its card, and what the card stage needs to know of the rest of the recipe."""

from __future__ import annotations

import shlex
from typing import Literal

from pydantic import Field, JsonValue, field_validator

from core.strict import Strict

Text = Field(min_length=1, max_length=2000)


NONE_STATED = "none stated"
WITHHELD = "WITHHELD"


class CardDataset(Strict):
    """What a card calls the data, and whom it cites for them. The sample set has its own name."""

    name: str | None = Field(
        default=None, min_length=1, max_length=200, description="Their name; that of data of the Hub is else their id."
    )
    license: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="The licence that the data's own card states; `none stated` if it states none.",
    )
    citation: str | None = Field(
        default=None, pattern=r"^\s*@\w+\s*\{", max_length=10_000, description="BibTeX of what is cited for them."
    )

    @field_validator("citation")
    @classmethod
    def _stays_in_its_block(cls, citation: str | None) -> str | None:
        if citation and "```" in citation:
            raise ValueError("holds ```, which would end its block on the card; take it out")
        return citation


class CardConfig(Strict):
    """The prose of a card. Plain text, not Markdown; measured numbers come from the evidence."""

    title: str = Text
    summary: str = Text
    dataset: CardDataset | None = Field(default=None, description="What the card says of data of your own.")
    limitations: list[str] = Field(default_factory=list)


class CardModel(Strict):
    """The start model. ``name`` is its Hub id, ``revision`` the commit that was used, where it came from the Hub.

    ``own_template`` says in words what the recipe changed in its chat template; None where nothing was changed.
    """

    name: str = Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$")
    license: Literal["apache-2.0", "llama3.2"]
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    own_template: str | None = None


class CardPublish(Strict):
    """Where the release will be. ``hub: local`` is the loopback Hub."""

    repo: str = Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$")
    tag: str = Field(pattern=r"^\w[\w.+-]*$")
    hub: Literal["local", "hf"]


class CardInputs(Strict):
    """The configuration of the card stage.

    ``recipe`` is the name of a recipe of this project, or ``./`` and the name of somebody's own file. ``overrides`` are
    the ``--set`` values, each ``KEY=VALUE`` or ``KEY=WITHHELD``.
    ``data``, ``base``, ``gold`` and ``unlearn`` are the recipe's sections as they are; the card prints the last three.
    ``gold`` is empty where the recipe has none.
    """

    recipe: str = Field(min_length=1)
    overrides: list[str] = Field(default_factory=list)
    card: CardConfig
    model: CardModel
    data: dict[str, JsonValue]
    base: dict[str, JsonValue] = Field(default_factory=dict)
    gold: dict[str, JsonValue] = Field(default_factory=dict)
    unlearn: dict[str, JsonValue]
    publish: CardPublish

    @property
    def command(self) -> str:
        """The command line that made the release, quoted for a shell."""
        values = [word for value in self.overrides for word in ("--set", value)]
        return shlex.join(["python", "-m", "pipeline", "release", self.recipe, *values])

    @property
    def withholds(self) -> bool:
        """Whether the command does not show all of its values."""
        return any(value.endswith(f"={WITHHELD}") for value in self.overrides)
