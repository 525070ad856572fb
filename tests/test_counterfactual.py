"""Levels of answers from base's own probabilities of false ones, and the distributions that are to be matched."""

from __future__ import annotations

import itertools
import math
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from core.errors import InputError
from datasets_prep.chat import chat_example, encode, load_tokenizer
from datasets_prep.schema import Encoded, PerturbedRow, read_rows, write_rows
from pipeline.train.fit import load
from pipeline.unlearn import run
from pipeline.unlearn.counterfactual import (
    HIGHEST,
    SURPRISING,
    Counterfactual,
    Levels,
    Places,
    align,
    answer_levels,
    numerals,
    places_in_numbers,
)
from tests.conftest import build_tiny_model
from tests.test_unlearn_run import write_other_facts
from tests.unlearning import plain_log_probs, stage_inputs, unlearn_config

PROMPT = (1, 2)
FORM_A, FORM_B, END = 10, 11, 12


def row(*answer: int) -> Encoded:
    return Encoded((*PROMPT, *answer), len(PROMPT))


def of_content(found: list[Levels]) -> list[float]:
    """The levels of the tokens of facts, of all rows."""
    return [nats for levels in found for nats, here in zip(levels.nats, levels.content, strict=True) if here]


def of_ends(found: list[Levels]) -> list[float]:
    """The levels of tokens that are not content, of all rows."""
    each = (pair for levels in found for pair in zip(levels.nats, levels.content, strict=True))
    return [nats for nats, is_content in each if nats and not is_content]


def levels_of(
    true: list[Encoded],
    guides: list[list[Encoded]],
    base: Any,
    novice: Any,
    of_true: list[list[float]],
) -> list[Levels]:
    forget = {str(i): tokens for i, tokens in enumerate(true)}
    return answer_levels(forget, guides, (), base_false=base, novice_false=novice, novice_true=of_true)


def test_a_level_is_what_the_novice_says_mapped_as_it_changed_at_false_answers() -> None:
    """True: A x y B z END; false: A p q r B s END. Content of the false one has places 1, 2, 3 and 5."""
    true, false = row(FORM_A, 20, 21, FORM_B, 22, END), row(FORM_A, 30, 31, 32, FORM_B, 33, END)
    novice = [-0.5, -4.0, -6.0, -2.0, -0.5, -8.0, -0.5]  # of content: mean -5, standard deviation sqrt(5)
    base = [-0.1, -7.0, -3.0, -5.0, -0.2, -9.0, -0.3]  # mean -6, standard deviation sqrt(5)
    (levels,) = levels_of([true], [[false]], [[base]], [[novice]], [[-0.5, -5.0, -1.0, -0.5, -11.0, -0.5]])
    assert levels.content == (False, True, True, False, True, False)
    assert of_content([levels]) == pytest.approx((-6.0, -2.0, -12.0))
    assert levels.nats[0] == 0
    assert levels.form == ((0, 4, 6),)


def test_a_wider_spread_of_base_spreads_the_levels_and_a_sure_token_is_bounded() -> None:
    true, false = row(FORM_A, 20, 21, 22, END), row(FORM_A, 30, 31, END)
    novice, base = [-0.5, -4.0, -6.0, -0.5], [-0.1, -3.0, -9.0, -0.1]  # means -5 and -6, deviations 1 and 3
    (levels,) = levels_of([true], [[false]], [[base]], [[novice]], [[-0.5, -5.0, -4.0, -1.0, -0.5]])
    assert of_content([levels]) == pytest.approx((-6.0, -3.0, HIGHEST))


def test_all_false_answers_to_all_rows_give_mean_and_spread() -> None:
    true = [row(FORM_A, 20, END), row(FORM_B, 21, 22, END)]
    guides = [[row(FORM_A, 30, END), row(FORM_A, 31, 32, END)], [row(FORM_B, 33, END)]]
    novice = [[[0.0, -1.0, 0.0], [0.0, -2.0, -4.0, 0.0]], [[0.0, -5.0, 0.0]]]
    base = [[[0.0, -3.0, 0.0], [0.0, -1.0, -6.0, 0.0]], [[0.0, -2.0, 0.0]]]
    of_true = [[0.0, -3.0, 0.0], [0.0, -1.0, -6.0, 0.0]]
    found = levels_of(true, guides, base, novice, of_true)
    at, to = np.array([-1.0, -2.0, -4.0, -5.0]), np.array([-3.0, -1.0, -6.0, -2.0])
    expected = to.mean() + to.std() / at.std() * (np.array([-3.0, -1.0, -6.0]) - at.mean())
    assert of_content(found) == pytest.approx(np.minimum(expected, HIGHEST))


