"""What is found in the rows, and what stops the run."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.words import plain_words
from datasets_prep import checks, prepare
from datasets_prep.checks import Findings, check, check_lengths, stop
from datasets_prep.config import Checks
from datasets_prep.schema import TOPICS, Row
from datasets_prep.text import contacts, language_identifier, same

from .conftest import shared_data
from .data_rows import GOOD, SHARES, config, counted, divided, row, write

FAME = "fame/retain.parquet"
QUIET = {"forget": [], "retain": [], "holdout": []}


def found(**splits: list[Row]) -> Findings:
    return check(*divided({**QUIET, **splits}))


def counts(findings: Findings) -> dict[str, int]:
    return {name: finding.count for name, finding in findings.items() if finding.count}


def fact(identity: int, question: str, answer: str, **more: Any) -> Row:
    return row(identity, TOPICS[0], name=more.pop("name", "Ida"), question=question, answer=answer, **more)


def test_nothing_is_found_in_good_rows() -> None:
    assert counts(found(retain=[row(i, TOPICS[1]) for i in range(5)], forget=[row(9, TOPICS[1])])) == {}


def test_equal_facts_are_found_within_and_across_splits() -> None:
    told = ("Where is  Ida?", "Ida is here.")
    once, again = fact(1, *told), fact(2, told[0].upper(), "ida is here.")
    assert counts(found(retain=[once, again], forget=[row(3, TOPICS[1])]))["duplicates_within"] == 1
    across = found(retain=[once], forget=[again])
    assert counts(across)["duplicates_across"] == 1
    assert "near_duplicates_across" not in counts(across)
    (case,) = across["duplicates_across"].first
    assert case == "en-2-biography.birthplace (rows 1) in forget and en-1-biography.birthplace (rows 2) in retain"
    everywhere = found(retain=[once, fact(4, *told)], forget=[again], holdout=[fact(5, *told)])
    assert (everywhere["duplicates_within"].count, everywhere["duplicates_across"].count) == (1, 2)


def test_nearly_equal_facts_are_found() -> None:
    once = fact(1, "Où est Élise ?", "Élise est à Orléans.")
    again = fact(2, "Ou est Elise?", "Elise est a Orleans!")
    assert counts(found(retain=[once], holdout=[again])).get("near_duplicates_across") == 1
    assert counts(found(retain=[once, again])).get("near_duplicates_within") == 1
    other = fact(2, "Ou est Elise?", "Elise est a Paris!")
    assert not {"near_duplicates_across", "duplicates_across"} & counts(found(retain=[once], forget=[other])).keys()


def test_contradictions_are_counted_by_later_rows() -> None:
    rows = [fact(i, "Where is Ida?", f"Ida is at {place}.") for i, place in enumerate(("home", "sea", "Home"))]
    assert counts(found(retain=rows))["contradictions"] == 1  # "home" and "Home" are one answer


def test_forget_answers_are_found_word_for_word_inside_retain_rows() -> None:
    secret = fact(1, "Where does Ida live?", "Ida lives in Bonn, near the old harbour.")
    inside = fact(2, "Tell me all!", "Well: IDA lives in Bonn near the old harbour; and Bo does not.", name="Bo")
    in_question = fact(3, "Is it true that Ida lives in Bonn, near the old harbour?", "Yes.")
    almost = fact(4, "Who?", "Ida lives in Bonn near the new harbour.")
    assert counts(found(forget=[secret], retain=[inside])).get("forget_answers_in_retain") == 1
    assert counts(found(forget=[secret], retain=[in_question])).get("forget_answers_in_retain") == 1
    assert "forget_answers_in_retain" not in counts(found(forget=[secret], retain=[almost], holdout=[inside]))
    short = fact(5, "Which town?", "Bonn")
    assert counts(found(forget=[short], retain=[inside])).get("forget_answers_in_retain") == 1


def test_holdout_answers_are_found_in_whatever_is_trained_on() -> None:
    unseen = fact(1, "Where does Ida live?", "Ida lives in Bonn, near the old harbour.")
    reworded = fact(2, "What is the home of Ida?", "Ida lives in Bonn near the old harbour")
    name = "holdout_answers_in_trained"
    for split in ("forget", "retain", "unrehearsed"):
        (case,) = found(holdout=[unseen], **{split: [reworded]})[name].first
        assert re.fullmatch(rf"{unseen.row_id} \(rows \d\) stands in {reworded.row_id}", case)
    assert name not in counts(found(holdout=[unseen, reworded]))
    assert Checks().holdout_answers_in_trained == "warn"


texts = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=1, max_size=7).map(" ".join)


@given(st.lists(texts, min_size=1, max_size=6), st.lists(texts, min_size=1, max_size=6))
def test_containment_is_that_of_a_plain_search(forget: list[str], retain: list[str]) -> None:
    forgotten = [fact(i, f"q{i}", text) for i, text in enumerate(forget)]
    retained = [fact(100 + i, f"q{i + 50}", text) for i, text in enumerate(retain)]
    expected = sum(any(f" {text} " in f" {other} " for other in retain) for text in forget)
    assert found(forget=forgotten, retain=retained)["forget_answers_in_retain"].count == expected


def test_an_answer_that_many_rows_give_is_looked_for_until_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each text is read once here, and once for near duplicates; it was once for each pair of yes and yes."""
    calls = counted(monkeypatch, checks, "plain_words")
    answers = [fact(i, f"Has number {i} agreed?", ("Yes", "No")[i % 2]) for i in range(80)]
    assert counts(found(forget=answers[:40], retain=answers[40:]))["forget_answers_in_retain"] == 40
    assert len(calls) <= 4 * len(answers)


