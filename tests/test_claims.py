"""Sentences of a card that assert something hang on what was measured and gated: none can be said without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest

from eval.catalog import CATALOG
from eval.config import Gate
from eval.schema import Record
from eval.verdicts.gates import judge_gate
from model_card.claims import ANSWERS, CLAIMS, Claim, made
from model_card.facts import Evidence, collect
from model_card.limits import comparisons, finest, limits, never_known, not_allowed, passed_by_base
from model_card.render import render
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from tests.card_evidence import write_evidence

RECIPES = ("demo", "own-data")
PARTS = ("forgotten", "kept", "attacked", "more")


@pytest.fixture(scope="module", params=RECIPES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Evidence]:
    return {name: collect(write_evidence(tmp_path_factory.mktemp(name), load_recipe(name))) for name in RECIPES}


@pytest.fixture
def evidence(found: Mapping[str, Evidence], name: str) -> Evidence:
    return found[name]


def said(evidence: Evidence) -> dict[Claim, str]:
    return {claim: text for claim in CLAIMS if (text := claim.sentence(evidence))}


def place(claim: Claim, model: str) -> tuple[str, str, str]:
    """Model, metric and split of a record that a claim names."""
    return ("unlearned", claim.metric, "holdout") if model == "holdout" else (model, claim.metric, claim.split)


def with_record(evidence: Evidence, key: tuple[str, str, str], record: Record | None) -> Evidence:
    """The evidence with another overall record at this place, or with none."""
    model, metric, split = key
    of = [r for r in evidence.records[model] if (r.metric, r.split, r.by) != (metric, split, None)]
    return evidence.changed(records=evidence.records | {model: of + ([record] if record else [])})


def with_gates(evidence: Evidence, claim: Claim, **changes: object) -> Evidence:
    """The evidence whose gates on the claim's metric are otherwise; without changes they are not there."""
    key = (claim.metric, claim.split)
    gates = [g if (g.metric, g.split) != key else g.changed(**changes) for g in evidence.gates]
    if not changes:
        gates = [gate for gate in evidence.gates if (gate.metric, gate.split) != key]
    return evidence.changed(verdict=evidence.verdict.changed(gates=gates))


def test_no_sentence_outlives_a_value_that_it_rests_on(evidence: Evidence) -> None:
    sentences = said(evidence)
    assert len(sentences) >= 6
    for claim, sentence in sentences.items():
        for model in claim.models:
            key = place(claim, model)
            record = evidence.record(*key)
            assert record
            assert claim.sentence(with_record(evidence, key, None)) is None, (sentence, model)
            other = replace(record, value=record.value / 2 + 0.01)
            changed = claim.sentence(with_record(evidence, key, other))
            assert changed is None if model == "unlearned" else changed != sentence, (sentence, model)
            fewer = replace(record, n=record.n - 1)  # the gate judged other rows
            if model == "unlearned":
                assert claim.sentence(with_record(evidence, key, fewer)) is None


ONE_SIDED = {"at_least": "at least 0 and at most {}", "at_most": "at least {} and at most 0.5"}
"""Rules that are no bound by another model's value on this side."""


def test_no_sentence_outlives_its_gate(evidence: Evidence) -> None:
    for claim, sentence in said(evidence).items():
        assert claim.sentence(with_gates(evidence, claim, passed=False)) is None, sentence
        assert claim.sentence(with_gates(evidence, claim)) is None, sentence
        for side, needed in (("at_least", claim.lower), ("at_most", claim.upper)):
            if needed:
                assert claim.sentence(with_gates(evidence, claim, **{side: None})) is None, (sentence, side)
            if needed and claim.by:
                rule = ONE_SIDED[side].format(f"{claim.by}'s value")
                assert claim.sentence(with_gates(evidence, claim, rule=rule)) is None, (sentence, side)


OF_GOLD = {"of": "gold", "bound": "ci_high", "plus": 0.05}
SAID = "gold's upper 95 % bound + 0.05"


