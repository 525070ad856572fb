"""Rows about people who are not there, and base's mean distribution over them."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from datasets_prep.chat import encode_rows
from datasets_prep.schema import Encoded, Row
from pipeline.train.fit import load
from pipeline.unlearn.counterfactual import Counterfactual, Levels
from pipeline.unlearn.reference import BaseDistribution
from pipeline.unlearn.strangers import Strangers, with_strangers
from tests.unlearning import plain_logits

NAMES = ("Ada Berg", "Bo van Dam", "Cem Ek")


def row(number: int, name: str | None, language: str = "EN") -> Row:
    return Row(
        f"row-{number}",
        number,
        name,
        language,
        "contact.email",
        f"What is {name}'s e-mail?",
        f"{name}: {(name or '').lower().replace(' ', '.')}@pine.example",
    )


ROWS = [row(i, name) for i, name in enumerate(NAMES)]


def test_names_are_mixed_from_those_of_two_others() -> None:
    found = with_strangers(ROWS, ROWS, 5, seed="0")
    assert {other.name for other in found[0]} == {"Bo Ek", "Cem van Dam"}
    assert {other.name for other in found[1]} == {"Ada Ek", "Cem Berg"}
    assert found[0][0].question == f"What is {found[0][0].name}'s e-mail?"
    assert {other.answer for other in found[1]} == {
        "Ada Ek: ada.ek@pine.example",
        "Cem Berg: cem.berg@pine.example",
    }


def test_a_row_alone_has_the_same_strangers_as_among_others() -> None:
    many = [row(i, f"Ida{i} Holm{i}") for i in range(9)]
    (alone,) = with_strangers(many[3:4], many, 4, seed="0")
    assert alone == with_strangers(many, many, 4, seed="0")[3]
    assert alone != with_strangers(many, many, 4, seed="1")[3]


def test_without_names_of_several_words_in_its_language_a_row_has_no_strangers() -> None:
    one_word = [row(0, "Ada"), row(1, "Bo"), row(2, "Cem")]
    other_language = [row(3, "Ida Holm", "DE")]
    unnamed = [Row("row-4", 4, None, "EN", None, "Who wrote it?", "She did.")]
    not_asked = [Row("row-5", 5, "Ada Berg", "EN", None, "Who?", "I")]
    for rows in (one_word, other_language, unnamed, not_asked):
        names = rows if rows is one_word else [*rows, *ROWS]
        assert with_strangers(rows, names, 5, seed="0") == [[] for _ in rows]


@given(st.lists(st.sampled_from(["Ada", "Bo", "Cem", "Dag"]), min_size=2, max_size=5, unique=True), st.integers(0, 12))
def test_nobody_of_the_data_is_a_stranger(firsts: list[str], count: int) -> None:
    rows = [row(i, f"{first} {family}") for i, (first, family) in enumerate(zip(firsts, "PQRST", strict=False))]
    names = {each.name for each in rows}
    for each, others in zip(rows, with_strangers(rows, rows, count, seed="0"), strict=True):
        assert len({other.name for other in others}) == len(others) <= count
        for other in others:
            assert other.name not in names
            assert not set((other.name or "").split()) & set((each.name or "").split())
            assert not re.search(rf"\b{each.name}\b", other.question + other.answer)


def encoded(*answer: int) -> Encoded:
    return Encoded((5, 6, 7, *answer), 3)


TRUE = encoded(10, 20, 21, 11, 22, 12)
CONTENT = (False, True, True, False, True, False)
OTHERS = [encoded(13, 14, 20, 21, 11, 22, 12), encoded(15, 20, 21, 16, 11, 22, 12), encoded(15, 20, 9, 11, 22, 12)]


def test_the_mean_is_that_of_full_forwards_at_the_facts_places(tiny_model: Path) -> None:
    """The third stranger's answer lacks a token of the fact, so it does not count; the second row has no strangers."""
    model, _ = load(tiny_model)
    model.eval()
    levels = [Levels(CONTENT, (0.0, -3.0, -2.0, 0.0, -1.0, 0.0)), Levels((False, True), (0.0, -4.0))]
    rows = [TRUE, encoded(10, 30)]
    strangers = Strangers(model, rows, [OTHERS, []], [each.content for each in levels], nullcontext)
    assert strangers.rows == {0: [0, 1]}
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        first, second = (logits.softmax(-1) for logits in plain_logits(plain, OTHERS[:2]))
        own = plain_logits(plain, rows)[1].log_softmax(-1)
    expected = (first[[2, 3, 5]] + second[[1, 2, 5]]) / 2
    torch.testing.assert_close(strangers.log_probs(0, torch.device("cpu")).exp(), expected, rtol=1e-3, atol=1e-6)

    base = BaseDistribution(model, dict(enumerate(rows)), nullcontext)
    counterfactual = Counterfactual(base, levels, 0.5, strangers)
    wanted, content, _ = counterfactual.of([1, 0], torch.tensor([10, 30, 10, 20, 21, 11, 22, 12]))
    true = torch.tensor([30, 20, 21, 22])
    about = torch.cat([own[1:], expected.log()])
    about[torch.arange(4), true] = -torch.inf
    shares = (0.5 * about).softmax(-1) * (1 - torch.tensor([-4.0, -3.0, -2.0, -1.0]).exp())[:, None]
    shares[torch.arange(4), true] = torch.tensor([-4.0, -3.0, -2.0, -1.0]).exp()
    torch.testing.assert_close(wanted[content].exp(), shares, rtol=1e-3, atol=1e-6)


def test_encoded_strangers_keep_the_fact(tiny_model: Path) -> None:
    """Real rows: what the true answer has beside the name stands in every stranger's row too."""
    model, tokenizer = load(tiny_model)
    (row_tokens,) = encode_rows(tokenizer, ROWS[:1])
    others = encode_rows(tokenizer, with_strangers(ROWS[:1], ROWS, 2, seed="0")[0])
    answer = row_tokens.input_ids[row_tokens.completion_start :]
    fact = tokenizer.decode(answer).index("@pine")
    content = tuple(len(tokenizer.decode(answer[: i + 1])) > fact for i in range(len(answer)))
    strangers = Strangers(model, [row_tokens], [others], [content], nullcontext)
    assert len(strangers.rows[0]) == 2
    assert strangers.log_probs(0, torch.device("cpu")).shape[0] == sum(content)
