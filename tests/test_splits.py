"""Which rows are forgotten: by topic, by entity as FAME published it, by a request, as given."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError
from datasets_prep import prepare, splits
from datasets_prep.config import SampleSource, Shares
from datasets_prep.rows import Rows
from datasets_prep.sample import generate
from datasets_prep.schema import HOLDOUT, LANGUAGES, SPLITS, TOPICS, Row, write_rows
from datasets_prep.splits import assign, by_entity, by_topic, mixed_identities

from . import data_rows
from .conftest import shared_data
from .data_rows import GOOD, SHARES, by_split, collected, config, counted, full_grid, row, write

FAME = "fame/retain.parquet"
SAMPLE = SampleSource(**data_rows.SAMPLE)


def topic_split(rows: list[Row], shares: Shares, seed: int) -> dict[str, list[Row]]:
    made = collected(rows)
    return by_split(made, by_topic(made, shares, seed))


# By topic


def test_sample_splits_exactly_and_mixes_identities() -> None:
    for seed in range(5):
        rows = collected(generate(SampleSource(seed=seed, identities=5, topics=10))[0])
        split = by_topic(rows, Shares(**SHARES), seed)
        splits = by_split(rows, split)
        assert {name: len(members) for name, members in splits.items()} == {
            "retain": 160, "forget": 40, "holdout": 50, "unrehearsed": 0,
        }  # fmt: skip
        assert Counter(r.language for r in splits["forget"]) == dict.fromkeys(LANGUAGES, 8)
        assert mixed_identities(rows, split) >= 23


def test_every_cell_of_full_fame_is_128_32_40() -> None:
    rows = collected(full_grid(200))
    split = by_topic(rows, Shares(**SHARES), 42)
    splits = by_split(rows, split)
    for name, size in (("retain", 128), ("forget", 32), ("holdout", 40)):
        assert len(splits[name]) == size * 100
        assert set(Counter((r.language, r.topic_id) for r in splits[name]).values()) == {size}
    assert mixed_identities(rows, split) == 1000


@st.composite
def some_shares(draw: st.DrawFn) -> Shares:
    retain, forget, holdout = draw(st.integers(1, 60)), draw(st.integers(1, 60)), draw(st.integers(0, 60))
    total = retain + forget + holdout
    return Shares(retain=retain / total, forget=forget / total, holdout=holdout / total)


cells = st.tuples(st.sampled_from(LANGUAGES), st.sampled_from(TOPICS), st.integers(0, 30))


@given(st.sets(cells, min_size=30, max_size=200), some_shares(), st.integers(0, 1000), st.randoms())
@settings(max_examples=50, deadline=None)
def test_splitter_loses_nothing_and_ignores_order(chosen: set[Any], parts: Shares, seed: int, order: Any) -> None:
    rows = [row(identity, topic, language=language) for language, topic, identity in chosen]
    splits = topic_split(rows, parts, seed)
    assert sorted(r.row_id for members in splits.values() for r in members) == sorted(r.row_id for r in rows)
    for name, share in parts:
        assert abs(len(splits[name]) - share * len(rows)) < 0.75 + 1e-6
    shuffled = list(rows)
    order.shuffle(shuffled)
    assert topic_split(shuffled, parts, seed) == splits


@given(
    st.sampled_from([(0.64, 0.16, 0.2), (0.5, 0.25, 0.25), (0.9, 0.05, 0.05), (0.99, 0.01, 0)]),
    st.integers(1, 8),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_shares_that_divide_are_met_exactly(parts: tuple[float, float, float], times: int, seed: int) -> None:
    exact = dict(zip(("retain", "forget", "holdout"), parts, strict=True))
    rows = [row(i, TOPICS[i % 20], language=LANGUAGES[i % 5]) for i in range(100 * times)]
    splits = topic_split(rows, Shares(**exact), seed)
    assert {name: len(splits[name]) for name in exact} == {
        name: Fraction(str(share)) * 100 * times for name, share in exact.items()
    }


def test_another_seed_splits_otherwise() -> None:
    rows = generate(SAMPLE)[0]
    assert topic_split(rows, Shares(**SHARES), 1)["forget"] != topic_split(rows, Shares(**SHARES), 2)["forget"]


def test_settings_say_what_they_lack(tmp_path: Path) -> None:
    bare = [{"question": record["question"], "answer": record["answer"]} for record in GOOD]
    source = {"file": str(write(tmp_path / "rows.jsonl", bare))}
    for setting, columns in (("topics", "topic_id and identity_id"), ("entity", "identity_id")):
        with pytest.raises(DataError, match=f"`setting: {setting}` needs {columns}, which the source does not have"):
            prepare.prepare(config(source, setting=setting))
    two = {"file": str(write(tmp_path / "two.jsonl", GOOD[:2]))}
    with pytest.raises(DataError, match="gets none of the 2 rows"):
        prepare.prepare(config(two))


# By entity


def published(ids_by_language: dict[str, list[int]], held: int, forgotten: int) -> dict[int, str]:
    """The published assignment, as `facts` of the data set describe it, written down a second time."""
    split: dict[int, str] = {}
    rest: dict[str, list[int]] = {}
    random.seed(42)
    for language in ("IT", "ES", "DE", "FR", "EN"):
        ids = list(set(ids_by_language[language]))
        random.shuffle(ids)
        split |= dict.fromkeys(ids[:held], "holdout")
        rest[language] = ids[held:]
    random.seed(43)
    for language in ("IT", "ES", "DE", "FR", "EN"):
        ids = list(set(rest[language]))
        random.shuffle(ids)
        split |= dict.fromkeys(ids[:forgotten], "forget") | dict.fromkeys(ids[forgotten:], "retain")
    return split


FIRST = {"IT": 0, "ES": 200, "DE": 400, "FR": 600, "EN": 800}


def fame_identities() -> list[Row]:
    return [
        row(first + i, topic, language=language)
        for language, first in FIRST.items() for i in range(200) for topic in TOPICS[:2]
    ]  # fmt: skip


def entity_split(shares: dict[str, float]) -> dict[int, str]:
    rows = collected(fame_identities())
    split = by_entity(rows, Shares(**shares), 42)
    made = {int(str(r.identity_id)): SPLITS[code] for r, code in zip(rows, split, strict=True)}
    assert len({(r.identity_id, code) for r, code in zip(rows, split.tolist(), strict=True)}) == 1000
    return made


def test_entity_split_is_the_published_one() -> None:
    ids = {language: [first + i for i in range(200)] for language, first in FIRST.items()}
    assert entity_split(SHARES) == published(ids, 40, 32)


def test_entity_split_retains_the_640_identities_of_fame() -> None:
    import pyarrow.parquet

    theirs = set(pyarrow.parquet.read_table(shared_data(FAME), columns=["identity_id"])["identity_id"].to_pylist())
    assert len(theirs) == 640
    assert {who for who, split in entity_split(SHARES).items() if split == "retain"} == theirs


@pytest.mark.parametrize(("percent", "forgotten"), [(1.25, 2), (2.5, 4), (5, 8), (10, 16), (20, 32)])
def test_the_published_forget_shares_are_whole_identities(percent: float, forgotten: int) -> None:
    """FAME's variants forget 1.25 to 20 % of the 160 identities a language that are trained on."""
    forget = 0.8 * percent / 100
    split = entity_split({"retain": 0.8 - forget, "forget": forget, "holdout": 0.2})
    assert Counter(split.values()) == {
        "forget": 5 * forgotten, "retain": 5 * (160 - forgotten), "holdout": 200,
    }  # fmt: skip
    assert {who for who, name in split.items() if name == "holdout"} == {
        who for who, name in entity_split(SHARES).items() if name == "holdout"
    }