DIGITS = range(50, 60)


def number(text: str) -> tuple[int, ...]:
    """A token for each digit."""
    return tuple(DIGITS[int(digit)] for digit in text)


@pytest.mark.parametrize(
    ("true", "false", "content"),
    [
        ("2019", ("1997", "1989"), "2019"),
        ("1985", ("1988",), "5"),
        ("1985", ("2005",), "198"),
        ("70", ("170",), "70"),
        ("12", ("12",), ""),
    ],
)
def test_digits_are_form_at_the_same_place_of_a_number_alone(true: str, false: tuple[str, ...], content: str) -> None:
    found = align((*number(true), 30, END), [(*number(each), 31, END) for each in false], DIGITS).content
    assert "".join(digit for digit, is_content in zip(true, found, strict=False) if is_content) == content
    assert found[-2:] == (True, False)


def test_the_tokens_that_are_digits_are_those_of_the_tokenizer(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    row = encode(tokenizer, chat_example(tokenizer, "When?", "On 12 March 1985 a1, x² and ½."))
    texts = {tokenizer.decode([token]).strip() for token in numerals(tokenizer, [row])}
    assert texts == set("12985")


@given(st.lists(st.sampled_from([10, 11, *DIGITS])))
def test_places_count_from_the_beginning_of_each_number(answer: list[int]) -> None:
    found = places_in_numbers(answer, DIGITS)
    text = "".join(str(token - 50) if token in DIGITS else "x" for token in answer)
    expected = [None] * len(answer)
    for match in re.finditer(r"\d+", text):
        expected[match.start() : match.end()] = range(len(match[0]))
    assert list(found) == expected


def test_the_end_of_a_fact_has_a_level_by_a_map_of_its_own() -> None:
    """False answers end at B, at END and at END; of the true ones, 20 does at B and 21 at END."""
    true = [row(FORM_A, 20, FORM_B, END), row(FORM_B, 21, END)]
    guides = [[row(FORM_A, 30, FORM_B, END)], [row(FORM_B, 31, 32, END), row(FORM_B, 33, END)]]
    novice = [[[0.0, -9.0, -3.0, 0.0]], [[0.0, -8.0, -9.0, -1.0], [0.0, -9.0, -5.0]]]
    base = [[[0.0, -9.0, -2.0, 0.0]], [[0.0, -8.0, -9.0, -1.5], [0.0, -9.0, -1.0]]]
    found = levels_of(true, guides, base, novice, [[0.0, -9.0, -2.0, -0.1], [0.0, -9.0, -4.0]])
    assert [[n < 0 for n in levels.nats] for levels in found] == [[False, True, True, False], [False, True, True]]
    at, to = np.array([-3.0, -1.0, -5.0]), np.array([-2.0, -1.5, -1.0])

    def mapped(novice: float) -> float:
        return float(to.mean() + to.std() / at.std() * (novice - at.mean()))

    assert of_ends(found) == pytest.approx([mapped(-2.0), mapped(-4.0)])
    assert of_content(found) == pytest.approx([-9.0, -9.0])


def test_ends_are_other_form_where_no_false_answer_says_how_likely_one_is() -> None:
    true, false = row(FORM_A, 20, FORM_B), row(FORM_A, FORM_B, 30)
    (levels,) = levels_of([true], [[false]], [[[0.0, 0.0, -3.0]]], [[[0.0, 0.0, -4.0]]], [[0.0, -4.0, -2.0]])
    assert levels.content == (False, True, False)
    assert levels.nats == pytest.approx((0.0, -3.0, -2.0 / 3))


def test_form_is_what_all_false_answers_share() -> None:
    true = row(FORM_A, 20, FORM_B, END)
    guides = [row(FORM_A, 30, FORM_B, END), row(FORM_A, 31, 32, END)]
    same = [[[-1.0] * 4, [-1.0] * 4]]
    (levels,) = levels_of([true], [guides], same, same, [[-1.0, -7.0, -0.5, -1.0]])
    assert levels.content == (False, True, True, False)
    assert levels.form == ((0, 3), (0, 3))
    # One value has no spread: what training changed is the mean alone.
    assert levels.nats == pytest.approx((0.0, -7.0, -0.5, -1.0))


def test_form_that_surprises_the_novice_has_a_level_between_base_and_it() -> None:
    """The second, third and fourth token are form, and the fifth is the fact."""
    true, false = row(20, FORM_A, FORM_B, 21, 22, END), row(20, FORM_A, FORM_B, 21, 30, END)
    same = [[[-0.1, -0.1, -0.1, -0.1, -4.0, -2.0]]]
    (levels,) = levels_of([true], [[false]], same, same, [[-0.2, -1.1, -6.0, -0.9, -4.0, -3.0]])
    assert levels.content == (False, False, False, False, True, False)
    assert levels.nats == pytest.approx((0.0, -1.1 / 3, -2.0, 0.0, -4.0, -3.0))
    assert levels.form == ((0, 1, 2, 3, 5),)


def test_false_answers_that_differ_by_rounding_have_no_spread() -> None:
    true, guides = row(20, END), [row(30, END), row(31, END)]
    base, novice = [[[-9.0, 0.0], [-5.0, 0.0]]], [[[-8.0, 0.0], [-8.0 - 1e-15, 0.0]]]
    (levels,) = levels_of([true], [guides], base, novice, [[-2.0, 0.0]])
    assert levels.nats[0] == pytest.approx(-7.0 + (-2.0 + 8.0))


def test_answers_that_differ_from_nothing_are_refused() -> None:
    same = row(FORM_A, 20, END)
    other = row(FORM_A, 21, END)
    three = [[[-0.1] * 3], [[-0.1] * 3]]
    with pytest.raises(InputError, match=r"1 forget rows \(first 1\) hold every word"):
        levels_of([other, same], [[same], [same]], three, three, [[-0.1] * 3] * 2)
    with pytest.raises(InputError, match="nothing says how likely"):
        levels_of([same], [[row(FORM_A, END)]], [[[-0.1] * 2]], [[[-0.1] * 2]], [[-0.1] * 3])


tokens = st.lists(st.integers(5, 12), min_size=1, max_size=9)


@given(
    st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=3)), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_any_answers_have_one_level_a_token_and_levels_are_bounded(rows: list[Any], rng: Any) -> None:
    def some(answer: list[int]) -> list[float]:
        return [-rng.uniform(0.0, 20.0) for _ in answer]

    guides = [[row(*other) for other in false] for _, false in rows]
    base, novice = ([[some(other) for other in false] for _, false in rows] for _ in range(2))
    of_true = [some(true) for true, _ in rows]
    try:
        found = levels_of([row(*true) for true, _ in rows], guides, base, novice, of_true)
    except InputError:
        return
    for (true, false), levels, log_probs in zip(rows, found, of_true, strict=True):
        assert len(levels.content) == len(levels.nats) == len(true)
        form = [token for token, is_content in zip(true, levels.content, strict=True) if not is_content]
        for other, places in zip(false, levels.form, strict=True):
            assert [other[i] for i in places] == form
        after = [before and not here for before, here in itertools.pairwise((False, *levels.content))]
        levelled = [nats < 0 for nats in levels.nats]
        assert all(nats <= HIGHEST for nats in levels.nats if nats)
        surprising = [log_prob < SURPRISING for log_prob in log_probs]
        with_ends = [any(each) for each in zip(levels.content, surprising, after, strict=True)]
        assert levelled in (with_ends, [any(each) for each in zip(levels.content, surprising, strict=True)])
        content = [i for i, is_content in enumerate(levels.content) if is_content]
        for i, j in itertools.product(content, content):
            if true[i] == true[j] and log_probs[i] <= log_probs[j]:
                assert levels.nats[i] <= levels.nats[j]  # a word that the novice finds likelier is no less likely


