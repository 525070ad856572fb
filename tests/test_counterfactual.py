"""Levels of answers from base's own probabilities of false ones, and the distributions that are to be matched."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError
from datasets_prep.schema import Encoded
from pipeline.unlearn.counterfactual import HIGHEST, Counterfactual, Levels, answer_levels

PROMPT = (1, 2)
FORM_A, FORM_B, END = 10, 11, 12


def row(*answer: int) -> Encoded:
    return Encoded((*PROMPT, *answer), len(PROMPT))


def test_content_takes_the_log_probability_of_the_false_answer_in_its_place() -> None:
    """True: A x y B z END; false: A p q r B s END. Later tokens align in order, the last one serves the rest."""
    true, false = row(FORM_A, 20, 21, FORM_B, 22, END), row(FORM_A, 30, 31, 32, FORM_B, 33, END)
    base = [-0.1, -6.0, -5.0, -4.0, -0.2, -7.0, -0.3]
    (levels,) = answer_levels({"a": true}, [[false]], [[base]], seed="0")
    assert levels.content == (False, True, True, False, True, False)
    assert levels.nats == (0.0, -6.0, -5.0, 0.0, -7.0, 0.0)


def test_a_longer_fact_repeats_the_last_level_and_a_sure_token_is_bounded() -> None:
    true, false = row(FORM_A, 20, 21, 22, END), row(FORM_A, 30, 31, END)
    (levels,) = answer_levels({"a": true}, [[false]], [[[-0.1, -0.001, -5.0, -0.1]]], seed="0")
    assert levels.nats == (0.0, HIGHEST, -5.0, -5.0, 0.0)


def test_form_is_what_all_false_answers_share() -> None:
    true = row(FORM_A, 20, FORM_B, END)
    guides = [row(FORM_A, 30, FORM_B, END), row(FORM_A, 31, 32, END)]
    log_probs = [[-0.1, -3.0, -0.2, -0.1], [-0.1, -4.0, -2.5, -0.1]]
    drawn = {answer_levels({"a": true}, [guides], [log_probs], seed=str(s))[0].nats for s in range(20)}
    assert drawn == {(0.0, -3.0, -0.2, 0.0), (0.0, -4.0, -2.5, 0.0)}  # one of the two, never their mean


def test_a_place_that_the_false_answer_leaves_empty_has_the_mean_level_of_such_places() -> None:
    rows = [row(FORM_A, 20, 21, END), row(FORM_A, 22, 23, END)]
    guides = [[row(FORM_A, END)], [row(FORM_A, 30, 31, END)]]
    log_probs = [[[-0.1, -0.1]], [[-0.1, -6.0, -2.0, -0.1]]]
    assert answer_levels(dict(zip("ab", rows, strict=True)), guides, log_probs, seed="0")[0].nats == (
        0.0,
        -6.0,
        -2.0,
        0.0,
    )


def test_answers_that_differ_from_nothing_are_refused() -> None:
    same = row(FORM_A, 20, END)
    other = row(FORM_A, 21, END)
    with pytest.raises(InputError, match=r"1 forget rows \(first b\) hold every word"):
        answer_levels({"a": other, "b": same}, [[same], [same]], [[[-0.1] * 3], [[-0.1] * 3]], seed="0")
    with pytest.raises(InputError, match="nothing says how likely"):
        answer_levels({"a": same}, [[row(FORM_A, END)]], [[[-0.1, -0.1]]], seed="0")


tokens = st.lists(st.integers(5, 12), min_size=1, max_size=9)


@given(st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=3)), min_size=1, max_size=4), st.integers(0, 5))
def test_any_answers_have_one_level_a_token_and_levels_are_bounded(rows: list[Any], seed: int) -> None:
    forget = {str(i): row(*true) for i, (true, _) in enumerate(rows)}
    guides = [[row(*other) for other in false] for _, false in rows]
    log_probs = [[[-0.01 * (i + 1) for i in range(len(other))] for other in false] for _, false in rows]
    try:
        found = answer_levels(forget, guides, log_probs, seed=str(seed))
    except InputError:
        return
    assert found == answer_levels(forget, guides, log_probs, seed=str(seed))
    for (true, false), levels in zip(rows, found, strict=True):
        assert len(levels.content) == len(levels.nats) == len(true)
        assert all(
            (level < 0) == is_content and level <= HIGHEST * is_content
            for is_content, level in zip(*levels, strict=True)
        )
        for token, is_content in zip(true, levels.content, strict=True):
            assert is_content or all(token in other for other in false)


class Fixed:
    """A base that says the same at every token."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.fixed = logits

    def logits(self, rows: list[int], device: torch.device) -> torch.Tensor:
        return self.fixed.clone()


@given(st.floats(-12, HIGHEST), st.integers(0, 3), st.lists(st.floats(-8, 8), min_size=4, max_size=4))
def test_the_true_token_has_its_level_and_the_others_keep_their_proportions(
    level: float, true: int, logits: list[float]
) -> None:
    base = torch.tensor([logits, logits])
    wanted, content, levels = Counterfactual(
        cast("Any", Fixed(base)), [Levels((True, False), (level, 0.0))], temper=1.0
    ).of([0], torch.tensor([true, true]))
    assert content.tolist() == [True, False]
    assert levels[0] == pytest.approx(level)
    assert wanted[0].exp().sum() == pytest.approx(1, abs=1e-4)
    assert wanted[0, true] == pytest.approx(level, abs=1e-5)
    torch.testing.assert_close(wanted[1], base[1].log_softmax(0))
    others = [i for i in range(4) if i != true]
    ratios = wanted[0, others] - base[0, others]
    assert float(ratios.max() - ratios.min()) == pytest.approx(0, abs=1e-4)
    assert math.isfinite(float(wanted.sum()))
