"""Gates that the rows cannot carry are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.errors import DataError
from datasets_prep.schema import DataFacts, FalseAnswerFacts, SplitSizes
from eval.config import EvalConfig, Gate
from eval.verdicts import measurable
from tests.artifacts import data_facts
from tests.conftest import Call
from tests.test_release import release, write_recipe

FALSE = {
    "answers": 0,
    "mixed": 0,
    "from_trained_rows": 0,
    "rows_with_fewer": 0,
    "rows_without": 0,
    "guides": 0,
    "guides_mixed": 0,
}


def facts(false: int = 40, **rows: int) -> DataFacts:
    sizes = {"forget": 40, "retain": 140, "holdout": 50, "unrehearsed": 20, **rows}
    false_answers = FalseAnswerFacts(rows=false, **FALSE)
    return data_facts({"file": "x"}).changed(rows=SplitSizes(**sizes), perturbed=false_answers)


def gate(metric: str, split: str = "forget", **more: Any) -> Gate:
    return Gate.model_validate({"metric": metric, "split": split, "at_least": 0.1, "min_n": 20, "reason": "x", **more})


def check(gates: list[Gate], data: DataFacts, **robustness: Any) -> None:
    config = EvalConfig.model_validate({"robustness": robustness or None})
    measurable.check(gates, config, dict(data.rows), data)


EVERYTHING = [
    gate("answer_probability", at_least={"of": "holdout"}),
    gate("mia_min_k_auc"),
    gate("forget_quality"),
    gate("answer_probability", "unrehearsed"),
    gate("utility", "general", min_n=110),
    gate("acc", "mmlu", min_n=2000),
]


def test_what_the_rows_can_carry_is_not_refused() -> None:
    check(EVERYTHING, facts())


@pytest.mark.parametrize(
    ("judged", "rows", "words"),
    [
        (gate("mia_min_k_auc"), {"holdout": 0}, ["compares with holdout rows", "data.request.holdout"]),
        (EVERYTHING[0], {"holdout": 0}, ["compares with holdout rows"]),
        (gate("answer_probability_steer_known_gap"), {"holdout": 0}, ["compares with holdout rows"]),
        (gate("answer_probability", min_n=40), {"forget": 31}, ["it needs 40 rows, and the split has 31"]),
        (EVERYTHING[3], {"unrehearsed": 4}, ["the split has 4", "data.unrehearsed"]),
        (gate("forget_quality"), {"false": 0}, ["false ones, and there are none", "`perturbed_answers`"]),
        (gate("multiple_choice_accuracy"), {"false": 0}, ["false ones, and there are none"]),
    ],
)  # fmt: skip
def test_a_gate_that_can_only_fail_is_refused_with_what_to_do(
    judged: Gate, rows: dict[str, int], words: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        check([EVERYTHING[4], judged], facts(**rows))
    for part in (f"gates[1] ({judged.metric} on {judged.split}):", *words):
        assert part in str(error.value)
    assert "gates[0]" not in str(error.value)


def test_a_reading_after_relearning_has_the_other_rows() -> None:
    judged = gate("extraction_strength_relearn_forget_gap", min_n=36)
    check([judged], facts(), relearn={"forget_share": 0.1})
    with pytest.raises(DataError, match=r"needs 36 rows, and relearning leaves 30 of 40 to probe"):
        check([judged], facts(), relearn={"forget_share": 0.25})


def test_what_is_known_of_the_rows_alone_is_judged_before_they_are_here() -> None:
    sizes = {"forget": 40, "retain": 140, "holdout": 0, "unrehearsed": 20}
    measurable.check([gate("forget_quality")], EvalConfig(), sizes, None)
    with pytest.raises(DataError, match="compares with holdout rows"):
        measurable.check([gate("mia_min_k_auc")], EvalConfig(), sizes, None)


def test_a_release_says_so_before_the_first_stage(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    """The sample set of the tiny recipe has no holdout rows then, and the gate needs them."""
    recipe, store = write_recipe(tmp_path, tiny_model), tmp_path / "store"
    shares = "data.shares={retain: 0.8, forget: 0.2, holdout: 0}"
    membership = "gates=[{metric: mia_min_k_auc, split: forget, at_most: 0.6, min_n: 10, reason: x}]"
    done = call(*release(recipe, store, "--until", "gate", "--set", shares, "--set", membership))
    assert done.returncode == 2
    assert "gates[0] (mia_min_k_auc on forget): it compares with holdout rows" in done.stderr
    assert not store.exists()
