"""What a recipe says about its card, and what the card stage needs to know of the rest of the recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, field_validator

from core.strict import Strict

Text = Field(min_length=1, max_length=2000)


NONE_STATED = "none stated"


class CardDataset(Strict):
    """What a card calls the data, and whom it cites for them. The sample set has its own name.

    ``name`` is the Hub id where nothing else is given. ``license`` is the one that the data's own card states, or
    ``none stated`` where it states none; ``citation`` is BibTeX.
    """

    name: str | None = Field(default=None, min_length=1, max_length=200)
    license: str | None = Field(default=None, min_length=1, max_length=200)
    citation: str | None = Field(default=None, pattern=r"^\s*@\w+\s*\{", max_length=10_000)

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
    dataset: CardDataset | None = None
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
    """The configuration of the card stage. ``recipe`` is the name that ``python -m pipeline release`` takes.

    ``data``, ``base``, ``gold`` and ``unlearn`` are the recipe's sections as they are; the card prints the last three.
    ``gold`` is empty where the recipe has none.
    """

    recipe: str = Field(pattern=r"^\w[\w.-]*$")
    card: CardConfig
    model: CardModel
    data: dict[str, JsonValue]
    base: dict[str, JsonValue] = Field(default_factory=dict)
    gold: dict[str, JsonValue] = Field(default_factory=dict)
    unlearn: dict[str, JsonValue]
    publish: CardPublish
