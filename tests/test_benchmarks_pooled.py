"""`python -m benchmarks.pooled`: golds pass where base fails, and drawn rows are the same for each model."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pooled
from eval.config import EvalConfig
from pipeline.recipe import load_recipe

CONFIG = EvalConfig(bootstrap_samples=100)
COUNTS = {"forget": 40, "holdout": 50, "retain": 60, "unrehearsed": 20, "general": 110}


def samples(seed: int, model: int, knows: frozenset[str]) -> list[dict[str, Any]]:
    """Rows of one model: those it knows are likely, the others as the row's own surprise and the model's noise say."""
    rows = []
    for split, count in COUNTS.items():
        for i in range(count):
            of_row, noise = random.Random(f"{seed} {split} {i}"), random.Random(f"{seed} {split} {i} {model}")
            loss = 0.05 if split in knows else of_row.uniform(1, 3) + noise.uniform(-0.1, 0.1)
            ratio = 0.01 if split in knows else of_row.lognormvariate(0, 0.5) * noise.uniform(0.95, 1.05)
            row = {"row_id": f"{split}-{i}", "split": split, "language": "EN", "topic_id": "t", "loss": loss}
            # Not the same on all rows: gaps that do not vary show little.
            extracted = 0.9 if split in knows else noise.uniform(0.09, 0.11)
            row |= {"answer_probability": 2.718**-loss, "extraction_strength": extracted}
            row |= {"min_k": -loss, "min_k_plus_plus": -loss, "zlib": -loss, "exact_memorization": 0.5}
            row |= {"truth_ratio": ratio, "truth_ratio_of": "answer"}
            row |= {"fluency": 1.0, "rouge_l_recall": 0.5} if split in ("forget", "holdout") else {}
            row |= {"utility": float(i % 4 > 0)} if split == "general" else {}
            rows.append(row)
    return rows


def write_run(folder: Path, seed: int) -> Path:
    known = frozenset({"retain", "unrehearsed"})
    models = {"eval-base": known | {"forget"}, "eval-unlearned": known} | dict.fromkeys(pooled.GOLDS, known)
    for model, (name, knows) in enumerate(models.items()):
        (folder / name).mkdir(parents=True)
        lines = [json.dumps(row) for row in samples(seed, model, knows)]
        (folder / name / "samples.jsonl").write_text("\n".join(['{"note": "a test"}', *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[pooled.Seed]:
    folder = tmp_path_factory.mktemp("runs")
    return [pooled.Seed(write_run(folder / str(seed), seed)) for seed in range(3)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_model_has_the_same_rows_once_and_general_ones_do_not_grow(seeds: list[pooled.Seed], count: int) -> None:
    drawn = pooled.draw(seeds, count, random.Random(0), "retrained")
    ids = {model: [(row["split"], row["row_id"]) for row in of_model] for model, of_model in drawn.items()}
    assert ids["unlearned"] == ids["base"] == ids["gold"] == ids["further"]
    assert len(set(ids["base"])) == len(ids["base"])
    expected = {split: count * rows for split, rows in COUNTS.items()} | {"general": 110}
    assert Counter(split for split, _ in ids["base"]) == expected


def test_a_retrained_model_is_a_gold_and_none_of_the_references(seeds: list[pooled.Seed]) -> None:
    golds = [[row["loss"] for row in gold] for gold in seeds[0].golds]
    for number in range(10):
        drawn = pooled.draw(seeds[:1], 1, random.Random(number), "retrained")
        dealt = [[row["loss"] for row in drawn[model]] for model in ("unlearned", "gold", "further")]
        assert sorted(dealt) == sorted(golds)
        same = pooled.draw(seeds[:1], 1, random.Random(number), "unlearned")
        assert [row["loss"] for row in same["unlearned"]] == [row["loss"] for row in seeds[0].unlearned]


def test_golds_pass_where_base_is_refused(seeds: list[pooled.Seed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled, "SEEDS", 2)
    gates = pooled.measurable(load_recipe("demo").gates)
    left_out = {gate.metric for gate in load_recipe("demo").gates} - {gate.metric for gate in gates}
    assert left_out == {"extraction_strength_nf4_gap", "extraction_strength_relearn_forget_gap"}
    head, _, *lines, last = pooled.table(seeds, gates, CONFIG, 1)
    columns = [f"{judged}, {rows}" for judged in ("retrained", "unlearned", "base") for rows in (40, 80, 120)]
    assert head == f"| gate | rule | {' | '.join(columns)} |"
    assert last == f"| all of these | | {' | '.join(['100%'] * 6 + ['0%'] * 3)} |"
    (quality,) = [line.split(" | ") for line in lines if line.startswith("| forget_quality ")]
    assert quality[-1] == "0% (0.000) |"
