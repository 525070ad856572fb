"""`python -m benchmarks.evaluation`: its second run is demo-overforget, audited; its tables say what was measured.

And `python -m benchmarks evaluation`, the time that an evaluation takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as bench
from benchmarks import eval_pass, evaluation
from eval.schema import JudgedGate, Record
from pipeline.recipe import load_recipe
from tests.artifacts import judged_gate, verdict_of
from tests.eval_rows import build_data


def record(value: float, half: float, metric: str = "fluency", split: str = "forget") -> Record:
    return Record(metric, split, value, value - half, value + half, 40, True, 1)


def test_the_destroyed_run_differs_from_the_audited_demo_in_unlearn_alone() -> None:
    destroyed, audited = (load_recipe(evaluation.GOOD, sets) for sets in (evaluation.overrides(), []))
    assert destroyed.unlearn == load_recipe("demo-overforget").unlearn != audited.unlearn
    assert destroyed.name == evaluation.BAD
    for section in ("model", "data", "base", "gold", "eval", "gates"):
        assert getattr(destroyed, section) == getattr(audited, section)


def test_a_metric_tells_two_models_apart_where_their_intervals_do_not_meet() -> None:
    found = {
        "base": [record(0.9, 0.05), record(0.7, 0.1, "utility", "general")],
        "gold": [record(0.9, 0.05)],
        "unlearned": [record(0.9, 0.05), record(0.7, 0.1, "utility", "general")],
        "over-forgotten": [record(0.6, 0.05), record(0.6, 0.1, "utility", "general")],
    }
    head, _, fluency, utility = evaluation.metric_rows(found)
    assert head == "| metric | rows | base | gold | unlearned | over-forgotten | apart |"
    assert fluency.startswith("| fluency | forget (40) | 0.900 (0.850 to 0.950) |")
    assert fluency.endswith("| 0.600 (0.550 to 0.650) | yes |")
    assert " – |" in utility
    assert utility.endswith("|  |")


def test_gates_stand_side_by_side() -> None:
    def gate(measured: float | None, passed: bool) -> JudgedGate:
        return judged_gate(metric="fluency", measured=measured, passed=passed)

    verdicts = {
        "good": verdict_of(gate(0.9, True), gate(0.9, True)),
        "bad": verdict_of(gate(0.6, False), gate(None, False)),
    }
    assert list(evaluation.gate_rows(verdicts))[2:] == [
        "| fluency forget | 0.9: passes | 0.6: **fails** |",
        "| fluency forget | 0.9: passes | not measured: **fails** |",
    ]


def test_the_bench_has_bars_and_refuses_other_numbers_and_much_padding(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = eval_pass.run(tiny_model, build_data(tmp_path), rounds=1)
    assert found["texts"] > len(eval_pass.ONE_BY_ONE)
    assert found["difference"] < 1e-3
    good = found | {"one_by_one": 10.0, "bare": 2.0, "one_pass": 2.0, "padding_bare": 0.1, "padding_generation": 0.1}
    monkeypatch.setattr(eval_pass, "run", lambda *_: good)
    assert [(line.ours / line.baseline, line.bar) for line in bench.evaluation(tmp_path)][:2] == [(0.2, 0.2), (1, 1.15)]
    for name, bad in (("difference", 1e-3), ("padding_bare", 0.11), ("padding_generation", 0.11)):
        monkeypatch.setattr(eval_pass, "run", lambda *_, name=name, bad=bad: good | {name: bad})
        with pytest.raises(AssertionError):
            list(bench.evaluation(tmp_path))


def test_the_bare_forward_runs_on_the_library_that_ours_runs_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = eval_pass.Set(tiny_model, build_data(tmp_path), 3)
    replaced = []

    def padded_logits(model: Any, examples: Any) -> Any:
        replaced.append("forward" in vars(model.lm_head))
        return real(model, examples)

    real = eval_pass.padded_logits
    monkeypatch.setattr(eval_pass, "padded_logits", padded_logits)
    measured.bare()
    assert all(replaced)
    assert replaced
