"""What a metric is stands once: the catalogue is whole, and nobody guesses from a metric's name."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.attacks.catalog import ATTACKS, KINDS
from eval.catalog import ANSWERS, CATALOG, LEAK_K, READINGS, ROW_FAMILIES, margins, of_family
from eval.config import EvalConfig, Robustness
from eval.records.rows import UTILITY_PARTS
from eval.schema import Record
from eval.scoring.fluency import Vocabulary, measure
from eval.scoring.probes import Scores
from eval.statistics import formulas
from model_card.facts import Evidence
from model_card.limits import not_measured
from tests.conftest import ROOT


def test_every_entry_says_what_its_family_needs() -> None:
    for name, metric in CATALOG.items():
        assert name == metric.name
        assert metric.label
        assert metric.meaning
        assert metric.splits
        assert (metric.reads is not None) == (metric.family == "answer")
        assert (metric.score is not None) == (metric.family == "membership")
        assert (metric.ks is not None) == (metric.family == "ks")
        assert (metric.k is not None) == (metric.family == "sampled")
        assert (metric.attack is not None) == (metric.reading is not None) == (metric.family == "reading")
        assert metric.gap_of is None or (metric.needs_gold and CATALOG[metric.gap_of].gap_of is None)
        assert metric.margin is None or metric.has_difference
        assert metric.needs_gold or not metric.needs_golds
        # Of unrehearsed rows only the true answers are read.
        assert ("unrehearsed" in metric.splits) == (metric.family == "answer")
    labels = [metric.label for metric in CATALOG.values()]
    assert len(set(labels)) == len(labels)


def test_every_answer_metric_is_a_function_of_its_name() -> None:
    scores = Scores(*(formulas.np.array([0.25, 1.0]) for _ in range(3)))
    assert of_family("answer")
    for metric in of_family("answer"):
        assert scores.measure(metric) == getattr(formulas, metric.name)(getattr(scores, str(metric.reads)))


def test_the_measurements_of_generations_are_those_of_the_catalogue() -> None:
    measured = measure("a word", "EN", Vocabulary([], []))
    known = {metric.name for metric in of_family("generation")}
    assert set(measured) <= known


def test_parts_of_model_utility_are_row_metrics_of_their_split() -> None:
    for split, parts in UTILITY_PARTS.items():
        assert all(CATALOG[part].family in ROW_FAMILIES and split in CATALOG[part].splits for part in parts)


def test_what_a_recipe_can_ask_for_is_what_the_catalogue_has() -> None:
    everything = {
        "robustness": {
            "quantize": ["int8", "nf4", "fp4"],
            "relearn": {},
            "paraphrase": True,
            "first_words": 0.5,
            "other_language": True,
            "chained": True,
            "steering": {},
            "patching": {},
        },
        "sampling": {"samples": max(LEAK_K), "k": list(LEAK_K)},
        "relative": True,
    }
    config = EvalConfig.model_validate(everything)
    assert config.audit_metrics() == [metric.name for metric in CATALOG.values() if metric.is_audit]
    assert Robustness.model_validate(everything["robustness"]).attacks() == [attack.name for attack in ATTACKS]
    assert {metric.name for metric in READINGS} == {m.reading for m in CATALOG.values() if m.reading}
    assert {metric.kind for metric in CATALOG.values()} - {None} == set(KINDS)
    assert EvalConfig().audit_metrics() == []


@given(st.sampled_from(list(CATALOG.values())), st.sampled_from([*ANSWERS, "general"]))
def test_nothing_is_best_at_zero_on_forget_rows_but_defects(metric: object, split: str) -> None:
    better = metric.higher_is_better(split)  # type: ignore[attr-defined]
    assert better in (True, False, None)
    if metric.better == "what is known":  # type: ignore[attr-defined]
        assert better == (True if split in ("retain", "unrehearsed", "general") else None)


def test_margins_are_of_metrics_that_a_difference_means_something_for() -> None:
    assert margins()
    assert all(CATALOG[name].has_difference for name in margins())


GUESSING = {"startswith", "endswith", "removesuffix", "removeprefix", "partition", "rpartition", "split"}
NOT_OF_METRICS = {
    "eval/scoring/suites.py",  # lm-eval's own keys: "acc,none"
    "eval/attacks/sampling.py",
    "eval/attacks/prompts.py",
}


def guesses(text: str) -> list[str]:
    """Where a metric's, record's or attack's name is taken apart."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    methods = [call.func for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in GUESSING]
    return [
        f"{method.lineno}: {ast.unparse(method)}"
        for method in methods
        if any(word in ast.unparse(method.value) for word in ("metric", "record", "attack"))
    ]


@pytest.mark.parametrize("folder", ["eval", "model_card"])
def test_nobody_takes_the_name_of_a_metric_apart(folder: str) -> None:
    assert guesses("metric.startswith('mia_')") == ["1: metric.startswith"]
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.relative_to(ROOT).as_posix() not in NOT_OF_METRICS:
            assert not guesses(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_says_not_measured_exactly_of_what_was_not(kind: str) -> None:
    """Every metric that measures a kind of attack takes it off the list, whatever its name is; gaps and gold's too."""
    measuring = [metric for metric in CATALOG.values() if metric.kind == kind]
    assert measuring
    for metric in measuring:
        record = Record.of(metric, "forget", 0.1, (0.0, 0.2), 40)
        for model in ("base", "gold", "unlearned"):
            evidence = cast("Evidence", SimpleNamespace(records={model: [record]}))
            assert set(not_measured(evidence)) == {text for name, text in KINDS.items() if name != kind}
    plain = [Record.of(metric, "forget", 0.1, (0.0, 0.2), 40) for metric in CATALOG.values() if not metric.kind]
    assert not_measured(cast("Evidence", SimpleNamespace(records={"unlearned": plain}))) == list(KINDS.values())