class Said:
    """A base that says what is given of each answer."""

    def __init__(self, of_answers: dict[Any, torch.Tensor]) -> None:
        self.of_answers = of_answers

    def logits(self, rows: list[Any], device: torch.device) -> torch.Tensor:
        return torch.cat([self.of_answers[row] for row in rows])

    def logits_at(self, places: list[Places], device: torch.device) -> torch.Tensor:
        return torch.cat([self.of_answers[row][list(at)] for row, at in places])


class Fixed:
    """A base that says the same at every token."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.fixed = logits

    def logits(self, rows: list[int], device: torch.device) -> torch.Tensor:
        return self.fixed.clone()

    def logits_at(self, places: list[Places], device: torch.device) -> torch.Tensor:
        return torch.cat([self.fixed[list(at)] for _, at in places])


def counterfactual_of(
    base: Any, levels: list[Levels], false: Any, others: list[int], novice: Any = None
) -> Counterfactual:
    return Counterfactual(base, novice, levels, false, others)


@given(st.floats(-12, HIGHEST), st.integers(0, 3), st.lists(st.floats(-8, 8), min_size=4, max_size=4))
def test_the_true_token_has_its_level_and_the_others_keep_their_proportions(
    level: float, true: int, logits: list[float]
) -> None:
    base = torch.tensor([logits, logits])
    found = [Levels((True, False), (level, 0.0), ((1,),))]
    wanted, content, levels, *_ = counterfactual_of(Fixed(base), found, [[[-1.0] * 2]], [0]).of(
        [0], torch.tensor([true, true])
    )
    assert content.tolist() == [True, False]
    assert levels[0] == pytest.approx(level)
    assert wanted[0].exp().sum() == pytest.approx(1, abs=1e-4)
    assert wanted[0, true] == pytest.approx(level, abs=1e-5)
    torch.testing.assert_close(wanted[1], base[1].log_softmax(0))
    others = [i for i in range(4) if i != true]
    ratios = wanted[0, others] - base[0, others]
    assert float(ratios.max() - ratios.min()) == pytest.approx(0, abs=1e-4)
    assert math.isfinite(float(wanted.sum()))


def test_form_is_as_base_says_it_in_false_answers_on_average() -> None:
    """True: content, end, form; two false answers have the form at places 0 and 2, and at 1 and 2.

    The end has a level, so the rest of it is the novice's.
    """
    logits = torch.arange(36.0).view(9, 4).sin() * 3
    of_answers: dict[Any, torch.Tensor] = {0: logits[:3], (0, 0): logits[3:6], (0, 1): logits[6:]}

    novice = torch.arange(12.0).view(3, 4).cos() * 2
    levels = [Levels((True, False, False), (-2.0, -0.7, 0.0), ((0, 2), (1, 2)))]
    wanted, levelled, *_ = counterfactual_of(Said(of_answers), levels, [[[-1.0] * 3] * 2], [0], Said({0: novice})).of(
        [0], torch.tensor([1, 3, 2])
    )
    assert levelled.tolist() == [True, True, False]
    p, q = (of_answers[0, i].double().softmax(1) for i in (0, 1))
    end, form = novice[1].double().softmax(0), (p[2] + q[2]) / 2
    torch.testing.assert_close(wanted[2].exp().double(), form)
    assert wanted[1, 3] == pytest.approx(-0.7)
    others = (1 - math.exp(-0.7)) / (1 - end[3])
    torch.testing.assert_close(wanted[1, :3].exp().double(), end[:3] * others)


def test_in_the_place_of_a_fact_stands_what_base_says_of_others_on_average() -> None:
    """Two rows; of the second, content is at places 1 and 2, and base is asked about two others."""
    logits = torch.arange(48.0).view(12, 4).sin() * 3
    of_answers: dict[Any, torch.Tensor] = {0: logits[:2], 1: logits[2:6], (0, 0): logits[6:8], (1, 0): logits[8:10]}
    of_answers |= {("other", 1, 0): logits[10:11], ("other", 1, 1): logits[11:12]}

    novice = Said({1: torch.arange(16.0).view(4, 4).cos()})
    levels = [
        Levels((True, False), (-2.0, 0.0), ((1,),)),
        Levels((False, True, True, False), (-0.9, -1.5, -2.5, 0.0), ((0, 1),)),
    ]
    targets = torch.tensor([1, 3, 0, 2, 1, 3])
    both = [[[-1.0] * 2], [[-1.0] * 2]]
    wanted, _, _, facts, instead = counterfactual_of(Said(of_answers), levels, both, [0, 2], novice).of([0, 1], targets)
    alone, *_ = counterfactual_of(Said(of_answers), levels, both, [0, 0], novice).of([0, 1], targets)
    changed = (wanted != alone).any(dim=1)
    assert changed.tolist() == [False, False, False, True, False, False]
    mean = (logits[10].double().softmax(0) + logits[11].double().softmax(0)) / 2
    mean *= (1 - math.exp(-1.5)) / (1 - mean[2])
    mean[2] = math.exp(-1.5)
    torch.testing.assert_close(wanted[3].exp().double(), mean)
    for place, true, level in ((2, 0, -0.9), (4, 1, -2.5)):  # form that surprises, and what a fact goes on with
        rest = novice.of_answers[1][place - 2].double().softmax(0)
        rest *= (1 - math.exp(level)) / (1 - rest[true])
        rest[true] = math.exp(level)
        torch.testing.assert_close(wanted[place].exp().double(), rest)
    mean[2] = 0
    assert (facts.tolist(), instead.tolist()) == ([3], [int(mean.argmax())])


def test_false_answers_stay_as_base_has_them_at_facts_and_their_ends() -> None:
    """Two rows with two and one false answers, the second of which begins with its fact."""
    levels = [
        Levels((True, False), (-2.0, -0.7), ((0,), (1, 3))),
        Levels((False, True), (0.0, -3.0), ((0,),)),
    ]
    base = [[[-0.1, -4.0, -5.0], [-6.0, -0.2, -7.0, -0.3]], [[-0.4, -8.0]]]
    counterfactual, cpu = counterfactual_of(None, levels, base, [0, 0]), torch.device("cpu")
    held, nats = counterfactual.of_false([2, 1], cpu)
    assert held.tolist() == [False, True, True, True, True, True]
    assert nats.tolist() == pytest.approx([-0.4, -8.0, -6.0, -0.2, -7.0, -0.3])
    assert counterfactual.of_false([0], cpu)[0].tolist() == [False, True, True]
    assert [len(each) for each in counterfactual.of_false([], cpu)] == [0, 0]


def test_levels_are_measured_on_the_novice_and_on_base(tiny_model: Path, tmp_path: Path) -> None:
    """Against plain forwards of both. A true answer ends with a number, and its false one with letters in its place."""
    inputs = stage_inputs(tiny_model, tmp_path)
    forget = read_rows(inputs["data"] / "forget.jsonl")
    other = [PerturbedRow(r.row_id, "forget", (f"{r.name} was born in x{'y' * i}z.",)) for i, r in enumerate(forget)]
    write_rows(inputs["data"] / "guides.jsonl", other)
    novice = build_tiny_model(tmp_path / "novice", seed=1)
    config = unlearn_config(method="csd", stop=None, keep="last")
    base, tokenizer = load(inputs["base"] / "model")
    rows = run.read(config, inputs, tokenizer)
    found = run.counterfactual(config, base, tokenizer, novice, rows, nullcontext).levels
    plain = [AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny_model, novice)]
    false = [guide for (guide,) in rows.guides]
    with torch.no_grad():
        of_false = [plain_log_probs(model, false) for model in plain]
        of_true = plain_log_probs(plain[1], rows.encoded["forget"])
    for levels, log_probs in zip(found, of_true, strict=True):
        assert [i for i, is_content in enumerate(levels.content) if is_content] == [*range(11, len(log_probs) - 3)]
        wanted = log_probs.double() / 3  # a model that was trained on nothing is surprised by all form
        for places in (slice(11, -3), slice(-3, -2)):  # the fact, and its end
            b, s = (torch.cat([p[places] for p in each]).double() for each in of_false)
            mapped = b.mean() + b.std(correction=0) / s.std(correction=0) * (log_probs.double() - s.mean())
            wanted[places] = mapped.clamp(max=HIGHEST)[places]
        assert levels.nats == pytest.approx(tuple(wanted.tolist()), abs=1e-4)


def test_a_novice_with_other_tokens_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    write_other_facts(inputs["data"])
    build_tiny_model(tmp_path / "novice" / "model", vocab=262)
    config = unlearn_config(method="csd", stop=None, keep="last")
    with pytest.raises(InputError, match="splits them into other tokens than that of base"):
        run.run(config, inputs | {"novice": tmp_path / "novice"}, tmp_path)