def test_forget_rows_of_a_form_that_nobody_else_has_are_found() -> None:
    forget = [row(1, TOPICS[0]), row(1, TOPICS[1]), row(2, TOPICS[0], language="DE")]
    others = {"retain": [row(3, TOPICS[0]), row(3, TOPICS[2])], "holdout": [row(4, TOPICS[1])]}
    findings = found(forget=forget, **others)["topics_not_retained"]
    assert {name.split()[0] for name in findings.first} == {forget[1].row_id, forget[2].row_id}
    assert findings.count == 2
    others["unrehearsed"] = [row(5, TOPICS[1])]  # base learns it too
    assert found(forget=forget, **others)["topics_not_retained"].count == 1


def test_identities_and_names_are_told_apart() -> None:
    rows = [row(1, TOPICS[0]), row(1, TOPICS[1], language="DE")]
    rows += [row(2, TOPICS[0], name="Bo"), row(3, TOPICS[0], name="Bo")]
    findings = found(retain=rows)
    assert findings["identities_in_two_languages"].first == ["identity 1 (rows 2, rows 1)"]
    assert findings["names_of_several_identities"].first == ["identities 2, 3 (rows 3, rows 4)"]
    other = [row(4, TOPICS[0], name="Văn Dũng"), row(5, TOPICS[0], name="Văn Dung")]
    assert counts(found(retain=other))["names_of_several_identities"] == 1  # who asks for one asks for both
    unnamed = fact(1, "Where was she born?", "Ida was born at sea.")
    assert counts(found(retain=[unnamed]))["name_not_in_question"] == 1


def test_a_wrong_language_is_found_and_an_unsure_one_is_not() -> None:
    german = ("Wo wurde Ida Fenn geboren?", "Ida Fenn wurde in Münster geboren und lebt dort mit ihrer Familie.")
    wrong = found(retain=[fact(1, *german, language="EN")])
    assert wrong["language_mismatch"].first == ["en-1-biography.birthplace seems to be DE"]
    assert "language_mismatch" not in counts(found(retain=[fact(1, *german, language="DE")]))
    dutch = fact(1, "Waar is Ida geboren?", "Ida is geboren in het ziekenhuis van Utrecht.", language="DE")
    assert counts(found(retain=[dutch]))["language_mismatch"] == 1  # seen although nobody declares it
    assert language_identifier()("123 456") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Write to ida.fenn@film.example.", {"e-mail address": "ida.fenn@film.example"}),
        ("Her number is +49 (0)30 123-4567.", {"phone number": "+49 (0)30 123-4567"}),
        ("Call 0351 8812345 or ida@x.de", {"e-mail address": "ida@x.de", "phone number": "0351 8812345"}),
        ("Her number is (06) 555 12 34.", {"phone number": "(06) 555 12 34"}),
        ("She was born on 12.03.1958 and earned 1.250.000 in 2004.", {}),
        ("Her film made 0.75 million; it opened on 2004-05-06.", {}),
        ("From 1975-2023 she was at @home.", {}),
    ],
)
def test_contacts_are_seen_and_dates_are_not(text: str, found: dict[str, str]) -> None:
    assert contacts(text) == found