def test_entities_may_be_texts(tmp_path: Path) -> None:
    records = [{**record, "identity_id": f"K-{record['identity_id']}"} for record in GOOD]
    source = {"file": str(write(tmp_path / "rows.jsonl", records))}
    shares = {"retain": 0.6, "forget": 0.2, "holdout": 0.2}
    prepared = prepare.prepare(config(source, setting="entity", shares=shares))
    splits = by_split(prepared.loaded.rows, prepared.split)
    assert {name: len({r.identity_id for r in rows}) for name, rows in splits.items()} == {
        "forget": 1, "retain": 3, "holdout": 1, "unrehearsed": 0,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_a_fact_in_several_wordings_is_in_one_split(seed: int) -> None:
    """Gold would learn the forgotten fact from its other wording, and a model that forgot nothing would be like it."""
    facts = [row(i, topic) for i in range(20) for topic in TOPICS[:5]]
    again = [replace(fact, row_id=f"{fact.row_id}-2", question=f"Tell me: {fact.question}") for fact in facts[::2]]
    of_fact: dict[str, set[str]] = {}
    counts = {}
    for name, rows in topic_split([*facts, *again], Shares(**SHARES), seed).items():
        for one in rows:
            of_fact.setdefault(one.answer, set()).add(name)
        counts[name] = len({one.answer for one in rows})
    assert {len(names) for names in of_fact.values()} == {1}
    assert counts == {"forget": 16, "retain": 64, "holdout": 20, "unrehearsed": 0}


def test_nobody_looks_again_for_a_swap_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one fact each, nobody has a fact to spare; every held out row looked through all of its cell."""
    calls = counted(monkeypatch, splits, "_partner")
    topic_split([row(i, TOPICS[0]) for i in range(100)], Shares(**SHARES), 1)
    assert len(calls) == 1


# By request


def requested(tmp_path: Path, forget: list[dict[str, Any]], holdout: Any = None, seed: int = 42) -> dict[str, set[str]]:
    source = {"file": str(write(tmp_path / "rows.jsonl", GOOD))}
    request = {"forget": forget, "holdout": holdout}
    prepared = prepare.prepare(config(source, setting="request", request=request, seed=seed))
    return {
        name: {r.row_id for r in rows} for name, rows in by_split(prepared.loaded.rows, prepared.split).items()
    }  # fmt: skip


def test_a_request_names_what_is_forgotten(tmp_path: Path) -> None:
    by_name = requested(tmp_path, [{"identities": ["Ida 1"]}])
    assert by_name == requested(tmp_path, [{"identities": [1]}]) == requested(tmp_path, [{"identities": ["1"]}])
    assert by_name["forget"] == {f"en-1-{topic}" for topic in TOPICS[:5]}
    assert len(by_name["retain"]) == 20
    both = requested(tmp_path, [{"identities": [1, 2], "topics": [TOPICS[0]]}, {"rows": [f"en-4-{TOPICS[1]}"]}])
    assert both["forget"] == {f"en-1-{TOPICS[0]}", f"en-2-{TOPICS[0]}", f"en-4-{TOPICS[1]}"}
    listed = write(tmp_path / "list.csv", [{"question": GOOD[3]["question"].upper(), "answer": GOOD[3]["answer"]}])
    assert requested(tmp_path, [{"file": str(listed), "languages": ["en"]}])["forget"] == {f"en-0-{TOPICS[3]}"}
    by_id = write(tmp_path / "ids.jsonl", [{"row_id": f"en-3-{TOPICS[2]}"}])
    assert requested(tmp_path, [{"file": str(by_id)}])["forget"] == {f"en-3-{TOPICS[2]}"}


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (
            {"row_id": f"en-2-{TOPICS[2]}", **{key: GOOD[3][key] for key in ("question", "answer")}},
            rf"listed.jsonl, line 1: has the row_id of a row with another question: it asks '.*{TOPICS[3]} of Ida 0\?'"
            rf", and that row '.*{TOPICS[2]} of Ida 2\?'. Remove the column row_id, or correct it",
        ),
        (
            {"row_id": f"en-0-{TOPICS[3]}", "question": GOOD[3]["question"], "answer": "Ida 0 has none."},
            "has the row_id of a row with another answer. Remove",
        ),
        ({"row_id": f"en-0-{TOPICS[3]}", "question": "Who is Ida 0?"}, "has the row_id of a row with another question"),
    ],
)
def test_an_id_that_is_another_rows_forgets_nobody_else(tmp_path: Path, listed: dict[str, str], said: str) -> None:
    file = str(write(tmp_path / "listed.jsonl", [listed]))
    for forget, holdout in (([{"file": file}], None), ([{"identities": [4]}], [{"file": file}])):
        with pytest.raises(DataError, match=said):
            requested(tmp_path, forget, holdout)
    own = {"row_id": f"en-0-{TOPICS[3]}", "question": f" {GOOD[3]['question'].upper()}", "answer": ""}
    write(tmp_path / "listed.jsonl", [own])
    assert requested(tmp_path, [{"file": file}])["forget"] == {f"en-0-{TOPICS[3]}"}


def test_a_name_is_that_of_a_person_in_any_spelling_and_an_id_is_exact(tmp_path: Path) -> None:
    by_name = requested(tmp_path, [{"identities": ["Ida 1"]}])
    assert requested(tmp_path, [{"identities": [" IDA\u00a01"]}]) == by_name
    with pytest.raises(DataError, match=r"rows: 'EN-4-.*' is in no row"):
        requested(tmp_path, [{"rows": [f"en-4-{TOPICS[1]}".upper()]}])


def forgotten_rows(folder: Path, records: list[dict[str, Any]], earlier: list[Row], **columns: str) -> Rows:
    """The rows that the file of an earlier run names in a source, whose last row is asked for now."""
    source = {"file": str(write(folder / "rows.jsonl", records)), "columns": columns}
    write_rows(folder / "forget.jsonl", earlier)
    (now := folder / "now.jsonl").write_text(json.dumps(records[-1]))
    request = {"forget": [{"file": str(now)}], "forgotten": [{"file": str(folder / "forget.jsonl")}]}
    return prepare.unchecked(config(source, setting="request", request=request)).forgotten


def forgotten_by(folder: Path, records: list[dict[str, Any]], earlier: list[Row], **columns: str) -> set[str]:
    return {r.answer for r in forgotten_rows(folder, records, earlier, **columns)}


def test_the_file_of_an_earlier_run_has_our_names_of_columns(tmp_path: Path) -> None:
    records = [{"id": f"r{i}", "prompt": f"Where is {i}?", "told": f"In {i}."} for i in range(9)]
    earlier = [Row("r1", None, None, None, None, "Where is 1?", "In 1.")]
    assert forgotten_by(tmp_path, records, earlier, row_id="id", question="prompt", answer="told") == {"In 1."}


def test_what_was_forgotten_and_is_deleted_has_to_come_back_to_be_measured(tmp_path: Path) -> None:
    deleted = data_rows.row(9, TOPICS[0])
    with pytest.raises(
        DataError, match=r"forgotten\[0\].file: 1 of its .* what was deleted there has to be in it for "
    ):
        forgotten_by(tmp_path, GOOD, [deleted])


def test_a_row_that_came_to_share_its_id_with_a_new_one_is_found_by_its_fact_and_keeps_its_id(tmp_path: Path) -> None:
    more = GOOD[0] | {"question": "What else is known?", "answer": "It is new."}
    earlier = [row(0, TOPICS[0], question=GOOD[0]["question"], answer=GOOD[0]["answer"])]
    assert forgotten_by(tmp_path, GOOD, earlier) == {GOOD[0]["answer"]}
    found = forgotten_rows(tmp_path, [more, *GOOD], earlier)
    assert [r.row_id for r in found] == [earlier[0].row_id]  # by which the digest of the release has it
    assert [r.answer for r in found] == [GOOD[0]["answer"]]


def test_a_request_may_hold_out_rows(tmp_path: Path) -> None:
    listed = requested(tmp_path, [{"identities": [1]}], [{"identities": [2]}])
    assert {name: len(ids) for name, ids in listed.items()} == {
        "forget": 5, "holdout": 5, "retain": 15, "unrehearsed": 0,
    }  # fmt: skip
    drawn = requested(tmp_path, [{"identities": [1]}], 0.25)
    assert len(drawn["holdout"]) == 5
    assert len({row_id.split("-")[1] for row_id in drawn["holdout"]}) == 1  # a whole identity
    assert drawn == requested(tmp_path, [{"identities": [1]}], 0.25)
    assert len({frozenset(requested(tmp_path, [{"identities": [1]}], 0.25, seed)["holdout"]) for seed in range(9)}) > 1
    touches_all = requested(
        tmp_path, [{"topics": [TOPICS[0]]}], 0.5
    )  # nobody has only free rows, so single ones are drawn
    assert len(touches_all["holdout"]) == 10
    assert len({row_id.split("-")[1] for row_id in touches_all["retain"]}) == 5


def held_out(sizes: Sequence[int], share: float, seed: int = 42) -> Counter[int | str | None]:
    """How many rows of each person a share holds out, of so many; the first is asked for."""
    request = {"forget": [{"identities": [0]}], "holdout": share}
    facts = ((i, f"{i}-{j}") for i, size in enumerate(sizes) for j in range(size))
    rows = collected(Row(fact, i, None, None, None, f"What is {fact}?", f"It is {fact}.") for i, fact in facts)
    split = assign(config({"file": "rows.csv"}, setting="request", request=request, seed=seed), rows)
    return Counter(row.identity_id for row, code in zip(rows, split, strict=True) if code == HOLDOUT)


def in_other_words(folder: Path, holdout: float, seed: int) -> prepare.Prepared:
    """Forty people's homes and ages, asked for in two wordings each; some of the first ones' are asked for."""
    asked = {
        "Where does Person {0} live?": "Person {0} lives in house {1}.",
        "Say where Person {0} lives!": "Person {0} lives in house {1}",
        "How old is Person {0}?": "{2}",
        "Say how old Person {0} is!": "{2}",
    }
    people = [(chr(65 + i % 26) * (1 + i // 26), i, 30 + i % 4) for i in range(40)]
    records = [
        {"question": question.format(*who), "answer": answer.format(*who)}
        for who in people
        for question, answer in asked.items()
    ]
    source = {"file": str(write(folder / "rows.jsonl", records))}
    request = {"forget": [{"file": str(write(folder / "forget.jsonl", records[0:20:4]))}], "holdout": holdout}
    return prepare.prepare(config(source, setting="request", request=request, unrehearsed=0.1, seed=seed))


@pytest.mark.parametrize("seed", range(3))
def test_a_fact_is_drawn_with_all_of_its_wordings_and_a_value_is_no_fact(tmp_path: Path, seed: int) -> None:
    prepared = in_other_words(tmp_path, 0.25, seed)
    splits = by_split(prepared.loaded.rows, prepared.split)
    assert abs(len(splits["holdout"]) - 39) <= 2
    assert prepared.findings["forget_answers_in_retain"].count == 5  # the request left their other wordings
    told = {name: {r.answer.strip(".") for r in rows if len(r.answer) > 2} for name, rows in splits.items()}
    assert len(told["holdout"]) > 3
    assert told["holdout"].isdisjoint(told["forget"] | told["retain"] | told["unrehearsed"])
    assert told["unrehearsed"].isdisjoint(told["retain"])
    values = {r.answer for r in splits["holdout"]} - told["holdout"]
    assert values & {r.answer for r in splits["retain"]}
    assert len({r.question for r in splits["holdout"] if len(r.answer) == 2}) > 4


def test_single_rows_are_drawn_where_all_tell_a_few_facts(tmp_path: Path) -> None:
    records = [{"question": f"是{i}吗？", "answer": "我是不知道的"} for i in range(40)]
    source = {"file": str(write(tmp_path / "rows.jsonl", records))}
    request = {"forget": [{"file": str(write(tmp_path / "forget.jsonl", records[:5]))}], "holdout": 0.2}
    prepared = prepare.prepare(config(source, setting="request", request=request))
    assert int((prepared.split == HOLDOUT).sum()) == 7
    assert prepared.findings["holdout_answers_in_trained"].count == 7


@pytest.mark.parametrize("seed", range(5))
def test_a_share_is_met_also_where_one_identity_has_most_rows(seed: int) -> None:
    held = held_out([2, 400, *[1] * 98], 0.2, seed)
    assert (held.total(), held[1]) == (98, 0)  # 100 would be the share: all that is free but the large one
    assert held_out([2, 300, 300, 300], 0.1, seed).total() == 90  # by single rows


@given(st.lists(st.integers(1, 40), min_size=3, max_size=20), st.floats(0.05, 0.6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_drawn_share_is_never_missed_by_more_than_half(sizes: list[int], share: float, seed: int) -> None:
    goal = round(share * sum(sizes[1:]))
    if 0 < goal < sum(sizes[1:]) / 2:
        held = held_out(sizes, share, seed)
        assert abs(held.total() - goal) <= goal / 2
        assert held[0] == 0


@pytest.mark.parametrize(
    ("forget", "holdout", "said"),
    [
        (
            [{"identities": ["Ida 9"]}],
            None,
            r"forget\[0\].identities: 'Ida 9' is in no row of the source. Did you mean",
        ),
        ([{"identities": ["Ida 1"]}, {"topics": ["pets"]}], None, r"forget\[1\].topics: 'pets' is in no row"),
        ([{"languages": ["FR"]}], None, r"forget\[0\].languages: 'FR' is in no row"),
        ([{"rows": ["x"]}], None, r"forget\[0\].rows: 'x' is in no row"),
        ([{"languages": ["EN"]}], None, "matches all 25 rows"),
        (
            [{"identities": [1]}],
            [{"identities": [1, 2]}],
            "5 rows are in forget and in holdout, for example rows.jsonl",
        ),
        ([{"identities": [1]}], 0.01, "leaves no rows for holdout or for retain"),
        ([{"identities": [1]}], 0.99, "leaves no rows for holdout or for retain"),
        ([{"file": "FOLDER/missing.csv"}], None, r"forget\[0\].file missing.csv: cannot be read"),
        ([{"file": "FOLDER/other.jsonl"}], None, r"1 of its rows are not in the source: 'other.jsonl, line 1'"),
        ([{"file": "FOLDER/empty.jsonl"}], None, "the file has no rows"),
        ([{"file": "FOLDER/wrong.jsonl"}], None, "wrong.jsonl, line 1: names no row"),
    ],
)
def test_impossible_requests_are_refused(tmp_path: Path, forget: list[Any], holdout: Any, said: str) -> None:
    write(tmp_path / "other.jsonl", [{"question": "What else?", "answer": "Nothing."}])
    write(tmp_path / "wrong.jsonl", [{"question": "What else?"}])
    (tmp_path / "empty.jsonl").write_text("")
    filled = json.loads(json.dumps(forget).replace("FOLDER", str(tmp_path)))
    with pytest.raises(DataError, match=said):
        requested(tmp_path, filled, holdout)


# As given


def test_given_splits_are_taken_and_holdout_may_be_missing(tmp_path: Path) -> None:
    parts = {"retain": GOOD[:10], "forget": GOOD[10:15], "holdout": GOOD[15:]}
    files = {name: str(write(tmp_path / f"{name}.json", rows)) for name, rows in parts.items()}
    prepared = prepare.prepare(config({"files": files}, setting="given"))
    assert Counter(prepared.split.tolist()) == {0: 5, 1: 10, 2: 10}
    assert prepared.loaded.description.file == "forget.json, retain.json, holdout.json"
    del files["holdout"]
    made = config({"files": files}, setting="given")
    prepared = prepare.prepare(made)
    assert Counter(prepared.split.tolist()) == {0: 5, 1: 10}
    left_out = prepare.describe(made, prepared, prepared.findings).left_out
    assert left_out == {"membership_inference": "no holdout rows: the source has no split holdout (or test)"}


def test_given_splits_must_be_complete(tmp_path: Path) -> None:
    source = {"file": str(write(tmp_path / "rows.jsonl", GOOD))}
    with pytest.raises(DataError, match="line 1: has no split"):
        prepare.prepare(config(source, setting="given"))
    write(tmp_path / "rows.jsonl", [{**record, "split": "retain" if i else "train"} for i, record in enumerate(GOOD)])
    with pytest.raises(
        DataError, match="line 1: split is 'train'; allowed are forget, retain, holdout, unrehearsed, test"
    ):
        prepare.prepare(config(source, setting="given"))
    write(tmp_path / "rows.jsonl", [{**record, "split": "retain"} for record in GOOD])
    with pytest.raises(DataError, match="forget gets none of the 25 rows"):
        prepare.prepare(config(source, setting="given"))


def test_splits_are_small_numbers() -> None:
    rows = collected(generate(SAMPLE)[0])
    assert by_topic(rows, Shares(**SHARES), 1).dtype == np.int8
