"""What a recipe says about its publication."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from core.hub_ids import HubId, ReleaseTag
from core.licences import LicenceId
from core.strict import Strict


class PublishConfig(Strict):
    """Where a release goes. ``local`` is the loopback Hub in the store, ``hf`` is HF_ENDPOINT with HF_TOKEN.

    ``visibility`` is what the repository is after the release has been verified; until then a new one is private.
    """

    repo: HubId
    hub: Literal["local", "hf"]
    visibility: Literal["private", "public"] = "private"
    tag: ReleaseTag


class PackageConfig(Strict):
    """What the package stage needs of a recipe: the repository's name, and what the weights come from.

    ``base_model`` is the Hub id of the start model, ``recipe`` whatever of the recipe belongs into ``release.json``.
    """

    repo: HubId
    license: LicenceId
    base_model: HubId
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
