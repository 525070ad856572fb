"""The licences that have rules here: one entry each, which every folder reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from core.errors import InputError
from core.licences import LICENCES, Licence, LicenceId, Licensed
from model_card.config import CardModel
from pipeline.publish.config import PackageConfig
from pipeline.publish.licence import card_licence, card_metadata, licence_problems, licence_texts
from pipeline.train.config import ModelConfig

ENTRIES = sorted(LICENCES)
TERMS = {
    "name": "Falcon LLM Licence",
    "license_name": "falcon-llm",
    "url": "https://falconllm.tii.ae/terms.html",
    "displayed": "Built using Falcon LLM technology",
    "marker": "Falcon",
}
# What the texts themselves say, from the sections that the entries name. Sources: meta-llama/llama-models
# (models/*/LICENSE), ai.google.dev/gemma/terms, and LICENSE of the Qwen models that the entries link to.
LLAMA = (
    "you shall (A) provide a copy of this Agreement with any such Llama Materials; and (B) prominently display “Built "
    "with Llama” on a related website, user interface, blogpost, about page, or product documentation. […] you shall "
    "also include “Llama” at the beginning of any such AI model name. […] iii. You must retain in all copies of the "
    "Llama Materials that you distribute the following attribution notice within a “Notice” text file distributed as a "
    "part of such copies: “Llama {0} is licensed under the Llama {0} Community License, Copyright © Meta Platforms, "
    "Inc. All Rights Reserved.”"
)
CLAUSES = {
    "llama3": "prominently display “Built with Meta Llama 3” on a related website […] you shall also include “Llama 3” "
    "at the beginning of any such AI model name. […] “Meta Llama 3 is licensed under the Meta Llama 3 Community "
    "License, Copyright © Meta Platforms, Inc. All Rights Reserved.”",
    **{f"llama{version}": LLAMA.format(version) for version in ("3.1", "3.2", "3.3", "4")},
    "gemma": "All Distributions (other than through a Hosted Service) must be accompanied by a “Notice” text file that "
    "contains the following notice: “Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms”. […] Gemma Prohibited Use Policy at ai.google.dev/gemma/prohibited_use_policy",
    "qwen": "“Qwen is licensed under the Qwen LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All Rights Reserved.” "
    "[…] you shall prominently display “Built with Qwen” or “Improved using Qwen” in the related product documentation",
    "qwen-research": "“Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, Copyright (c) Alibaba Cloud. All "
    "Rights Reserved.” […] you shall prominently display “Built with Qwen” or “Improved using Qwen”",
}


def test_every_id_has_its_entry() -> None:
    assert {*LICENCES, "other"} == set(get_args(LicenceId))


@pytest.mark.parametrize("config", [ModelConfig, PackageConfig, CardModel])
def test_every_configuration_takes_the_same_ids(config: type) -> None:
    assert config.model_fields["license"].annotation == LicenceId
    assert issubclass(config, Licensed)


def test_what_a_text_asks_to_be_said_is_what_its_entry_says() -> None:
    asking = {name for name, entry in LICENCES.items() if entry.displayed or entry.attribution or entry.name_prefix}
    assert asking == set(CLAUSES)
    for name, clause in CLAUSES.items():
        entry = LICENCES[name]
        for said in (entry.displayed, entry.attribution, entry.name_prefix.replace("-", " ")):
            assert not said or f"“{said}”" in clause
        assert not name.startswith("gemma") or entry.use_policy.removeprefix("https://") in clause


@pytest.mark.parametrize(
    ("licence", "repo", "problem"),
    [
        ("apache-2.0", "demo/tiny", None),
        ("llama3.2", "demo/Llama-tiny", None),
        ("llama3.2", "Llama/tiny", "the name 'tiny' must begin with 'Llama', .* for example Llama-tiny$"),
        ("llama3.2", "demo/llama-tiny", "must begin with 'Llama'"),
        ("llama3", "demo/Llama-tiny", "must begin with 'Llama-3'"),
        ("llama4", "demo/Llama-4-tiny", None),
        ("gemma", "demo/tiny", None),
    ],
)
def test_the_name_of_a_model_is_what_the_licence_asks(licence: str, repo: str, problem: str | None) -> None:
    said = LICENCES[licence].name_problem(repo)
    assert said == problem or (said and problem and re.search(problem, said))


def test_what_is_shown_of_a_licence_can_be_linked() -> None:
    """The card makes the licence's name inside the attribution a link."""
    for entry in LICENCES.values():
        assert entry.url.startswith("https://")
        assert entry.attribution == "" or entry.name in entry.attribution


def licensed(name: str) -> Licensed:
    return Licensed.model_validate({"license": name, "terms": TERMS if name == "other" else None})


