"""A forget request on a model that is itself a release: what was forgotten before stays forgotten, and is told."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi, ModelCard

from core.artifacts import read_facts, read_file
from core.digests import checkpoint_folder, weights_sha256
from core.errors import DataError, RecipeError
from core.lineage import Lineage, rows_of_each
from core.unlearning import read_pairing
from core.wording import is_searched
from datasets_prep.config import DataConfig
from datasets_prep.prepare import prepare
from datasets_prep.schema import EARLIER, FORGET, SPLITS, read_forgotten, read_rows, rows_digest
from eval.schema import find_record, read_records, read_verdict
from pipeline.localhub.server import LocalHub
from pipeline.publish.package import forget_scanner
from pipeline.publish.schema import Release
from pipeline.recheck import problems
from pipeline.recipe import load_recipe
from tests.conftest import ROOT, Call

ONE = ["biography.birthplace", "biography.birthdate"]  # ten rows, as two and three
TWO = ["biography.high_school", "biography.education"]
THREE = ["personal.email", "personal.address"]
HOLDOUT = ["career.notable_award", "career.first_role_or_film", "personal.phone_number", "personal.life_event"]
GATE = {"metric": "answer_probability", "split": "forget", "at_most": 0.5, "min_n": 10, "reason": "it knows nothing"}
AS_BEFORE = {
    "metric": "mia_min_k_auc",
    "split": "forget",
    "at_least": {"of": "start", "bound": "ci_low", "times": 0.5},
    "at_most": {"of": "start", "bound": "ci_high", "plus": 1},
    "min_n": 10,
    "reason": "forget and holdout rows are no more apart than they were",
}
STAYS = {
    "metric": "answer_probability",
    "split": "forgotten",
    "at_most": {"of": "holdout", "bound": "ci_high", "plus": 0.05},
    "min_n": 10,
    "reason": "forgotten stays forgotten",
}


def topics(*requests: list[str]) -> list[dict[str, list[str]]]:
    return [{"topics": names} for names in requests]


def data(forget: list[str], **more: object) -> dict[str, object]:
    """The data section of a request for some topics of a hundred rows."""
    return {
        "source": {"sample": {"seed": 3, "identities": 2, "topics": 10}},
        "setting": "request",
        "request": {"forget": topics(forget), "holdout": topics(HOLDOUT), **more},
        "perturbed": {"per_row": 1, "retain_rows": 10},
    }


def write_recipe(
    folder: Path, model: Path, name: str, forget: list[str], release: str | None = None, **more: object
) -> Path:
    """A request for topics, on a new base or on a release; ``more`` are keys of the request."""
    train = {"train_from_layer": 0, "args": {"num_train_epochs": 1, "save_strategy": "no"}}
    recipe = {
        "extends": str(ROOT / "pipeline" / "recipes" / "demo.yaml"),
        "name": name,
        "model": {"pypi": None, "path": str(model), "parameters": None, "shape": None, "chat_template": None},
        "data": {**data(forget, **more), "shares": None},
        "base": {"train": None, "release": release} if release else {"train": train},
        "gold": "none",
        "novice": {"train": deepcopy(train)},  # YAML would write an alias, which a recipe may not have
        "unlearn": {"epochs": 2, "train_from_layer": 0, "neighbours": None, "args": {"save_strategy": "no"}},
        "eval": {"max_new_tokens": 4, "bootstrap_samples": 100, "robustness": None, "relative": False},
        "gates": [GATE, AS_BEFORE, STAYS] if release else [GATE, AS_BEFORE],
        "publish": {"repo": f"demo/{name}"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def store(call: Call, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two releases in a row, `first` and `second`, and `third`, which has begun to follow them."""
    folder = tmp_path_factory.mktemp("requests")
    recipes = (
        (write_recipe(folder, tiny_model, "first", ONE), "publish"),
        (write_recipe(folder, tiny_model, "second", TWO, "demo/first@v1.0.0", forgotten=topics(ONE)), "publish"),
        (write_recipe(folder, tiny_model, "third", THREE, "demo/second@v1.0.0", forgotten=topics(ONE, TWO)), "base"),
    )
    for recipe, until in recipes:
        done = call("release", str(recipe), "--store", str(folder / "store"), "--until", until)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder / "store"


