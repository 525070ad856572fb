"""The sample set, the split rule, and false answers."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datasets_prep import sources
from datasets_prep.checks import check_source
from datasets_prep.config import Perturbed, SampleSource, Shares
from datasets_prep.perturb import perturb, swap_name
from datasets_prep.sample import HELD_BACK, generate
from datasets_prep.schema import LANGUAGES, TOPICS, Row, make_row_id
from datasets_prep.splits import mixed_identities, split_by_topic
from pipeline.errors import DataError

SHARES = {"retain": 0.64, "forget": 0.16, "holdout": 0.2}
SAMPLE = SampleSource(seed=2026, identities=5, topics=10)


def row(identity: int, topic: str, *, language: str = "EN", name: str | None = None, **text: str) -> Row:
    name = name or f"Ida Fenn {identity}"
    question = text.get("question", f"What is the {topic} of {name}?")
    answer = text.get("answer", f"The {topic} of {name} is {language} {identity}.")
    return Row(make_row_id(language, identity, topic), identity, name, language, topic, question, answer)


def full_grid(identities: int, languages: tuple[str, ...] = LANGUAGES) -> list[Row]:
    return [
        row(1000 * index + i, topic, language=language)
        for index, language in enumerate(languages)
        for i in range(identities)
        for topic in TOPICS
    ]


# The sample set


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
    check_source([sources.Placed(r, r.row_id) for r in rows], given=False, allow_contradictions=False)


# The split rule


def test_sample_splits_exactly_and_mixes_identities() -> None:
    for seed in range(5):
        splits = split_by_topic(generate(SampleSource(seed=seed, identities=5, topics=10))[0], Shares(**SHARES), seed)
        assert {name: len(rows) for name, rows in splits.items()} == {"retain": 160, "forget": 40, "holdout": 50}
        assert Counter(r.language for r in splits["forget"]) == dict.fromkeys(LANGUAGES, 8)
        assert mixed_identities(splits) >= 23


def test_every_cell_of_full_fame_is_128_32_40() -> None:
    splits = split_by_topic(full_grid(200, ("DE", "IT")), Shares(**SHARES), 42)
    for name, size in (("retain", 128), ("forget", 32), ("holdout", 40)):
        assert set(Counter((r.language, r.topic_id) for r in splits[name]).values()) == {size}
    assert mixed_identities(splits) == 400


@st.composite
def shares(draw: st.DrawFn) -> Shares:
    retain, forget, holdout = (draw(st.integers(1, 60)) for _ in range(3))
    total = retain + forget + holdout
    return Shares(retain=retain / total, forget=forget / total, holdout=holdout / total)


cells = st.tuples(st.sampled_from(LANGUAGES), st.sampled_from(TOPICS), st.integers(0, 30))


@given(st.sets(cells, min_size=30, max_size=200), shares(), st.integers(0, 1000), st.randoms())
@settings(max_examples=50, deadline=None)
def test_splitter_loses_nothing_and_ignores_order(chosen: set[Any], parts: Shares, seed: int, order: Any) -> None:
    rows = [row(identity, topic, language=language) for language, topic, identity in chosen]
    try:
        splits = split_by_topic(rows, parts, seed)
    except DataError as error:
        assert "gets none" in str(error)  # noqa: PT017
        assert min(parts.retain, parts.forget, parts.holdout) * len(rows) < 1
        return
    assert sorted(r.row_id for members in splits.values() for r in members) == sorted(r.row_id for r in rows)
    for name, members in splits.items():
        assert abs(len(members) - getattr(parts, name) * len(rows)) < 0.75 + 1e-6
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert split_by_topic(shuffled, parts, seed) == splits


@given(
    st.sampled_from([(0.64, 0.16, 0.2), (0.5, 0.25, 0.25), (0.9, 0.05, 0.05)]), st.integers(1, 8), st.integers(0, 99)
)
@settings(max_examples=25, deadline=None)
def test_shares_that_divide_are_met_exactly(parts: tuple[float, float, float], times: int, seed: int) -> None:
    exact = dict(zip(("retain", "forget", "holdout"), parts, strict=True))
    rows = [row(i, TOPICS[i % 20], language=LANGUAGES[i % 5]) for i in range(100 * times)]
    splits = split_by_topic(rows, Shares(**exact), seed)
    assert {name: len(splits[name]) for name in exact} == {
        name: Fraction(str(share)) * 100 * times for name, share in exact.items()
    }


def test_another_seed_splits_otherwise() -> None:
    rows = generate(SAMPLE)[0]
    assert split_by_topic(rows, Shares(**SHARES), 1)["forget"] != split_by_topic(rows, Shares(**SHARES), 2)["forget"]


# False answers


def test_sample_false_answers_are_held_back_facts() -> None:
    rows, held_back = generate(SAMPLE)
    splits = split_by_topic(rows, Shares(**SHARES), 42)
    false, guides, counts = perturb(splits, held_back, Perturbed(per_row=3, retain_rows=50), 42)
    assert counts == {
        "rows": 140, "answers": 420, "from_trained_rows": 0, "rows_with_fewer": 0, "rows_without": 0, "guides": 80,
    }  # fmt: skip
    assert Counter(f.split for f in false) == {"forget": 40, "retain": 50, "holdout": 50}
    assert all(set(f.answers) <= set(held_back[f.row_id]) for f in false)
    assert perturb(splits, held_back, Perturbed(), 42)[0] == false
    evaluated = {row.row_id: set(row.answers) for row in false}
    assert [row.row_id for row in guides] == [row.row_id for row in splits["forget"]]
    for row in guides:  # what guides the unlearning is never what judges it
        assert len(row.answers) == 2
        assert not set(row.answers) & evaluated[row.row_id]


def test_false_answers_come_from_holdout_rows_first() -> None:
    topic = "personal.email"
    splits = {
        "forget": [row(1, topic)],
        "retain": [row(2, topic), row(3, topic)],
        "holdout": [row(4, topic), row(5, topic), row(6, "personal.address"), row(7, topic, language="DE")],
    }
    false, _, counts = perturb(splits, {}, Perturbed(per_row=3, retain_rows=1), 0)
    answers = {f.row_id: f.answers for f in false}["en-1-personal.email"]
    told = [answer.removesuffix(".").split()[-1] for answer in answers]
    assert set(told[:2]) == {"4", "5"}
    assert told[2] in {"2", "3"}
    assert all("Ida Fenn 1" in answer for answer in answers)
    # The forget and the retain row take one from trained rows, holdout rows 4 and 5 two each; 6 and 7 are alone.
    assert counts == {
        "rows": 4, "answers": 12, "from_trained_rows": 6, "rows_with_fewer": 0, "rows_without": 2, "guides": 1,
    }  # fmt: skip


def test_false_answers_are_never_true_and_never_trained() -> None:
    same = {"answer": "It is a secret."}
    topic = "personal.hobby_or_interest"
    splits = {"forget": [row(1, topic, **same)], "retain": [row(2, topic, **same)], "holdout": [row(3, topic, **same)]}
    false, _, counts = perturb(splits, {}, Perturbed(), 0)
    assert false == []
    assert counts["rows_without"] == 3


def test_names_are_swapped_in_addresses_too() -> None:
    answer = "Write to Élise Du Pont at elise.du.pont@film.fr."
    assert swap_name(answer, "Élise Du Pont", "Noé Val") == "Write to Noé Val at noe.val@film.fr."
    assert swap_name("Jo wrote a major jotting.", "Jo", "Al Bo") == "Al Bo wrote a major jotting."
