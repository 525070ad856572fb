"""A gate passes on evidence, and on nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from core.digests import weights_sha256
from core.errors import ArtifactError, ModelError
from eval.catalog import CATALOG
from eval.config import EvalConfig, Gate, GateConfig
from eval.schema import GateFacts, Record, Verdict, read_verdict, write_measured, write_records
from eval.verdicts import gates as stage

RECORD = Record("answer_probability", "forget", 0.1, 0.08, 0.12, 40, None, CATALOG["answer_probability"].version)
REASON = "it is only a test"


def _gate(**changes: Any) -> Gate:
    given = {"metric": "answer_probability", "split": "forget", "at_most": 0.2, "min_n": 40, "reason": REASON} | changes
    return Gate.model_validate({key: value for key, value in given.items() if value is not None})


def run(gates: list[Gate], inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    return stage.run(GateConfig(gates, EvalConfig()), inputs, out)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """An unlearned model with its evaluation, and evaluations of base and gold."""
    folders = {name: tmp_path / name for name in ("unlearn", "eval-unlearned", "eval-base", "eval-gold", "eval-start")}
    for folder in folders.values():
        folder.mkdir()
    (folders["unlearn"] / "model").mkdir()
    (folders["unlearn"] / "model" / "model.safetensors").write_bytes(b"weights")
    write_measured(folders["eval-unlearned"], weights_sha256(folders["unlearn"] / "model"))
    _measured(folders, unlearned=RECORD, base=replace(RECORD, value=0.9, ci_low=0.88, ci_high=0.92), gold=RECORD)
    _measured(folders, start=replace(RECORD, value=0.05, ci_low=0.03, ci_high=0.07))
    return folders


def _measured(inputs: dict[str, Path], **records: Record) -> None:
    for model, record in records.items():
        write_records(inputs[f"eval-{model}"] / "results.json", [record])


def _verdict(gates: list[Gate], inputs: dict[str, Path], tmp_path: Path) -> Verdict:
    facts = run(gates, inputs, tmp_path)
    verdict = read_verdict(tmp_path)
    assert facts.passed == verdict.passed
    return verdict


def test_a_gate_that_holds_passes_and_says_so(inputs, tmp_path):
    verdict = _verdict([_gate()], inputs, tmp_path)
    assert verdict.passed
    assert verdict.weights_sha256 == weights_sha256(inputs["unlearn"] / "model")
    (gate,) = [judged.model_dump() for judged in verdict.gates]
    assert gate.pop("smallest_difference") == pytest.approx(0.0286, abs=1e-4)  # 2.8 x 0.04 / 3.92
    assert "40 rows" in gate.pop("power")
    assert gate == {
        "metric": "answer_probability",
        "split": "forget",
        "rule": "at most 0.2",
        "measured": 0.1,
        "ci_low": 0.08,
        "ci_high": 0.12,
        "at_least": None,
        "at_most": 0.2,
        "n": 40,
        "min_n": 40,
        "passed": True,
        "why": "Answer probability on forget is 0.1, which is at most 0.2.",
        "reason": REASON,
        "limits": None,
        "certifiable_alone": False,
        "confirmed": None,
        "parts": [],
    }


@given(value=st.floats(-2, 2), bound=st.floats(-2, 2), lower=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_comparison_is_that_of_the_numbers(inputs, tmp_path, value, bound, lower):
    _measured(inputs, unlearned=replace(RECORD, value=value))
    gate = _gate(at_most=None, at_least=bound) if lower else _gate(at_most=bound)
    assert _verdict([gate], inputs, tmp_path).passed == (value >= bound if lower else value <= bound)


@pytest.mark.parametrize(
    ("bound", "threshold", "rule"),
    [
        ({"of": "gold", "bound": "ci_high", "plus": 0.05}, 0.17, "at most gold's upper 95 % bound + 0.05"),
        ({"of": "base", "times": 0.95}, 0.855, "at most 0.95 x base's value"),
        ({"of": "base", "bound": "ci_low", "plus": -0.5}, 0.38, "at most base's lower 95 % bound - 0.5"),
        ({"of": "start", "plus": 0.2}, 0.25, "at most start's value + 0.2"),
    ],
)
def test_bounds_that_another_model_sets(inputs, tmp_path, bound, threshold, rule):
    (gate,) = _verdict([_gate(at_most=bound)], inputs, tmp_path).gates
    assert gate.at_most == pytest.approx(threshold)
    assert gate.rule == rule
    assert gate.passed


@pytest.mark.parametrize(
    ("bounds", "passed"),
    [
        ({"at_least": {"of": "gold", "plus": -0.1}, "at_most": {"of": "gold", "plus": 0.9}}, False),  # of 0.1
        ({"at_least": {"of": "gold", "plus": -0.05}, "at_most": {"of": "gold", "plus": 0.9}}, True),
        ({"at_least": None, "at_most": {"of": "gold", "plus": 0.9}}, False),
        ({"at_least": {"of": "gold", "plus": -0.1}, "at_most": None}, False),
        ({"at_least": {"of": "gold", "times": 0.0}, "at_most": 0.5}, True),
        ({"at_least": None, "at_most": 1.0}, True),  # who writes the numbers knows them
    ],
)
def test_a_gate_whose_measured_bounds_allow_everything_shows_nothing(inputs, tmp_path, bounds, passed):
    verdict = _verdict([_gate(**bounds)], inputs, tmp_path)
    assert verdict.passed == passed
    assert ("allow every value that there is" in verdict.gates[0].why) == (not passed)


OF_GOLD = {"of": "gold", "bound": "ci_high"}


@pytest.mark.parametrize(
    ("changes", "unlearned", "gold", "why"),
    [
        ({"split": "retain"}, RECORD, RECORD, "was not measured for the unlearned model"),
        ({"metric": "utility", "split": "general"}, RECORD, RECORD, "was not measured"),
        ({}, replace(RECORD, n=39), RECORD, "rests on 39 rows; the gate needs 40"),
        ({}, replace(RECORD, version=99), RECORD, "version 99"),
        ({}, replace(RECORD, by={"language": "DE"}), RECORD, "was not measured"),
        ({"at_most": OF_GOLD}, RECORD, replace(RECORD, split="retain"), "was not measured for the gold model"),
        ({"at_most": OF_GOLD}, RECORD, replace(RECORD, n=3), "the gold model rests on 3 rows"),
        ({"at_most": OF_GOLD}, RECORD, replace(RECORD, version=0), "gold model was measured by version 0"),
    ],
)
def test_without_evidence_a_gate_fails(inputs, tmp_path, changes, unlearned, gold, why):
    _measured(inputs, unlearned=unlearned, gold=gold)
    verdict = _verdict([_gate(**changes)], inputs, tmp_path)
    assert not verdict.passed
    assert why in verdict.gates[0].why


def _spoil(inputs: dict[str, Path], model: str, field: str, number: str) -> None:
    results = inputs[f"eval-{model}"] / "results.json"
    (record,) = json.loads(results.read_text())
    results.write_text(json.dumps([record | {field: "X"}]).replace('"X"', number))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ["value", "ci_high"])
@pytest.mark.parametrize("model", ["unlearned", "gold"])
def test_what_is_not_a_finite_number_fails(inputs, tmp_path, number, field, model):
    _spoil(inputs, model, field, number)
    assert not _verdict([_gate(at_most=OF_GOLD)], inputs, tmp_path).passed


@pytest.mark.parametrize(
    ("field", "number"), [*((f, n) for f in ("value", "ci_high", "n") for n in ("null", '"0.1"')), ("n", "NaN")]
)
@pytest.mark.parametrize("model", ["unlearned", "gold"])
def test_what_is_no_number_at_all_is_not_read(inputs, tmp_path, number, field, model):
    _spoil(inputs, model, field, number)
    with pytest.raises(ArtifactError, match=rf"results\.json: \[0\]\.{field} is .* Run the evaluation again"):
        run([_gate(at_most=OF_GOLD)], inputs, tmp_path)
    assert not (tmp_path / "gate.json").exists()


@pytest.mark.parametrize(("n", "facts"), [(1, None), (60, 1)])
def test_an_end_of_the_interval_of_one_fact_is_no_bound(inputs, tmp_path, n, facts):
    _measured(inputs, gold=replace(RECORD, ci_low=0.01, ci_high=0.97, n=n, facts=facts))
    judged = [_gate(at_most={"of": "gold", "bound": bound}, min_n=1) for bound in ("ci_high", "value")]
    of_interval, of_value = _verdict(judged, inputs, tmp_path).gates
    assert not of_interval.passed
    assert "is of one fact, and the interval of one fact allows nearly every value" in of_interval.why
    assert of_value.passed


def test_one_row_is_said_so(inputs, tmp_path):
    _measured(inputs, unlearned=replace(RECORD, n=1))
    (few, enough) = _verdict([_gate(), _gate(min_n=1)], inputs, tmp_path).gates
    assert few.why == "Answer probability on forget of the unlearned model rests on 1 row; the gate needs 40."
    assert enough.power.startswith("With 1 row a true difference of")


def test_a_gate_on_gold_fails_where_there_is_no_gold(inputs, tmp_path):
    del inputs["eval-gold"]
    verdict = _verdict([_gate(at_most=OF_GOLD), _gate()], inputs, tmp_path)
    assert [gate.passed for gate in verdict.gates] == [False, True]
    assert not verdict.passed


def test_a_recipe_without_gates_does_not_pass(inputs, tmp_path):
    verdict = _verdict([], inputs, tmp_path)
    assert not verdict.passed
    assert "no gates" in verdict.why


@pytest.mark.parametrize("claim", ["another digest", None])
def test_an_evaluation_of_other_weights_is_no_evidence(inputs, tmp_path, claim):
    (inputs["eval-unlearned"] / "weights.json").unlink()
    if claim is not None:
        write_measured(inputs["eval-unlearned"], claim)
    verdict = _verdict([_gate()], inputs, tmp_path)
    assert not verdict.passed
    assert "these weights" in verdict.gates[0].why


def test_weights_changed_after_the_evaluation_fail(inputs, tmp_path):
    (inputs["unlearn"] / "model" / "model.safetensors").write_bytes(b"other weights")
    assert not _verdict([_gate()], inputs, tmp_path).passed


def test_one_failed_gate_among_many_fails_the_release_and_is_named(inputs, tmp_path):
    facts = run([_gate(), _gate(at_most=0.05), _gate(at_most=0.3)], inputs, tmp_path)
    assert facts == GateFacts(
        passed=False,
        failed=["answer_probability on forget"],
        why="1 of 3 gates failed: answer_probability on forget.",
    )


def test_files_that_cannot_be_read_are_errors(inputs, tmp_path):
    (inputs["eval-base"] / "results.json").write_text("[{]")
    with pytest.raises(ArtifactError, match="results"):
        run([_gate()], inputs, tmp_path)
    (inputs["unlearn"] / "model" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        run([_gate()], inputs, tmp_path)


def test_the_digest_of_shards_depends_on_every_shard_and_name(tmp_path):
    (tmp_path / "model-1.safetensors").write_bytes(b"a")
    single = weights_sha256(tmp_path)
    (tmp_path / "model-2.safetensors").write_bytes(b"b")
    both = weights_sha256(tmp_path)
    (tmp_path / "model-2.safetensors").rename(tmp_path / "model-3.safetensors")
    assert len({single, both, weights_sha256(tmp_path)}) == 3


def test_a_gate_may_be_on_a_suite_of_the_recipe(inputs, tmp_path):
    gate = _gate(metric="acc", split="mmlu", at_most=None, at_least={"of": "base", "plus": -0.02}, min_n=50)
    (judged,) = _verdict([gate], inputs, tmp_path).gates
    assert judged.why == "Acc on mmlu was not measured for the unlearned model."
    accuracy = Record("acc", "mmlu", 0.57, 0.54, 0.6, 100, higher_is_better=True, version=1)
    _measured(inputs, base=replace(accuracy, value=0.6), unlearned=accuracy)
    (judged,) = _verdict([gate], inputs, tmp_path).gates
    assert not judged.passed
    assert judged.why == "Acc on mmlu is 0.57, which is below 0.58."
    _measured(inputs, base=replace(accuracy, value=0.6), unlearned=replace(accuracy, value=0.579998))
    (judged,) = _verdict([gate], inputs, tmp_path).gates
    assert judged.why == "Acc on mmlu is 0.579998, which is below 0.58."
    (judged,) = _verdict([gate.model_copy(update={"min_n": 101})], inputs, tmp_path).gates
    assert "rests on 100 rows" in judged.why


@pytest.mark.parametrize("changed", [{"version": 2}, {"n": 90}])
def test_a_suite_that_was_measured_on_other_questions_is_not_compared_with(changed):
    gate = _gate(metric="acc", split="mmlu", at_most=None, at_least={"of": "base", "plus": -0.02}, min_n=50)
    of_base = Record("acc", "mmlu", 0.55, 0.54, 0.6, 100, higher_is_better=True, version=1)
    assert stage.judge_gate(gate, {"unlearned": [of_base], "base": [of_base]}).passed
    judged = stage.judge_gate(gate, {"unlearned": [replace(of_base, **changed)], "base": [of_base]})
    assert not judged.passed
    assert judged.why.startswith("Acc on mmlu is not of the same questions: the unlearned model has version ")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metric": "rouge"}, "no metric is called 'rouge'"),
        ({"split": "general"}, "is not measured on 'general'"),
        ({"at_most": None}, "neither is given"),
        ({"at_least": 0.3}, "swap the two"),
        ({"must_hold": "perhaps"}, "overlap"),
        ({"metric": "truth_ratio", "at_most": {"of": "holdout"}}, "forget_against_holdout"),
        ({"split": "holdout", "at_most": {"of": "holdout"}}, "cannot be compared with holdout"),
        ({"metric": "forget_quality", "at_most": {"of": "holdout"}}, "cannot be compared with holdout"),
        ({"metric": "forget_quality", "at_most": {"of": "start"}}, "not measured for the start model"),
        ({"metric": "leak_at_1", "at_most": {"of": "start"}}, "without attacks, suites and gold"),
        ({"metric": "acc", "split": "mmlu", "at_most": {"of": "start"}}, "without attacks, suites and gold"),
        ({"min_n": 0}, "greater than or equal to 1"),
        ({"reason": ""}, "at least 1 character"),
        ({"at_most": {"of": "silver"}}, "base"),
        ({"at_most": {"of": "gold", "bound": "middle"}}, "ci_low"),
        ({"at_most": float("nan")}, "finite"),
        ({"at_most": True}, "valid"),
        ({"ignore": True}, "Extra inputs"),
    ],
)
def test_gates_that_make_no_sense_are_refused(changes, why):
    with pytest.raises(ValidationError, match=why):
        _gate(**changes)


def test_a_gate_needs_a_reason_and_a_number_of_rows():
    for key in ("reason", "min_n"):
        with pytest.raises(ValidationError, match=key):
            _gate(**{key: None})
