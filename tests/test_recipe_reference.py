"""docs/recipe.md is what the models say, and they say something of every key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import Field

from core.strict import Strict
from model_card.config import CardInputs
from pipeline.publish.config import PackageConfig
from pipeline.recipe import RECIPES, GateFile, Recipe, load_recipe
from pipeline.recipe_errors import sections
from pipeline.recipe_reference import recipe_reference
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "recipe.md"
UPDATE = "UPDATE_GOLDENS"


def test_the_page_is_the_golden_one() -> None:
    text = recipe_reference()
    if os.environ.get(UPDATE):
        PAGE.write_text(text, encoding="utf-8")
    assert text == PAGE.read_text(encoding="utf-8"), f"run the test with {UPDATE}=1 and read the difference"


def undescribed(model: type[Strict]) -> Iterator[str]:
    """The fields without a description, of a model and of those inside it."""
    for name, field in model.model_fields.items():
        if not (field.description or "").strip():
            yield f"{model.__name__}.{name}"
        for section in sections(field.annotation):
            yield from undescribed(section)


@pytest.mark.parametrize("model", [Recipe, GateFile, CardInputs, PackageConfig])
def test_every_field_says_what_it_means(model: type[Strict]) -> None:
    assert list(undescribed(model)) == []


def test_a_field_that_says_nothing_is_found() -> None:
    class Inner(Strict):
        silent: int = Field(default=1, description=" ")

    class Outer(Strict):
        inner: list[Inner] | None = Field(default=None, description="Some.")
        bare: int

    assert list(undescribed(Outer)) == ["Inner.silent", "Outer.bare"]


def keys(value: Any, at: str = "") -> Iterator[str]:
    """The dotted keys of a dumped recipe, as the page writes them."""
    if isinstance(value, list):
        for item in value:
            yield from keys(item, f"{at}[]")
    elif isinstance(value, dict):
        for name, item in value.items():
            key = f"{at}.{name}".removeprefix(".")
            yield key
            if name not in ("args", "equivalence"):  # mappings whose keys are not ours
                yield from keys(item, key)


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_the_page_has_every_key_of_a_recipe(name: str) -> None:
    listed = set(re.findall(r"`([^`]+)`(?=<br>| \|)", PAGE.read_text(encoding="utf-8")))
    missing = set(keys(load_recipe(name).model_dump())) - listed
    assert not missing


@pytest.mark.parametrize(
    "row",
    [
        "| `data.setting` | `topics`, `entity`, `given` or `request` | required | What is forgotten.",
        "| `data.shares.retain` | number > 0 and < 1 | required | Share of the rows to be kept. |",
        "| `data.request.forget` | list of 1 or more ([section](#datarequestforget-datarequestholdout-",
        "| `base.hub`<br>`gold.hub`<br>`novice.hub` | [section](#modelhub-basehub-goldhub-novicehub-cardcompared) or ",
        "| `unlearn.precision` | `auto`, `fp32` or `bf16` | `auto` |",
        "| `unlearn.stop.forget_loss` | `gold`, `holdout`, `false_answers`, number > 0 or [section](#",
        "| `data.checks` | [section](#datachecks) | its own defaults |",
        "For `npo`, `altpo`, by default 0.1; `simnpo`, by default 2.5; `wga`, by default 1.0. |",
        '| `equivalence` | mapping (text: number > 0) | `{"answer_probability": 0.05, ',
    ],
)
def test_a_row_has_type_default_and_meaning(row: str) -> None:
    assert row in recipe_reference()


def test_every_link_leads_to_one_heading() -> None:
    text = recipe_reference()
    headings = [re.sub(r"[^a-z0-9_ -]", "", line[3:].lower()).replace(" ", "-") for line in text.splitlines()
                if line.startswith("## ")]  # fmt: skip
    assert len(set(headings)) == len(headings)
    links = set(re.findall(r"\(#([^)]+)\)", text))
    assert links
    assert links <= set(headings)


def test_the_readme_leads_to_the_page() -> None:
    assert "(docs/recipe.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(recipe.md)" in (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
