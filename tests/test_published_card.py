"""A card is rendered again from the published files alone, and results stand where the Hub looks for them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from core.artifacts import Git, write_file
from core.errors import ArtifactError
from core.lineage import EarlierRelease, Forgotten
from core.yaml_source import dotted
from eval.schema import ComparedMetric, Comparison, OtherPrompts, Record, write_comparison, write_other_prompts
from model_card import agreement, stage
from model_card.config import OF_RECIPE
from model_card.facts import Evidence, collect
from model_card.metadata import benchmark_files
from model_card.published import CARD, read_published
from model_card.render import render
from model_card.suites import SuiteData
from pipeline.publish.schema import RELEASE, Release
from pipeline.recheck import problems
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from tests.artifacts import Place, part_at, write_manifest
from tests.card_evidence import Plain, write_evidence
from tests.test_card_goldens import GOLDENS, UPDATE
from tests.test_report import HOSTILE, poisoned

SOLVED = Record("exact_match_strict-match", "gsm8k", 0.5234, 0.5, 0.55, 1319, True, 3)
GSM8K = SuiteData("openai/gsm8k", "main", "test", limited=False)
FORGOTTEN = Forgotten(rows=20, sha256="1f" * 32)
EARLIER = EarlierRelease(repo="demo/x", tag="v1.0.0", commit="c0" * 20, weights_sha256="ee" * 32, forgotten=FORGOTTEN)
COMPARED = ComparedMetric(
    metric="answer_probability", split="forget", ours=0.1634, theirs=0.1712, n=40, paired=True, difference=-0.0078,
    ci_low=-0.0191, ci_high=0.0042, margin=0.05, p_value=0.001, smallest_margin=0.02, verdict="equivalent",
)  # fmt: skip
OVERRIDES = [f"card.title={json.dumps(HOSTILE[2])}", f"card.limitations=[{json.dumps(HOSTILE[4])}]"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = write_evidence(tmp_path_factory.mktemp("evidence"), load_recipe("demo"))
    for name in ("data", "eval-base", "eval-gold", "eval-unlearned"):
        poisoned(folders[name])
    return folders


@pytest.fixture(scope="module")
def config() -> stage.CardInputs:
    return next(s.config for s in stages(load_recipe("demo", OVERRIDES)) if s.name == "card")


@pytest.fixture(scope="module")
def carded(inputs: dict[str, Path], config: stage.CardInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of a release a card is rendered from; it has a card, whose plots do not matter here."""
    folder = tmp_path_factory.mktemp("carded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model_card.plots.drawn", lambda *_: [])
        stage.run(config, inputs, folder)
    (folder / "gate.json").write_bytes((inputs["gate"] / "gate.json").read_bytes())
    return folder