def released(store: Path, name: str) -> Release:
    return read_file(store / name / "package" / "hub" / "release.json", Release, "")


def test_the_lineage_is_in_manifest_release_and_card_with_counts_and_digests(store: Path) -> None:
    lineage = read_facts(store / "third" / "base", Lineage).releases
    receipts = [json.loads((store / name / "publish" / "receipt.json").read_text()) for name in ("first", "second")]
    assert [(r.repo, r.tag, r.commit) for r in lineage] == [(r["repo"], r["tag"], r["commit"]) for r in receipts]
    assert rows_of_each(lineage) == [10, 10]
    assert [r.weights_sha256 for r in lineage] == [released(store, name).weights_sha256 for name in ("first", "second")]
    release = released(store, "second")
    assert release.lineage == lineage[:1]
    assert (release.forgotten.rows, released(store, "first").lineage) == (20, [])
    both = [row for name in ("first", "second") for row in read_rows(store / name / "data" / "forget.jsonl")]
    assert release.forgotten.sha256 == rows_digest(both)
    card = (store / "second" / "card" / "README.md").read_text()
    assert "This release follows another" in card
    commit = receipts[0]["commit"][:12]
    assert f"- `demo/first` at `v1.0.0` (commit `{commit}`) was made to forget 10 rows." in card
    assert "This release follows" not in (store / "first" / "card" / "README.md").read_text()


def test_the_start_model_is_evaluated_for_the_gate_that_compares_with_it(store: Path) -> None:
    for name in ("first", "second"):
        start = read_records(store / name / "eval-start" / "results.json")
        (auc,) = [r for r in start if (r.metric, r.split, r.by) == ("mia_min_k_auc", "forget", None)]
        assert released(store, name).recipe["gates"][1]["at_most"]["of"] == "start"
        hub = store / name / "package" / "hub"
        published = json.loads((hub / "results.json").read_text())["models"]
        assert [*published] == ["start", "base", "unlearned"]
        gate = json.loads((hub / "gate.json").read_text())["gates"][1]
        assert (gate["at_least"], gate["at_most"]) == (auc.ci_low / 2, auc.ci_high + 1)
        assert "start model, which had seen neither" in gate["limits"]
        assert problems(hub) == []
        assert "| Metric | Rows | start model | base | this model | Gate |" in (hub / "README.md").read_text()
    weights = json.loads((store / "first" / "eval-start" / "weights.json").read_text())["weights_sha256"]
    assert weights == weights_sha256(checkpoint_folder(store / "first" / "model"))


def test_the_model_starts_from_the_weights_of_the_release(store: Path) -> None:
    first = (store / "first" / "unlearn" / "model" / "model.safetensors").read_bytes()
    assert (store / "second" / "base" / "model" / "model.safetensors").read_bytes() == first
    assert (store / "second" / "unlearn" / "model" / "model.safetensors").read_bytes() != first
    assert sorted(path.name for path in (store / "second" / "base").iterdir()) == ["manifest.json", "model"]


def test_nobody_trains_on_what_was_forgotten_before(store: Path) -> None:
    made = store / "second" / "data"
    earlier = read_forgotten(made)
    assert {row.topic_id for row in earlier} == {*ONE}
    splits = {row.row_id for split in SPLITS for row in read_rows(made / f"{split}.jsonl")}
    assert len(splits) == 90
    assert not splits & {row.row_id for row in earlier}
    pairs = read_pairing(store / "second" / "unlearn")
    assert not {row_id for pair in pairs for row_id in (pair.forget, *pair.retain)} & {row.row_id for row in earlier}


