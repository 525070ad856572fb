"""`gate` and `gate replay` as a user calls them, on stores whose stages wrote no more than the gates read."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import pytest

from core.digests import weights_sha256
from core.places import STORE
from core.strict import Strict
from core.unlearning import NeighbourFacts
from eval.catalog import CATALOG
from eval.schema import Record, write_measured, write_records
from pipeline.__main__ import SETTINGS, main
from pipeline.engine.runner import Store
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from pipeline.train.facts import ModelFacts, Products
from tests.conftest import ROOT
from tests.walk import make

VALUES = {"base": 0.9, "gold": 0.17, "unlearned": 0.12}
AUDITED = {
    "mia_min_k_auc": 0.5,
    "mia_min_k_plus_plus_auc": 0.5,
    "leak_coordinate": 0.05,
    "damage_gap": 0.02,
    "extraction_strength_untreated_gap": 0.0,
    "extraction_strength_nf4_gap": 0.01,
    "extraction_strength_relearn_forget_gap": 0.01,
}
WEIGHTS = b"weights"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SETTINGS, STORE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT)


def _record(metric: str, split: str, value: float, n: int) -> Record:
    return Record(metric, split, value, value - 0.03, value + 0.03, n, None, CATALOG[metric].version)


def _fill(root: Path, *, forget_quality: float = 0.4, until: str = "eval-unlearned") -> None:
    def toy(name: str) -> Any:
        def run(config: Any, inputs: Mapping[str, Path], out: Path) -> Strict:
            (out / "name").write_text(name)
            if name == "neighbours":  # of which the gates read the facts
                return NeighbourFacts(
                    asked=40, kept=30, empty=6, stating_a_forgotten_fact=4, continued=3, of_unrehearsed=[]
                )
            if name == "unlearn":
                (out / "model").mkdir()
                (out / "model" / "model.safetensors").write_bytes(WEIGHTS)
            if name.startswith("eval-"):
                forget = VALUES["gold" if "gold" in name else name.removeprefix("eval-")]
                records = [
                    _record("answer_probability", "forget", forget, 40),
                    _record("answer_probability", "retain", 0.93, 140),
                    _record("answer_probability", "unrehearsed", 0.91, 20),
                    _record("utility", "general", 0.7, 110),
                    _record("fluency", "forget", 0.98, 40),
                    _record("forget_quality", "forget", forget_quality, 40),
                    *(_record(metric, "forget", value, 40) for metric, value in AUDITED.items()),
                ]
                write_records(out / "results.json", records)
            if name == "eval-unlearned":
                write_measured(out, weights_sha256(inputs["model"] / "model"))
            return ModelFacts(
                name="demo/x",
                license="apache-2.0",
                parameters=1,
                dtypes=["F32"],
                products=Products.unmeasured("fp32"),
            )

        return run

    recipe = load_recipe("demo")
    toys = [dataclasses.replace(stage, run=toy(stage.name)) for stage in stages(recipe)]
    last = [stage.name for stage in toys].index(until)
    make(toys[: last + 1], Store(root, recipe.name))


def test_every_verdict_is_a_sentence_with_what_it_is_worth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path)
    assert main(["gate", "demo", "--store", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "pass  Forget quality on forget is 0.4, which is at least 0.05.\n" in said
    assert "This rests on fewer than 100 facts, so it cannot be certified alone." in said
    assert "distributions of truth ratios that are 0.41 apart" in said
    assert "pass  Answer probability on unrehearsed is 0.91, which is at least 0.8645.\n" in said
    assert said.rstrip().endswith("All 13 gates passed.")
    assert not (tmp_path / "demo" / "gate").exists()  # nothing was run or written


def test_a_gate_that_fails_exits_with_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path, forget_quality=0.01)
    assert main(["gate", "demo", "--store", str(tmp_path), "--json"]) == 3
    said = capsys.readouterr()
    verdict = json.loads(said.out)
    assert verdict["passed"] is False
    assert [gate["passed"] for gate in verdict["gates"]] == [False, *[True] * 12]
    assert "1 of 13 gates failed: forget_quality on forget." in said.err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_gate_that_fails_exits_with_three_though_nobody_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    _fill(tmp_path, forget_quality=0.01)
    words = ["gate", "demo", "--store", str(tmp_path), *form]
    with unread() as pipe, redirect_stdout(pipe):
        assert main(words) == 3
    assert "1 of 13 gates failed: forget_quality on forget." in capsys.readouterr().err
    with unread() as pipe, redirect_stdout(pipe), redirect_stderr(pipe):
        assert main(words) == 3


@contextmanager
def unread() -> Iterator[TextIO]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        yield pipe


def test_a_gate_on_what_was_never_measured_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path)
    gates = "gates=[{metric: rouge_l_f1, split: forget, at_least: 0.1, min_n: 40, reason: x}]"
    assert main(["gate", "demo", "--store", str(tmp_path), "--set", gates]) == 3
    assert "FAIL  ROUGE-L F1 on forget was not measured for the unlearned model." in capsys.readouterr().out


def test_without_evaluations_it_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path, until="unlearn")
    assert main(["gate", "demo", "--store", str(tmp_path)]) == 2
    assert "--until eval-unlearned" in capsys.readouterr().err


def test_an_evaluation_that_changed_on_disk_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path)
    (tmp_path / "demo" / "eval-unlearned" / "results.json").write_text("[]")
    assert main(["gate", "demo", "--store", str(tmp_path)]) == 2
    assert "results.json" in capsys.readouterr().err


TABLE = {"models": [{"model": "a", "method": "npo", "values": {"forget": {"fluency": 0.9}}}]}


def test_replay_judges_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, gates = tmp_path / "table.json", tmp_path / "gates.yaml"
    table.write_text(json.dumps(TABLE))
    gates.write_text(
        "gates:\n"
        "  - {metric: fluency, split: forget, at_least: 0.8, min_n: 100, reason: it speaks}\n"
        "  - {metric: shape, split: forget, at_least: 0.8, min_n: 100, reason: unknown}\n"
        "  - {metric: fluency, split: forget, at_least: {of: gold, times: 0.9}, min_n: 100, reason: no such model}\n"
    )
    assert main(["gate", "replay", str(table), "--gates", str(gates)]) == 0
    said = capsys.readouterr()
    assert "| npo | 1 | 1 | 0 (0) |" in said.out
    assert "passes: a" in said.out
    assert "Not judged, since the table does not have it: shape on forget." in said.err
    assert "it is compared with gold, and no model of the table has that role: fluency on forget." in said.err
    assert main(["gate", "replay", str(table), "--gates", str(gates), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] == ["a"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["replay"], "needs a file"),
        (["demo", "table.json"], "takes no file"),
        (["replay", "absent.json"], "absent.json: cannot be read (No such file"),
        (["replay", "x.json", "--set", "eval.seed=1"], "takes no --set"),
        (["replay", "{table}", "--gates", "demo"], "has none of the metrics that the gates of demo read"),
        (["replay", "{table}", "--gates", "nothing"], "No recipe is called"),
    ],
)
def test_wrong_calls_exit_with_two(words, message, tmp_path, capsys) -> None:
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    assert main(["gate", *(word.format(table=tmp_path / "table.json") for word in words)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("to", ["gpt2", "gpt2@main", "a/b/c", "../b", "", "@main"])
def test_compare_names_the_form_of_a_repository(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "demo", "--to", to, "--store", str(tmp_path)]) == 2
    assert "give owner/name" in capsys.readouterr().err


def test_compare_needs_an_evaluation_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "demo", "--to", "a/b@main", "--store", str(tmp_path)]) == 2
    assert "--until eval-unlearned" in capsys.readouterr().err
