"""`make methods`: its recipes are valid, and its table and plot say what the artifacts say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import methods
from benchmarks.methods import Run
from core.steps import rows_per_step
from eval.schema import Record, write_records, write_verdict
from pipeline.recipe import load_recipe
from tests.artifacts import judged_gate, unlearn_facts, verdict_of, write_manifest

ENTRIES = methods.read_methods()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_every_entry_is_a_recipe_that_differs_from_the_demo_in_unlearn_alone(entry: dict) -> None:
    from pipeline.train.arguments import training_arguments

    recipe, demo = load_recipe("demo", methods.overrides(entry, 2026)), load_recipe("demo")
    assert recipe.name == f"methods-2026-{entry['name']}"
    training_arguments(recipe.unlearn.args, Path("unused"), bf16=False)
    for section in ("model", "base", "gold", "eval", "gates"):
        assert getattr(recipe, section) == getattr(demo, section)
    assert (recipe.unlearn == demo.unlearn) == ("unlearn" not in entry)
    steps = recipe.unlearn.epochs * 40 / rows_per_step(recipe.unlearn.args)
    assert steps <= (80 if recipe.unlearn.neighbours else 36)


def test_the_entries_are_the_methods_of_the_comparison() -> None:
    assert len({entry["name"] for entry in ENTRIES}) == len({entry["label"] for entry in ENTRIES}) == len(ENTRIES) == 15
    used = {load_recipe("demo", methods.overrides(entry, 1)).unlearn.method for entry in ENTRIES}
    assert used == {"ft", "ga", "gd", "klm", "po", "npo", "simnpo", "altpo", "wga", "csd"}


def write_artifacts(folder: Path, quality: float, retain: float) -> None:
    for name in ("eval-base", "eval-gold", "eval-unlearned", "unlearn", "gate"):
        (folder / name).mkdir(parents=True)
    values = {
        ("answer_probability", "forget"): 0.2,
        ("answer_probability", "retain"): retain,
        ("answer_probability", "unrehearsed"): 0.7,
        ("mia_min_k_plus_plus_auc", "forget"): 0.5,
    }
    for model in ("base", "gold", "unlearned"):
        found = values | ({} if model == "gold" else {("forget_quality", "forget"): quality})
        if model == "unlearned":
            found["damage_gap", "forget"] = 0.05
        records = [Record(m, s, v, v, v, 40, None, 1) for (m, s), v in found.items()]
        records.append(Record("answer_probability", "retain", 0.1, 0.1, 0.1, 40, None, 1, {"language": "DE"}))
        write_records(folder / f"eval-{model}" / "results.json", records)
    write_manifest(folder / "unlearn", "unlearn", unlearn_facts(steps=36), seconds=90.4)
    write_verdict(folder / "gate", verdict_of(judged_gate(passed=quality > 0.05)))


def test_table_and_plot_are_of_the_artifacts(tmp_path: Path) -> None:
    write_artifacts(tmp_path / "a", 0.25, 0.9)
    write_artifacts(tmp_path / "b", 0.01, 0.8)
    both = [tmp_path / "a", tmp_path / "b"]
    runs = {
        "base": [methods.read_run(folder, "base") for folder in both],
        "gold": [methods.read_run(folder, "gold") for folder in both],
        "GD": [methods.read_run(folder, "unlearned") for folder in both],
    }
    assert runs["gold"][0] == Run(None, 0.2, 0.5, None, 0.9, 0.7)
    lines = methods.table(runs).splitlines()
    assert lines[3] == "| gold | – | 0.200 | 0.500 | – | 0.850 (0.800 to 0.900) | 0.700 | – | – | – |"
    unlearned = "| 0.130 (0.010 to 0.250) | 0.200 | 0.500 | 0.050 | 0.850 (0.800 to 0.900) | 0.700 | 36 | 90 |"
    assert lines[4] == f"| GD {unlearned} 0, 1 |"
    methods.draw(runs, tmp_path / "one.svg")
    methods.draw(runs, tmp_path / "two.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()