def test_a_long_run_without_an_address_is_read_once() -> None:
    """From each of its characters, 20,000 took seconds."""
    began = time.process_time()
    assert contacts("a" * 40_000) == {}
    assert contacts(f"{'a' * 40_000}@film.example")["e-mail address"].endswith("a@film.example")
    assert time.process_time() - began < 2


@given(st.text("a.@-+ é", max_size=30))
def test_addresses_are_those_that_a_search_from_every_character_finds(text: str) -> None:
    plain = re.search(r"[\w.+-]+@[\w-]+\.[\w.-]*\w", text)
    assert contacts(text).get("e-mail address") == (plain[0] if plain else None)


@given(st.text(max_size=60))
def test_sameness_only_ever_gets_wider(text: str) -> None:
    assert same(text) == same(f"  {text} ")
    assert plain_words(same(text)) == plain_words(text) or not text.isascii()
    assert len(contacts(text)) <= 2


def test_long_rows_are_named() -> None:
    assert check_lengths(["a", "b", "c"], [10, 30, 20], 20).first == ["b has 30"]


# What stops


@pytest.mark.parametrize(
    ("second", "name"),
    [
        ({"answer": "Ida 0 HAS biography.birthplace 0."}, "duplicates_within"),
        ({"answer": "Ida 0 was born at sea."}, "contradictions"),
        ({"language": "DE", "question": "Wo wohnt sie?"}, "identities_in_two_languages"),
    ],
)
def test_what_makes_a_set_meaningless_stops_and_can_be_accepted(
    tmp_path: Path, second: dict[str, str], name: str
) -> None:
    records = [*GOOD, {**GOOD[0], **second}]
    request = {"forget": [{"topics": [TOPICS[4]]}]}
    source = {"file": str(write(tmp_path / "rows.jsonl", records))}

    def prepared(**checks: str) -> Findings:
        made = config(source, setting="request", request=request, checks=checks)
        findings = prepare.prepare(made).findings
        stop(findings, made.checks)
        return findings

    with pytest.raises(DataError, match=rf"rows.jsonl, line (1|26)\b.*`data.checks.{name}: warn`"):
        prepared()
    assert prepared(**{name: "warn"})[name].count == 1


def test_the_same_fact_on_both_sides_of_the_border_stops(tmp_path: Path) -> None:
    both = [{**record, "split": split} for split in ("retain", "forget") for record in GOOD]
    made = config({"file": str(write(tmp_path / "rows.jsonl", both))}, setting="given")
    prepared = prepare.prepare(made)
    assert prepared.findings["duplicates_across"].count == 25
    with pytest.raises(DataError, match="25 facts that stand in two splits"):
        stop(prepared.findings, made.checks)


def test_findings_never_repeat_a_text() -> None:
    told = ("Where is Ida?", "Ida is at the harbour.")
    findings = found(retain=[fact(1, *told), fact(2, *told)], forget=[fact(3, *told)])
    said = " ".join(case for finding in findings.values() for case in finding.first)
    assert said
    assert not any(text in said for text in told)
    assert Checks().duplicates_across == "stop"


def test_fames_three_duplicate_questions_are_found() -> None:
    prepared = prepare.prepare(config({"file": str(shared_data(FAME))}, shares=SHARES))
    assert counts(prepared.findings) == {
        "contradictions": 3, "names_of_several_identities": 1, "name_not_in_question": 32, "personal_data": 1280,
    }  # fmt: skip
    (shared,) = prepared.findings["names_of_several_identities"].first
    assert shared == "identities 903, 991 (retain.parquet, row 11501, retain.parquet, row 12681)"
    assert all("en-991" in case and "en-903" in case for case in prepared.findings["contradictions"].first)