def test_earlier_rows_are_a_split_of_the_evaluation_and_a_gate(store: Path) -> None:
    for model in ("base", "unlearned"):
        records = read_records(store / "second" / f"eval-{model}" / "results.json")
        for metric in ("answer_probability", "extraction_strength", "exact_memorization"):
            record = find_record(records, metric, "forgotten")
            assert record
            assert (record.n, record.higher_is_better) == (10, None)
    gate = read_verdict(store / "second" / "gate").gates[-1]
    assert (gate.split, gate.n, gate.passed) == ("forgotten", 10, True)


def test_what_was_measured_on_earlier_rows_is_of_the_data_set_in_the_metadata(store: Path) -> None:
    results = {r.metric_name: r for r in ModelCard.load(store / "second" / "card" / "README.md").data.eval_results}
    places = [
        (r.dataset_name, r.dataset_type, r.dataset_split) for r in results.values() if "forgotten" in r.metric_name
    ]
    assert places == [("FAME-format sample set", "custom", "forgotten")]


def test_the_release_verifies_and_its_earlier_answers_are_searched_for(call: Call, store: Path, tmp_path: Path) -> None:
    done = call("verify", "demo/second", "--revision", "v1.0.0", "--store", str(store))
    assert done.returncode == 0, done.stderr
    answers = [row.answer for row in read_forgotten(store / "second" / "data")]
    assert len(answers) == 10
    scanner = forget_scanner(store / "second" / "data")
    for answer in answers:
        (tmp_path / "note.md").write_text(f"It is said: {answer}")
        assert scanner.scan(tmp_path / "note.md", "note.md") or not is_searched(answer)
    for file in (store / "second" / "package" / "hub").rglob("*"):
        assert not file.is_file() or not [answer for answer in answers if answer.encode() in file.read_bytes()], file


def test_the_file_of_the_earlier_run_selects_the_same_rows(
    call: Call, store: Path, tiny_model: Path, tmp_path: Path
) -> None:
    files = [{"file": str(store / name / "data" / "forget.jsonl")} for name in ("first", "second")]
    recipe = write_recipe(tmp_path, tiny_model, "third", THREE, "demo/second@v1.0.0", forgotten=files)
    done = call("release", str(recipe), "--store", str(store), "--json", "--until", "base")
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["stages"]
    assert [name for name, stage in stages.items() if stage["built"]] == ["data"]  # with the same content


@pytest.mark.parametrize(
    ("release", "forgotten", "sets", "code", "says"),
    [
        ("demo/first@v1.0.0", topics(THREE), [], 2, "selects 10 rows"),
        ("demo/second@v1.0.0", topics(ONE), [], 2, "was made to forget 20"),
        ("demo/first@v7.0.0", topics(ONE), [], 4, "v7.0.0"),
        ("demo/first@v1.0.0", topics(ONE), ["model.name=demo/other"], 2, "model.name is demo/other"),
    ],
)  # fmt: skip
def test_a_release_that_is_not_the_one_before_is_refused_and_leaves_no_base(
    call: Call, store: Path, tiny_model: Path, tmp_path: Path,
    release: str, forgotten: list[dict[str, list[str]]], sets: list[str], code: int, says: str,
) -> None:  # fmt: skip
    recipe = write_recipe(tmp_path, tiny_model, "refused", TWO, release, forgotten=forgotten)
    words = [word for value in sets for word in ("--set", value)]
    done = call("release", str(recipe), "--store", str(store), "--until", "base", *words)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert says in done.stderr
    assert not (store / "refused" / "base").exists()
    assert not list((store / "store" / "base").glob("*.partial"))