def release(name: str, folder: Path) -> tuple[Licensed, str, Path]:
    """A tree that does what the licence asks, its card and all."""
    chosen = licensed(name)
    rules, tree, start = chosen.rules, folder / "tree", folder / "start"
    repo = f"demo/{rules.name_prefix or 'tiny'}-x"
    for place in (tree, start):
        place.mkdir()
    (start / "LICENSE.txt").write_text(f"Copyright of the owner\n{rules.marker.replace(' ', chr(10))}\nand so on\n")
    (start / "NOTICE").write_text("The owner's notice")
    for file, text in licence_texts(chosen, repo, "demo/base", [start]).items():
        (tree / file).write_text(text)
    metadata = "".join(f"{key}: {value}\n" for key, value in chosen.metadata.items())
    (tree / "README.md").write_text(f"---\n{metadata}---\n{rules.displayed}\n")
    return chosen, repo, tree


@pytest.mark.parametrize("name", [*ENTRIES, "other"])
def test_a_release_meets_its_licence_and_each_missing_part_is_named(name: str, tmp_path: Path) -> None:
    chosen, repo, tree = release(name, tmp_path)
    rules, notice, card = chosen.rules, tree / "NOTICE", tree / "README.md"
    assert licence_problems(chosen, repo, tree) == []
    assert "The weights were changed" in notice.read_text()
    assert "The owner's notice" in notice.read_text()
    for said in filter(None, (rules.attribution, rules.use_policy)):
        kept = notice.read_text()
        notice.write_text(kept.replace(said, "…"))
        assert licence_problems(chosen, repo, tree) == [f"NOTICE does not say {said!r}"]
        notice.write_text(kept)
    if rules.displayed:
        card.write_text(card.read_text().replace(rules.displayed, "…"))
        assert licence_problems(chosen, repo, tree) == [f"the card does not say {rules.displayed!r}"]
        card.write_text(card.read_text().replace("…", rules.displayed))
    card.write_text(card.read_text().replace("license: ", "license: x"))
    assert "the card names the licence" in licence_problems(chosen, repo, tree)[0]
    (tree / "LICENSE").write_text("another text" if rules.marker else "")
    assert "LICENSE is missing, or not the licence" in licence_problems(chosen, repo, tree)[1]


@pytest.mark.parametrize("name", [*ENTRIES, "other"])
def test_a_text_that_did_not_come_with_the_model_is_asked_for(name: str, tmp_path: Path) -> None:
    rules = licensed(name).rules
    if name == "apache-2.0" or rules.by_address:
        assert rules.marker in licence_texts(licensed(name), "demo/x", "demo/base", [tmp_path])["LICENSE"]
        return
    with pytest.raises(InputError, match=f"{re.escape(rules.url)}, and name its file in model.license_file"):
        licence_texts(licensed(name), "demo/x", "demo/base", [tmp_path])


@pytest.mark.parametrize("name", ["llama4", "qwen", "other"])
def test_a_licence_without_an_id_on_the_hub_is_other_there(name: str) -> None:
    metadata = licensed(name).metadata
    assert (metadata["license"], metadata["license_link"]) == ("other", licensed(name).rules.url)
    assert metadata["license_name"] == licensed(name).rules.license_name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"license": "falcon-llm"}, "'qwen-research' or 'other'"),
        ({"license": "other"}, "`other` needs `terms`"),
        ({"license": "mit", "terms": TERMS}, "has its own"),
        ({"license": "other", "terms": TERMS | {"license_name": ""}}, "license_name is missing"),
        ({"license": "other", "terms": TERMS | {"displayed": "[x](y)"}}, "pattern"),
        ({"license": "other", "terms": TERMS | {"url": "https://x/)("}}, "pattern"),
    ],
)
def test_a_licence_without_an_entry_is_refused_until_its_terms_are_stated(given: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        Licensed.model_validate(given)
    assert Licence.model_validate(TERMS).name == "Falcon LLM Licence"


@pytest.mark.parametrize(
    "metadata",
    [
        *("license: \x0bmit", "- a", "a: {", "? [a]\n: b", "license: !!timestamp mit", "license: &a mit"),
        pytest.param("license: " + "[" * 3000 + "]" * 3000, id="deep"),
    ],
)
def test_a_card_whose_metadata_cannot_be_read_names_no_licence(metadata: str, tmp_path: Path) -> None:
    """PyYAML raises many kinds of errors for it; `verify` reads a card first, to see whether it was revoked."""
    card = tmp_path / "README.md"
    card.write_text(f"---\n{metadata}\n---\n")
    with pytest.raises(ValueError, match=r".+"):
        card_metadata(card)
    assert card_licence(tmp_path) == {}


@pytest.mark.parametrize("metadata", ["", "1: x", "license: 3", "license: 0x" + "f" * 5000, "license: [mit]"])
def test_a_licence_that_is_no_text_is_none(metadata: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n")
    assert card_licence(tmp_path) == {}
