"""The licences that have rules here: one entry each, which every folder reads."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from core.licences import LICENCES, LicenceId, name_problem
from model_card.config import CardModel
from pipeline.publish import licence
from pipeline.publish.config import PackageConfig
from pipeline.train.config import ModelConfig


def test_every_id_has_its_entry_and_its_text() -> None:
    assert set(LICENCES) == set(get_args(LicenceId)) == set(licence._MARKER)


@pytest.mark.parametrize("config", [ModelConfig, PackageConfig, CardModel])
def test_every_configuration_takes_the_same_ids(config: type) -> None:
    assert config.model_fields["license"].annotation == LicenceId


@pytest.mark.parametrize(
    ("licence", "repo", "problem"),
    [
        ("apache-2.0", "demo/tiny", None),
        ("llama3.2", "demo/Llama-tiny", None),
        ("llama3.2", "Llama/tiny", "the name 'tiny' must begin with 'Llama', .* for example Llama-tiny$"),
        ("llama3.2", "demo/llama-tiny", "must begin with 'Llama'"),
    ],
)
def test_the_name_of_a_model_is_what_the_licence_asks(licence: str, repo: str, problem: str | None) -> None:
    said = name_problem(licence, repo)
    assert said == problem or (said and problem and re.search(problem, said))


def test_what_is_shown_of_a_licence_can_be_linked() -> None:
    """The card makes the licence's name inside the attribution a link."""
    for entry in LICENCES.values():
        assert entry.url.startswith("https://")
        assert not entry.attribution or (entry.name in entry.attribution and entry.use_policy and entry.displayed)
