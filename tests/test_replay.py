"""Gates over tables of measured models; the known counts of 150 public models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import InputError, RecipeError
from eval.config import Condition
from eval.verdicts.replay import JudgedModel, applied, by_method, read_table, replay
from pipeline.recipe import load_gates
from tests.conftest import ROOT, shared_data

PUBLISHED = str(ROOT / "benchmarks" / "published_gates.yaml")
DEFAULT = "fame-topics-gd-llama32-3b"


@pytest.fixture
def study() -> Path:
    return shared_data("unlearned_llama32_1b/method_results.json")


def _gate(metric: str, split: str = "table", **bounds: Any) -> Condition:
    return Condition.model_validate({"metric": metric, "split": split, "min_n": 1, "reason": "a test", **bounds})


def _passing(gates: list[Condition], path: Path) -> list[JudgedModel]:
    judged = replay(applied(gates, read_table(path))[0], read_table(path))
    return [model for model in judged if model.passed]


def test_of_150_models_63_extract_nothing_and_some_of_those_are_destroyed_or_still_members(study):
    forgotten = _gate("one_minus_es", at_least=0.9)
    assert len(_passing([forgotten], study)) == 63
    assert len(_passing([forgotten, _gate("fluency", at_most=0.6999999)], study)) == 19
    assert len(_passing([forgotten, _gate("utility_rel", at_most=0.7999999)], study)) == 25
    assert len(_passing([forgotten, _gate("s_mink", at_most=0.4999999)], study)) == 44


def test_the_published_gates_pass_ten_models_and_no_gradient_difference(study):
    passing = [model.method for model in _passing(load_gates(PUBLISHED), study)]
    counts = {method: passing.count(method) for method in ("simnpo", "altpo", "npo", "idkdpo", "graddiff")}
    assert counts == {"simnpo": 3, "altpo": 4, "npo": 2, "idkdpo": 1, "graddiff": 0}
    assert len(passing) == 10


def test_translated_columns_say_the_same_as_the_table_itself(study):
    ours = {m.model for m in _passing([_gate("extraction_strength", "forget", at_most=0.1)], study)}
    assert ours == {m.model for m in _passing([_gate("one_minus_es", at_least=0.9)], study)}
    near = _gate("mia_min_k_auc", "forget", at_least={"of": "gold", "times": 0.5}, at_most={"of": "gold", "times": 1.5})
    ours = {m.model for m in _passing([near], study)}
    assert ours == {m.model for m in _passing([_gate("s_mink", at_least=0.5)], study)}


def test_the_default_gates_name_what_the_table_does_not_say(study):
    found, others = applied(load_gates(DEFAULT), read_table(study))
    assert {(gate.metric, gate.split) for gate in found} == {
        ("extraction_strength", "forget"),
        ("mia_min_k_auc", "forget"),
        ("fluency", "forget"),
        ("answer_probability", "retain"),
    }
    assert {(gate.metric, gate.split) for gate in others} == {
        ("forget_quality_ks", "forget"),
        ("answer_probability", "forget"),
        ("leak_coordinate", "forget"),
        ("damage_gap", "forget"),
        ("mia_min_k_plus_plus_auc", "forget"),
        ("extraction_strength_nf4_gap", "forget"),
        ("extraction_strength_relearn_forget_gap", "forget"),
        ("answer_probability", "unrehearsed"),
        ("utility", "general"),
        ("acc", "mmlu"),
    }
    assert all(gate.must_hold == "point" for gate in found)


def _write(path: Path, models: Any) -> Path:
    path.write_text(json.dumps({"models": models}))
    return path


def _model(name: str, strength: Any, **more: Any) -> dict[str, Any]:
    return {"model": name, "values": {"forget": {"extraction_strength": strength}}, **more}


def _full(value: float) -> dict[str, float]:
    return {"value": value, "ci_low": value - 0.02, "ci_high": value + 0.02, "n": 400}


def test_anybodys_table_is_judged_by_its_intervals_where_it_has_them(tmp_path):
    gate = _gate("extraction_strength", "forget", at_most={"of": "gold", "plus": 0.05}, must_hold="interval")
    gold = _model("gold", _full(0.06), role="gold")
    models = [gold, _model("a", _full(0.08), method="x"), _model("b", _full(0.1), method="x")]
    path = _write(tmp_path / "table.json", models)
    assert read_table(path).has_intervals(gate)
    assert [model.model for model in _passing([gate], path)] == ["a"]
    assert not _passing([gate.model_copy(update={"min_n": 401})], path)
    points = _write(tmp_path / "points.json", [gold, _model("a", {"value": 0.08}), _model("b", 0.1)])
    assert not read_table(points).has_intervals(gate)
    assert [model.model for model in _passing([gate], points)] == ["a", "b"]


WIDE = {"value": 0.05, "ci_low": 0.0, "ci_high": 0.9, "n": 3}


@pytest.mark.parametrize("changes", [{}, {"min_n": 1}, {"must_hold": "point"}])
def test_a_value_without_interval_takes_nothing_from_gates_on_others(tmp_path, changes):
    models = [_model("a", WIDE), _model("never saw it", 0.06, role="gold"), _model("knew it", 0.9, role="base")]
    models[0]["values"]["retain"] = {"fluency": 0.9, "extraction_strength": 0.9}
    path = _write(tmp_path / "t.json", models)
    gate = _gate("extraction_strength", "forget", **{"at_most": 0.1, "must_hold": "interval", "min_n": 100} | changes)
    assert not _passing([gate], path)
    assert _passing([_gate("fluency", "retain", at_least=0.8, must_hold="interval", min_n=100)], path)


@pytest.mark.parametrize(("of", "passing"), [("gold", []), ("base", ["a"]), ("holdout", ["a"])])
def test_a_gate_is_judged_as_points_where_its_reference_is_one(tmp_path, of, passing):
    """Base and holdout are numbers here and gold has an interval, which is what the gate then must keep."""
    models = [_model("a", WIDE), _model("never saw it", _full(0.2), role="gold"), _model("knew it", 0.9, role="base")]
    models[0]["values"]["holdout"] = {"extraction_strength": 0.1}
    path = _write(tmp_path / "t.json", models)
    gate = _gate("extraction_strength", "forget", at_most={"of": of}, must_hold="interval", min_n=100)
    assert [model.model for model in _passing([gate], path)] == passing


def test_a_value_that_one_model_lacks_fails_it(tmp_path):
    path = _write(tmp_path / "t.json", [_model("a", 0.1), {"model": "b", "values": {"forget": {"fluency": 1.0}}}])
    table = read_table(path)
    judged = replay(applied([_gate("extraction_strength", "forget", at_most=0.5)], table)[0], table)
    assert [model.gates[0].passed for model in judged] == [True, False]


def test_the_table_by_method_counts_what_a_gate_stops_alone(tmp_path):
    models = [
        {"model": str(i), "method": method, "values": {"forget": {"a": a, "b": b}}}
        for i, (method, a, b) in enumerate([("x", 1, 1), ("x", 0, 1), ("y", 0, 0), ("y", 0, 1)])
    ]
    table = read_table(_write(tmp_path / "t.json", models))
    gates, _ = applied([_gate(metric, "forget", at_least=0.5) for metric in "ab"], table)
    lines = by_method(gates, replay(gates, table)).splitlines()
    assert lines[2:] == [
        "| x | 2 | 1 | 1 (1) | 0 (0) |",
        "| y | 2 | 0 | 2 (1) | 1 (0) |",
        "| all | 4 | 1 | 3 (2) | 1 (0) |",
    ]


def _with_n(n: str) -> str:
    model = {"model": "a", "values": {"forget": {"x": {"value": 1, "ci_low": 1, "ci_high": 1, "n": "N"}}}}
    return json.dumps({"models": [model]}).replace('"N"', n)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"cannot be read as JSON .* docs/how-it-works.md shows the form"),
        ('{"models": [{"model": "\\ud800", "values": {}}]}', "cannot be read as JSON .*surrogates not allowed"),
        pytest.param("[" * 100_000, "lists and objects are more than 100 deep", id="deep"),
        ("[]", "is no table of models, an object whose key `models` is a list"),
        ('{"models": []}', "is no table of models"),
        ('{"models": [3]}', "model 3 cannot be read"),
        ('{"models": [{"method": "x"}]}', "'model' is missing"),
        ('{"models": [{"model": "a", "role": "king", "values": {}}]}', "role is 'king'"),
        ('{"models": [{"model": "a", "values": {"forget": {"x": "high"}}}]}', "model 'a'"),
        ('{"models": [{"model": "a", "values": {"forget": {"x": {"value": 1, "n": 4}}}}]}', "'ci_low' is missing"),
        ('{"models": [{"model": "a", "values": [1]}]}', "model 'a' cannot be read: a value is not"),
        (_with_n("Infinity"), "a number is too large"),
        (_with_n("NaN"), "cannot convert float NaN"),
        (_with_n("1" * 400), "a number is too large"),
        (json.dumps({"models": [{"model": "a", "x": 10**400}]}), "a number is too large"),
        ('{"models": [{"model": "a", "role": "gold", "values": {}}]}', "all models are references"),
        (
            '{"models": [{"model": "a", "role": "gold", "values": {}}, {"model": "b", "role": "gold", "values": {}}]}',
            "several models",
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_of_the_user(tmp_path, content, message):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_table(path)


def test_gates_alone_are_checked_as_those_of_a_recipe(tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text("gates:\n  - {metric: x, split: table, at_leest: 1, min_n: 1, reason: y}\n")
    with pytest.raises(RecipeError, match=r"gates.yaml:2: gates\[0\].at_leest: unknown key. Did you mean at_least"):
        load_gates(str(path))
    path.write_text("gates: []\n")
    with pytest.raises(RecipeError, match="at least 1"):
        load_gates(str(path))