@pytest.fixture
def release(carded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, for a test that changes it."""
    monkeypatch.setattr("model_card.plots.drawn", lambda *_: [])
    return Path(shutil.copytree(carded, tmp_path, dirs_exist_ok=True))


def test_the_published_files_give_the_card_again(release: Path) -> None:
    assert render(*read_published(release)) == (release / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def tree(release: Path, config: stage.CardInputs) -> Path:
    """The same with `release.json`, as `verify` reads it."""
    recipe = config.model_dump(mode="json", include=set(OF_RECIPE))
    recipe["gates"] = [gate.model_dump(mode="json") for gate in load_recipe("demo", OVERRIDES).gates]
    publish, model = config.publish, config.model
    made = Release(
        repo=publish.repo, tag=publish.tag, base_model=model.name, license=model.license, weights_sha256="0" * 64,
        recipe=recipe, data={}, gate_sha256="", forgotten=Forgotten(rows=40, sha256=""), lineage=[],
        source=Git(commit=None, dirty=False), packages={}, files={},
    )  # fmt: skip
    write_file(release / RELEASE, made)
    return release


def test_a_release_is_checked_to_have_the_card_of_its_evidence(tree: Path) -> None:
    assert problems(tree) == []
    card = tree / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "It forgets everything.\n", encoding="utf-8")
    (said,) = problems(tree)
    assert said.startswith("README.md is not the card that the published results, verdict and settings give")


def test_a_card_of_another_release_is_named(tree: Path) -> None:
    release = tree / RELEASE
    release.write_text(release.read_text(encoding="utf-8").replace('"v1.0.0"', '"v2.0.0"'), encoding="utf-8")
    assert problems(tree)[0].startswith("card.json is of demo/")


def test_a_damaged_or_missing_card_file_is_named(tree: Path) -> None:
    (tree / CARD).write_text("{}", encoding="utf-8")
    assert problems(tree)[0].startswith("The card cannot be rendered again: ")
    (tree / CARD).unlink()
    assert "card.json: cannot be read" in problems(tree)[0]


@pytest.mark.parametrize("split", ["forget", "retain"])
def test_a_card_file_that_lacks_what_a_card_needs_fails_its_check(tree: Path, split: str) -> None:
    content = json.loads((tree / CARD).read_text(encoding="utf-8"))
    del content["evidence"]["counts"][split]
    (tree / CARD).write_text(json.dumps(content), encoding="utf-8")
    (said,) = problems(tree)
    assert said.startswith("The card cannot be rendered again: card.json or the recipe in release.json lacks something")


EDITED: dict[str, tuple[Place, object]] = {
    "method": (("inputs", "unlearn", "method"), "gd"),
    "neighbours": (("inputs", "unlearn", "neighbours"), None),
    "data": (("inputs", "data", "source", "sample", "seed"), 1),
    "start model": (("inputs", "model", "revision"), "a1" * 20),
    "gold": (("inputs", "gold", "seeds"), [1, 2, 3, 4]),
    "defaults": (("inputs", "changed_from_defaults"), ["method"]),
    "forgotten rows": (("evidence", "counts", "forget", "rows"), 4000),
    "languages": (("evidence", "counts", "retain", "by_language", "DE"), 29),
    "number of topics": (("evidence", "counts", "holdout", "topics"), 99),
    "topics": (("evidence", "topics"), ["biography.birthplace"]),
    "leak bound": (("evidence", "leak_bound"), 0.1),
    "lineage": (("evidence", "lineage"), [EARLIER.model_dump()]),
}


def rendered_again(tree: Path, content: object) -> Evidence:
    """Another `card.json`, and the README.md that it gives; the evidence."""
    (tree / CARD).write_text(json.dumps(content), encoding="utf-8")
    inputs, evidence = read_published(tree)
    (tree / "README.md").write_text(render(inputs, evidence), encoding="utf-8")
    return evidence


@pytest.mark.parametrize("edit", EDITED)
def test_a_card_file_that_says_something_else_than_the_release_is_named(tree: Path, edit: str) -> None:
    place, value = EDITED[edit]
    content = json.loads((tree / CARD).read_text(encoding="utf-8"))
    part_at(content, place[:-1])[place[-1]] = value
    rendered_again(tree, content)
    said = next(problem for problem in problems(tree) if problem.startswith(f"card.json: {dotted(place)} is "))
    assert f" is {value!r:.80}, and by release.json and results.json it is " in said


def test_what_another_checkpoint_is_compared_with_are_our_values(tree: Path) -> None:
    content = json.loads((tree / CARD).read_text(encoding="utf-8"))
    content["inputs"]["card"]["compared"] = {"id": "acme/other", "revision": "a1" * 20}
    content["evidence"]["compared"] = Comparison(metrics=[COMPARED]).model_dump()
    ours = rendered_again(tree, content).record("unlearned", "answer_probability", "forget")
    assert ours
    (said,) = problems(tree)
    assert said.startswith(
        "card.json: evidence.compared.metrics[0].ours is 0.1634, and by release.json and results.json"
    )
    content["evidence"]["compared"] = Comparison(metrics=[COMPARED.changed(ours=ours.value)]).model_dump()
    rendered_again(tree, content)
    assert problems(tree) == []


def test_rows_that_the_release_was_made_to_forget_are_counted(tree: Path) -> None:
    release = tree / RELEASE
    release.write_text(release.read_text(encoding="utf-8").replace('"rows": 40', '"rows": 41'), encoding="utf-8")
    assert problems(tree) == ["card.json counts 40 rows to be forgotten, and release.json 41."]


def test_a_recipe_that_no_card_can_be_made_of_is_named(tree: Path) -> None:
    content = json.loads((tree / RELEASE).read_text(encoding="utf-8"))
    del content["recipe"]["unlearn"]
    (tree / RELEASE).write_text(json.dumps(content), encoding="utf-8")
    assert "or the recipe in release.json lacks something that a card needs" in problems(tree)[0]


def test_results_for_benchmarks_of_the_hub_are_those_of_the_evidence(tree: Path) -> None:
    content = json.loads((tree / CARD).read_text(encoding="utf-8"))
    content["evidence"]["suites"]["gsm8k"] = dataclasses.asdict(GSM8K)
    results = json.loads((tree / "results.json").read_text(encoding="utf-8"))
    results["models"]["unlearned"].append(SOLVED.plain())
    (tree / "results.json").write_text(json.dumps(results), encoding="utf-8")
    evidence = rendered_again(tree, content)
    assert problems(tree) == [".eval_results/gsm8k.yaml is not what the results give."]
    (tree / ".eval_results").mkdir()
    for name, text in benchmark_files(evidence).items():
        (tree / ".eval_results" / name).write_text(text, encoding="utf-8")
    assert problems(tree) == []
    file = tree / ".eval_results" / "gsm8k.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("52.34", "92.34"), encoding="utf-8")
    (tree / ".eval_results" / "mmlu_pro.yaml").write_text("- value: 99\n", encoding="utf-8")
    assert problems(tree) == [
        ".eval_results/gsm8k.yaml is not what the results give.",
        ".eval_results/mmlu_pro.yaml is there, and the results give no such file.",
    ]


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("results.json", '"value": 0.17', '"value": 0.27'),
        ("gate.json", '"n": 40', '"n": 41'),
        (CARD, '"unsearched": 0', '"unsearched": 7'),
        (CARD, '"kept_step": 80', '"kept_step": 79'),
        (CARD, '"epochs": 20', '"epochs": 21'),
    ],
)
def test_a_changed_file_gives_another_card(release: Path, file: str, right: str, wrong: str) -> None:
    text = (release / file).read_text(encoding="utf-8")
    assert right in text
    (release / file).write_text(text.replace(right, wrong), encoding="utf-8")
    assert render(*read_published(release)) != (release / "README.md").read_text(encoding="utf-8")


def test_a_card_of_another_version_is_refused_by_name(release: Path) -> None:
    content = json.loads((release / CARD).read_text(encoding="utf-8"))
    (release / CARD).write_text(json.dumps(content | {"version": 9}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"card\.json: made by version 9 of CardFile"):
        read_published(release)


def test_what_is_published_has_no_text_of_any_row(release: Path) -> None:
    published = [path for path in release.rglob("*") if path.is_file() and path.name != "report.html"]
    for path in published:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(forget|retain|holdout) (answer|question) \d", text), path
        assert "unlearned says" not in text, path


def test_hostile_texts_reach_neither_the_page_nor_the_metadata(release: Path) -> None:
    from markdown_it import MarkdownIt

    card = ModelCard((release / "README.md").read_text(encoding="utf-8"))
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.text)
    assert set(re.findall(r"<([a-z0-9]+)", page)) <= {
        *("a", "code", "details", "em", "h1", "h2", "img", "li", "p", "pre", "strong", "summary", "ul"),
        *("table", "tbody", "td", "th", "thead", "tr"),
    }
    assert "onerror=" not in re.sub(r"&lt;.*?&gt;", "", page)
    assert not re.search(r'(href|src)="(?!https://|plots/)', page)
    assert set(card.data.to_dict()) == {
        *("base_model", "base_model_relation", "language", "library_name", "license", "license_link", "model-index"),
        *("pipeline_tag", "tags"),
    }


def test_a_compared_checkpoint_has_its_table(inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = load_recipe("demo", [f"card.compared={{id: acme/other, revision: {'a1' * 20}}}"])
    unknown = COMPARED.changed(split="retain", difference=None, ci_low=None, ci_high=None, verdict="not compared")
    write_comparison(tmp_path, Comparison(metrics=[COMPARED, unknown]))
    write_manifest(tmp_path, "compare", Plain())
    write_other_prompts(tmp_path, OtherPrompts(rows=3, compared=40, own="<a>Who?", base="<b>Who?"))
    evidence = collect(inputs | {"compare": tmp_path, "eval-other": tmp_path})
    config = next(s.config for s in stages(recipe) if s.name == "card")
    card = render(config, evidence)
    row = "| `answer_probability` | forget | 40 | 0.163 | 0.171 | -0.008 (-0.019 to 0.004) | 0.050 | equivalent |"
    assert row in card
    assert "| 0.171 | – | 0.050 | not compared |" in card
    assert f"[acme/other](https://huggingface.co/acme/other) at commit `{'a1' * 20}`" in card
    assert "which gives 3 of 40 rows other tokens than ours" in card
    assert agreement.problems(card, config, evidence) == []
    for right, wrong in (("0.171", "0.172"), ("-0.019", "-0.018"), ("| equivalent", "| different"), ("| 0.050", "| –")):
        assert "Compared with" in agreement.problems(card.replace(row, row.replace(right, wrong)), config, evidence)[0]


def with_suite(evidence: Evidence, *, limited: bool) -> Evidence:
    records = evidence.records | {"unlearned": [*evidence.records["unlearned"], SOLVED]}
    return evidence.changed(records=records, suites={"gsm8k": dataclasses.replace(GSM8K, limited=limited)})


def test_benchmarks_of_the_hub_have_their_files_unless_questions_were_left_out(inputs: dict[str, Path]) -> None:
    evidence = collect(inputs)
    assert benchmark_files(evidence) == {}
    assert benchmark_files(with_suite(evidence, limited=True)) == {}
    files = benchmark_files(with_suite(evidence, limited=False))
    expected = [{"dataset": {"id": "openai/gsm8k", "task_id": "gsm8k"}, "value": 52.34}]
    assert {name: yaml.safe_load(text) for name, text in files.items()} == {"gsm8k.yaml": expected}


def test_a_release_that_was_replaced_leads_to_the_next(inputs: dict[str, Path]) -> None:
    recipe = load_recipe("demo", ["card.new_version=demo/next"])
    config = next(s.config for s in stages(recipe) if s.name == "card")
    assert ModelCard(render(config, collect(inputs))).data.to_dict()["new_version"] == "demo/next"


def test_the_report_of_a_refused_release_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head, as text: what a maker reads first."""
    monkeypatch.setattr("model_card.plots.drawn", lambda *_: [])
    recipe = load_recipe("demo", ["gates.10.at_least={of: base, bound: value, times: 1.05}"])
    config = next(s.config for s in stages(recipe) if s.name == "card")
    page = stage.refused(config, write_evidence(tmp_path, recipe), tmp_path / "refused").read_text(encoding="utf-8")
    head = re.sub(r"<(style|title|script).*?</\1>", "", page.split('<h2 id="plots">')[0], flags=re.DOTALL)
    lines = [" ".join(line.split()) for line in re.sub(r"<[^>]*>", "", head).splitlines()]
    text = "\n".join(line for line in lines if line) + "\n"
    golden = GOLDENS / "report-refused.txt"
    if os.environ.get(UPDATE):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), f"run the test with {UPDATE}=1 and read the difference"
