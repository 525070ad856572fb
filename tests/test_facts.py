"""Rows that tell one fact in several wordings are no evidence of other facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.errors import DataError
from datasets_prep.schema import FORGOTTEN, REAL_WORLD, SPLITS, Row, read_perturbed, read_rows, write_rows
from eval import suite
from eval.attacks.relearn import divided
from eval.catalog import CATALOG, is_of
from eval.config import Condition, EvalConfig, Sampling
from eval.records.audited import audit_records
from eval.records.facts import FACT, count_facts, fact_of, told_before
from eval.records.relative import features, relative_test
from eval.records.rows import all_records
from eval.schema import Record, find_record, read_records, read_samples, write_records, write_samples
from eval.statistics.intervals import Told, mean_interval, proportion_interval
from eval.verdicts.compare import Config, compare
from eval.verdicts.gates import judge_gate
from model_card.claims import made
from model_card.facts import collect
from pipeline.recipe import load_recipe
from tests.card_evidence import write_evidence
from tests.eval_rows import build_data, build_rows
from tests.test_evaluation import _random_samples

CONFIG = EvalConfig(bootstrap_samples=100, sampling=Sampling(samples=4, k=[1, 4]))
COUNTS = {"forget": 40, "retain": 30, "holdout": 35, "unrehearsed": 12, FORGOTTEN: 9, REAL_WORLD: 10, "general": 20}
WORDINGS = 3


def _in_wordings(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row of a split so many times, as if the model answered every wording alike."""
    return [
        row | ({"row_id": f"{row['row_id']}-{i}", FACT: row["row_id"]} if i else {})
        for row in samples
        for i in range(WORDINGS if row["split"] in (*SPLITS, FORGOTTEN) else 1)
    ]


