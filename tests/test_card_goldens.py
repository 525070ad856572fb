"""The cards of four recipes, each from evidence as its stages leave it: read the goldens to see what is published."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from eval.catalog import CATALOG, of_family
from eval.schema import read_records
from model_card import agreement
from model_card.facts import collect
from model_card.local import read_local
from model_card.render import render
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from tests.card_evidence import write_evidence

GOLDENS = Path(__file__).parent / "goldens"
UPDATE = "UPDATE_GOLDENS"  # set this in the environment to write the goldens again, and look at the difference
FAME = "fame-topics-gd-llama32-3b"
YOURS = (f"model.hub.revision={'a' * 40}", "publish.repo=someone/Llama-3.2-3B-Instruct-FAME-topics-GD")
CARDS = {"demo": (), "demo-audit": (), "own-data": (), FAME: YOURS}  # with what one has to give for it


@pytest.mark.parametrize("name", CARDS)
def test_the_card_is_the_golden_one(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, CARDS[name])
    config = next(stage.config for stage in stages(recipe) if stage.name == "card")
    inputs = write_evidence(tmp_path, recipe)
    evidence = collect(inputs)
    card = render(config, evidence)
    assert agreement.problems(card, config, evidence, read_local(inputs).rows["forget"]) == []
    golden = GOLDENS / f"card-{name}.md"
    if os.environ.get(UPDATE):
        golden.write_text(card, encoding="utf-8")
    assert card == golden.read_text(encoding="utf-8"), f"run the test with {UPDATE}=1 and read the difference"


@pytest.mark.parametrize("name", CARDS)
def test_what_a_card_says_first_is_short(name: str) -> None:
    text = (GOLDENS / f"card-{name}.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    first = text.split("## What this does not show")[0].strip().splitlines()
    unfolded = re.sub(r"<details>.*?</details>\n", "", text, flags=re.DOTALL).strip().splitlines()
    assert len(first) <= 25
    assert len(unfolded) <= (60 if name == "demo" else 65)


@pytest.mark.parametrize("name", CARDS)
def test_the_evidence_has_every_metric_that_the_recipe_asks_for(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    inputs = write_evidence(tmp_path, recipe)
    asked = next(stage for stage in stages(recipe) if stage.name == "eval-unlearned").identity["metrics"]
    of_gold = {metric for metric in asked if metric.endswith("_gap")} | {
        *("forget_quality", "forget_quality_ks", "privacy_leak")
    }
    impossible = of_gold if recipe.gold == "none" else set()
    seeds = None if recipe.gold == "none" else recipe.gold.seeds
    impossible |= {"leak_coordinate_one_gold"} if seeds else {m.name for m in CATALOG.values() if m.needs_golds}
    tasks = {suite.task for suite in recipe.eval.suites}
    records = read_records(inputs["eval-unlearned"] / "results.json")
    assert {r.metric for r in records if r.split not in tasks} == set(asked) - impossible
    assert {r.split for r in records} >= tasks
    assert all(r.split in tasks or r.split in CATALOG[r.metric].splits for r in records)
    answers = {metric.name for metric in of_family("answer")}
    assert {r.metric for r in records if r.split == "unrehearsed"} == answers
    assert {tuple(r.by or ()) for r in records} == {(), ("language",), ("topic",)}
    assert all(r.ci_low <= r.value <= r.ci_high for r in records)
