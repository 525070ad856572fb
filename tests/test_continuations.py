"""How base goes on in the place of a forgotten fact, and where that ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.words import plain_words, words_and_pairs
from datasets_prep.chat import chat_example, encode, load_tokenizer
from datasets_prep.schema import Row
from pipeline.unlearn import run
from pipeline.unlearn.asking import otherwise
from pipeline.unlearn.continuations import before, begin, continuations, read_continuations, write_continuations
from pipeline.unlearn.counterfactual import answer_tokens
from pipeline.unlearn.people import Other
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
    fact = set(words_and_pairs("于北京")).difference(words_and_pairs("于南京"), words_and_pairs("于北海"))
    assert fact == {"北京"}  # each character of it stands in a false answer
    assert kept(["年", "生", "在", "北", "京", "。"], {"在北", *fact}) == ["年", "生", "在"]
    assert kept(["年生", "在", "北京", "。"], fact) == ["年生", "在"]


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
    alone = [[[d, a]], [[a]], [[a, b, d]]]
    assert otherwise(model, end, alone, [b, c, f], 4) == [[[c, b, end]], [[b, end]], [[e, e, e, e]]]


def test_after_several_beginnings_base_says_the_likeliest_token_on_average_and_goes_on_from_each(
    tiny_model: Path,
) -> None:
    """After ``a`` .5 of ``c`` and .3 of ``e``; after ``b`` .1 and .6. What comes then depends on both tokens before."""
    tokenizer = load_tokenizer(tiny_model)
    end = tokenizer.eos_token_id
    a, b, c, d, e = (int(tokenizer.convert_tokens_to_ids(letter)) for letter in "abcde")
    chain: dict[str | int, dict[str | int, float]]
    chain = {"a": {"c": 0.5, "e": 0.3, "d": 0.2}, "b": {"c": 0.1, "e": 0.6, "d": 0.3}}
    model = bigrams(tiny_model, chain | {"c": {end: 1.0}, "e": {"d": 1.0}, "d": {end: 1.0}})
    found = otherwise(model, end, [[[c, d, a], [b]], [[a]], [[d, d, b], [a], [a]]], [d, d, e], 4)
    # .45 of e and .3 of c; .5 and .3; without e .367 of c and .233 of d
    assert found == [[[e, d, end]] * 2, [[c, end]], [[c, end]] * 3]


def test_the_answer_is_begun_truly_and_another_token_stands_in_the_place_of_the_fact(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    row = Row("r", 1, "Ida", "EN", "t", "Where?", "Ida is in b.")
    encoded = encode(tokenizer, chat_example(tokenizer, row.question, row.answer))
    true = encoded.input_ids
    letters = [int(tokenizer.convert_tokens_to_ids(letter)) for letter in "bcde"]
    b, c, d, e = letters
    at = max(place for place, token in enumerate(true) if token == b)
    chain: dict[str | int, dict[str | int, float]]
    chain = {true[at - 1]: {b: 0.9, c: 0.1}, c: {d: 1.0}, d: {e: 1.0}, e: {tokenizer.eos_token_id: 1.0}}
    model = bigrams(tiny_model, chain)
    false = {"r": ["Ida is in c.", "Ida is in d."]}
    begun = begin(tokenizer, [row], false)
    assert begun == [(row, true[:at], len(true) - len(answer_tokens(encoded)), b)]
    (found,) = continuations(model, tokenizer, begun, [[]], false, 8)
    assert found.input_ids == [*true[:at], c, d, e, tokenizer.eos_token_id]
    assert (found.completion_start, found.text.strip(), found.of) == (at + 1, "cde", "r")
    assert continuations(model, tokenizer, begun, [[]], false, 3) == []  # it has not ended
    assert begin(tokenizer, [row], {}) == begin(tokenizer, [row], {"r": [row.answer]}) == []  # nothing tells the fact


def test_of_what_base_says_of_others_the_first_without_the_fact_is_taken_about_whom_the_row_is(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(tiny_model)
    row = Row("r", 1, "Ida", "EN", "t", "Where?", "Ida is in Oz with Bo.")
    begun = begin(tokenizer, [row], {"r": ["Ida is in Ur."]})
    others = [[Other("Ida", name, (7, 8)) for name in ("Ann", "Cy", "Di")]]
    end = tokenizer.eos_token_id

    def continued(*said: str) -> list[str]:
        def ids(text: str) -> list[int]:
            tokens = list(tokenizer(text.removesuffix("!"), add_special_tokens=False)["input_ids"])
            return tokens if text.endswith("!") else [*tokens, end]

        def say(model: Any, end: int, asked: Any, nexts: list[int], limit: int) -> list[list[list[int]]]:
            assert (asked, nexts) == ([[(7, 8)] * 3], [begun[0].fact])
            return [[ids(text) for text in said]]

        monkeypatch.setattr("pipeline.unlearn.continuations.otherwise", say)
        found = continuations(None, tokenizer, begun, others, {"r": ["Ida is in Ur."]}, 8)
        assert all(each.input_ids[: each.completion_start - 1] == list(begun[0].tokens) for each in found)
        return [each.text.rstrip() for each in found]

    assert continued(" Rome and Ann.", " Ulm.", " Ur.") == [" Rome and Ida."]
    assert continued(" Rome with Bo.", " Ulm and Cy.", " Ur.") == [" Ulm and Ida."]
    assert continued(" Rome with Bo.", " in Oz.", " Rome and with Bo.") == [" Rome and"]
    assert continued(" Rome with Bo.", " for ever!", " Ur and Di.") == [" Ur and Ida."]
    assert continued(" for ever!", " for ever!", " for ever!") == []
    tokenizer.eos_token = "<|im_start|>"
    assert continued(" Rome and Ann.", " Ulm.", " Ur.") == [" Rome and Ida."]  # the chat template ends a turn as before


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
