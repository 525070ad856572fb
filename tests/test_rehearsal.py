"""The rehearsal of the FAME-topics release, on FAME's own rows and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.artifacts import read_facts
from core.unlearning import UnlearnFacts, read_pairing
from datasets_prep.schema import read_data_facts, read_rows
from tests.conftest import Call, shared_data

SMALL = "fame-topics-rehearsal-small"


@pytest.fixture(scope="module")
def changes(tiny_model: Path) -> list[str]:
    """The rows, and a model and trainings that take seconds."""
    rows = shared_data("fame/retain.parquet")
    small = {"args.num_train_epochs": 1, "train_from_layer": 1, "precision": "fp32"}
    trained = [f"{part}.train.{key}={value}" for part in ("base", "gold", "novice") for key, value in small.items()]
    trained += ["novice.train.args.max_steps=2", "unlearn.epochs=1", "unlearn.train_from_layer=1"]
    trained += ["unlearn.neighbours=null", "unlearn.precision=fp32"]  # a random model ends no answer to a question
    absent = [f"model.{key}=null" for key in ("pypi", "parameters", "shape", "chat_template")]
    return [f"data.source.file={rows}", f"model.path={tiny_model}", *absent, *trained]


@pytest.fixture(scope="module")
def store(call: Call, changes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal")
    words = ["--store", str(folder), *(word for change in changes for word in ("--set", change))]
    for stage in ("model", "data", "base", "gold", "novice", "unlearn"):
        done = call("run", stage, SMALL, *words)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder / SMALL


def test_its_part_of_the_rows_carries_every_gate(store: Path) -> None:
    facts = read_data_facts(store / "data")
    assert (facts.rows_in, facts.rows_outside_part, facts.identities) == (12_800, 12_544, 64)
    assert dict(facts.rows) == {"forget": 41, "retain": 144, "holdout": 51, "unrehearsed": 20}
    assert {row.language for row in read_rows(store / "data" / "retain.jsonl")} == {"EN"}
    assert (facts.perturbed.rows_with_fewer, facts.perturbed.mixed) == (0, 0)
    assert facts.perturbed.guides == facts.perturbed.guides_mixed == 82
    assert "12,544 other rows are not used" in (store / "data" / "README.md").read_text()


def test_the_doctor_finds_nothing_before_and_after(call: Call, changes: list[str], store: Path, tmp_path: Path) -> None:
    words = ["--json", *(word for change in changes for word in ("--set", change))]
    for place in (tmp_path, store.parent):
        done = call("doctor", SMALL, "--store", str(place), *words)
        assert done.returncode == 0, done.stdout
        found = {check["what"]: check["found"] for check in json.loads(done.stdout)["checks"]}
        assert found["rows and gates"] == "256 rows, enough for each gate"


def test_it_unlearns_as_the_release_does(store: Path) -> None:
    pairs = read_pairing(store / "unlearn")
    assert {pair.forget for pair in pairs} == {row.row_id for row in read_rows(store / "data" / "forget.jsonl")}
    facts = read_facts(store / "unlearn", UnlearnFacts)
    assert (facts.steps, facts.kept_step) == (5, 5)
    lines = [json.loads(line) for line in (store / "unlearn" / "log.jsonl").read_text().splitlines()]
    assert [line["aim_below"] for line in lines if "aim_below" in line]
