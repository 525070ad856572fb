"""A verdict that does not follow from recipe and results is named, when it is packaged and when it is verified."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.artifacts import json_text, read_file, write_file
from core.errors import ArtifactError, GateError
from eval.config import Gate, Reference
from eval.schema import OnOtherRows, PublishedResults, Record, Verdict, read_verdict
from eval.verdicts.gates import judge_gate
from eval.verdicts.recheck import verdict_problems
from pipeline.publish.schema import Release
from tests.artifacts import verdict_of
from tests.publishing import CONFIG, build, make_inputs, problems


def record(metric: str, split: str, value: float, low: float, high: float, n: int = 40) -> Record:
    return Record(metric, split, value, low, high, n, None, 1)


RESULTS = {
    "base": [record("answer_probability", "retain", 0.93, 0.92, 0.94, 140)],
    "gold": [record("answer_probability", "forget", 0.18, 0.13, 0.23)],
    "unlearned": [
        record("answer_probability", "forget", 0.2, 0.15, 0.24),
        record("answer_probability", "retain", 0.91, 0.9, 0.93, 140),
    ],
}
REASON = {"reason": "a test"}
GATES = [
    Gate.model_validate(gate | REASON)
    for gate in (
        {
            "metric": "answer_probability",
            "split": "forget",
            "min_n": 40,
            "at_least": {"of": "gold", "bound": "ci_low", "plus": -0.05},
            "at_most": {"of": "gold", "bound": "ci_high", "plus": 0.05},
        },
        {
            "metric": "answer_probability",
            "split": "retain",
            "min_n": 100,
            "at_least": {"of": "base", "times": 0.95},
            "must_hold": "interval",
        },
    )
]
VERDICT = verdict_of(*(judge_gate(gate, RESULTS) for gate in GATES))
CONFIRMED = OnOtherRows(
    n=30,
    says="On the 30 rows that did not choose the checkpoint: Answer probability on forget is 0.19, which is at least "
    "0.08 and at most 0.28.",
    measured=0.19,
    ci_low=0.14,
    ci_high=0.25,
    at_least=0.08,
    at_most=0.28,
    passed=True,
)
UNJUDGED = OnOtherRows.unjudged(40, "No row of the split was used to choose the checkpoint.")


def test_a_verdict_follows_from_its_gates_and_results() -> None:
    assert VERDICT.passed
    assert verdict_problems(VERDICT, GATES, RESULTS) == []
    for confirmed in (CONFIRMED, UNJUDGED):
        first = VERDICT.gates[0].changed(confirmed=confirmed)
        assert verdict_problems(VERDICT.changed(gates=[first, VERDICT.gates[1]]), GATES, RESULTS) == []


def test_what_gold_would_show_is_not_left_out() -> None:
    """A gate against holdout rows has limits, which stand below the gates on the card."""
    gate = GATES[0].model_copy(
        update={"at_least": None, "at_most": Reference(of="holdout", bound="ci_high", plus=0.05)}
    )
    results = {"unlearned": [record("answer_probability", split, 0.2, 0.15, 0.24) for split in ("forget", "holdout")]}
    judged = judge_gate(gate, results)
    assert verdict_problems(verdict_of(judged), [gate], results) == []
    (problem,) = verdict_problems(verdict_of(judged.changed(limits=None)), [gate], results)
    assert "limits is None, and by the recipe it is" in problem


EDITED: dict[str, tuple[dict[str, Any], str]] = {
    "value": ({"measured": 0.19}, "measured is 0.19, and by the recipe and the results it is 0.2"),
    "interval": ({"ci_high": 0.2}, "ci_high is 0.2"),
    "bound": ({"at_most": 0.5}, "at_most is 0.5, and by the recipe and the results it is 0.28"),
    "no bound": ({"at_least": None}, "at_least is None"),
    "rows": ({"n": 400}, "n is 400"),
    "demand": ({"min_n": 4}, "min_n is 4, and by the recipe it is 40"),
    "rule": ({"rule": "at most 0.5"}, "rule is 'at most 0.5'"),
    "reason": ({"reason": "none"}, "reason is 'none'"),
    "another metric": ({"metric": "fluency"}, "metric is 'fluency'"),
    "power": ({"smallest_difference": 0.001}, "smallest_difference is 0.001"),
    "power in words": ({"power": "It sees anything."}, "power is 'It sees anything.', and by the recipe and the"),
    "certified": ({"certifiable_alone": True}, "certifiable_alone is True, and by the recipe and the"),
    "limits": ({"limits": "None."}, "limits is 'None.', and by the recipe it is None"),
    "sentence": ({"why": "All is well."}, "why is 'All is well.', and by the recipe and the results it is 'Answer"),
    "verdict": ({"passed": False}, "passed is False, and by its value and bounds it is True"),
    "confirmation": ({"confirmed": CONFIRMED.changed(measured=0.3)}, "its confirmation passed, and by its numbers"),
    "refuted": (
        {"confirmed": CONFIRMED.changed(passed=False)},
        "passed is True, and by its value and bounds it is False",
    ),
    **{
        f"confirmation {name}": ({"confirmed": CONFIRMED.changed(**changes)}, f"its confirmation {message}")
        for name, changes, message in (
            ("without numbers", {"ci_low": None}, "has no interval"),
            ("without a bound", {"at_most": None}, "has another at_most than the recipe"),
            ("without a verdict", {"passed": None, "measured": 0.9}, "has numbers, and says neither that it passed"),
            ("on few rows", {"n": 29}, "passed on 29 rows, and 30 to 40 are needed"),
            ("on more rows than there are", {"n": 41}, "passed on 41 rows, and 30 to 40 are needed"),
            ("in other words", {"says": "On 30 others: 0.01."}, "says 'On 30 others: 0.01.', and by its numbers"),
        )
    },
    "confirmation by words alone": (
        {"confirmed": UNJUDGED.changed(passed=True)}, "its confirmation has another at_least than the recipe",
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITED)
def test_an_edited_gate_is_named(edit: str) -> None:
    changes, message = EDITED[edit]
    edited = VERDICT.changed(gates=[VERDICT.gates[0].changed(**changes), VERDICT.gates[1]])
    assert any(message in problem for problem in verdict_problems(edited, GATES, RESULTS))


def test_an_edited_whole_is_named() -> None:
    assert verdict_problems(VERDICT, GATES[:1], RESULTS) == ["It has 2 gates, and the recipe has 1."]
    assert verdict_problems(VERDICT.changed(passed=False), GATES, RESULTS) == [
        "It says passed: False, and 0 of its gates failed."
    ]
    none = Verdict(passed=True, why="", weights_sha256="", selection=None, gates=[])
    assert verdict_problems(none, [], RESULTS) == ["It says passed: True, and 0 of its gates failed."]


def test_another_result_or_threshold_is_named() -> None:
    """Whatever is edited of the two that the gate read, the verdict that was made of them no longer follows."""
    worse = {**RESULTS, "unlearned": [record("answer_probability", "forget", 0.4, 0.3, 0.5), RESULTS["unlearned"][1]]}
    found = verdict_problems(VERDICT, GATES, worse)
    assert any("measured is 0.2" in problem for problem in found)
    assert any("passed is True, and by its value and bounds it is False" in problem for problem in found)
    higher = {**RESULTS, "gold": [record("answer_probability", "forget", 0.5, 0.4, 0.6)]}
    assert any("at_most is 0.28" in problem for problem in verdict_problems(VERDICT, GATES, higher))
    stricter = [GATES[0].model_copy(update={"at_most": 0.1}), GATES[1]]
    assert any("at_most is 0.28" in problem for problem in verdict_problems(VERDICT, stricter, RESULTS))


@pytest.fixture
def inputs(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "store"))
    return make_inputs(tmp_path / "inputs", tiny_model)


def edit_gate(inputs: dict[str, Path]) -> None:
    path = inputs["gate"] / "gate.json"
    verdict = json.loads(path.read_text())
    verdict["gates"][0]["at_most"] = 0.3
    path.write_text(json.dumps(verdict))


def edit_results(inputs: dict[str, Path]) -> None:
    results = PublishedResults(models={"unlearned": [record("answer_probability", "forget", 0.1, 0.05, 0.2)]})
    (inputs["card"] / "results.json").write_text(json_text(results.plain()))


@pytest.mark.parametrize(
    ("edit", "message"),
    [(edit_gate, "at_most is 0.3"), (edit_results, "measured is 0.125")],
)
def test_what_does_not_follow_is_not_packaged(
    inputs: dict[str, Path], tmp_path: Path, edit: Callable[[dict[str, Path]], None], message: str
) -> None:
    edit(inputs)
    with pytest.raises(GateError, match=f"does not follow from recipe and results: .*{message}"):
        build(inputs, tmp_path / "out")
    assert not (tmp_path / "out" / "hub" / "model.sig").exists()


def test_results_of_no_version_are_not_packaged(inputs: dict[str, Path], tmp_path: Path) -> None:
    (inputs["card"] / "results.json").write_text('{"models": {}}')
    with pytest.raises(ArtifactError, match=r"results\.json: made by no version"):
        build(inputs, tmp_path / "out")
    assert not (tmp_path / "out" / "hub" / "model.sig").exists()


def test_other_gates_than_those_that_were_judged_are_not_packaged(inputs: dict[str, Path], tmp_path: Path) -> None:
    gates = [CONFIG.recipe["gates"][0] | {"at_most": 0.1}]  # type: ignore[index, operator]
    with pytest.raises(GateError, match=r"at_most is 0\.25, and by the recipe and the results it is 0\.1"):
        build(inputs, tmp_path / "a", CONFIG.model_copy(update={"recipe": {"gates": gates}}))
    for recipe in ({}, {"gates": None}, {"gates": [{"metric": "none"}]}):
        with pytest.raises(GateError, match=r"release\.json has no gates that can be read"):
            build(inputs, tmp_path / f"b{len(str(recipe))}", CONFIG.model_copy(update={"recipe": recipe}))


def test_a_release_that_was_edited_is_named_from_its_files_alone(inputs: dict[str, Path], tmp_path: Path) -> None:
    hub = build(inputs, tmp_path / "out") / "hub"
    assert problems(hub) == []
    release = read_file(hub / "release.json", Release, "")
    gates = [release.recipe["gates"][0] | {"at_most": 0.1}]  # type: ignore[index, operator]
    write_file(hub / "release.json", release.model_copy(update={"recipe": {"gates": gates}}))
    assert any("at_most is 0.25" in problem for problem in problems(hub))
    write_file(hub / "release.json", release)
    write_file(hub / "gate.json", read_verdict(hub).changed(passed=False))
    assert problems(hub) == ["It says passed: False, and 0 of its gates failed."]
    (hub / "release.json").unlink()
    assert "release.json: cannot be read" in problems(hub)[0]