@pytest.mark.parametrize(
    ("bounds", "at_least", "at_most"),
    [
        ({"at_least": 0, "at_most": OF_GOLD}, "0", SAID),
        ({"at_least": OF_GOLD, "at_most": 0.5, "must_hold": "interval"}, SAID, "0.5"),
        ({"at_least": OF_GOLD, "at_most": OF_GOLD, "must_hold": "interval"}, *2 * [f"all of the 95 % interval {SAID}"]),
        ({"at_least": OF_GOLD, "at_most": OF_GOLD, "must_hold": "overlap"}, *2 * [f"95 % interval contains {SAID}"]),
        ({"at_least": OF_GOLD}, SAID, ""),
        ({"at_most": OF_GOLD, "must_hold": "overlap"}, "", SAID),
    ],
)
def test_a_rule_says_what_each_side_is_made_of(bounds: dict[str, object], at_least: str, at_most: str) -> None:
    gate = Gate.model_validate({"metric": "answer_probability", "split": "forget", "min_n": 1, "reason": "-"} | bounds)
    judged = judge_gate(gate, {})
    assert (judged.rule_of("at least"), judged.rule_of("at most")) == (at_least, at_most)


def test_a_value_far_below_golds_is_not_about_as_likely(found: Mapping[str, Evidence]) -> None:
    """A gate from 0 to gold's value passes a model that was pushed below gold; it does not back the sentence."""
    demo = found["demo"]
    (forgotten,) = made(demo, "forgotten")
    gate = next(gate for gate in load_recipe("demo").gates if (gate.metric, gate.split) == (ANSWERS, "forget"))
    record = demo.record("unlearned", ANSWERS, "forget")
    assert record
    low = with_record(demo, ("unlearned", ANSWERS, "forget"), replace(record, value=0.0, ci_low=0.0, ci_high=0.001))
    judged = judge_gate(gate.model_copy(update={"at_least": 0.0}), low.records)
    assert judged.passed
    gates = [judged if given.name == judged.name else given for given in low.gates]
    assert made(low.changed(verdict=low.verdict.changed(gates=gates)), "forgotten") == []
    assert "about as likely" in forgotten


@pytest.mark.parametrize("metric", ["forget_quality", "forget_against_holdout"])
def test_a_test_that_tells_them_apart_is_not_said_to_fail(found: Mapping[str, Evidence], metric: str) -> None:
    """Such a gate may pass: its bound can be below the test's 5 %, or within the interval of the p-value."""
    evidence = found["demo" if metric == "forget_quality" else "own-data"]
    record = evidence.record("unlearned", metric, "forget")
    assert record
    for p, is_said in ((0.05, True), (0.049, False), (6.6e-6, False)):
        key, changed = ("unlearned", metric, "forget"), replace(record, value=p, ci_low=0.0, ci_high=0.9)
        given = with_record(evidence, key, changed)
        gates = [
            gate.changed(measured=p, ci_low=0.0, ci_high=0.9) if gate.metric == metric else gate for gate in given.gates
        ]
        sentences = made(given.changed(verdict=given.verdict.changed(gates=gates)), "more")
        assert any("does not tell" in sentence for sentence in sentences) == is_said


def test_each_sentence_is_said_on_some_card(found: Mapping[str, Evidence]) -> None:
    never = {claim.topic for claim in CLAIMS if not claim.metric.endswith("_gap")}
    for evidence in found.values():
        never -= {claim.topic for claim in said(evidence)}
    assert never == set()


def test_of_two_ways_to_say_a_thing_one_is_taken(evidence: Evidence, name: str) -> None:
    forgotten = made(evidence, "forgotten")
    assert len(forgotten) == 1
    assert ("a model that never saw" in forgotten[0]) == (name == "demo")


@cache
def config_of(name: str) -> object:
    return next(stage.config for stage in stages(load_recipe(name)) if stage.name == "card")


def test_a_card_whose_gates_failed_asserts_nothing_of_them(evidence: Evidence, name: str) -> None:
    card = render(config_of(name), evidence)  # type: ignore[arg-type]
    sentences = made(evidence, *PARTS)
    assert all(sentence in card for sentence in sentences)
    failed = [gate.changed(passed=False, why=f"{gate.metric} is wrong.") for gate in evidence.gates]
    verdict = evidence.verdict.changed(gates=failed, passed=False)
    card = render(config_of(name), evidence.changed(verdict=verdict))  # type: ignore[arg-type]
    assert not any(sentence in card for sentence in sentences)
    assert "**Not all gates passed: this model must not be released.**" in card
    assert "fluency is wrong." in card


def shifted(evidence: Evidence, metric: str, by: float) -> Evidence:
    """The evidence with this model's value on the forget rows moved."""
    record = evidence.record("unlearned", metric, "forget")
    assert record
    moved = {end: getattr(record, end) + by for end in ("value", "ci_low", "ci_high")}
    return with_record(evidence, ("unlearned", metric, "forget"), replace(record, **moved))


