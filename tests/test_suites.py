"""Suites by name: what reaches lm-eval, what its own command says, and names or networks that are not there."""

from __future__ import annotations

import json
import runpy
import sys
from functools import partialmethod
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from lm_eval.api.task import TaskConfig
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.errors import ArtifactError, InputError, SystemLimitError
from eval import suite
from eval.config import EvalConfig, Suite
from eval.schema import read_records
from eval.scoring import suites
from eval.scoring.harness import TASKS
from eval.scoring.probes import Scorer
from model_card.suites import SuiteData, read_suites
from pipeline.recipe import RECIPES, load_recipe
from tests.conftest import PATIENCE
from tests.eval_rows import build_data, build_speaking_model
from tests.processes import start

CONFIG = EvalConfig(max_new_tokens=6, batch_rows=4, bootstrap_samples=100)
# A task that needs no network, in the way a stock one is asked: examples, a limit, no chat template.
ASKED = Suite(task="general_knowledge", num_fewshot=2, limit=9, chat_template=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_speaking_model(tmp_path_factory.mktemp("speaking"))


@pytest.fixture(scope="module")
def evaluated(speaking: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval")
    suite.run(CONFIG.model_copy(update={"suites": [ASKED]}), {"model": speaking, "data": data}, out)
    return out


GROUP = ("--tasks", "fame_topics,general_knowledge", "--apply_chat_template", "--gen_kwargs", "max_gen_toks=6")
ALONE = ("--tasks", "general_knowledge", "--num_fewshot", "2", "--limit", "9")


def lm_eval_command(words: list[str]) -> None:
    """`python -m lm_eval`, in a child. It knows our tasks alone: to read the thousands of its own takes seconds."""
    TaskManager.__init__ = partialmethod(TaskManager.__init__, include_defaults=False)  # type: ignore[method-assign]
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    sys.argv = ["lm_eval", *words]
    runpy.run_module("lm_eval", run_name="__main__")


@pytest.fixture(scope="module")
def theirs(speaking: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results files of lm-eval's own command for ``GROUP`` and ``ALONE``, run side by side."""
    words = ["run", "--model", "hf", "--device", "cpu", "--batch_size", "3"]
    words += ["--model_args", f"pretrained={speaking},dtype=float32,softmax_dtype=float32"]
    words += ["--include_path", str(TASKS), "--metadata", json.dumps({"data": str(data)}), "--output_path"]
    places = [tmp_path_factory.mktemp("lm_eval") for _ in range(2)]
    said = tmp_path_factory.mktemp("said") / "stderr"
    started = [
        start(lm_eval_command, [*words, str(out), *options], said=said)
        for out, options in zip(places, (GROUP, ALONE), strict=True)
    ]
    for process in started:
        process.join(PATIENCE)
        assert process.exitcode == 0, said.read_text()[-2000:]
    return [json.loads(next(out.rglob("results_*.json")).read_text()) for out in places]


def scores_of(results: dict[str, Any]) -> dict[str, float]:
    """The values that both sides compute; our own tasks are asked without lm-eval's standard errors."""
    return {
        f"{task} {name}": value
        for task, found in results["results"].items()
        for name, value in found.items()
        if isinstance(value, float) and "stderr" not in name
    }


def test_the_lm_eval_command_gives_our_stages_numbers_for_the_group(theirs, evaluated):
    ours = json.loads((evaluated / "lm_eval" / "fame_topics.json").read_text())
    assert len(scores_of(ours)) == 3 * 3 + 1  # two ROUGE scores and an accuracy for each split, and the questions
    assert scores_of(ours) == pytest.approx(scores_of(theirs[0]), abs=1e-9)
    assert ours["n-samples"] == theirs[0]["n-samples"]


def test_the_lm_eval_command_gives_our_stages_numbers_for_a_suite(theirs, evaluated):
    ours = json.loads((evaluated / "lm_eval" / "general_knowledge.json").read_text())
    assert scores_of(ours) == pytest.approx(scores_of(theirs[1]), abs=1e-9)
    assert ours["n-shot"] == theirs[1]["n-shot"] == {"general_knowledge": 2}
    (record,) = [r for r in read_records(evaluated / "results.json") if r.split == "general_knowledge"]
    assert (record.metric, record.n, record.higher_is_better) == ("acc", 9, True)
    scores = theirs[1]["results"]["general_knowledge"]
    assert record.value == scores["acc,none"]
    assert record.ci_high - record.value == pytest.approx(1.96 * scores["acc_stderr,none"], rel=1e-3)


def test_questions_of_ours_are_of_no_data_set_on_the_hub(evaluated):
    found = read_suites(evaluated / "lm_eval")
    assert {"general_knowledge", "fame_topics_forget_generation"} <= set(found)
    assert {(data.hub, data.subset, data.split) for data in found.values()} == {(None, None, None)}


@pytest.mark.parametrize(
    ("said", "data"),
    [
        (
            {"dataset_path": "a/b", "test_split": "test", "validation_split": "dev"},
            SuiteData("a/b", None, "test", limited=False),
        ),
        (
            {"dataset_path": "a/b", "dataset_name": "c", "validation_split": "dev"},
            SuiteData("a/b", "c", "dev", limited=False),
        ),
        (
            {"dataset_path": "json", "dataset_name": "c", "test_split": "test"},
            SuiteData(None, None, None, limited=False),
        ),
    ],
)
def test_the_data_set_of_a_task_is_read_from_lm_evals_own_configuration(said, data, tmp_path):
    config = TaskConfig(task="t", **said).to_dict()
    content = {"results": {"t": {}}, "group_subtasks": {"t": []}, "configs": {"t": config}}
    (tmp_path / "t.json").write_text(json.dumps(content))
    assert read_suites(tmp_path) == {"t": data}
    (tmp_path / "t.json").write_text(json.dumps({**content, "configs": None}))
    with pytest.raises(ArtifactError, match=r"t\.json"):
        read_suites(tmp_path)


@pytest.mark.parametrize("chat_template", [True, False])
@pytest.mark.parametrize("num_fewshot", [0, 3])
def test_what_the_recipe_says_reaches_the_model(tiny_model, data, chat_template, num_fewshot):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append([*args, *kwargs.values()][0]), with_kwargs=True
    )
    wanted = Suite(task="general_knowledge", num_fewshot=num_fewshot, limit=2, chat_template=chat_template)
    loaded = suites.load_suites([wanted], data)
    seen.clear()
    records, results = suites.run_suites(loaded, Scorer(model, 512), tokenizer, CONFIG, None)
    prompts = [tokenizer.decode(row) for batch in seen for row in batch]
    assert len(prompts) == 2 * 4
    assert max(len(batch) for batch in seen) == CONFIG.batch_rows
    assert all(text.count("?") == num_fewshot + 1 for text in prompts)
    assert all(("<|im_start|>user" in text) == chat_template for text in prompts)
    assert results["general_knowledge"]["n-samples"]["general_knowledge"]["effective"] == records[0].n == 2


def test_a_suite_that_lm_eval_does_not_have_is_named_before_a_model_is_loaded(data, tiny_model, tmp_path):
    config = CONFIG.model_copy(update={"suites": [Suite(task="hellaswagg")]})
    with pytest.raises(InputError, match=r"eval\.suites\[0\]\.task: .*'hellaswagg'.*Did you mean hellaswag"):
        suite.run(config, {"model": tiny_model, "data": data}, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_suite_whose_questions_cannot_be_fetched_is_an_error_of_the_user(data, tiny_model, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    config = CONFIG.model_copy(update={"suites": [Suite(task="hellaswag")]})
    with pytest.raises(InputError, match=r"questions of hellaswag cannot be loaded .*network"):
        suite.run(config, {"model": tiny_model, "data": data}, tmp_path)
    assert not any(tmp_path.iterdir())


def test_every_suite_of_every_recipe_is_one_of_lm_evals(data):
    wanted = {s.task for file in RECIPES.glob("*.yaml") for s in load_recipe(file.stem).eval.suites}
    assert {"mmlu", "hellaswag", "arc_challenge", "wmdp"} <= wanted
    assert wanted <= set(suites.every_task(data).all_tasks)


def test_a_backend_that_is_not_installed_is_an_error_before_any_work(data, tiny_model, tmp_path):
    from importlib.util import find_spec

    if find_spec("vllm"):
        pytest.skip("vllm is installed here")
    with pytest.raises(SystemLimitError, match=r"pip install vllm.*eval\.backend: hf"):
        suite.run(CONFIG.model_copy(update={"backend": "vllm"}), {"model": tiny_model, "data": data}, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "error", "interval"),
    [
        (1.0, 0.0, (0.025 ** (1 / 20), 1.0)),  # all of 20 right: Clopper and Pearson's lower end
        (0.0, 0.0, (0.0, 1 - 0.025 ** (1 / 20))),
        (0.95, 0.05, (0.852, 1.0)),
        (0.5, 0.1, (0.304, 0.696)),
    ],
)
def test_the_interval_of_an_accuracy_is_one_of_a_share(value, error, interval):
    scores = {"acc,none": value, "acc_stderr,none": error, "sample_len": 20}
    found = {"results": {"t": scores}, "versions": {"t": 1}, "higher_is_better": {"t": {"acc": True}}}
    (record,) = suites.suite_records("t", found)
    assert (record.ci_low, record.ci_high) == pytest.approx(interval, abs=1e-3)


def test_a_metric_without_a_standard_error_has_no_record():
    found = {
        "results": {
            "t": {
                "acc,none": 0.5,
                "acc_stderr,none": "N/A",
                "em,strict": 0.25,
                "em_stderr,strict": 0.1,
                "sample_len": 4,
            }
        },
        "versions": {"t": 2.0},
        "higher_is_better": {"t": {"em": True}},
    }
    (record,) = suites.suite_records("group", found)
    assert (record.metric, record.split, record.value, record.n, record.version) == ("em_strict", "t", 0.25, 4, 2)