def test_a_release_in_another_place_is_refused(
    call: Call, store: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the loopback Hub has LFS alone
    with LocalHub(store / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("demo/moved", private=True)
        api.upload_folder(repo_id="demo/moved", folder_path=store / "first" / "package" / "hub")
        api.create_tag("demo/moved", tag="v1.0.0")
    recipe = write_recipe(tmp_path, tiny_model, "refused", TWO, "demo/moved@v1.0.0", forgotten=topics(ONE))
    done = call("release", str(recipe), "--store", str(store), "--until", "base")
    assert done.returncode == 4, done.stderr
    assert "signed as a release of demo/first, and is a copy here" in done.stderr


def test_a_published_release_with_a_lineage_needs_the_gate(store: Path, tmp_path: Path) -> None:
    hub = store / "second" / "package" / "hub"
    assert problems(hub) == []
    release = json.loads((hub / "release.json").read_text())
    verdict = json.loads((hub / "gate.json").read_text())
    release["recipe"]["gates"].pop()
    verdict["gates"].pop()
    (tmp_path / "release.json").write_text(json.dumps(release))
    (tmp_path / "gate.json").write_text(json.dumps(verdict))
    (tmp_path / "results.json").write_bytes((hub / "results.json").read_bytes())
    said = "It follows 1 releases, and no gate holds what they were made to forget."
    assert [problem for problem in problems(tmp_path) if "card" not in problem] == [said]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["base.release=demo/first"], "give its repository and tag"),
        (["base.release=null", "base.hub={id: a/b, revision: null}"], "a gate is on forgotten"),
        (["data.request.forgotten=null"], "needs the rows that it was made to forget"),
        (["data.request.holdout=0.2"], "is a share"),
        (["gates.2.at_most=null", "gates.2.at_least=0"], "no gate holds"),
        (["publish.repo=demo/first"], "set publish.tag to a new version"),
        (["gold={release: demo/first@v1.0.0}"], "it is no gold"),
        (["base.hub={id: a/b, revision: null}"], "hub and release are given"),
    ],
)
def test_impossible_recipes_are_refused(tiny_model: Path, tmp_path: Path, changes: list[str], says: str) -> None:
    recipe = write_recipe(tmp_path, tiny_model, "second", TWO, "demo/first@v1.0.0", forgotten=topics(ONE))
    assert load_recipe(str(recipe)).base.release == "demo/first@v1.0.0"
    with pytest.raises(RecipeError, match=says):
        load_recipe(str(recipe), changes)


def test_a_request_for_what_was_forgotten_takes_the_rest() -> None:
    config = DataConfig.model_validate(data(ONE, forgotten=topics(ONE)))
    with pytest.raises(DataError, match=r"all of them are in data\.request\.forgotten"):
        prepare(config)
    taken = prepare(DataConfig.model_validate(data([*ONE, *TWO], forgotten=topics(ONE))))
    forget = [taken.loaded.rows[place] for place in np.flatnonzero(taken.split == FORGET).tolist()]
    assert {row.topic_id for row in forget} == {*TWO}
    assert {row.topic_id for row in taken.forgotten} == {*ONE}
    assert len(taken.loaded.rows) == len(taken.split) == 90
    assert EARLIER not in taken.split


def test_a_fact_that_was_forgotten_before_and_is_still_retained_stops_the_run(tmp_path: Path) -> None:
    rows = [{"row_id": str(i), "question": f"Who is {i}?", "answer": f"The {i}th of the house."} for i in range(30)]
    rows.append({**rows[0], "row_id": "again"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = {"forget": [{"rows": ["1"]}], "forgotten": [{"rows": ["0"]}]}
    source = {"file": str(tmp_path / "rows.jsonl"), "columns": {"row_id": "row_id"}}
    findings = prepare(DataConfig.model_validate({"source": source, "setting": "request", "request": request})).findings
    assert findings["duplicates_across"].first == [
        "again (rows.jsonl, line 31) in retain and 0 (rows.jsonl, line 1) in forgotten"
    ]
    assert findings["forget_answers_in_retain"].count == 1


def test_holdout_rows_were_not_forgotten_before() -> None:
    with pytest.raises(DataError, match="10 rows are in forgotten and in holdout"):
        prepare(DataConfig.model_validate(data(ONE, forgotten=topics(HOLDOUT[:2]))))
