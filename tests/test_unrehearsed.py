"""Retain rows that base and gold learn and the unlearning does not get: which they are, and who is trained on them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from datasets_prep import prepare
from datasets_prep.config import FEWEST_UNREHEARSED, DataConfig
from datasets_prep.schema import FORGET, HOLDOUT, RETAIN, SPLITS, TOPICS, UNREHEARSED
from datasets_prep.splits import Split, keep_unrehearsed, mixed_identities
from pipeline.engine.plan import sizes
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from tests import data_rows
from tests.artifacts import demo_data_facts
from tests.data_rows import GOOD, by_split, config, divided, row, write

SAMPLE = {"sample": data_rows.SAMPLE}


def kept(
    codes: list[int], share: float, seed: int = 42, stay: list[bool] | None = None, told: list[int] | None = None
) -> Split:
    staying = np.array(stay or [False] * len(codes), dtype=np.bool_)
    first = np.array(told or range(len(codes)), dtype=np.int32)
    made = config(SAMPLE, unrehearsed=share, seed=seed)
    return keep_unrehearsed(np.array(codes, dtype=np.int8), made, staying, first)


@given(
    st.lists(st.sampled_from([FORGET, RETAIN, HOLDOUT]), max_size=400),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 99),
)
def test_what_always_holds(codes: list[int], share: float, seed: int) -> None:
    before = np.array(codes, dtype=np.int8)
    given_rows = before.copy()
    none, once = np.zeros(len(before), dtype=np.bool_), np.arange(len(before), dtype=np.int32)
    after = keep_unrehearsed(before, config(SAMPLE, unrehearsed=share, seed=seed), none, once)
    assert before.tolist() == given_rows.tolist()  # what was given is not changed
    retain, marked = np.flatnonzero(before == RETAIN), np.flatnonzero(after == UNREHEARSED)
    assert after[before != RETAIN].tolist() == before[before != RETAIN].tolist()
    assert set(marked) <= set(retain)
    assert set(after[retain]) <= {RETAIN, UNREHEARSED}
    n = len(retain)
    assert len(marked) == (min(max(FEWEST_UNREHEARSED, round(share * n)), n // 2) if share else 0)
    again = keep_unrehearsed(before, config(SAMPLE, unrehearsed=share, seed=seed), none, once)
    assert after.tolist() == again.tolist()
    places = np.searchsorted(retain, marked)  # among the retain rows: one of each run of n / count rows
    for index, place in enumerate(places):
        assert index * (n // len(marked)) <= place < (index + 1) * (n // len(marked) + 1)


def test_rows_that_stay_are_taken_only_where_others_do_not_suffice() -> None:
    codes, stay = [RETAIN] * 100, [i % 4 == 0 for i in range(100)]
    assert not any(stay[i] for i in np.flatnonzero(kept(codes, 0.3, stay=stay) == UNREHEARSED))
    assert kept(codes, 0.4, stay=[True] * 100).tolist() == kept(codes, 0.4).tolist()
    assert int((kept(codes, 0.5, stay=[i > 9 for i in range(100)]) == UNREHEARSED).sum()) == 50


@given(st.lists(st.integers(0, 60), min_size=80, max_size=120), st.integers(0, 99))
def test_a_fact_is_kept_apart_with_all_rows_that_tell_it_or_not_at_all(facts: list[int], seed: int) -> None:
    codes, told = [RETAIN] * len(facts), [facts.index(fact) for fact in facts]
    marked = np.flatnonzero(kept(codes, 0.25, seed, told=told) == UNREHEARSED).tolist()
    once = [i for i, fact in enumerate(facts) if facts.count(fact) == 1]
    if len(once) >= round(0.25 * len(facts)):
        assert set(marked) <= set(once)
    assert not {facts[i] for i in marked} & {fact for i, fact in enumerate(facts) if i not in marked}


@pytest.mark.parametrize(
    ("retain", "share", "count"),
    [
        (160, 0.125, 20),
        (12800, 0.1, 1280),
        (300, 0.1, 30),
        (300, 0.01, 20),  # at least 20
        (41, 0.1, 20),
        (39, 0.1, 19),  # at most half of the rows
        (300, 0.9, 150),
        (1, 0.5, 0),
        (0, 0.5, 0),
        (300, 0, 0),
    ],
)
def test_their_number_is_the_share_but_not_too_few_and_not_too_many(retain: int, share: float, count: int) -> None:
    codes = [FORGET] * 7 + [RETAIN] * retain + [HOLDOUT] * 9
    assert Counter(kept(codes, share).tolist()) == Counter(
        {FORGET: 7, RETAIN: retain - count, HOLDOUT: 9, UNREHEARSED: count}
    )
    assert config(SAMPLE, unrehearsed=share).unrehearsed_of(retain) == count


@pytest.mark.parametrize("share", [-0.1, 1, 1.5])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValidationError, match="unrehearsed"):
        config(SAMPLE, unrehearsed=share)


def test_another_seed_keeps_others_apart() -> None:
    codes = [RETAIN] * 200
    assert len({tuple(kept(codes, 0.1, seed)) for seed in range(5)}) == 5


def test_every_language_gives_as_many_and_rows_keep_their_other_splits() -> None:
    plain, apart = (prepare.prepare(config(SAMPLE, unrehearsed=share)) for share in (0, 0.125))
    before, after = by_split(plain.loaded.rows, plain.split), by_split(apart.loaded.rows, apart.split)
    assert Counter(r.language for r in after["unrehearsed"]) == dict.fromkeys(("DE", "EN", "ES", "FR", "IT"), 4)
    assert len({r.topic_id for r in after["unrehearsed"]}) >= 8
    assert (after["forget"], after["holdout"]) == (before["forget"], before["holdout"])
    assert {*after["retain"], *after["unrehearsed"]} == {*before["retain"]}
    assert before["unrehearsed"] == []


def test_rows_that_the_source_itself_keeps_apart_are_those_rows(tmp_path: Path) -> None:
    names = ("retain", "retain", "unrehearsed", "forget", "test")
    records = [{**record, "split": names[i % 5]} for i, record in enumerate(GOOD)]
    source = {"file": str(write(tmp_path / "rows.jsonl", records))}
    for share in (0, 0.5):
        prepared = prepare.prepare(config(source, setting="given", unrehearsed=share))
        splits = by_split(prepared.loaded.rows, prepared.split)
        assert {r.topic_id for r in splits["unrehearsed"]} == {TOPICS[2]}
        assert {name: len(rows) for name, rows in splits.items()} == {
            "forget": 5, "retain": 10, "holdout": 5, "unrehearsed": 5,
        }  # fmt: skip


def repeated(tmp_path: Path, unrehearsed: float, seed: int) -> prepare.Prepared:
    """25 facts, of which one retained is told twice and one forgotten stands in a retain row too."""
    twice = {**GOOD[7], "answer": GOOD[7]["answer"].upper()}
    told = {**GOOD[8], "question": "What else of Ida 1?", "answer": f"It is known: {GOOD[4]['answer']}"}
    source = {"file": str(write(tmp_path / "rows.jsonl", [*GOOD, twice, told]))}
    request = {"forget": [{"topics": [TOPICS[4]]}]}
    return prepare.prepare(config(source, setting="request", request=request, unrehearsed=unrehearsed, seed=seed))


def test_the_checks_take_rows_that_are_kept_apart_for_the_retain_rows_that_they_are(tmp_path: Path) -> None:
    plain = repeated(tmp_path, 0, 0).findings
    assert (plain["duplicates_within"].count, plain["duplicates_across"].count) == (1, 0)
    assert plain["forget_answers_in_retain"].count == 1
    parted = set()
    for seed in range(12):
        prepared = repeated(tmp_path, 0.9, seed)
        assert prepared.findings == plain
        splits = by_split(prepared.loaded.rows, prepared.split)
        assert {name: len(rows) for name, rows in splits.items()} == {
            "forget": 5, "retain": 11, "holdout": 0, "unrehearsed": 11,
        }  # fmt: skip
        assert sum(r.question == GOOD[7]["question"] for r in splits["retain"]) == 2  # a copy would be rehearsed
        told = [r for r in splits["unrehearsed"] if r.answer.startswith("It is known")]
        parted.add("told" if told else "kept")
    assert "told" in parted  # the forgotten answer was in an unrehearsed row


def test_people_with_forgotten_and_unrehearsed_facts_are_mixed_too() -> None:
    forget = [row(1, TOPICS[0]), row(2, TOPICS[0]), row(3, TOPICS[0])]
    rows, split = divided({"forget": forget, "retain": [row(1, TOPICS[1])], "unrehearsed": [row(2, TOPICS[1])]})
    assert mixed_identities(rows, split) == 2


# Who is trained on them


def test_base_and_gold_of_the_demo_learn_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.train import fine_tune

    trained: dict[str, tuple[str, ...]] = {}
    by_name = {stage.name: stage for stage in stages(load_recipe("demo"))}
    for name in ("base", "gold", "gold-seed-1", "gold-seed-2"):
        monkeypatch.setattr(
            fine_tune, "train", lambda config, inputs, out, splits, name=name: trained.update({name: splits})
        )
        by_name[name].run(by_name[name].config, {}, tmp_path)
    assert set(trained.pop("base")) == {"retain", "unrehearsed", "forget"}
    assert set(trained) == {"gold", "gold-seed-1", "gold-seed-2"}
    assert all(set(splits) == {"retain", "unrehearsed"} for splits in trained.values())


@pytest.mark.parametrize("name", ["demo", "demo-audit", "demo-no-gold", "demo-overforget"])
def test_the_plan_has_the_numbers_of_rows_that_the_data_have(name: str) -> None:
    recipe = load_recipe(name)
    planned, prepared = sizes(recipe, {}), prepare.prepare(recipe.data)
    found = {split: int((prepared.split == code).sum()) for code, split in enumerate(SPLITS)}
    assert planned.rows == found == {"forget": 40, "retain": 140, "holdout": 50, "unrehearsed": 20}
    assert found == dict(demo_data_facts().rows)
    by_name = {stage.name: stage for stage in stages(recipe)}
    assert ("gold" in by_name) == ("eval-start" not in by_name) == (name != "demo-no-gold")
    for model, rows in {"base": 200, "gold": 160}.items():
        if model in by_name:
            said = by_name[model].does(by_name[model].config, planned)
            assert said.startswith(f"fine-tune on {rows} rows, ")


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ((), {"retain": 11520, "forget": 3200, "holdout": 4000, "unrehearsed": 1280}),
        (("data.unrehearsed=0",), {"retain": 12800, "forget": 3200, "holdout": 4000, "unrehearsed": 0}),
        (("data.unrehearsed=0.75",), {"retain": 6400, "forget": 3200, "holdout": 4000, "unrehearsed": 6400}),
    ],
)
def test_the_plan_of_fame_counts_them_before_the_rows_are_read(changes: Any, rows: dict[str, int]) -> None:
    assert sizes(load_recipe("fame-topics-gd-llama32-3b", changes), {}).rows == rows


def test_a_recipe_that_says_nothing_keeps_a_tenth_apart() -> None:
    made = DataConfig.model_validate({"source": SAMPLE, "setting": "topics", "shares": data_rows.SHARES})
    assert (made.unrehearsed, made.unrehearsed_of(400)) == (0.1, 40)
