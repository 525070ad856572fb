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
    """Where a release goes. ``local`` is the loopback Hub in the store, ``hf`` is HF_ENDPOINT with HF_TOKEN.

    ``visibility`` is what the repository is after the release has been verified; until then a new one is private.
    """

    repo: str
    hub: Literal["local", "hf"]
    visibility: Literal["private", "public"] = "private"
    tag: str

    _repo = field_validator("repo")(_check_repo)

    @field_validator("tag")
    @classmethod
    def _check_tag(cls, tag: str) -> str:
        if not re.fullmatch(r"v\d+\.\d+\.\d+(?:[-+.][A-Za-z0-9]+)*", tag):
            raise ValueError("use a version, such as v1.0.0")
        return tag


class PackageConfig(Strict):
    """What the package stage needs of a recipe: the repository's name, and what the weights come from.

    ``base_model`` is the Hub id of the start model, ``recipe`` whatever of the recipe belongs into ``release.json``.
    """

    repo: str
    license: LicenceId
    base_model: str = Field(min_length=1)
    recipe: dict[str, JsonValue] = Field(default_factory=dict)

    _repo = field_validator("repo")(_check_repo)
