"""What a recipe says about its publication."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from core.hub_ids import HubId, ReleaseTag
from core.licences import LicenceId
from core.strict import Strict


class PublishConfig(Strict):
    """Where a release goes."""

    repo: HubId = Field(description="Full name of the repository, `owner/name`.")
    hub: Literal["local", "hf"] = Field(
        description="`local` is the loopback Hub in the store, `hf` the Hub at HF_ENDPOINT with HF_TOKEN."
    )
    visibility: Literal["private", "public"] = Field(
        default="private",
        description="What the repository is after the release has been verified; until then a new one is private.",
    )
    tag: ReleaseTag = Field(description="Tag of the release: a version, such as `v1.0.0`.")


class PackageConfig(Strict):
    """What the package stage needs of a recipe."""

    repo: HubId = Field(description="Full name of the repository.")
    license: LicenceId = Field(description="Licence of the start model, and so of the weights.")
    base_model: HubId = Field(description="Hub id of the start model.")
    recipe: dict[str, JsonValue] = Field(
        default_factory=dict, description="Whatever of the recipe belongs into `release.json`."
    )
