"""The number of steps and checkpoints, against the trainer's own counting, and what cannot be counted."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import DefaultFlowCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

from core.errors import RecipeError
from core.steps import rows_per_step, saves_of, steps_of
from pipeline.cost import devices
from pipeline.engine import plan
from pipeline.engine.runner import Sizes
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from pipeline.train.config import TrainConfig, TrainedOrPublished
from tests.conftest import Call

COUNTED = st.fixed_dictionaries(
    {"per_device_train_batch_size": st.integers(1, 5), "gradient_accumulation_steps": st.integers(1, 3)},
    optional={
        "num_train_epochs": st.integers(0, 4) | st.sampled_from([0.1, 0.5, 1.5, 2.999]),
        "max_steps": st.integers(1, 40) | st.just(-1),
        "save_strategy": st.sampled_from(["no", "steps", "epoch"]),
        "save_steps": st.integers(0, 12) | st.sampled_from([0.1, 0.5, 7.0]),
    },
)


def trainers_count(args: dict[str, Any], rows: int) -> tuple[int, int]:
    """Steps and checkpoints by the trainer's own code, without a model."""
    given = SimpleNamespace(**{"num_train_epochs": 3.0, "max_steps": -1} | args)
    trainer = SimpleNamespace(
        get_total_train_batch_size=lambda _: 0, get_sp_size=lambda: 1, num_examples=lambda _: rows
    )
    batches = range(math.ceil(rows / args["per_device_train_batch_size"]))
    epochs, per_epoch, *_, steps = Trainer.set_initial_training_values(trainer, given, batches)
    settings = {key: args[key] for key in ("save_steps",) if key in args}
    arguments = TrainingArguments(use_cpu=True, save_strategy=args.get("save_strategy", "no"), **settings)
    state = TrainerState(max_steps=steps, logging_steps=1)
    state.compute_steps(arguments, steps)
    saves = 0
    for epoch in range(epochs):
        for _ in range(min(per_epoch, steps - epoch * per_epoch)):
            state.global_step += 1
            saves += DefaultFlowCallback().on_step_end(arguments, state, TrainerControl()).should_save
        saves += DefaultFlowCallback().on_epoch_end(arguments, state, TrainerControl()).should_save
    return steps, saves


@given(COUNTED, st.integers(1, 60))
def test_steps_and_checkpoints_are_those_of_the_trainer(args: dict[str, Any], rows: int) -> None:
    assert (steps_of(args, rows), saves_of(args, rows)) == trainers_count(args, rows)


@given(st.integers(1, 60), st.integers(1, 60), COUNTED)
def test_max_steps_overrides_the_epochs(rows: int, most: int, args: dict[str, Any]) -> None:
    assert steps_of(args | {"max_steps": most}, rows) == most
    assert steps_of(args | {"max_steps": -1, "num_train_epochs": most}, rows) * rows_per_step(args) >= rows * most


UNCOUNTABLE = [
    ("num_train_epochs", '"3"'), ("num_train_epochs", "null"), ("num_train_epochs", "-1"),
    ("max_steps", '"3"'), ("max_steps", "null"), ("max_steps", "0"), ("max_steps", "2.5"), ("max_steps", "true"),
    ("save_steps", "null"), ("save_steps", "-5"), ("save_steps", "[5]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), UNCOUNTABLE)
@pytest.mark.parametrize("section", ["base.train", "unlearn"])
def test_what_cannot_be_counted_is_a_problem_of_the_recipe(section: str, name: str, value: str) -> None:
    with pytest.raises(RecipeError, match=rf"{section}: args\.{name} is .*; give a"):
        load_recipe("demo", [f"{section}.args.{name}={value}"])


@pytest.mark.parametrize("value", ["[epoch]", "{a: 1}", "null"])
def test_other_values_are_left_to_the_trainer(value: str) -> None:
    """It refuses them by their type. Until then no plan stumbles over them, and no check of the seeds."""
    changes = [f"base.train.args.save_strategy={value}", f"gold.train.args.seed={value}", "gold.seeds=[1]"]
    recipe = load_recipe("demo", changes)
    known = plan.planned(recipe, {}, devices.cpu())
    base = next(stage for stage in stages(recipe) if stage.name == "base")
    assert base.costs(base.config, known).scratch == 0


@pytest.mark.parametrize(
    ("args", "length", "steps"),
    [
        ({"num_train_epochs": 1.5}, "1.5 epochs", 23),
        ({"max_steps": 7}, "7 steps", 7),
        ({"max_steps": -1}, "3 epochs", 45),
    ],
)
def test_the_plan_names_what_decides_the_length(args: dict[str, Any], length: str, steps: int) -> None:
    config = TrainedOrPublished(train=TrainConfig(args=args))
    assert plan.training(config, Sizes(None, None, None), splits=["forget"]).endswith(f"is done, {length}")
    said = plan.training(config, Sizes(None, {"retain": 100, "forget": 20}, None), splits=["retain", "forget"])
    assert said.removesuffix(f", {steps} steps") == "fine-tune on 120 rows" + f", {length}" * ("epochs" in length)


def test_a_plan_of_a_training_that_never_saves_on_the_way(call: Call, tmp_path: Path) -> None:
    changes = ("base.train.args.save_steps=0", "base.train.args.save_strategy='no'")
    words = [word for change in changes for word in ("--set", change)]
    done = call("release", "demo", "--dry-run", "--store", str(tmp_path / "store"), *words)
    assert "Traceback" not in done.stderr
    assert "fine-tune on" in done.stdout + done.stderr
