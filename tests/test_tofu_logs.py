"""`eval from-logs`: TOFU's published answers from its public logs, and what happens to logs that are not right."""

from __future__ import annotations

import copy
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.records import tofu_logs
from pipeline.__main__ import main
from tests.conftest import shared_data

RNG = np.random.default_rng(3)


def small_log() -> dict[str, Any]:
    return {
        name: {
            "avg_gt_loss": RNG.gamma(2, 1, 6).tolist(),
            "avg_paraphrased_loss": RNG.gamma(2, 1, 6).tolist(),
            "average_perturb_loss": RNG.gamma(3, 1, (6, 3)).tolist(),
            "rougeL_recall": RNG.random(6).tolist(),
        }
        for name in ("forget", "retain", "real_authors", "world_facts")
    }


LOG = small_log()


def from_logs(*files: Path, options: tuple[str, ...] = ("--json",)) -> int:
    return main(["eval", "from-logs", *map(str, files), *options])


def test_tofus_published_numbers_come_out(capsys):
    full, retain = (shared_data(f"tofu_logs/llama2-7b_{name}.json") for name in ("full", "retain90"))
    assert from_logs(full, retain) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["forget_quality"] == pytest.approx(1.834066410994743e-21, rel=1e-12, abs=0)
    assert found["ks_statistic"] == pytest.approx(0.39666666666666667, rel=1e-12)
    for name, value in (("full", 0.6226773637427153), ("retain", 0.613744995233942)):
        utility = found["model_utility"][name]
        assert utility["value"] == pytest.approx(value, rel=1e-12)
        assert len(utility["parts"]) == 9
        assert statistics.harmonic_mean(utility["parts"].values()) == pytest.approx(value, rel=1e-12)
    assert from_logs(full, retain, options=()) == 0
    assert "1.834e-21" in capsys.readouterr().out


def test_the_parts_are_tofus_formulas(tmp_path):
    (tmp_path / "log.json").write_text(json.dumps(LOG))
    found = tofu_logs.compare_logs(tmp_path / "log.json", tmp_path / "log.json")
    assert (found["forget_quality"], found["ks_statistic"]) == (1.0, 0.0)
    parts = found["model_utility"]["full"]["parts"]
    for name in ("retain", "real_authors", "world_facts"):
        true, false = np.exp(-np.array(LOG[name]["avg_gt_loss"])), np.exp(-np.array(LOG[name]["average_perturb_loss"]))
        probability = true if name == "retain" else true / (true + false.sum(axis=1))
        assert parts[f"{name}_probability"] == pytest.approx(probability.mean())
        geometric = false.prod(axis=1) ** (1 / 3)
        ratio = geometric / np.exp(-np.array(LOG[name]["avg_paraphrased_loss"]))
        assert parts[f"{name}_truth_ratio"] == pytest.approx(np.maximum(0, 1 - ratio).mean())
        assert parts[f"{name}_rouge_l_recall"] == pytest.approx(np.mean(LOG[name]["rougeL_recall"]))


@given(st.permutations(range(6)))
def test_the_order_of_rows_does_not_matter(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("logs")
    mixed = {n: {c: [v[i] for i in order] for c, v in columns.items()} for n, columns in LOG.items()}
    other = copy.deepcopy(LOG)
    other["forget"]["avg_paraphrased_loss"] = [loss * 1.5 for loss in LOG["forget"]["avg_paraphrased_loss"]]
    for name, log in (("as_is", LOG), ("mixed", mixed), ("other", other)):
        (folder / f"{name}.json").write_text(json.dumps(log))
    one, two = (tofu_logs.compare_logs(folder / f"{n}.json", folder / "other.json") for n in ("as_is", "mixed"))
    assert one["forget_quality"] == two["forget_quality"]
    assert one["model_utility"]["full"]["value"] == pytest.approx(two["model_utility"]["full"]["value"])
    ratios = [tofu_logs.truth_ratios(log["forget"]) for log in (LOG, other)]
    assert one["forget_quality"] == pytest.approx(stats.ks_2samp(*ratios).pvalue)


def broken(change: Any) -> str:
    log = copy.deepcopy(LOG)
    change(log)
    return json.dumps(log)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON"),
        ("[]", "forget, retain, real_authors, world_facts"),
        pytest.param("[" * 100_000, "cannot be read as JSON .lists and objects", id="deep"),
        (broken(lambda log: log.pop("world_facts")), "world_facts"),
        (broken(lambda log: log["retain"].pop("avg_gt_loss")), "retain.avg_gt_loss"),
        (broken(lambda log: log["forget"].update(rougeL_recall=[])), "forget.rougeL_recall"),
        (broken(lambda log: log["forget"]["rougeL_recall"].pop()), "forget: the columns"),
        (broken(lambda log: log["retain"]["rougeL_recall"].__setitem__(2, 1.5)), r"retain.rougeL_recall\[2\] is 1.5"),
        (broken(lambda log: log["retain"]["avg_gt_loss"].__setitem__(0, float("nan"))), r"avg_gt_loss\[0\] is nan"),
        (broken(lambda log: log["retain"]["avg_gt_loss"].__setitem__(0, -1.0)), "not negative"),
        (broken(lambda log: log["retain"]["avg_gt_loss"].__setitem__(0, "x")), r"retain.avg_gt_loss\[0\] is 'x'"),
        (broken(lambda log: log["retain"]["avg_gt_loss"].__setitem__(0, True)), r"retain.avg_gt_loss\[0\] is True"),
        (broken(lambda log: log["forget"]["average_perturb_loss"].__setitem__(1, 2.0)), r"perturb_loss\[1\] is 2.0"),
        (broken(lambda log: log["forget"]["average_perturb_loss"][1].__setitem__(0, None)), r"\[1\]\[0\] is None"),
        (broken(lambda log: log["retain"]["avg_gt_loss"].__setitem__(0, 10**400)), r"avg_gt_loss\[0\] is 1000"),
        (broken(lambda log: log["retain"]["avg_gt_loss"].__setitem__(0, float("inf"))), r"avg_gt_loss\[0\] is inf"),
        (broken(lambda log: log["retain"]["rougeL_recall"].__setitem__(0, 10**400)), r"rougeL_recall\[0\] is 1000"),
    ],
)
def test_a_bad_log_is_named_with_its_key(tmp_path, capsys, text, named):
    import re

    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(LOG))
    bad.write_text(text)
    for files in ((bad, good), (good, bad)):
        assert from_logs(*files) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "bad.json" in said.err
        assert re.search(named, said.err)
        assert "Traceback" not in said.err


def test_a_log_that_is_not_there_is_named(tmp_path, capsys):
    assert from_logs(tmp_path / "nothing.json", tmp_path / "nothing.json") == 2
    assert "nothing.json" in capsys.readouterr().err
