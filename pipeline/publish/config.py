"""A recipe's publish section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from core.hub_ids import HubId, ReleaseTag
from core.licences import Licensed
from core.strict import Strict

Searched = Literal["questions", "names"]


class PublishConfig(Strict):
    """Where a release is published."""

    repo: HubId = Field(description="Full name of the repository, `owner/name`.")
    hub: Literal["local", "hf"] = Field(
        description="`local` is the loopback Hub in the store, `hf` is the Hub at HF_ENDPOINT, with HF_TOKEN."
    )
    visibility: Literal["private", "public"] = Field(
        default="private",
        description="Visibility of the repository once the release is verified. Until then, a new one is private.",
    )
    tag: ReleaseTag = Field(description="Tag of the release: a version, such as `v1.0.0`.")
    via: Literal["commit", "pr"] = Field(
        default="commit",
        description="How a release reaches main: `commit`, or `pr`, a pull request that others merge. Running again "
        "after the merge verifies and tags it.",
    )
    gated: Literal["auto", "manual"] | None = Field(
        default=None,
        description="Whether readers must ask for access, which is granted at once or by hand. `null` leaves it as it "
        "is.",
    )
    collection: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+/[\w.-]+-[0-9a-f]{24}$",
        description="A collection that gets the release, as the end of its address: `owner/title-0123…`.",
    )
    search_for: list[Searched] = Field(
        default_factory=list,
        description="What no published file may hold, beside the answers of the forget rows: their `questions`, the "
        "`names` of their people, which need a column (`data.source.columns.name`).",
    )


class PackageConfig(Licensed):
    """What the package stage needs from a recipe."""

    repo: HubId = Field(description="Full name of the repository.")
    tag: ReleaseTag = Field(description="Tag of the release.")
    base_model: HubId = Field(description="Hub id of the start model.")
    search_for: list[Searched] = Field(default_factory=list, description="The recipe's `publish.search_for`.")
    recipe: dict[str, JsonValue] = Field(
        default_factory=dict, description="The parts of the recipe for `release.json`."
    )
