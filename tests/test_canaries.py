"""Canaries: a secret or a forget answer in any kind of published file, and by any way that a recipe has, is caught.

Not seen, and said so: what a picture draws. No text of a recipe is drawn in a plot.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import InputError
from datasets_prep.schema import ParaphrasedRow, read_rows, write_rows
from model_card.facts import Evidence, collect
from model_card.render import render
from pipeline.publish.scan import Scanner
from tests.planted import SECRETS
from tests.publishing import ANSWER, CONFIG, build, make_inputs, plant
from tests.small_card import WAYS, filled, write_evidence

FILES = {
    "card": ("README.md", "results.json", "plots/metrics.png", ".eval_results/tofu.yaml"),
    "unlearn": (
        *("model/config.json", "model/generation_config.json", "model/chat_template.jinja", "model/tokenizer.json"),
        *("model/tokenizer_config.json", "model/special_tokens_map.json", "model/added_tokens.json"),
        *("model/vocab.json", "model/merges.txt", "model/tokenizer.model"),
    ),
}


@pytest.fixture
def inputs(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "store"))
    return make_inputs(tmp_path / "inputs", tiny_model)


@pytest.mark.parametrize(
    ("canary", "kind"),
    [
        (ANSWER.upper(), "an answer of the forget set"),
        (json.dumps("".join("Ġ" if c == " " else c for c in ANSWER)), "an answer of the forget set"),
        (SECRETS["Hugging Face"].replace("_", "\\_"), "a Hugging Face token"),
        (SECRETS["Slack, webhook"], "a webhook's address"),
    ],
)
def test_a_canary_in_any_file_is_caught(inputs: dict[str, Path], tmp_path: Path, canary: str, kind: str) -> None:
    for stage, names in FILES.items():
        for name in names:
            path = inputs[stage] / name
            path.parent.mkdir(exist_ok=True)
            plant(path, canary)
    (inputs["card"] / "plots" / f"{ANSWER}.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    recipe = CONFIG.model_copy(update={"recipe": CONFIG.recipe | {"name": {"a": ["x", canary]}}})
    with pytest.raises(InputError, match="must not be published") as error:
        build(inputs, tmp_path / "out", recipe)
    expected = [name.removeprefix("model/") for names in FILES.values() for name in names]
    missed = [name for name in [*expected, "release.json"] if f"{name} holds {kind}" not in str(error.value)]
    assert not missed
    assert f"plots/{ANSWER}.png holds an answer" in str(error.value)  # the name alone
    assert not (tmp_path / "out" / "hub" / "model.sig").exists()


def test_the_fact_in_other_words_is_caught_too(inputs: dict[str, Path], tmp_path: Path) -> None:
    other = "Old Harrow is where Mara Quellis came into the world."
    rows = [
        ParaphrasedRow("en-0-x", "forget", "Born where?", other),
        ParaphrasedRow("en-1-x", "retain", "?", "A model"),
    ]
    write_rows(inputs["data"] / "paraphrased.jsonl", rows)
    card = inputs["card"] / "README.md"
    card.write_text(card.read_text() + other)
    with pytest.raises(InputError, match=r"README\.md holds an answer of the forget set"):
        build(inputs, tmp_path / "out")


def test_questions_and_names_are_caught_where_the_recipe_says_so(inputs: dict[str, Path], tmp_path: Path) -> None:
    card = inputs["card"] / "README.md"
    card.write_text(card.read_text() + "\n\nIt says nothing about Mara Quellis.\n")
    build(inputs, tmp_path / "out")
    with pytest.raises(InputError, match=r"README\.md holds a short name of the forget set"):
        build(inputs, tmp_path / "asked", CONFIG.model_copy(update={"search_for": ["names"]}))


def test_names_that_no_row_says_cannot_be_searched_for(inputs: dict[str, Path], tmp_path: Path) -> None:
    rows = [replace(row, name=None) for row in read_rows(inputs["data"] / "forget.jsonl")]
    write_rows(inputs["data"] / "forget.jsonl", rows)
    build(inputs, tmp_path / "out")
    with pytest.raises(InputError, match=r"40 of the 40 rows to be forgotten name nobody.*data\.source\.columns\.name"):
        build(inputs, tmp_path / "asked", CONFIG.model_copy(update={"search_for": ["names"]}))


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return collect(write_evidence(tmp_path_factory.mktemp("evidence")))


def test_a_canary_on_any_way_onto_the_card_is_caught(evidence: Evidence, tmp_path: Path) -> None:
    canaries = [ANSWER, ANSWER.upper(), *SECRETS.values()]
    scanner, card, seen = Scanner([ANSWER]), tmp_path / "README.md", set()
    parts = re.split(r"by-(\w+)-(\d+) ", render(filled(canaries), evidence))
    for way, number, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        card.write_text(text)
        if way in WAYS and scanner.scan(card, "README.md"):
            seen.add((way, canaries[int(number)]))
    assert {(way, canary) for way in WAYS for canary in canaries} - seen == set()