@pytest.fixture(scope="module")
def measured() -> dict[str, list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    return {model: _random_samples(COUNTS, 3, rng) for model in ("ours", "gold", "base")}


def _records(samples: Sequence[dict[str, Any]], gold: Sequence[dict[str, Any]]) -> dict[Any, Record]:
    found = [*all_records(samples, gold, CONFIG), *audit_records(samples, gold, CONFIG)]
    return {(r.metric, r.split, str(r.by)): r for r in found}


def test_other_wordings_change_neither_values_nor_intervals(measured):
    once = _records(measured["ours"], measured["gold"])
    several = _records(_in_wordings(measured["ours"]), _in_wordings(measured["gold"]))
    assert several.keys() == once.keys()
    for key, record in several.items():
        numbers = (record.value, record.ci_low, record.ci_high)
        # The closed form of Wilson's interval, and sums of other numbers of rows, round in other ways.
        assert numbers == pytest.approx((once[key].value, once[key].ci_low, once[key].ci_high), abs=1e-9), key
        if record.split in (*SPLITS, FORGOTTEN):
            assert (record.n, record.facts, record.told) == (WORDINGS * once[key].n, once[key].n, once[key].n), key
        else:
            assert record.facts is None, key
    assert {record.facts for record in once.values()} == {None}


def test_an_interval_of_facts_in_wordings_holds_the_mean_as_often_as_one_of_facts():
    """As if all rows were facts of their own, it held the mean in 74 % of samples of 40 facts."""
    rng = np.random.default_rng(0)

    def holds() -> bool:
        wordings = rng.integers(1, 6, size=40)
        values = np.repeat(rng.beta(0.5, 2, size=40), wordings) + rng.normal(0, 0.02, wordings.sum())
        strata = [Told(str(fact), "EN") for fact in np.repeat(np.arange(40), wordings)]
        low, high = mean_interval(values, 300, 0, strata)
        return bool(low <= 0.2 <= high)

    assert np.mean([holds() for _ in range(300)]) > 0.88


def test_a_share_of_rows_of_few_facts_is_that_of_few_rows():
    strata = [Told(str(i // 4), None) for i in range(40)]
    low, high = proportion_interval([i < 28 for i in range(40)], strata)
    assert (low, high) == pytest.approx(proportion_interval([i < 7 for i in range(10)]))
    assert proportion_interval([True] * 40, strata) == pytest.approx(proportion_interval([True] * 10))


def test_the_relative_test_has_a_point_for_each_fact(measured):
    once, several = (
        features({name: [row for row in of_model(rows) if row["split"] == "forget"] for name, rows in measured.items()})
        for of_model in (list, _in_wordings)
    )
    tests = [relative_test(of["ours"], of["base"] + 3, [of["gold"], of["gold"] + 0.1]) for of in (once, several)]
    assert tests[1].n == COUNTS["forget"]
    assert tests[1].leak == pytest.approx(tests[0].leak)
    assert tests[1].se == pytest.approx(tests[0].se)


def test_a_comparison_is_of_facts(measured, tmp_path):
    def entries(name: str, of_model: Any) -> dict[Any, Any]:
        for model in ("ours", "base"):
            folder = tmp_path / name / model
            folder.mkdir(parents=True)
            write_samples(folder / "samples.jsonl", of_model(measured[model]))
            records = all_records(of_model(measured[model]), None, CONFIG)
            write_records(folder / "results.json", records)
        margins = {metric.name: 0.3 for metric in CATALOG.values()}
        found = compare(tmp_path / name / "ours", tmp_path / name / "base", Config(margins, 0))
        return {(entry.metric, entry.split): entry for entry in found if not is_of(entry.metric, "utility")}

    once, several = entries("once", list), entries("several", _in_wordings)
    for key, entry in several.items():
        if entry.difference is not None:
            numbers = (entry.difference, entry.ci_low, entry.ci_high, entry.p_value)
            of_facts = (once[key].difference, once[key].ci_low, once[key].ci_high, once[key].p_value)
            assert numbers == pytest.approx(of_facts, abs=1e-9), key
            assert entry.verdict == once[key].verdict
    few = several["answer_probability", "unrehearsed"]
    assert (few.n, few.verdict) == (WORDINGS * COUNTS["unrehearsed"], "not shown")  # 36 rows, and 12 facts


def test_a_gate_is_certified_by_facts(measured):
    gate = Condition(metric="answer_probability", split="forget", at_most=1.0, min_n=40, reason="because")
    verdict = judge_gate(gate, {"unlearned": all_records(_in_wordings(measured["ours"]), None, CONFIG)})
    assert (verdict.n, verdict.passed, verdict.certifiable_alone) == (120, True, False)


def test_rows_tell_one_fact_if_their_answers_say_the_same_of_somebody():
    def row(row_id: str, question: str, answer: str) -> Row:
        return Row(row_id, None, None, "EN", None, question, answer)

    rows = [
        row("a", "Where was Ada Bell born?", "Ada Bell was born in Rome."),
        row("b", "In which town was Ada Bell born?", "Ada Bell was born in Rome"),
        row("c", "Where was Ida Bell born?", "Ida Bell was born in Rome."),
        row("d", "Where does Ada Bell live?", "Rome"),
        row("e", "Where does Ida Bell live?", "Rome"),
    ]
    assert told_before(rows) == {"b": "a"}
    assert told_before(rows[1:]) == {}


def test_an_evaluation_finds_the_wordings_of_a_fact(tiny_model, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    build_data(data)
    first, *others = build_rows()["forget"]
    again = [replace(first, row_id=f"again-{i}", question=f"{i}: {first.question}") for i in range(2)]
    write_rows(data / "forget.jsonl", [first, *again, *others])
    out = tmp_path / "out"
    out.mkdir()
    suite.run(EvalConfig(max_new_tokens=2, bootstrap_samples=100), {"model": tiny_model, "data": data}, out)
    samples = [sample for sample in read_samples(out / "samples.jsonl") if sample["split"] == "forget"]
    assert [fact_of(sample) for sample in samples[:3]] == [first.row_id] * 3
    record = find_record(read_records(out / "results.json"), "answer_probability", "forget")
    assert (record.n, record.facts) == (len(others) + 3, len(others) + 1)


def test_a_gate_counts_facts_and_not_their_wordings():
    gate = Condition(metric="answer_probability", split="forget", at_most=0.5, min_n=30, reason="x")
    record = Record("answer_probability", "forget", 0.2, 0.1, 0.3, 40, None, 1, facts=4)
    verdict = judge_gate(gate, {"unlearned": [record]})
    assert not verdict.passed
    assert verdict.why.endswith("rests on 40 rows that tell 4 facts; the gate needs 30.")
    assert judge_gate(gate, {"unlearned": [replace(record, facts=30)]}).passed


def test_what_is_probed_after_relearning_was_not_taught_in_other_words():
    """Of 120 rows that were drawn one by one, a fifth of those that were probed had been."""
    before = {f"{fact}-{i}": f"{fact}-0" for fact in range(40) for i in (1, 2)}
    rows = [f"{fact}-{i}" for fact in range(40) for i in range(WORDINGS)]
    taught, probed = divided(rows, 0.1, 0, before)
    assert sorted(taught + probed) == sorted(rows)
    assert len(taught) == 4 * WORDINGS
    assert not {row.split("-")[0] for row in taught} & {row.split("-")[0] for row in probed}
    alone = divided(rows, 0.1, 0)
    again = {row.split("-")[0] for row in alone[0]}
    assert np.mean([row.split("-")[0] in again for row in alone[1]]) > 0.15
    with pytest.raises(DataError, match="of 3 forget rows, which tell 1 fact, leaves none to probe"):
        divided(rows[:3], 0.1, 0, before)


def test_the_facts_of_the_data_are_counted_before_anything_is_trained(tmp_path):
    data = build_data(tmp_path)
    rows = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS}
    false, told = count_facts(data)
    assert told == {split: len(of_split) for split, of_split in rows.items() if of_split}
    assert false == Counter(row.split for row in read_perturbed(data / "perturbed.jsonl"))
    asked = [replace(row, row_id=f"{row.row_id}-again", question=f"Tell me: {row.question}") for row in rows["forget"]]
    write_rows(data / "forget.jsonl", [*rows["forget"], *asked])
    assert count_facts(data)[1] == told


def test_wordings_of_one_fact_are_one_answer(tmp_path):
    recipe = load_recipe("own-data")
    evidence = collect(write_evidence(tmp_path, recipe))
    card = " ".join(made(evidence, "forgotten"))
    assert "The 31 answers to be forgotten are" in card
    of_facts = {
        model: [replace(r, facts=10) if r.split == "forget" else r for r in of]
        for model, of in evidence.records.items()
    }
    assert "The 10 answers to be forgotten are" in " ".join(made(evidence.changed(records=of_facts), "forgotten"))