def test_the_finest_test_that_a_model_fails_is_named(found: Mapping[str, Evidence]) -> None:
    demo = found["demo"]
    n = len(comparisons(demo))
    assert finest(demo) == f"None of {n} comparisons of the forget rows with gold shows a difference."
    over = finest(shifted(demo, "extraction_strength_nf4_gap", -0.3))
    assert over.startswith(f"1 of {n} comparisons of the forget rows with gold shows a difference")
    label = CATALOG["extraction_strength_nf4_gap"].label
    assert f"The clearest: {label} is -0.31" in over
    assert over.endswith("the facts are over-forgotten.")
    assert finest(shifted(demo, "extraction_strength_nf4_gap", 0.3)).endswith("more is left than there should be.")
    assert finest(shifted(demo, "truth_ratio", 0.6)).endswith("the facts are over-forgotten.")  # base's is low
    told = finest(shifted(demo, "forget_quality", -0.4099))
    assert "forget quality is 1.0e-04, so it answers differently." in told


def test_intervals_without_a_width_show_neither_a_difference_nor_none(found: Mapping[str, Evidence]) -> None:
    """As those of one forget row were, of which every resample is that row."""
    demo, metrics = found["demo"], (ANSWERS, f"{ANSWERS}_untreated_gap")
    known, never = (
        [
            replace(r, value=v, ci_low=v, ci_high=v, n=1)
            for r in demo.records["unlearned"]
            if r.metric in metrics and r.split == "forget" and r.by is None
        ]
        for v in (0.9, 0.1)
    )
    unlearned = demo.changed(records={"unlearned": known, "gold": [r for r in never if r.metric == ANSWERS]})
    assert finest(unlearned).startswith("The forget rows were not compared with gold")
    end = replace(known[1], ci_high=0.95)  # a value may be at the end of its interval
    assert "shows a difference" in finest(unlearned.changed(records={**unlearned.records, "unlearned": [end]}))


def with_alone(demo: Evidence, metric: str, **values: tuple[float, float, float]) -> Evidence:
    """The evidence with this metric alone, of these values and intervals of each model."""
    first = demo.record("unlearned", metric, "forget")
    assert first
    names = ("value", "ci_low", "ci_high")
    records = {model: [replace(first, **dict(zip(names, of, strict=True)))] for model, of in values.items()}
    return demo.changed(records=records)


def test_intervals_at_the_ends_differ_only_where_they_do_not_reach_each_other(found: Mapping[str, Evidence]) -> None:
    """Wilson's of one row each: by half of their widths, one miss beside one hit would be 3.5 errors off."""
    metric = "multiple_choice_accuracy"
    one = with_alone(found["demo"], metric, unlearned=(0.0, 0.0, 0.793), gold=(1.0, 0.207, 1.0))
    assert finest(one) == "The one comparison of the forget rows with gold shows no difference."
    many = with_alone(found["demo"], metric, unlearned=(0.0, 0.0, 0.2), gold=(1.0, 0.8, 1.0))
    assert finest(many).startswith("1 of 1 comparison of the forget rows with gold shows a difference")


def test_what_base_never_knew_cannot_be_left(found: Mapping[str, Evidence]) -> None:
    """Base is then beside gold, on one side of it or the other."""
    unlearned, gold = (0.05, 0.04, 0.06), (0.18, 0.16, 0.2)
    for base in ((0.17, 0.15, 0.19), (0.0, 0.0, 0.01), (0.9, 0.8, 0.95)):
        evidence = with_alone(found["demo"], ANSWERS, base=base, unlearned=unlearned, gold=gold)
        meaning = "over-forgotten." if base[0] > gold[0] else "so it answers differently."
        assert finest(evidence).endswith(meaning)
        said = never_known(evidence)
        assert (said is None) == (base[0] > gold[0])
        assert said is None or f"an answer probability of {base[0]:.2f}, where gold has 0.18" in said
    gap, unlearned = f"{ANSWERS}_untreated_gap", (-0.1, -0.12, -0.08)
    for base, meaning in (((0.01, -0.02, 0.03), "so it answers differently."), ((0.7, 0.6, 0.8), "over-forgotten.")):
        evidence = with_alone(found["demo"], gap, base=base, unlearned=unlearned, gold=(0.0, 0.0, 0.0))
        assert finest(evidence).endswith(meaning)


