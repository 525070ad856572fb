"""Gates that the rows cannot carry are refused before anything is trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ks_2samp

from core.errors import DataError
from datasets_prep.schema import DataFacts, SplitSizes
from eval.config import EvalConfig, Gate
from eval.verdicts import measurable
from tests.artifacts import data_facts
from tests.conftest import Call
from tests.test_release import release, write_recipe

FALSE_ROWS = {"forget": 40, "retain": 50, "holdout": 50}


def facts(**rows: int) -> DataFacts:
    sizes = {"forget": 40, "retain": 140, "holdout": 50, "unrehearsed": 20, **rows}
    return data_facts({"file": "x"}).changed(rows=SplitSizes(**sizes))


def gate(metric: str, split: str = "forget", **more: Any) -> Gate:
    return Gate.model_validate({"metric": metric, "split": split, "at_least": 0.1, "min_n": 20, "reason": "x", **more})


def check(gates: list[Gate], data: DataFacts, false: dict[str, int] | None = None, **robustness: Any) -> None:
    config = EvalConfig.model_validate({"robustness": robustness or None})
    measurable.check(gates, config, dict(data.rows), data, Counter(FALSE_ROWS if false is None else false))


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
        (gate("mia_min_k_auc"), {"holdout": 19}, ["needs 20 rows, and compares", "of which there are 19"]),
        (EVERYTHING[0], {"holdout": 19}, ["needs 20 rows, and compares", "of which there are 19"]),
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


@pytest.mark.parametrize(
    ("judged", "false", "words"),
    [
        (gate("forget_quality"), {}, ["false ones, and there are none", "`perturbed_answers`"]),
        (
            gate("forget_against_holdout"),
            {"forget": 40, "holdout": 19},
            ["needs 20 rows, and compares with holdout rows that have false answers", "19 of 50"],
        ),
        (gate("multiple_choice_accuracy"), {}, ["false ones, and there are none"]),
        (gate("truth_ratio", "retain", min_n=51), {"retain": 50}, ["which are 50 of 140", "perturbed.retain_rows"]),
        (gate("fluency", "retain", min_n=51), {"retain": 50}, ["which are 50 of 140", "perturbed.retain_rows"]),
        (gate("forget_quality", min_n=39), {"forget": 38}, ["which are 38 of 40"]),
    ],
)  # fmt: skip
def test_a_gate_on_rows_with_false_answers_needs_enough_of_them(
    judged: Gate, false: dict[str, int], words: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        check([judged], facts(), false)
    for part in (f"gates[0] ({judged.metric} on {judged.split}):", *words):
        assert part in str(error.value)


@pytest.mark.parametrize(("ours", "theirs"), [(1, 39), (1, 40), (2, 7), (2, 8), (3, 4), (3, 5), (4, 4), (20, 20)])
def test_a_gate_that_no_model_can_fail_is_refused(ours: int, theirs: int) -> None:
    """scipy's own p-value of samples that do not overlap is the judge."""
    smallest = float(ks_2samp(np.arange(ours), 100.0 + np.arange(theirs)).pvalue)
    judged = gate("forget_against_holdout", at_least=0.05, min_n=1)
    false = {"forget": ours, "holdout": theirs}
    if smallest < 0.05:
        check([judged], facts(**false), false)
        return
    with pytest.raises(DataError, match=rf"no p-value is below {smallest:.2g}\. .* gate forget_against_holdout_ks"):
        check([judged], facts(**false), false)
    with pytest.raises(DataError, match=r"of 3 rows against 3, no p-value is below 0\.1"):
        check([gate("forget_quality", at_least=0.05, min_n=1)], facts(), {"forget": 3})


def test_all_retain_rows_are_answered_where_none_has_false_answers() -> None:
    check([gate("fluency", "retain", min_n=140), gate("answer_probability", "retain", min_n=140)], facts(), {})


def test_a_reading_after_relearning_has_the_other_rows() -> None:
    judged = gate("extraction_strength_relearn_forget_gap", min_n=36)
    check([judged], facts(), relearn={"forget_share": 0.1})
    with pytest.raises(DataError, match=r"needs 36 rows, and relearning leaves 30 of 40 to probe"):
        check([judged], facts(), relearn={"forget_share": 0.25})


def test_rows_that_tell_one_fact_are_counted_once() -> None:
    sizes, false = dict(facts().rows), {"forget": 10, "holdout": 50, "retain": 50}
    judged, told = [gate("answer_probability"), gate("forget_quality", "forget")], {**sizes, "forget": 10}
    measurable.check(judged, EvalConfig(), sizes, facts(), false | {"forget": 40})
    with pytest.raises(DataError, match="it needs 20 rows, and the split has 10") as error:
        measurable.check(judged, EvalConfig(), sizes, facts(), false, told)
    assert "Several forget rows tell one fact in other words. They are counted as one" in str(error.value)


def test_an_end_of_the_interval_of_one_fact_is_no_bound() -> None:
    """It allows nearly every value, so the gate would pass nearly every model or, where it allows all of them, none."""
    of_start = {"at_least": {"of": "start", "bound": "ci_low"}, "at_most": {"of": "start", "bound": "ci_high"}}
    of_holdout = {"at_least": None, "at_most": {"of": "holdout", "bound": "ci_high"}}
    for judged, rows in (
        (gate("mia_min_k_auc", min_n=1, **of_start), {"forget": 1}),
        (gate("mia_min_k_auc", min_n=1, **of_start), {"holdout": 1}),
        (gate("answer_probability", min_n=1, **of_start), {"forget": 1}),
        (gate("answer_probability", min_n=1, **of_holdout), {"holdout": 1}),
    ):
        with pytest.raises(DataError, match=r"interval on one (forget|holdout) row, .* \(bound: value\)"):
            check([judged], facts(**rows))
    check([gate("answer_probability", min_n=1, **of_holdout)], facts(forget=1))
    check([gate("answer_probability", min_n=1, at_least={"of": "start"})], facts(forget=1))


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
