"""The recipes and settings that benchmarks give are accepted: they run for hours, and would end at a later one."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import all_rows, judged, memory, requests, start
from benchmarks.releases import of_seed
from datasets_prep.sources import load
from eval.catalog import is_of
from eval.verdicts.gates import rule
from pipeline.recipe import load_recipe
from pipeline.stages import stages


def test_people_and_splits_of_a_seed() -> None:
    drawn = load_recipe("demo", of_seed(33)).data
    assert drawn.source.sample
    assert (drawn.source.sample.seed, drawn.seed) == (33, 33)


@pytest.mark.parametrize("label", requests.requests())
def test_requests(label: str) -> None:
    recipe, sets = requests.requests()[label]
    assert load_recipe(recipe, sets).data.request


def test_a_gold_that_is_judged_is_the_only_one() -> None:
    recipe = load_recipe("demo")
    one = load_recipe("demo", judged.alone(recipe))
    assert not one.eval.relative
    assert [gate for gate in recipe.gates if not is_of(gate.metric, "relative")] == one.gates


def test_the_rehearsal_on_a_part_of_its_rows_has_its_rules_and_the_attacks_that_they_read(tmp_path: Path) -> None:
    source = tmp_path / "retain.parquet"
    source.touch()
    recipe, sets = judged.rehearsal(str(source))
    whole = load_recipe(judged.REHEARSAL, [f"data.source.file={source}"])
    assert [rule(gate) for gate in recipe.gates] == [rule(gate) for gate in whole.gates]
    assert recipe.eval.robustness
    assert recipe.eval.robustness.attacks() == ["untreated", "nf4", "relearn_forget", "relearn_retain"]
    assert (recipe.base, recipe.gold, recipe.unlearn) == (whole.base, whole.gold, whole.unlearn)
    one = load_recipe(judged.REHEARSAL, [*sets, *judged.alone(recipe)])
    assert not one.eval.relative
    assert not one.gold.seeds


def test_all_rows_have_the_rehearsals_rules_and_three_golds(tmp_path: Path) -> None:
    source = tmp_path / "retain.parquet"
    source.touch()
    sets = [f"data.source.file={source}", f"model.path={tmp_path}"]
    recipe = load_recipe(all_rows.RECIPE, [*sets, *all_rows.SETTINGS])
    whole = load_recipe(all_rows.RECIPE, sets[:1])
    assert (recipe.gates, recipe.data, recipe.unlearn.epochs) == (whole.gates, whole.data, whole.unlearn.epochs)
    assert recipe.gold
    seeds = [recipe.gold.train.args["seed"], *(recipe.gold.seeds or ())]
    assert [f"gold-seed-{seed}" for seed in seeds[1:]] == [name for name in all_rows.MODELS if "seed" in name]
    stage_names = {stage.name for stage in stages(recipe)}
    assert {f"eval-{model}" for model in all_rows.MODELS} <= stage_names


def test_a_start_model_for_all_rows_learns_answers_about_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = load(load_recipe("demo").data).rows
    monkeypatch.setattr(all_rows, "STEPS", 3)
    monkeypatch.setattr(all_rows, "ROWS", 4)
    all_rows.make_start_model(sample, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    asked = all_rows._Answers(sample, tokenizer)
    for row in asked.rows:
        prompt, answer = asked._texts(row)
        assert prompt.startswith("<|im_start|>user\n")
        assert prompt.endswith("<|im_start|>assistant\n")
        assert row.name
        assert row.name not in prompt + answer
    ids, is_answer = asked.batch()
    ends = tokenizer.batch_decode([row[where] for row, where in zip(ids, is_answer, strict=True)])
    assert all(text.endswith("<|im_end|>") and "im_start" not in text for text in ends)
    assert ids.shape[1] % all_rows.LENGTHS == 0
    assert "step 2 of 3" in capsys.readouterr().out


def test_what_the_unlearn_stage_reads_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[set[str]] = []
    monkeypatch.setattr("pipeline.unlearn.run.run", lambda config, inputs, out: given.append(set(inputs)))
    start.main(str(tmp_path))
    demo = SimpleNamespace(artifacts=tmp_path, data=tmp_path, inputs={"model": tmp_path})
    monkeypatch.setattr(memory, "read_rows", lambda _: [])
    monkeypatch.setattr(memory, "read_perturbed", lambda _: [])
    (tmp_path / "precision.txt").write_text("fp32")
    with suppress(AttributeError):  # what is computed afterwards needs a demo's rows
        memory.unlearning(cast("memory.Demo", demo), tmp_path)
    (stage,) = (stage for stage in stages(load_recipe("demo")) if stage.name == "unlearn")
    read = set(stage.inputs) - {"gold"}  # only for a level, which csd has not
    assert given == [read, read - {"neighbours"}]


@pytest.mark.parametrize("case", memory.CASES)
def test_cases_whose_memory_is_measured(case: str) -> None:
    work, settings = memory.CASES[case]
    if work is memory.training:
        assert memory.training_config(**settings).args["max_steps"] == memory.STEPS
    elif work is memory.unlearning:
        method = settings.get("method", "csd")
        assert memory.unlearning_config(**settings).method == method
