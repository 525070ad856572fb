"""The rehearsal of the FAME-topics release, on FAME's own rows and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.artifacts import read_facts
from core.unlearning import UnlearnFacts, read_selection
from datasets_prep.schema import read_data_facts, read_rows
from pipeline.recipe import load_recipe
from tests.conftest import Call, shared_data

SMALL = "fame-topics-rehearsal-small"


@pytest.fixture(scope="module")
def changes(tiny_model: Path) -> list[str]:
    """The rows, and a model and trainings that take seconds."""
    rows = shared_data("fame/retain.parquet")
    small = {"args.num_train_epochs": 1, "train_from_layer": 1, "precision": "fp32"}
    trained = [f"{part}.train.{key}={value}" for part in ("base", "gold") for key, value in small.items()]
    absent = [f"model.{key}=null" for key in ("pypi", "parameters", "shape", "chat_template")]
    return [f"data.source.file={rows}", f"model.path={tiny_model}", *absent, *trained, "unlearn.precision=fp32"]


@pytest.fixture(scope="module")
def store(call: Call, changes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal")
    words = ["--store", str(folder), *(word for change in changes for word in ("--set", change))]
    for stage in ("model", "data", "base", "gold", "unlearn"):
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


def test_the_rule_reads_a_sample_of_the_rows_and_keeps_a_checked_step(store: Path) -> None:
    selection = read_selection(store / "unlearn")
    assert selection
    stop = load_recipe(SMALL, ["data.source.file=pyproject.toml"]).unlearn.stop
    assert stop
    assert [len(selection.rows(split)) for split in ("forget", "retain")] == [20, 20]
    lines = [json.loads(line) for line in (store / "unlearn" / "log.jsonl").read_text().splitlines()]
    checks = [line["step"] for line in lines if "probe_forget_loss" in line]
    facts = read_facts(store / "unlearn", UnlearnFacts)
    assert checks == [step for step in range(1, facts.steps + 1) if step % stop.every == 0 or step == 26]
    assert facts.kept_step in checks
