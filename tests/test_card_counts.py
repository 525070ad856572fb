"""What a card says of how much there was: rows, people, languages, topics, subsets, gates and settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from eval.schema import read_records, write_records
from model_card import agreement, tables
from model_card.claims import ANSWERS
from model_card.facts import collect, leak_bound
from model_card.figures import shown_kinds
from model_card.published import due
from model_card.render import render
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from tests import card_evidence
from tests.card_evidence import write_evidence
from tests.test_card_sentences import FAME, NAMES, PLAIN, made, results_of, text_of


def test_the_languages_to_be_forgotten_are_those_of_the_forget_rows(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo")
    few = replace(evidence.counts["forget"], rows=1, identities=1, topics=1, by_language={"DE": 1})
    card = " ".join(render(config, evidence.changed(counts=evidence.counts | {"forget": few}, topics=["a"])).split())
    assert "To be forgotten: 1 fact about 1 person, in German, on 1 topic: `a`." in card


def test_forget_rows_that_tell_a_fact_in_several_wordings_are_no_more_evidence(tmp_path: Path) -> None:
    recipe = load_recipe("demo", [PLAIN])
    inputs = write_evidence(tmp_path, recipe)
    results = inputs["eval-unlearned"] / "results.json"
    is_of = ("answer_probability", "forget", None)
    records = [replace(r, facts=9) if (r.metric, r.split, r.by) == is_of else r for r in read_records(results)]
    write_records(results, records)
    evidence = collect(inputs)
    rows = evidence.counts["forget"].rows
    config = next(stage.config for stage in stages(recipe) if stage.name == "card")
    card = text_of(config, evidence)
    assert f"Even if none of the {rows} forget rows, which tell 9 facts, leaked, up to 28 % of facts" in card
    assert "Some forget rows tell one fact in several wordings. Means are over rows, intervals and tests of" in card
    assert "To be forgotten: 9 facts about" in card
    assert due(evidence.published(), records, []).leak_bound == evidence.leak_bound == leak_bound(9)


def test_what_the_source_does_not_say_is_not_counted_as_none(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo")
    unsaid = {split: replace(counts, identities=0, topics=0) for split, counts in evidence.counts.items()}
    assert "| forget | 40 | – | – | 8 |" in text_of(config, evidence.changed(counts=unsaid))


@pytest.mark.parametrize("recipe", ["demo", "own-data"])
def test_one_of_anything_is_not_said_to_be_several(recipe: str, tmp_path: Path) -> None:
    config, evidence = made(tmp_path, recipe)
    assert evidence.asked
    asked = evidence.asked.changed(kept=1, empty=1, stating_a_forgotten_fact=1, continued=1)
    gates = [gate.changed(n=1) if gate.split == "forget" else gate for gate in evidence.gates]
    one = evidence.changed(
        records={
            model: [replace(record, n=1) if record.split == "forget" else record for record in records]
            for model, records in evidence.records.items()
        },
        verdict=evidence.verdict.changed(gates=gates),
        ascent=evidence.ascent.changed(steps=1, kept_step=1),
        asked=asked,
        perturbed=1,
    )
    card = text_of(config, one)
    for said in (
        "The 1 answer to be forgotten is about as likely to it as",
        "1 of its answers is rehearsed. Dropped were 1 that stated a forgotten fact and 1 that was empty or did not",
        "in 1 answer to forget questions",
        "ended after 1 step (",
        "![Losses over 1 step;",
        "use 1 false answer to",
    ):
        assert said in card, said


def test_one_gate_is_not_said_to_be_several(tmp_path: Path) -> None:
    assert "**The one gate passed.**" in text_of(*made(tmp_path, "demo", [PLAIN]))


def test_how_the_evaluations_were_set_is_on_the_card(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo-audit", ["eval.robustness.relearn.steps=5000"])
    card = text_of(config, evidence)
    for setting in ("`robustness.relearn.steps` | 5000", "`sampling.temperature` | 1.0", "`sampling.top_p` | 1.0"):
        assert f"| {setting} |" in card
    assert "After training on other forget rows, extraction strength is" in card
    older = text_of(config.changed(eval=None), evidence)  # of a release before the card had them
    assert "The evaluations:" not in older


def test_the_forget_cap_is_described_as_it_is(tmp_path: Path) -> None:
    margin = "unlearn.forget_cap={of: false_answers, plus: 1.5}"
    card = text_of(*made(tmp_path / "some", FAME, [*NAMES, margin]))
    assert "with a per-row forget cap above the loss of false answers" in card
    assert (
        "at the last check plus `1.5` nats per answer token (no evaluation uses these answers), estimated for the rows "
        "that no check reads from those that it reads, so this"
    ) in card
    assert "estimated" not in text_of(*made(tmp_path / "all", FAME, [*NAMES, "unlearn.stop.forget_rows=null"]))


def test_each_split_of_several_subsets_has_its_own(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "tofu-forget10-llama32-1b")
    card = text_of(config, evidence)
    assert (
        "subsets forget10\\_perturbed (forget), retain\\_perturbed and retain90 (retain), holdout10 (holdout)" in card
    )
    found = results_of(render(config, evidence))
    subsets = {r.dataset_config for r in found.values() if r.dataset_split == "forget"}
    assert subsets == {"forget10_perturbed"}
    assert {r.dataset_config for r in found.values() if r.dataset_split in ("retain", "unrehearsed")} == {None}


def test_a_part_of_the_data_is_said_to_be_one(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo", ["data.part={languages: [EN], identities: 8}"])
    assert "Only a part of them is used: rows in English; of each language the first 8 people." in render(
        config, evidence
    )


@pytest.mark.parametrize("topic", ["/people/person/spouse", "None", "undefined"])
def test_a_topic_may_be_called_anything(topic: str, tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo")
    changed = evidence.changed(topics=[topic, *evidence.topics])
    assert not agreement.problems(render(config, changed), config, changed)


def test_two_bounds_that_print_alike_are_both_shown(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo")
    first, *others = evidence.gates
    narrow = first.changed(at_least=0.0038, at_most=0.0042)
    changed = evidence.changed(verdict=evidence.verdict.changed(gates=[narrow, *others]))
    assert tables.bounds(narrow) == "0.004 to 0.004"
    assert not agreement.problems(render(config, changed), config, changed)


def test_a_gate_that_only_some_of_an_interval_must_meet_is_marked_so(tmp_path: Path) -> None:
    _, evidence = made(tmp_path, "demo")
    gate = evidence.gates[0].changed(rule="some of the 95 % interval at most 0.25", at_least=None, at_most=0.25)
    assert tables.sides(gate) == "part of the interval ≤ 0.250"
    both = gate.changed(at_least=0.5, at_most=0.5)
    assert tables.sides(both.changed(rule="95 % interval contains 0.5")) == "95 % interval holds 0.500"
    of_point = "at least gold's lower 95 % bound and at most gold's upper 95 % bound"  # of an interval without a width
    assert tables.sides(both.changed(rule=of_point)) == "≥ 0.500 and ≤ 0.500"


def test_more_topics_than_a_page_can_hold_are_not_drawn(tmp_path: Path) -> None:
    _, evidence = made(tmp_path, "demo")
    topics = [f"topic {i}" for i in range(300)]
    some = next(
        r for r in evidence.records["unlearned"] if r.metric == ANSWERS and r.split == "forget" and r.by is None
    )
    records = [*evidence.records["unlearned"], *(replace(some, by={"topic": topic}, n=1) for topic in topics)]
    many = evidence.changed(topics=topics, records=evidence.records | {"unlearned": records})
    assert shown_kinds(evidence) == ["language", "topic"]
    assert shown_kinds(many) == ["language"]


def test_answers_that_no_file_was_searched_for_are_counted(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo")
    assert evidence.unsearched == 0
    assert "searched for their answers" not in text_of(config, evidence)
    card = text_of(config, evidence.changed(unsearched=3))
    assert "searched for their answers, except 3: of fewer than 6 letters and digits, or of words that any" in card


def test_a_number_in_a_name_needs_no_measurement(tmp_path: Path) -> None:
    dataset = "card.dataset={name: Clients 2.1, license: CC BY 4.0}"
    prose = ["card.summary=The Llama 3.2 of a test.", "model.name=meta-llama/Llama-3.2-3B"]
    config, evidence = made(tmp_path, "own-data", [dataset, *prose])
    assert "Clients 2.1, read from a file that is not on the Hub. Its licence: CC BY 4.0." in text_of(config, evidence)
    wrong = config.changed(card=config.card.changed(summary="It keeps 7.5 of them."))
    assert any(
        "The number 7.5 below" in problem for problem in agreement.problems(render(wrong, evidence), wrong, evidence)
    )


def test_fewer_holdout_rows_are_not_said_to_be_forget_rows(tmp_path: Path) -> None:
    """Where two sets are compared, a record counts the smaller one."""
    config, evidence = made(tmp_path, "own-data")
    n = evidence.counts["forget"].rows
    assert f"| membership inference AUC (min-k) | {n} forget |" in text_of(config, evidence)
    few = {
        model: [replace(r, n=9) if (r.metric, r.split, r.by) == ("mia_min_k_auc", "forget", None) else r for r in of]
        for model, of in evidence.records.items()
    }
    counts = evidence.counts | {"holdout": replace(evidence.counts["holdout"], rows=9)}
    gates = [gate.changed(n=9) if gate.metric == "mia_min_k_auc" else gate for gate in evidence.gates]
    fewer = evidence.changed(records=few, counts=counts, verdict=evidence.verdict.changed(gates=gates))
    card = text_of(config, fewer)
    assert "| membership inference AUC (min-k) | 9 or more of forget and of holdout |" in card
    assert f"| answer probability | {n} forget |" in card


def test_answers_that_no_generation_can_hold_are_said(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo")
    assert "ROUGE-L on" not in text_of(config, evidence)
    note = "2 of 40 true answers have more tokens than a generation may have"
    records = [
        replace(r, note=note) if (r.metric, r.split, r.by) == ("rouge_l_recall", "forget", None) else r
        for r in evidence.records["unlearned"]
    ]
    card = text_of(config, evidence.changed(records=evidence.records | {"unlearned": records}))
    assert f"- ROUGE-L on forget rows: {note} (max\\_new\\_tokens), so that no model can say the whole answer." in card


def test_rows_that_state_no_language_have_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of one's own needs the columns question and answer alone."""
    unsaid = card_evidence.shape_of(load_recipe("own-data"))._replace(languages=(None,))
    monkeypatch.setattr(card_evidence, "shape_of", lambda _: unsaid)
    config, evidence = made(tmp_path, "own-data")
    assert evidence.languages() == []
    assert "language" not in ModelCard(render(config, evidence)).data.to_dict()
    assert text_of(config, evidence)
