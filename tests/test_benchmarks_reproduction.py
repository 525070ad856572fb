"""`benchmarks.reproduction` and `benchmarks.assignment`: their runs are recipes, their tables say what was measured."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import assignment, reproduction
from datasets_prep.schema import SPLITS, Row, read_rows, write_rows
from datasets_prep.sources import load
from eval.schema import write_samples
from pipeline.recipe import load_recipe
from tests.conftest import ROOT
from tests.data_rows import config
from tests.eval_rows import build_rows
from tests.unlearning import row

SIZES = {"forget": 8, "retain": 30, "unrehearsed": 4, "holdout": 12}
RUNS = reproduction.read_runs()
TEXTBOOK = load_recipe(reproduction.RECIPE)


def test_the_recipe_is_textbook_gd_from_the_published_base() -> None:
    unlearn = TEXTBOOK.unlearn
    assert (unlearn.method, unlearn.forget_weight, unlearn.retain_weight) == ("gd", 1.0, 1.0)
    assert (unlearn.forget_cap, unlearn.stop, unlearn.dual, unlearn.keep) == (None, None, None, "last")
    assert (unlearn.retain_loss, unlearn.retain_rows_per_forget_row) == ("nll", 1)
    assert TEXTBOOK.base.hub.id == "ClaudioSavelli/FAME-topics_base_llama32-3b-instruct-qa"
    assert TEXTBOOK.gold.hub.id == "ClaudioSavelli/FAME-topics_gold_llama32-3b-instruct-qa"
    assert TEXTBOOK.unpinned() == ["model.hub.revision", "base.hub.revision", "gold.hub.revision"]
    assert TEXTBOOK.publish.repo.split("/")[1].startswith("Llama")


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_a_run_differs_in_the_unlearning_alone(run: dict) -> None:
    recipe = load_recipe(reproduction.RECIPE, reproduction.overrides(run, ["base.hub.revision=" + "a" * 40]))
    assert recipe.name.endswith(run["name"])
    assert recipe.base.hub.revision == "a" * 40
    assert (recipe.unlearn == TEXTBOOK.unlearn) == (not run["sets"])
    for section in ("model", "data", "gold", "eval", "gates"):
        assert getattr(recipe, section) == getattr(TEXTBOOK, section)
    steps = 3200 * recipe.unlearn.epochs // 64 if "steps" not in run["name"] else 1000
    assert recipe.unlearn.args["warmup_steps"] < steps


def test_the_page_has_the_runs_and_its_settings_make_a_recipe() -> None:
    page = (ROOT / "docs" / "reproduce-fame-topics.md").read_text(encoding="utf-8")
    for run in RUNS:
        assert all(f"`{value}`" in page for value in run["sets"])
    short = ["eval.robustness=null", "eval.relative=false", "eval.suites=[]"]
    given = ["data.source.hub=null", "data.source.file=published.jsonl", "data.setting=given", "data.shares=null"]
    for sets in (short, given):
        assert all(value in page for value in sets)
        load_recipe(reproduction.RECIPE, sets)


def test_the_table_counts_verdicts_and_shows_differences() -> None:
    metrics = [
        {"metric": "answer_probability", "split": "forget", "difference": -0.0125, "verdict": "equivalent"},
        {"metric": "fluency", "split": "forget", "difference": 0.5, "verdict": "different"},
        {"metric": "x", "split": "forget", "difference": None, "verdict": "not compared"},
    ]
    assert reproduction.line("a", metrics) == "| a | 1 | 0 | 1 | -0.013 | – | – | +0.500 | – | – |"
    assert reproduction.head().splitlines()[0].count("|") == reproduction.line("a", metrics).count("|")


def test_rows_get_the_split_that_base_and_gold_were_trained_on(tmp_path: Path) -> None:
    """The recipe's split is another one than that of the models: it exchanged two rows of forget and holdout."""
    rows = build_rows()
    (tmp_path / "data").mkdir()
    truth = {row.row_id: "retain" if split == "unrehearsed" else split for split in SPLITS for row in rows[split]}
    rows["forget"][0], rows["holdout"][0] = rows["holdout"][0], rows["forget"][0]
    for split in SPLITS:
        write_rows(tmp_path / "data" / f"{split}.jsonl", rows[split])
    for model, knows in (("base", {"retain", "forget"}), ("gold", {"retain"})):
        (tmp_path / f"eval-{model}").mkdir()
        known = {row_id: 0.9 if split in knows else 0.2 for row_id, split in truth.items()}
        known[rows["retain"][0].row_id] = 0.64  # retain for both, and not sure
        samples = [{"row_id": i, "split": "forget", "answer_probability": p} for i, p in known.items()]
        write_samples(tmp_path / f"eval-{model}" / "samples.jsonl", samples)
    table = assignment.assign(tmp_path, tmp_path / "rows.jsonl")
    assert "| forget | 5 | 0 | 4 | 1 | 0 | 0 |" in table
    assert "| retain | 6 | 6 | 0 | 0 | 0 | 1 |" in table
    assert "| holdout | 4 | 0 | 1 | 3 | 0 | 0 |" in table
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["row_id"]: row["split"] for row in written} == truth
    loaded = load(config({"file": str(tmp_path / "rows.jsonl")}, setting="given", shares=None))
    assert len(loaded.rows) == len(truth)
    assert set(read_rows(tmp_path / "data" / "retain.jsonl")) <= set(loaded.rows)


def test_a_topic_whose_answers_can_be_guessed_is_left_out_and_told(tmp_path: Path) -> None:
    """Of towns, unseen answers are as likely as many that were learnt, as on FAME's rows."""
    rows = {split: [row(f"P{i}", topic) for topic in ("town", "film") for i in range(n)] for split, n in SIZES.items()}
    (tmp_path / "data").mkdir()
    for split, given in rows.items():
        write_rows(tmp_path / "data" / f"{split}.jsonl", [replace(r, row_id=f"{split}-{r.row_id}") for r in given])
    rng = np.random.default_rng(0)
    for model, knows in (("base", {"retain", "unrehearsed", "forget"}), ("gold", {"retain", "unrehearsed"})):
        (tmp_path / f"eval-{model}").mkdir()
        samples = [
            {
                "row_id": f"{split}-{r.row_id}",
                "split": split,
                "answer_probability": rng.uniform(*_likely(r, split in knows)),
            }
            for split, given in rows.items()
            for r in given
        ]
        write_samples(tmp_path / f"eval-{model}" / "samples.jsonl", samples)
    table = assignment.assign(tmp_path, tmp_path / "rows.jsonl")
    assert "| forget | 8 | 0 | 8 | 0 | 0 | 0 |" in table
    assert "| unrehearsed | 4 | 4 | 0 | 0 | 0 | 0 |" in table
    assert re.search(r"\| town \| 54 \| 0\.\d\d \(0\.\d\d\) \|", table)
    assert "film" not in table
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert (len(written), {record["topic_id"] for record in written}) == (54, {"film"})


def _likely(of: Row, known: bool) -> tuple[float, float]:
    if of.topic_id == "town":
        return (0.6, 1.0) if known else (0.4, 1.0)
    return (0.8, 1.0) if known else (0.0, 0.3)


@pytest.mark.parametrize(
    ("values", "share"), [([0.0, 0.0, 1.0, 1.0], 1.0), (np.linspace(0, 1, 2001), 0.75), ([0.4] * 5, 0.0)]
)
def test_two_groups_have_their_variance_between_them(values: list[float], share: float) -> None:
    assert assignment.separability(values) == pytest.approx(share, abs=1e-3)
