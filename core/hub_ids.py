"""Names on the Hub: repositories, commits, and the tags of releases. Each has one rule and one error.

Repository ids follow the rule of the Hub's client (`huggingface_hub.utils.validate_repo_id`) for ids with an owner.
Importing the client takes 60 ms in every command, so the rule is written again here; a test compares the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from core.errors import InputError
from core.strict import Strict

_PART = r"\w(?:[\w.-]{0,94}\w)?"  # an owner or a name: up to 96 characters
_HUB_ID = re.compile(f"{_PART}/{_PART}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TAG = re.compile(r"v\d+\.\d+\.\d+(?:[-+.][A-Za-z0-9]+)*", re.ASCII)

REVOKED = "revoked-"
"""Before the tag of a release: the tag that marks its revocation."""
REVOKING = "revoking-"
"""Before the tag of a release: the branch that holds the tombstone until the mark is set."""


def is_hub_id(text: str) -> bool:
    """Whether ``text`` is the full id of a repository, owner/name, as the Hub allows it."""
    return bool(_HUB_ID.fullmatch(text)) and "--" not in text and ".." not in text and not text.endswith(".git")


def is_commit(text: str) -> bool:
    """Whether ``text`` is the full id of a commit, and not a branch, a tag or an abbreviation."""
    return bool(_COMMIT.fullmatch(text))


def check_hub_id(text: str) -> str:
    """``text`` itself. Raises ValueError if it is not the full id of a repository."""
    if not is_hub_id(text):
        raise ValueError(
            f"{text!r} is not the id of a Hub repository; give owner/name, each of 1 to 96 letters without accents, "
            "digits, '_', '-' and '.'; neither part may begin or end with '-' or '.', and the id may not hold '--' or "
            "'..' or end with '.git'"
        )
    return text


def check_repository(repo: str, argument: str) -> None:
    """Raise InputError, naming the argument, if ``repo`` is not the full id of a repository."""
    try:
        check_hub_id(repo)
    except ValueError as error:
        raise InputError(
            f"{argument}: {error}. Old names without an owner have one, too: gpt2 is openai-community/gpt2."
        ) from error


def is_release_tag(text: str) -> bool:
    """Whether ``text`` is the tag of a release: a version, such as v1.0.0."""
    return bool(_TAG.fullmatch(text))


def newest_release(tags: Iterable[str]) -> str | None:
    """The tag with the highest version; others than releases' are left out.

    Versions are ordered as Semantic Versioning says: v1.0.0-rc.2, v1.0.0-rc.10, v1.0.0.
    """
    return max(filter(is_release_tag, tags), key=_precedence, default=None)


def _precedence(tag: str) -> tuple[Any, ...]:
    """What SemVer compares; then the build and the tag itself, since it calls versions equal that differ there."""

    def identifiers(text: str) -> list[tuple[bool, int, str]]:  # numbers come before words
        return [(False, int(part), "") if part.isdigit() else (True, 0, part) for part in text.split(".") if part]

    rest, _, build = tag.removeprefix("v").partition("+")
    version, _, prerelease = rest.partition("-")
    return identifiers(version), not prerelease, identifiers(prerelease), identifiers(build), tag


def _check_commit(text: str) -> str:
    if not is_commit(text):
        raise ValueError(f"{text!r} is not a commit; give all 40 of its hex digits, in lower case")
    return text


def _check_tag(text: str) -> str:
    if not is_release_tag(text):
        raise ValueError(f"{text!r} is not the tag of a release; give a version, such as v1.0.0")
    return text


def _check_release(text: str) -> str:
    repo, at, tag = text.partition("@")
    if not at:
        raise ValueError(f"{text!r} is not a release; give its repository and tag, owner/name@v1.0.0")
    check_hub_id(repo)
    _check_tag(tag)
    return text


HubId = Annotated[str, AfterValidator(check_hub_id)]
Commit = Annotated[str, AfterValidator(_check_commit)]
ReleaseTag = Annotated[str, AfterValidator(_check_tag)]
ReleaseRef = Annotated[str, AfterValidator(_check_release)]


class HubRef(Strict):
    """A repository on the Hub at one commit."""

    id: HubId = Field(description="Full name of the repository, `owner/name`.")
    revision: Commit | None = Field(
        description="Commit, 40 hex digits. `null` says that it is not pinned yet: it can be planned, never released.",
    )
