"""Sentences of a card that hang on what was done: on golds, on retain rows, on whose the data are, on the command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from model_card import lint
from model_card.config import CardInputs
from model_card.facts import Evidence, collect
from model_card.render import render
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from tests.card_evidence import write_evidence


def made(folder: Path, name: str, overrides: Sequence[str] = ()) -> tuple[CardInputs, Evidence]:
    """The card stage's configuration of a recipe, and evidence as its stages would leave it."""
    recipe = load_recipe(name, overrides)
    config = next(stage.config for stage in stages(recipe) if stage.name == "card")
    return config, collect(write_evidence(folder, recipe))


def text_of(config: CardInputs, evidence: Evidence) -> str:
    """The card, which keeps every rule of the lint."""
    card = render(config, evidence)
    assert lint.problems(card, config, evidence) == []
    return " ".join(card.split())


def test_with_one_gold_the_card_says_that_golds_were_not_compared(tmp_path: Path) -> None:
    assert "one base and one gold, each of one seed" in text_of(*made(tmp_path, "demo"))


def test_with_several_golds_the_card_says_which_metrics_know_them(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo-audit")
    card = text_of(config, evidence)
    assert "each of one seed" not in card
    assert "there are 5 golds, each of its own seed. `leak_coordinate` and `damage` compare with all of them." in card
    assert "| `gold.seeds` | \\[1, 2, 3, 4\\] |" in card
    assert card.count("| `train.args.seed` | 0 |") == 1  # base and gold are still one table

    without = [record for record in evidence.records["unlearned"] if record.metric != "leak_coordinate"]
    unused = replace(evidence, records=evidence.records | {"unlearned": without})
    card = text_of(config, unused)
    assert "there are 5 golds, each of its own seed. All values are compared with one of them" in card
    assert "how much two golds differ was not measured" in card


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "Retain values are of rows that were trained on."),
        (["unlearn.stop.held_out=true"], "rows that base was trained on; the unlearning left out 20 of the 160."),
    ],
)
def test_the_card_says_which_retain_rows_were_trained_on(overrides: list[str], said: str, tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo", overrides)
    card = text_of(config, evidence)
    assert said in card
    assert card.count("Retain values are of rows that") == 1
    alone = text_of(config, replace(evidence, rehearsed=0))  # gradient ascent trains on no retain row
    assert "rows that base was trained on; the unlearning left out all of the 160." in alone
