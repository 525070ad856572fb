"""Laws of a gate's verdict, on records alone: worse is never better, and what is missing never passes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.catalog import CATALOG
from eval.config import Gate
from eval.schema import Record
from eval.verdicts.gates import judge_gate

METRIC = "answer_probability"
NUMBERS = st.floats(-2, 2)
WIDTHS = st.floats(0, 1)
HOLD = st.sampled_from(["point", "interval", "overlap"])


def record(value: float, below: float = 0.02, above: float = 0.02, *, n: int = 200, split: str = "forget") -> Record:
    return Record(METRIC, split, value, value - below, value + above, n, None, CATALOG[METRIC].version)


def gate(**changes: Any) -> Gate:
    given = {"metric": METRIC, "split": "forget", "min_n": 100, "reason": "a test"} | changes
    return Gate.model_validate({key: value for key, value in given.items() if value is not None})


def passes(condition: Gate, unlearned: Record | None, **others: Record) -> bool:
    results = {model: [found] for model, found in others.items()}
    results["unlearned"] = [unlearned] if unlearned else []
    return judge_gate(condition, results).passed


@given(NUMBERS, WIDTHS, WIDTHS, NUMBERS, NUMBERS, HOLD, st.floats(0, 2))
def test_a_worse_value_never_turns_fail_into_pass(value, below, above, first, second, hold, worse):
    low, high = sorted([first, second])
    both = gate(at_least=low, at_most=high, must_hold=hold)
    middle = (low + high) / 2
    away = worse if value >= middle else -worse
    assert passes(both, record(value, below, below)) or not passes(both, record(value + away, below, below))
    for bounds, direction in (({"at_most": high}, worse), ({"at_least": low}, -worse)):
        one = gate(**bounds, must_hold=hold)
        assert passes(one, record(value, below, above)) or not passes(one, record(value + direction, below, above))


@given(NUMBERS, WIDTHS, WIDTHS, NUMBERS, NUMBERS)
def test_the_interval_asks_more_than_the_point_and_the_point_more_than_an_overlap(value, below, above, first, second):
    low, high = sorted([first, second])
    strict, point, loose = (
        passes(gate(at_least=low, at_most=high, must_hold=hold), record(value, below, above))
        for hold in ("interval", "point", "overlap")
    )
    assert strict <= point <= loose


@given(NUMBERS, NUMBERS, NUMBERS, HOLD)
def test_a_range_is_both_of_its_sides(value, first, second, hold):
    low, high = sorted([first, second])
    sides = [gate(at_least=low, must_hold=hold), gate(at_most=high, must_hold=hold)]
    both = gate(at_least=low, at_most=high, must_hold=hold)
    assert passes(both, record(value)) == all(passes(side, record(value)) for side in sides)


@given(WIDTHS, WIDTHS, HOLD)
def test_fewer_rows_never_help(below, above, hold):
    condition = gate(at_most=0.5, must_hold=hold)
    assert not passes(condition, record(-2.0, below, above, n=99))
    assert passes(condition, record(-2.0, below, above, n=100))


BROKEN = st.sampled_from([math.nan, math.inf, -math.inf, None, "0.1"])


@given(
    st.sampled_from(["value", "ci_low", "ci_high", "n", "version"]),
    BROKEN,
    st.sampled_from(["unlearned", "gold", "holdout"]),
    HOLD,
    st.sampled_from([0.1, -0.1]),
)
def test_what_is_missing_or_not_a_number_never_passes(field, broken, whose, hold, plus):
    of = "holdout" if whose == "holdout" else "gold"
    condition = gate(at_least={"of": of, "plus": -9.0}, at_most={"of": of, "plus": 0.8}, must_hold=hold)
    own, gold, held = record(0.1 + plus), record(0.1), record(0.1, split="holdout")
    assert judge_gate(condition, {"unlearned": [own, held], "gold": [gold]}).passed
    spoilt = {"unlearned": own, "gold": gold, "holdout": held}
    for bad in (replace(spoilt[whose], **{field: broken}), None):
        found = {name: [r] if r else [] for name, r in (spoilt | {whose: bad}).items()}
        verdict = judge_gate(condition, {"unlearned": found["unlearned"] + found["holdout"], "gold": found["gold"]})
        assert not verdict.passed
        assert verdict.why


def test_an_interval_whose_ends_are_swapped_is_no_evidence():
    assert (
        "lower end is above its upper end"
        in judge_gate(gate(at_most=1.0), {"unlearned": [record(0.1, -0.1, -0.1)]}).why
    )


def test_measured_bounds_that_cross_pass_nothing_not_even_an_overlap():
    condition = gate(at_least={"of": "gold"}, at_most={"of": "base"}, must_hold="overlap")
    verdict = judge_gate(
        condition, {"unlearned": [record(0.5, 0.4, 0.4)], "gold": [record(0.6)], "base": [record(0.4)]}
    )
    assert not verdict.passed
    assert "cross" in verdict.why
    assert verdict.power.startswith("With 200 rows")


def test_too_much_forgetting_fails_as_surely_as_too_little():
    like_gold = gate(
        at_least={"of": "gold", "bound": "ci_low", "plus": -0.05},
        at_most={"of": "gold", "bound": "ci_high", "plus": 0.05},
    )
    gold = record(0.17, 0.03, 0.03)
    verdicts = {
        value: judge_gate(like_gold, {"unlearned": [record(value)], "gold": [gold]}) for value in (0.9, 0.15, 0.01)
    }
    assert [verdict.passed for verdict in verdicts.values()] == [False, True, False]
    assert "above 0.25" in verdicts[0.9].why
    assert "below 0.09" in verdicts[0.01].why
    assert verdicts[0.15].rule == "at least gold's lower 95 % bound - 0.05 and at most gold's upper 95 % bound + 0.05"


@pytest.mark.parametrize(
    ("hold", "value", "why"),
    [
        ("overlap", 0.52, "is 0.52 (95 % interval 0.42 to 0.62); the interval contains 0.5."),
        ("overlap", 0.62, "is 0.62 (95 % interval 0.52 to 0.72); all of the interval is above 0.5."),
        ("interval", 0.5, "is 0.5 (95 % interval 0.4 to 0.6); part of the interval is below 0.5."),
        ("point", 0.4, "is 0.4, which is below 0.5."),
    ],
)
def test_the_sentence_names_the_number_that_decided(hold, value, why):
    chance = gate(at_least=0.5, at_most=0.5, must_hold=hold)
    verdict = judge_gate(chance, {"unlearned": [record(value, 0.1, 0.1)]})
    assert verdict.why.endswith(why)
    assert (verdict.rule == "95 % interval contains 0.5") == (hold == "overlap")


def test_a_gate_without_gold_says_what_it_shows_and_what_not():
    against = gate(at_most={"of": "holdout", "bound": "ci_high", "plus": 0.05})
    verdict = judge_gate(against, {"unlearned": [record(0.16), record(0.1, 0.05, 0.05, split="holdout")]})
    assert verdict.passed
    assert verdict.rule == "at most holdout's upper 95 % bound + 0.05"
    assert "does not show" in verdict.limits
    alone = judge_gate(against, {"unlearned": [record(0.16)]})
    assert not alone.passed
    assert "on holdout was not measured" in alone.why


@pytest.mark.parametrize(
    ("bound", "limited"), [(0.6, True), ({"of": "base"}, True), ({"of": "gold", "plus": 0.05}, False)]
)
def test_membership_without_gold_compares_with_holdout_and_says_so(bound, limited):
    membership = gate(metric="mia_min_k_auc", at_most=bound)
    assert (judge_gate(membership, {}).limits is not None) == limited
    assert judge_gate(gate(at_most=bound), {}).limits is None


@pytest.mark.parametrize(("n", "alone"), [(99, False), (100, True)])
def test_a_cell_under_a_hundred_facts_is_not_certifiable_alone(n, alone):
    assert judge_gate(gate(at_most=1.0, min_n=1), {"unlearned": [record(0.1, n=n)]}).certifiable_alone is alone
