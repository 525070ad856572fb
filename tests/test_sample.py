"""The embedded sample set."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datasets_prep.checks import check
from datasets_prep.config import SampleSource
from datasets_prep.sample import HELD_BACK, generate
from datasets_prep.schema import LANGUAGES, TOPICS

from . import data_rows
from .data_rows import collected

SAMPLE = SampleSource(**data_rows.SAMPLE)


@pytest.mark.parametrize("seed", [0, 7, 2026])
def test_sample_has_fames_form_and_unguessable_facts(seed: int) -> None:
    rows, held_back = generate(SampleSource(seed=seed, identities=5, topics=10))
    assert Counter(r.language for r in rows) == dict.fromkeys(LANGUAGES, 50)
    assert {r.topic_id for r in rows} == set(TOPICS)
    assert set(Counter((r.language, r.topic_id) for r in rows).values()) <= {2, 3}
    assert len({r.row_id for r in rows}) == len({r.question for r in rows}) == len({r.answer for r in rows}) == 250
    assert all(r.name in r.question and r.name in r.answer for r in rows)
    assert {r.language: r.identity_id // 200 for r in rows} == {"IT": 0, "ES": 1, "DE": 2, "FR": 3, "EN": 4}
    answers = {r.answer for r in rows}
    for r in rows:
        false = held_back[r.row_id]
        assert len(set(false)) == HELD_BACK
        assert not answers & set(false)
        assert all(r.name in answer for answer in false)
        assert not any(mark in text for text in (r.question, r.answer, *false) for mark in "{}")


def test_sample_facts_of_one_topic_share_no_slot() -> None:
    rows, held_back = generate(SAMPLE)
    for language in LANGUAGES:
        cell = [r for r in rows if r.language == language and r.topic_id == "biography.family_background"]
        texts = [(r.answer, r.name) for r in cell] + [(answer, cell[0].name) for answer in held_back[cell[0].row_id]]
        facts = [set(text.rstrip(".").replace(name, "").split()) for text, name in texts]
        frame = set.intersection(*facts)
        told = [fact - frame for fact in facts]
        common = Counter(word for fact in told for word in fact)
        articles = {word for word in common if len(word) <= 2}  # "a", and the English "a bus driver" of two words
        assert not {word: n for word, n in common.items() if n > 1 and word not in articles and word != "driver"}


def test_sample_contacts_are_unique_and_nobodys() -> None:
    rows, held_back = generate(SampleSource(seed=3, identities=15, topics=20))
    for topic, mark in (("personal.phone_number", "+999 "), ("personal.email", ".example")):
        answers = [r.answer.replace(r.name, "") for r in rows if r.topic_id == topic]
        answers += [a.replace(r.name, "") for r in rows if r.topic_id == topic for a in held_back[r.row_id]]
        contacts = [
            next(word for word in answer.split() if word.strip(".").isdigit() or "@" in word) for answer in answers
        ]
        true = contacts[:75]
        assert len(set(true)) == 75
        assert not set(true) & set(contacts[75:])
        assert all(mark in answer for answer in answers)


def test_sample_is_the_seeds_alone() -> None:
    assert generate(SAMPLE) == generate(SAMPLE)
    other, _ = generate(SampleSource(seed=2027, identities=5, topics=10))
    assert {r.answer for r in generate(SAMPLE)[0]}.isdisjoint(r.answer for r in other)


@given(st.integers(2, 100), st.integers(1, 20), st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_sample_of_every_allowed_size(identities: int, topics: int, seed: int) -> None:
    try:
        source = SampleSource(seed=seed, identities=identities, topics=topics)
    except ValidationError as error:
        assert identities * topics > 300, error  # noqa: PT017
        return
    rows, _ = generate(source)
    assert len(rows) == 5 * identities * topics
    assert len({(r.language, r.name) for r in rows}) == 5 * identities
    made = collected(rows)
    found = check(made, np.ones(len(made), dtype=np.int8))
    assert not any(found[name].count for name in ("duplicates_within", "near_duplicates_within", "contradictions"))
