"""The lint of any card: twenty cards that are wrong in one thing each, ours, and the command."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from model_card.lint import lint, lint_folder, unfinished
from tests.conftest import ROOT, Call
from tests.small_card import config, write_evidence

GOOD = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
library_name: transformers
pipeline_tag: text-generation
language:
- en
tags:
- unlearning
model-index:
- name: x
  results:
  - task: {type: text-generation}
    dataset: {name: mmlu, type: cais/mmlu}
    metrics:
    - {type: acc, value: 0.4567}
---

# A model

It reads [the notes](NOTES.md) and [below](#results), and [the paper](https://arxiv.org/abs/2512.15235).

![Accuracy of both models](plots/x.png)

## Results

| task | accuracy |
|---|---|
| mmlu | 0.457 |
"""
FILES = ("README.md", "NOTES.md", "plots/x.png", "results.json")
BAD = {
    "no metadata": (GOOD, "# A model\n", "There is no metadata"),
    "metadata that is not YAML": ("license: apache-2.0", "license: [apache", "metadata cannot be read"),
    "metadata with a date that there is not": ("license: apache-2.0", "date: 2020-13-45", "metadata cannot be read"),
    "metadata with an anchor": ("license: apache-2.0", "license: &a apache-2.0", "aliases are not allowed"),
    "metadata without an end": ("- unlearning", "- " + "x" * 70_000, "at most 65536 are read"),
    "metadata that is a list": (GOOD, "---\n- a\n---\n# A model\n", "not a mapping"),
    "no licence": ("license: apache-2.0\n", "", "license is missing"),
    "a misspelt key": ("license: apache-2.0", "licence: apache-2.0", "licence is not a key"),
    "a licence that is no id": ("license: apache-2.0", "license: Apache 2.0 (see below)", "not an id of the Hub"),
    "another licence that is not named": ("license: apache-2.0", "license: other", "license_name and license_link"),
    "a licence that is not the start model's": ("license: apache-2.0", "license: mit", "has the licence apache-2.0"),
    "Gemma's licence of before Gemma 4": (
        "license: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct",
        "license: gemma\nbase_model: google/gemma-4-E2B-it",
        "license is gemma, and google/gemma-4-E2B-it has the licence apache-2.0",
    ),
    "a named licence that is not the start model's": (
        "license: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct",
        "license: other\nlicense_name: llama3.3\nlicense_link: https://x.org\nbase_model: meta-llama/Llama-4-Scout",
        "license is llama3.3, and meta-llama/Llama-4-Scout has the licence llama4",
    ),
    "a local start model": (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "./checkpoint-3",
        "base_model holds './check",
    ),
    "a language that is none": ("- en\n", "- English\n", "language holds 'English'"),
    "a tag that is a number": ("- unlearning", "- 3", "tags holds 3"),
    "no task": ("pipeline_tag: text-generation\n", "", "pipeline_tag is missing"),
    "an index without results": ("  results:\n", "  resultats:\n", "model-index is not a list"),
    "a placeholder": ("# A model\n", "# A model\n\n[More Information Needed]\n", "Placeholder"),
    "a to-do": ("It reads", "TODO. It reads", "Placeholder 'TODO'"),
    "somebody's path": ("It reads", "From /home/me/runs/3. It reads", "Local path"),
    "a dead anchor": ("(#results)", "(#numbers)", "leads to no heading"),
    "a dead link": ("(NOTES.md)", "(docs/NOTES.md)", "leads to no file"),
    "a link to a machine": ("https://arxiv.org/abs/2512.15235", "http://localhost:8000", "somebody's machine"),
    "an image without words": ("![Accuracy of both models]", "![]", "no alternative text"),
    "an image that is not there": ("plots/x.png", "plots/y.png", "is no file of the repository"),
    "an HTML image without words": (
        "![Accuracy of both models](plots/x.png)",
        '<img src="plots/x.png">',
        "no alternative",
    ),
    "a number without a source": ("| mmlu | 0.457 |", "| mmlu | 0.657 |", "0.657 is in no file"),
    "Llama that is not shown": (
        "license: apache-2.0\nbase_model: HuggingFaceTB/SmolLM2-135M-Instruct",
        "license: llama3.2\nbase_model: meta-llama/Llama-3.2-1B",
        'requires "Built with Llama"',
    ),
}


def test_a_good_card_breaks_no_rule() -> None:
    assert lint(GOOD, FILES) == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_card_is_told_what_is_wrong(name: str) -> None:
    right, wrong, message = BAD[name]
    assert right in GOOD
    found = [problem.says for problem in lint(GOOD.replace(right, wrong), FILES)]
    assert message in found[0], found


@pytest.mark.parametrize(
    ("licence", "base", "displayed"),
    [
        (
            "license: other\nlicense_name: llama4\nlicense_link: https://example.org",
            "meta-llama/Llama-4-Scout",
            "Llama",
        ),
        ("license: llama3", "meta-llama/Meta-Llama-3-8B", "Meta Llama 3"),
        ("license: gemma", "google/gemma-2b-it", "Gemma"),
        ("license: apache-2.0", "google/gemma-4-E2B-it", "Gemma"),
    ],
)
def test_the_licence_of_a_family_is_right_under_its_name_on_the_hub(licence: str, base: str, displayed: str) -> None:
    card = GOOD.replace("license: apache-2.0", licence).replace("HuggingFaceTB/SmolLM2-135M-Instruct", base)
    assert lint(card.replace("# A model\n", f"# A model\n\nBuilt with {displayed}.\n"), FILES) == []


