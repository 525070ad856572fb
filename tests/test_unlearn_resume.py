"""A run that is cut off at any step ends with the same files as one that is not, and knows its own checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.errors import ArtifactError
from core.unlearning import UnlearnFacts
from pipeline.train import fine_tune, fit
from pipeline.train.config import TrainConfig
from pipeline.unlearn import run
from pipeline.unlearn.config import UnlearnConfig
from pipeline.unlearn.stopping import EndOfAscent
from tests.test_unlearn_run import write_guides, write_other_facts
from tests.unlearning import CutOff, files, stage_inputs, unlearn_config

STOP = {"every": 1, "forget_loss": 60.0, "retain_loss_above_base": 5.0, "retain_rows": 4}
ARGS = {"learning_rate": 3e-3, "per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 1, "seed": 7}
VARIANTS: dict[str, dict[str, Any]] = {
    "full, dual weight": {"dual": {"rate": 0.5, "retain_loss_above_base": 0.0}, "gradient_norms_every": 3},
    "full, moving cap": {"forget_cap": "false_answers", "stop": STOP | {"forget_rows": 2}},
    "csd, LoRA": {"method": "csd", "lora": {"r": 4, "alpha": 8.0, "dropout": 0.3}},
    "LoRA with dropout": {"lora": {"r": 4, "alpha": 8.0, "dropout": 0.3}},
    "LoRA, altpo, last step, two micro-batches": {
        "method": "altpo",
        "retain_loss": "kl",
        "lora": {"r": 2, "alpha": 4.0, "dropout": 0.1},
        "keep": "last",
        "args": ARGS | {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    },
}


def config_of(variant: str) -> UnlearnConfig:
    return unlearn_config(**({"epochs": 2, "stop": STOP, "args": ARGS} | VARIANTS[variant]))


def cut_off(config: UnlearnConfig, inputs: dict[str, Path], out: Path, step: int) -> None:
    original = run.Watch
    try:
        run.Watch = lambda doing: CutOff(step)  # type: ignore[assignment,misc]
        with pytest.raises(KeyboardInterrupt):
            run.run(config, inputs, out)
    finally:
        run.Watch = original  # type: ignore[misc]


def run_whole(config: UnlearnConfig, inputs: dict[str, Path], folder: Path) -> tuple[UnlearnFacts, Path, Path]:
    """A run that nothing cut off: its facts and its folder, and another for one that will be."""
    whole, cut = folder / "whole", folder / "cut"
    whole.mkdir(), cut.mkdir()
    return run.run(config, inputs, whole), whole, cut


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_cut_off_at_any_step_ends_with_the_same_files(tiny_model: Path, tmp_path: Path, variant: str) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    write_other_facts(inputs["data"])
    config = config_of(variant)
    whole = tmp_path / "whole"
    whole.mkdir()
    facts = run.run(config, inputs, whole)
    assert facts.steps in (3, 4)
    for steps in ((1, facts.steps - 1), (2,)):  # a step is a checkpoint, so a run goes on from each of them
        cut = tmp_path / f"cut-{steps[0]}"
        cut.mkdir()
        for step in steps:
            cut_off(config, inputs, cut, step)
        assert (cut / "checkpoints").is_dir()
        assert run.run(config, inputs, cut) == facts, steps
        assert files(cut) == files(whole), steps


def test_a_run_that_is_cut_off_at_every_step_ends_with_the_same_files(tiny_model: Path, tmp_path: Path) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    config = config_of("full, dual weight")
    facts, whole, cut = run_whole(config, inputs, tmp_path)
    for step in range(facts.steps):
        cut_off(config, inputs, cut, step)
    assert run.run(config, inputs, cut) == facts
    assert files(cut) == files(whole)


def test_a_save_that_was_killed_is_passed_over(tiny_model: Path, tmp_path: Path) -> None:
    """The trainer writes a checkpoint where it will lie, and its state last; when it is on the disk, it is marked."""
    inputs = stage_inputs(tiny_model, tmp_path)
    config = config_of("full, moving cap")
    write_guides(inputs["data"])
    facts, whole, cut = run_whole(config, inputs, tmp_path)
    cut_off(config, inputs, cut, 2)
    good = cut / "checkpoints" / "checkpoint-2"
    killed = good.with_name("checkpoint-3")
    saved = good.stat().st_mtime_ns
    for torn in (None, "", '{"epoch": 1.0, "glo'):
        shutil.copytree(good, killed)
        (killed / "trainer_state.json").unlink(), (killed / "whole").unlink()
        if torn is not None:
            (killed / "trainer_state.json").write_text(torn)
        cut_off(config, inputs, cut, 2)  # it would write this checkpoint again, had it begun anew
        assert not killed.exists()
        assert good.stat().st_mtime_ns == saved
    assert run.run(config, inputs, cut) == facts
    assert files(cut) == files(whole)


@pytest.mark.parametrize("earlier", [True, False])
@pytest.mark.parametrize("lost", ["optimizer.pt", "model.safetensors", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_lost_a_file_with_the_power_is_passed_over(
    lost: str, earlier: bool, tiny_model: Path, tmp_path: Path
) -> None:
    """Its state is on the disk and another file is not, so it has no mark; an earlier one may be whole."""
    inputs = stage_inputs(tiny_model, tmp_path)
    config = config_of("full, dual weight")
    facts, whole, cut = run_whole(config, inputs, tmp_path)
    cut_off(config, inputs, cut, 2)
    good = cut / "checkpoints" / "checkpoint-2"
    torn = good.with_name("checkpoint-3")
    shutil.copytree(good, torn)
    (torn / lost).write_bytes(b"\0" * (torn / lost).stat().st_size)
    for mark in [torn / "whole"] if earlier else list(torn.parent.glob("*/whole")):
        mark.unlink()
    assert run.run(config, inputs, cut) == facts
    assert files(cut) == files(whole)


def test_an_older_checkpoint_stays_until_the_new_one_is_on_the_disk(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": tiny_model, "data": stage_inputs(tiny_model, tmp_path)["data"]}
    config = TrainConfig.model_validate({"precision": "fp32", "args": ARGS | {"num_train_epochs": 1}})
    out, seen = tmp_path / "out", list[list[str]]()
    out.mkdir()
    sync = fit.sync

    def look(path: Path) -> None:
        sync(path)
        if path.name == "optimizer.pt":
            seen.append(sorted(folder.name for folder in path.parent.parent.glob("checkpoint-*")))

    monkeypatch.setattr(fit, "sync", look)
    fine_tune.train(config, inputs, out, ("retain",))
    assert seen[:2] == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"]]
    assert seen[2] == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8.0, "dropout": 0.2}])
def test_base_resumes_too(
    tiny_model: Path, tmp_path: Path, lora: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {"model": tiny_model, "data": stage_inputs(tiny_model, tmp_path)["data"]}
    args = ARGS | {"num_train_epochs": 1}
    config = TrainConfig.model_validate({"precision": "fp32", "lora": lora, "args": args})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    facts = fine_tune.train(config, inputs, whole, ("retain",))
    with monkeypatch.context() as patch:
        patch.setattr(fine_tune, "Watch", lambda doing: CutOff(2))
        with pytest.raises(KeyboardInterrupt):
            fine_tune.train(config, inputs, cut, ("retain",))
    assert fine_tune.train(config, inputs, cut, ("retain",)) == facts
    assert files(cut) == files(whole)


@pytest.mark.parametrize(
    ("stage", "first"),
    [("base", "model.safetensors"), ("unlearn", "model.safetensors"), ("unlearn", "optimizer.pt")],
)
def test_a_run_killed_while_it_deletes_its_checkpoints_ends_with_the_same_files(
    stage: str, first: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    config = TrainConfig.model_validate({"precision": "fp32", "args": ARGS | {"num_train_epochs": 1}})

    def made(out: Path) -> None:
        out.mkdir(exist_ok=True)
        if stage == "base":
            fine_tune.train(config, inputs, out, ("retain",))
        else:
            facts = run.run(unlearn_config(keep="last"), inputs, out)
            assert facts.steps < 8  # it was stopped, so a resumed run would train on

    rmtree = shutil.rmtree

    def killed(folder: str | Path, **how: bool) -> None:
        last = max(Path(folder).glob("checkpoint-*"), default=None)
        if last is None:
            return rmtree(folder, **how)
        (last / first).unlink()
        raise KeyboardInterrupt

    made(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "cut")
    made(tmp_path / "cut")
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_the_released_weights_are_those_of_the_kept_step_though_a_resumed_run_measures_otherwise(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another device: a step that was the closest within the bound is not within it any more."""
    inputs = stage_inputs(tiny_model, tmp_path)
    config = unlearn_config(epochs=3, stop=STOP, keep="closest", args=ARGS | {"save_steps": 2})
    out = tmp_path / "out"
    out.mkdir()
    cut_off(config, inputs, out, 3)
    assert {file.name for file in (out / "kept").iterdir()} == {"step-2.safetensors", "step-3.safetensors"}
    saved = load_file(out / "checkpoints" / "checkpoint-2" / "model.safetensors")
    on_step_end = EndOfAscent.on_step_end

    def otherwise(self: EndOfAscent, *args: Any, **kwargs: Any) -> Any:
        own = self.measure
        with monkeypatch.context() as patch:
            patch.setattr(self, "measure", lambda: replace(own(), retain=self.retain_bound + 1e-9))
            return on_step_end(self, *args, **kwargs)

    monkeypatch.setattr(EndOfAscent, "on_step_end", otherwise)
    assert run.run(config, inputs, out).kept_step == 2
    released = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(released[name], saved[name].bfloat16()) for name in saved)


def test_checkpoints_of_another_recipe_are_not_gone_on_with(tiny_model: Path, tmp_path: Path) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    config = config_of("full, dual weight")
    out = tmp_path / "out"
    out.mkdir()
    cut_off(config, inputs, out, 2)
    other = config.model_copy(update={"retain_weight": 7.0})
    with pytest.raises(ArtifactError, match=r"unlearn.retain_weight is 1.0 there and 7.0 here") as caught:
        run.run(other, inputs, out)
    assert caught.value.exit_code == 2
    watched = config.model_copy(update={"args": config.args | {"report_to": "none"}})  # it changes no result
    cut_off(watched, inputs, out, 3)
    file = out / "checkpoints" / "made_by.json"
    known = json.loads(file.read_text())
    assert known["unlearn"]["retain_weight"] == 1.0
    file.unlink()
    with pytest.raises(ArtifactError, match="does not say which recipe"):
        run.run(config, inputs, out)
    shutil.rmtree(out / "checkpoints")
    run.run(other, inputs, out)
