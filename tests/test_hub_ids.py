"""What the Hub allows as the name of a repository, and that every configuration keeps to it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from core.hub_ids import Commit, HubId, HubRef, ReleaseTag, is_commit, is_hub_id, newest_release
from datasets_prep.config import HubSource
from model_card.config import CardModel, CardPublish
from pipeline.publish.config import PackageConfig, PublishConfig
from pipeline.train.config import ModelConfig

from .conftest import ROOT

GOOD = ["a/b", "_a/b_", "0/1", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b.c", "a/" + "x" * 96]
BAD = ["a", "/b", "a/", "a/b/c", "-a/b", "a/b.", "a--b/c", "a/b..c", "a/b.git", "é/b", "a/b\n", "x/" + "x" * 97]
PARTS = st.text("aZ9_-.é", max_size=8) | st.sampled_from(["x" * 96, "x" * 97, "b.git", ".git", "a--b", "a..b"])


def the_client_allows(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


@given(st.builds("{}/{}".format, PARTS, PARTS) | st.text("ab/.-_\n", max_size=10))
@example("a.git/b")
def test_the_rule_is_that_of_the_hubs_client_for_ids_with_an_owner(text: str) -> None:
    assert is_hub_id(text) == (the_client_allows(text) and "/" in text)


@pytest.mark.parametrize("text", GOOD)
def test_these_are_ids(text: str) -> None:
    assert the_client_allows(text)
    assert TypeAdapter(HubId).validate_python(text) == text


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_id_is_refused_with_what_was_given_and_what_is_allowed(text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(HubId).validate_python(text)
    assert f"{text!r} is not the id of a Hub repository; give owner/name" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (HubRef, "id"),
        (ModelConfig, "name"),
        (HubSource, "id"),
        (PublishConfig, "repo"),
        (PackageConfig, "repo"),
        (PackageConfig, "base_model"),
        (CardModel, "name"),
        (CardPublish, "repo"),
    ],
)
def test_every_configuration_has_this_rule(config: type[BaseModel], field: str) -> None:
    def refused(value: str) -> bool:
        with pytest.raises(ValidationError) as caught:  # whatever else is missing
            config.model_validate({field: value})
        return any(problem["loc"] == (field,) for problem in caught.value.errors())

    assert not any(map(refused, GOOD))
    assert all(map(refused, BAD))


@pytest.mark.parametrize("text", ["main", "a" * 39, "a" * 41, "A" * 40, "g" * 40, "v1.0.0", "a" * 40 + "\n"])
def test_a_commit_is_all_of_its_digits(text: str) -> None:
    assert is_commit("0123456789" * 4)
    assert not is_commit(text)
    with pytest.raises(ValidationError, match="is not a commit; give all 40 of its hex digits"):
        TypeAdapter(Commit).validate_python(text)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("v1.0.0", True),
        ("v10.2.3-rc.1+x", True),
        ("1.0.0", False),
        ("v1.0", False),
        ("v1.0.0-", False),
        ("v1.0.٣", False),
        ('v1"); import os', False),
    ],
)
def test_a_tag_is_a_version(text: str, good: bool) -> None:
    if good:
        assert TypeAdapter(ReleaseTag).validate_python(text) == text
    else:
        with pytest.raises(ValidationError, match=r"is not the tag of a release; give a version, such as v1\.0\.0"):
            TypeAdapter(ReleaseTag).validate_python(text)


ORDERED = [  # the example of semver.org, and what it leaves out: versions and builds by their numbers
    *("v0.9.10", "v1.0.0-alpha", "v1.0.0-alpha.1", "v1.0.0-alpha.beta", "v1.0.0-beta", "v1.0.0-beta.2"),
    *("v1.0.0-beta.11", "v1.0.0-rc.1", "v1.0.0-rc.2", "v1.0.0-rc.10", "v1.0.0-rc-1", "v1.0.0", "v1.0.0+2"),
    *("v1.0.0+10", "v1.0.0.post1", "v1.2.0-0", "v1.2.0", "v1.10.0", "v2.0.0-rc.1", "v10.0.0"),
]


@given(st.lists(st.sampled_from(ORDERED), min_size=1))
@example(["v1.0.0-rc.2", "v1.0.0-rc.10"])
def test_the_newest_release_has_the_highest_version(tags: list[str]) -> None:
    assert newest_release([*tags, "main", "revoked-v9.9.9"]) == max(tags, key=ORDERED.index)


def test_no_release_is_the_newest_of_none() -> None:
    assert newest_release(["main", "revoked-v1.0.0"]) is None


IDENTIFIERS = st.lists(st.integers(0, 12).map(str) | st.sampled_from(["a", "B", "rc", "rc1", "1a"]), max_size=4)


def is_lower(a: list[str], b: list[str]) -> bool:
    """Rule 11 of SemVer 2.0.0 on the identifiers of two pre-releases; none is a release."""
    if not a or not b:
        return bool(a)
    for mine, other in zip(a, b, strict=False):
        if mine != other:
            numeric = mine.isdigit(), other.isdigit()
            return int(mine) < int(other) if all(numeric) else mine < other if not any(numeric) else numeric[0]
    return len(a) < len(b)


@given(IDENTIFIERS, IDENTIFIERS)
@example(["rc", "2"], ["rc", "10"])
@example(["12"], ["a"])
def test_releases_are_ordered_by_the_rules_of_semver(one: list[str], other: list[str]) -> None:
    tags = ["v1.0.0" + "-" * bool(part) + ".".join(part) for part in (one, other)]
    assert newest_release(tags) == newest_release(reversed(tags)) == tags[one == other or is_lower(one, other)]


def test_reading_a_recipe_does_not_import_the_hubs_client() -> None:
    code = "import sys, pipeline.recipe; print([name for name in sys.modules if name.startswith('huggingface_hub')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