def test_gates_that_base_passes_too_ask_for_no_forgetting(found: Mapping[str, Evidence]) -> None:
    demo = found["demo"]
    assert passed_by_base(demo) is None
    base = demo.record("base", ANSWERS, "forget")
    assert base
    of_forget = next(gate for gate in demo.gates if gate.split == "forget").changed(metric=ANSWERS, at_least=None)
    elsewhere = [gate for gate in demo.gates if gate.split != "forget"]

    def said(*bounds: float) -> str | None:
        gates = [*elsewhere, *(of_forget.changed(at_most=bound) for bound in bounds)]
        return passed_by_base(demo.changed(verdict=demo.verdict.changed(gates=gates)))

    assert said() == "No gate is on the forget rows, so none asks whether anything was forgotten."
    assert said(base.value) == (
        "Base's value is within the bounds of the one gate on the forget rows too, so it asks for no forgetting."
    )
    assert "of all 2 gates on the forget rows too, so" in (said(base.value, 1.0) or "")
    assert said(base.value, base.value - 1e-9) is None
    wide = demo.verdict.changed(gates=[of_forget.changed(at_most=1.0)])
    unmeasured = with_record(demo, ("base", ANSWERS, "forget"), None)
    assert passed_by_base(unmeasured.changed(verdict=wide)) is None


def test_without_gold_base_is_compared_with_rows_never_seen(found: Mapping[str, Evidence]) -> None:
    own = found["own-data"]
    known = own.record("base", ANSWERS, "forget")
    assert known
    assert never_known(own) is None
    alike = with_record(own, ("base", ANSWERS, "holdout"), replace(known, split="holdout"))
    config = next(stage.config for stage in stages(load_recipe("own-data")) if stage.name == "card")
    assert limits(config, alike)[1] == (
        f"Base itself gives the forget rows an answer probability of {known.value:.2f}, where rows never seen have "
        f"{known.value:.2f}: it knew them no better, so nothing shows that they were forgotten."
    )
    assert never_known(with_record(own, ("base", ANSWERS, "holdout"), None)) is None


def test_what_the_rows_do_not_allow_is_not_measured(found: Mapping[str, Evidence]) -> None:
    without = found["own-data"]
    missing = {
        "membership inference, which needs holdout rows": lambda r: "mia_" in r.metric or "privacy" in r.metric,
        "truth ratios and multiple choice, which need false answers": lambda r: CATALOG[r.metric].family == "options",
        "facts that the unlearning was not given": lambda r: r.split == "unrehearsed",
    }
    assert not missing.keys() & set(not_allowed(without))
    for says, is_of in missing.items():
        records = {model: [r for r in of if not is_of(r)] for model, of in without.records.items()}
        assert says in not_allowed(without.changed(records=records))


def test_without_gold_the_finest_test_is_against_rows_never_seen(found: Mapping[str, Evidence]) -> None:
    own = found["own-data"]
    assert "with rows that it never saw shows a difference" in finest(own)
    apart = finest(shifted(own, "mia_min_k_auc", -0.3))
    assert "membership inference AUC (min-k) is 0.20, that of the start model 0.50" in apart
    assert apart.endswith("the facts are over-forgotten.")
    alone = own.changed(records={model: of for model, of in own.records.items() if model != "start"})
    assert "membership inference AUC (min-k) is 0.20 (" in finest(shifted(alone, "mia_min_k_auc", -0.3))


@pytest.mark.parametrize(("metric", "alike", "apart"), [
    (ANSWERS, "are about as likely to it as", "Its answer probability on the 40 answers to be forgotten is 0.16. A"),
    ("mia_min_k_auc", "about as rarely as it does for gold", "Membership inference on the forgotten facts has an AUC"),
    ("fluency", "about as fluently as gold", "The fluency of its answers about what it forgot is"),
])  # fmt: skip
def test_about_the_same_is_said_of_what_is_about_the_same(
    metric: str, alike: str, apart: str, found: Mapping[str, Evidence]
) -> None:
    """However wide its gate is."""
    (claim,) = (claim for claim in said(found["demo"]) if claim.metric == metric and claim.by == "gold")
    gold = found["demo"].record("gold", metric, "forget")
    ours = found["demo"].record("unlearned", metric, "forget")
    assert gold
    assert ours
    for difference, text in ((0.04, alike), (0.2, apart)):
        other = replace(gold, value=ours.value - difference)
        sentence = claim.sentence(with_record(found["demo"], ("gold", metric, "forget"), other))
        assert sentence
        assert text in sentence
