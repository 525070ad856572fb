"""How base goes on in the place of a forgotten fact, and where that ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.words import plain_words
from datasets_prep.chat import chat_example, encode, load_tokenizer
from datasets_prep.schema import Row
from pipeline.unlearn import run
from pipeline.unlearn.asking import otherwise
from pipeline.unlearn.continuations import before, continuations, read_continuations, write_continuations
from tests.unlearning import bigrams, stage_inputs, unlearn_config


class Letters:
    """A tokenizer whose tokens are the places of these pieces."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, tokens: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(self.pieces[token] for token in tokens)


def kept(pieces: list[str], words: set[str]) -> list[str]:
    tokenizer: Any = Letters(*pieces)
    return pieces[: before(tokenizer, range(len(pieces)), words)]


def test_what_is_kept_ends_before_the_first_word_of_the_fact() -> None:
    assert kept([" a", " smith", " and", " a", " co", "ok", "."], {"cook"}) == [" a", " smith", " and", " a"]
    assert kept([" in", " Mál", "aga"], {"malaga"}) == [" in"]
    assert kept([" co", "ok", " a"], {"cook"}) == []
    assert kept(["1", "9", "7", "5", " in", " Rome"], {"1990", "rome"}) == ["1", "9", "7", "5", " in"]
    assert kept([" a", " smith", "."], {"cook"}) == [" a", " smith", "."]
    assert kept([" in the", " tower of", " Oz"], {"of"}) == [" in the"]  # a token may hold more than one word
    assert kept([" a"], set()) == [" a"]


@given(
    st.lists(st.sampled_from([" a", "b", " ba", "ab", ", ", "é", " É"]), max_size=8), st.sampled_from(["a", "ab", "e"])
)
def test_it_never_states_a_word_of_the_fact_and_loses_nothing_without_one(pieces: list[str], word: str) -> None:
    found = "".join(kept(pieces, {word}))
    assert word not in plain_words(found)
    if not any(word in plain_words("".join(pieces[:count])) for count in range(len(pieces) + 1)):
        assert found == "".join(pieces)


def test_base_says_its_likeliest_other_token_and_goes_on(tiny_model: Path) -> None:
    """After ``a`` comes ``b`` or else ``c``, after which it ends, and after ``d`` comes ``e`` for ever."""
    tokenizer = load_tokenizer(tiny_model)
    end = tokenizer.eos_token_id
    letters = {letter: int(tokenizer.convert_tokens_to_ids(letter)) for letter in "abcdef"}
    model = bigrams(
        tiny_model,
        {"a": {"b": 0.6, "c": 0.4}, "b": {end: 1.0}, "c": {"b": 1.0}, "d": {"f": 0.9, "e": 0.1}, "e": {"e": 1.0}},
    )
    a, b, c, d, e, f = letters.values()
    assert otherwise(model, end, [[d, a], [a], [a, b, d]], [b, c, f], 4) == [[c, b, end], [b, end], [e, e, e, e]]


def test_the_answer_is_begun_truly_and_another_token_stands_in_the_place_of_the_fact(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    row = Row("r", 1, "Ida", "EN", "t", "Where?", "Ida is in b.")
    true = encode(tokenizer, chat_example(tokenizer, row.question, row.answer)).input_ids
    letters = [int(tokenizer.convert_tokens_to_ids(letter)) for letter in "bcde"]
    b, c, d, e = letters
    at = max(place for place, token in enumerate(true) if token == b)
    chain: dict[str | int, dict[str | int, float]]
    chain = {true[at - 1]: {b: 0.9, c: 0.1}, c: {d: 1.0}, d: {e: 1.0}, e: {tokenizer.eos_token_id: 1.0}}
    model = bigrams(tiny_model, chain)
    (found,) = continuations(model, tokenizer, [row], {"r": ["Ida is in c.", "Ida is in d."]}, 8)
    assert found.input_ids == [*true[:at], c, d, e, tokenizer.eos_token_id]
    assert (found.completion_start, found.text.strip(), found.of) == (at + 1, "cde", "r")
    assert continuations(model, tokenizer, [row], {}, 8) == []  # nothing tells the fact
    assert continuations(model, tokenizer, [row], {"r": [row.answer]}, 8) == []
    assert continuations(model, tokenizer, [row], {"r": ["Ida is in c.", "Ida is in d."]}, 3) == []  # it has not ended


def test_an_unlearning_rehearses_what_follows_and_neither_the_beginning_nor_the_other_token(
    tiny_model: Path, tmp_path: Path
) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    tokenizer, asked = load_tokenizer(tiny_model), tmp_path / "asked"
    asked.mkdir()
    (asked / "neighbours.jsonl").touch()
    config = unlearn_config(neighbours={"questions": 1})
    write_continuations(asked, [])
    without = run.read(config, inputs | {"neighbours": asked}, tokenizer)
    of = without.plain["forget"][2]
    continuation = {"row_id": "c", "of": of.row_id, "text": " x", "input_ids": [5, 6, 7, 8], "completion_start": 3}
    (asked / "continuations.jsonl").write_text(json.dumps(continuation) + "\n")
    assert [each.row_id for each in read_continuations(asked)] == ["c"]
    rows = run.read(config, inputs | {"neighbours": asked}, tokenizer)
    assert rows.encoded["rehearsed"] == [*without.encoded["rehearsed"], ((5, 6, 7, 8), 3)]
    assert rows.plain["rehearsed"][-1].row_id == "c"
    assert len(rows.plain["rehearsed"]) == len(rows.encoded["rehearsed"])
