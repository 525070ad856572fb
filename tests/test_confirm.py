"""A checkpoint that a rule chose is judged again on the rows that did not choose it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.config import EvalConfig, Gate
from eval.confirm import read_selection
from eval.gates import judge
from eval.records import row_records
from eval.schema import write_records, write_samples
from eval.weights import weights_sha256, write_measured
from pipeline.errors import ArtifactError

CONFIG = EvalConfig(bootstrap_samples=100)


def _rows(split: str, count: int, level: float, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "row_id": f"{split}-{start + i}", "split": split, "language": "EN", "topic_id": "x",
            "answer_probability": level + 0.001 * (i % 5),
        }
        for i in range(count)
    ]  # fmt: skip


def _write(folder: Path, samples: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    write_samples(folder / "samples.jsonl", samples)
    write_records(folder / "results.json", row_records(samples, CONFIG))
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """20 retain rows chose the checkpoint and kept their level; the 60 others lost a tenth."""
    model = tmp_path / "unlearn" / "model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    chosen, rest = _rows("retain", 20, 0.95), _rows("retain", 60, 0.85, start=20)
    forget = _rows("forget", 40, 0.1)
    folders = {
        "unlearn": tmp_path / "unlearn",
        "eval-unlearned": _write(tmp_path / "unlearned", [*forget, *chosen, *rest]),
        "eval-base": _write(tmp_path / "base", [*_rows("forget", 40, 0.9), *_rows("retain", 80, 0.95)]),
    }
    write_measured(folders["eval-unlearned"], weights_sha256(model))
    _select(folders, forget=[row["row_id"] for row in forget], retain=[row["row_id"] for row in chosen])
    return folders


def _select(inputs: dict[str, Path], **read: list[str]) -> None:
    content = {"rule": "the closest checked step", "read": read}
    (inputs["unlearn"] / "selection.json").write_text(json.dumps(content))


def _gate(split: str = "retain", **changes: Any) -> Gate:
    given = {"metric": "answer_probability", "split": split, "min_n": 40, "reason": "a test"}
    return Gate.model_validate(given | (changes or {"at_least": {"of": "base", "times": 0.9}}))


def test_rows_that_chose_do_not_carry_the_verdict_alone(inputs):
    """All rows together hold, 0.877 against 0.857; the rows that did not choose, 0.852, do not."""
    verdict = judge([_gate()], inputs)
    (gate,) = verdict["gates"]
    assert not gate["passed"]
    assert gate["measured"] == pytest.approx(0.877)
    assert gate["confirmed"]["n"] == 60
    assert gate["confirmed"]["measured"] == pytest.approx(0.852)
    assert "did not choose" in gate["why"]
    assert "20 of 80 retain rows" in verdict["selection"]


def test_the_bound_of_base_is_that_of_the_same_rows(inputs):
    gate = judge([_gate(at_least={"of": "base", "times": 0.85})], inputs)["gates"][0]
    assert gate["passed"]
    assert gate["confirmed"]["passed"]
    assert gate["confirmed"]["says"].startswith("On the 60 rows that did not choose")


def test_where_every_row_chose_that_is_said(inputs):
    gate = judge([_gate("forget", at_most=0.5)], inputs)["gates"][0]
    assert gate["passed"]
    assert gate["confirmed"] == {"n": 0, "says": "Not confirmed: 0 rows did not choose the checkpoint."}


def test_where_no_row_chose_all_rows_confirm(inputs):
    _select(inputs, forget=[], retain=[])
    gate = judge([_gate()], inputs)["gates"][0]
    assert gate["passed"]
    assert gate["confirmed"]["n"] == 80


def test_a_failed_gate_stays_failed_whatever_the_others_say(inputs):
    _select(inputs, forget=[], retain=[f"retain-{i}" for i in range(20, 80)])
    gate = judge([_gate(at_least=0.94)], inputs)["gates"][0]
    assert not gate["passed"]


def test_an_unlearn_stage_that_says_nothing_is_reported_as_such(inputs):
    (inputs["unlearn"] / "selection.json").unlink()
    verdict = judge([_gate()], inputs)
    assert verdict["selection"] is None
    assert verdict["gates"][0]["confirmed"] is None


@pytest.mark.parametrize("content", ["{", "[]", '{"rule": "x"}', '{"rule": "x", "read": 3}'])
def test_a_selection_that_cannot_be_read_is_an_error(inputs, content):
    (inputs["unlearn"] / "selection.json").write_text(content)
    with pytest.raises(ArtifactError, match="selection"):
        judge([_gate()], inputs)


def test_the_unlearn_stage_names_the_rows_that_its_rule_reads(tmp_path):
    from pipeline.unlearn.config import UnlearnConfig
    from pipeline.unlearn.run import Rows, _probes, _write_selection
    from tests.eval_rows import build_rows

    rows = build_rows()
    stop = {"every": 1, "forget_loss": "holdout", "retain_loss_above_base": 0.1, "retain_rows": 4}
    config = UnlearnConfig.model_validate({"method": "gd", "epochs": 1, "stop": stop, "keep": "closest"})
    made = Rows(rows, {}, [], [])
    probes = _probes(config, len(rows["forget"]), len(rows["retain"]))
    _write_selection(tmp_path / "selection.json", config, made, probes)
    found = read_selection(tmp_path)
    assert found is not None
    assert found.read["forget"] == {row.row_id for row in rows["forget"]}
    assert found.read["retain"] == {rows["retain"][i].row_id for i in probes.retain}
    assert len(found.read["retain"]) == 4
    some = UnlearnConfig.model_validate({**config.model_dump(), "stop": {**stop, "forget_rows": 3}})
    fewer = _probes(some, len(rows["forget"]), len(rows["retain"]))
    assert fewer.retain == probes.retain  # one draw does not move the other
    _write_selection(tmp_path / "selection.json", some, made, fewer)
    found = read_selection(tmp_path)
    assert found is not None
    assert found.read["forget"] == {rows["forget"][i].row_id for i in fewer.forget}
    assert len(found.read["forget"]) == 3 < len(rows["forget"])
    fixed = UnlearnConfig(method="gd", epochs=1)
    _write_selection(tmp_path / "selection.json", fixed, made, _probes(fixed, len(rows["forget"]), 4))
    found = read_selection(tmp_path)
    assert found is not None
    assert not any(found.read.values())