def test_numbers_may_come_from_the_files_of_results() -> None:
    card = GOOD.replace("0.457", "0.66 (0.61 to 0.71)")
    assert len(lint(card, FILES)) == 3
    assert lint(card, FILES, [{"models": {"x": [{"value": 0.6571, "ci_low": 0.6123, "ci_high": 0.7099}]}}]) == []


@pytest.mark.parametrize(
    "number",
    ["1.5e400", "1.5e-400", "0.0e400", "1.5e99999999999999999999", "-1.5e-99999999999999999999", "9" * 500 + ".5"],
)
def test_a_number_that_no_value_can_be_has_no_source(number: str) -> None:
    (problem,) = lint(GOOD.replace("0.457", number), FILES, [{"largest": 10**400, "no": [float("inf"), 0.0]}])
    assert problem.says.startswith(f"The number {number} is in no file of results")


@pytest.mark.parametrize("depth", [900, 100_000])
def test_results_that_are_nested_without_end_are_an_error(depth: int, tmp_path: Path, call: Call) -> None:
    (tmp_path / "README.md").write_text(GOOD)
    (tmp_path / "results.json").write_text("[" * depth + "]" * depth)
    done = call("card", "lint", str(tmp_path))
    assert done.returncode == 2
    assert "results.json: is not JSON (lists and objects are more than 100 deep in each other)" in done.stderr


@pytest.mark.parametrize("piece", ["TODO\n", "/a/b\n", "<img "])
def test_a_long_hostile_card_is_read_in_the_time_of_its_length(piece: str) -> None:
    text = GOOD + piece * (320_000 // len(piece))
    began = time.process_time()
    assert lint(text, FILES) == [] if piece == "<img " else len(list(unfinished(text))) == 64_000
    assert time.process_time() - began < 5  # reading all of it for each piece takes 10 s to two minutes


def test_a_placeholder_is_shown_in_its_line() -> None:
    problems = [problem.says for problem in lint(GOOD + "one\u2028two\n\nWrite a TODO here\n", FILES)]
    line = GOOD.partition("\n---\n")[2].count("\n")
    assert problems == [f"Placeholder 'TODO' in line {line + 2}: Write a TODO here."]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from model_card.stage import run

    folder = tmp_path_factory.mktemp("release")
    inputs = write_evidence(folder / "evidence")
    (folder / "out").mkdir()
    run(config(), inputs, folder / "out")
    (folder / "out" / "gate.json").write_bytes((inputs["gate"] / "gate.json").read_bytes())
    return folder / "out"


def test_our_own_card_breaks_no_rule(release: Path) -> None:
    assert lint_folder(release) == []


def test_the_card_of_a_run_has_its_verdict_in_the_folder_beside_it(release: Path, tmp_path: Path) -> None:
    for stage in ("card", "gate"):
        (tmp_path / "store" / stage).mkdir(parents=True)
        (tmp_path / stage).symlink_to(tmp_path / "store" / stage)
    shutil.copytree(release, tmp_path / "card", dirs_exist_ok=True)
    (tmp_path / "card" / "gate.json").unlink()
    assert {problem.rule for problem in lint_folder(tmp_path / "card")} == {"numbers"}
    shutil.copy(release / "gate.json", tmp_path / "gate")
    assert lint_folder(tmp_path / "card") == lint_folder(tmp_path / "card" / "README.md") == []


def test_the_command_lints_a_folder(release: Path, call: Call) -> None:
    done = call("card", "lint", str(release))
    assert (done.returncode, done.stdout) == (0, "No rule is broken.\n")
    card = release / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace("license: apache-2.0\n", "", 1), encoding="utf-8")
    try:
        done = call("card", "lint", str(card), "--json")
    finally:
        card.write_text(text, encoding="utf-8")
    assert done.returncode == 2
    assert json.loads(done.stdout)["problems"] == [{"rule": "metadata", "says": "license is missing."}]
    assert "breaks 1 rule(s)" in done.stderr


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("nowhere", "is not the id of a Hub repository"),
        ("no/such/folder", f"there is no file or folder {ROOT}/no/such/folder"),
        ("nosuch/README.md", f"there is no file or folder {ROOT}/nosuch/README.md"),
        ("./nowhere", f"there is no file or folder {ROOT}/nowhere"),
    ],
)
def test_what_is_no_card_and_no_repository_is_an_error(place: str, says: str, call: Call) -> None:
    done = call("card", "lint", place)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_folder_without_a_card_is_an_error(tmp_path: Path, call: Call) -> None:
    done = call("card", "lint", str(tmp_path))
    assert done.returncode == 2
    assert "no card can be read there" in done.stderr


def test_the_command_lints_a_private_repository(tmp_path: Path, call: Call) -> None:
    from huggingface_hub import HfApi

    from pipeline.localhub.server import LocalHub

    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("demo/other", private=True)
        for name, text in (("README.md", GOOD), ("NOTES.md", "x"), ("results.json", '{"a": 0.457}')):
            api.upload_file(path_or_fileobj=text.encode(), path_in_repo=name, repo_id="demo/other")
    done = call("card", "lint", "demo/other", "--store", str(tmp_path), "--json")
    assert done.returncode == 2, done.stderr
    says = "The image plots/x.png is no file of the repository."
    assert json.loads(done.stdout)["problems"] == [{"rule": "links", "says": says}]
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.upload_file(path_or_fileobj=b"{", path_in_repo="results.json", repo_id="demo/other")
    done = call("card", "lint", "demo/other", "--store", str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "of README.md, results.json, one is not UTF-8 or not JSON" in done.stderr
    done = call("card", "lint", "demo/nothing", "--hub", "local", "--store", str(tmp_path))
    assert done.returncode == 4
    assert "reading the card of demo/nothing at main: the Hub answered 404" in done.stderr
