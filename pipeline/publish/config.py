"""What a recipe says about its publication."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, JsonValue, field_validator

from core.strict import Strict

LicenceId = Literal["apache-2.0", "llama3.2"]

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"


def _check_repo(repo: str) -> str:
    if not re.fullmatch(f"{_PART}/{_PART}", repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise ValueError("use namespace/name, of letters, digits, '.', '_' and '-', as the Hub allows it")
    return repo


class PublishConfig(Strict):
    """Where a release goes."""

    repo: str = Field(description="Full name of the repository, `owner/name`.")
    hub: Literal["local", "hf"] = Field(
        description="`local` is the loopback Hub in the store, `hf` the Hub at HF_ENDPOINT with HF_TOKEN."
    )
    visibility: Literal["private", "public"] = Field(
        default="private",
        description="What the repository is after the release has been verified; until then a new one is private.",
    )
    tag: str = Field(description="Tag of the release: a version, such as `v1.0.0`.")

    _repo = field_validator("repo")(_check_repo)

    @field_validator("tag")
    @classmethod
    def _check_tag(cls, tag: str) -> str:
        if not re.fullmatch(r"v\d+\.\d+\.\d+(?:[-+.][A-Za-z0-9]+)*", tag):
            raise ValueError("use a version, such as v1.0.0")
        return tag


class PackageConfig(Strict):
    """What the package stage needs of a recipe."""

    repo: str = Field(description="Full name of the repository.")
    license: LicenceId = Field(description="Licence of the start model, and so of the weights.")
    base_model: str = Field(min_length=1, description="Hub id of the start model.")
    recipe: dict[str, JsonValue] = Field(
        default_factory=dict, description="Whatever of the recipe belongs into `release.json`."
    )

    _repo = field_validator("repo")(_check_repo)
