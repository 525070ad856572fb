"""What ends a training: numbers that are not finite, the ceiling, memory, a device that lacks something."""

from __future__ import annotations

import gc
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from core.errors import RecipeError, SystemLimitError, TrainingError
from datasets_prep.chat import encode_rows
from datasets_prep.schema import read_rows
from pipeline.train import fine_tune
from pipeline.train.arguments import training_arguments
from pipeline.train.config import TrainConfig
from pipeline.train.fit import fit, go_back, load, memory_limits, step_bytes
from pipeline.train.guards import StepRefused, check_step
from pipeline.train.packed import row_losses
from pipeline.train.trainer import counts_of
from pipeline.unlearn import run
from pipeline.unlearn.pairing import Pair
from tests.unlearning import SGD, some_rows, stage_inputs, unlearn_config, unlearn_trainer


class Spoil(TrainerCallback):
    """Makes the gradient of one step infinite, as an overflow would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step - 1:
            parameter = next(model.parameters())
            self.hook = parameter.register_hook(lambda gradient: gradient * math.inf)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_a_gradient_that_is_not_finite_ends_the_run_with_the_weights_of_the_step_before(
    tiny_model: Path, tmp_path: Path
) -> None:
    pairs = [Pair(e, i, (i,)) for e in range(4) for i in range(4)]
    rows = some_rows(4, 1), some_rows(4, 2)
    args = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
    spoilt = unlearn_trainer(tiny_model, tmp_path / "a", *rows, args, pairs=pairs, callbacks=[Spoil(3)])
    refused = fit(spoilt, tmp_path / "a", {})
    assert refused == "grad_norm of step 3 not finite"
    assert spoilt.state.global_step == 2
    whole = unlearn_trainer(tiny_model, tmp_path / "b", *rows, args, pairs=pairs[:8])
    whole.train()
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, spoilt.model.get_parameter(name)), name
    lines = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in lines] == [1, 2]


@pytest.mark.parametrize("name", ["forget_loss", "retain_loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_every_number_of_a_step_is_looked_at(name: str, value: float) -> None:
    fine = {"forget_loss": 1.0, "retain_loss": 1.0, "grad_norm": 1.0}
    check_step(3, fine, 2.0)
    with pytest.raises(StepRefused, match=f"{name} of step 3"):
        check_step(3, fine | {name: value}, None)
    for loss in (2.0, 2.1):
        with pytest.raises(StepRefused, match="uniform guess"):
            check_step(3, fine | {"forget_loss": loss}, 2.0)


def test_a_backward_pass_that_takes_the_step_itself_is_not_begun(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's, of which this is the part that can be tried without it: the losses are looked at before."""
    trainer = unlearn_trainer(tiny_model, tmp_path, some_rows(2, 1), some_rows(2, 2), SGD)
    batch = trainer.data_collator(list(trainer.train_dataset))
    counts = counts_of(batch)
    trainer.model.get_parameter("model.norm.weight").data.fill_(math.nan)
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(StepRefused, match="forget_loss and retain_loss of step 1 not finite"):
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    trainer.accelerator.gradient_state._set_sync_gradients(False)  # more micro-batches come before the step
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    with pytest.raises(TrainingError, match="DeepSpeed has taken it"):
        trainer._get_grad_norm(trainer.model, torch.tensor(math.inf))


def test_an_unlearning_that_explodes_is_no_model(tiny_model: Path, tmp_path: Path) -> None:
    inputs, out = stage_inputs(tiny_model, tmp_path), tmp_path / "out"
    out.mkdir()
    args = {"optim": "sgd", "max_grad_norm": 0, "per_device_train_batch_size": 3, "learning_rate": 3e38}
    with pytest.raises(TrainingError, match=r"no good checkpoint before that\. Nothing was kept"):
        run.run(unlearn_config(method="ga", keep="last", stop=None, args=args), inputs, out)
    assert not (out / "model").exists()


class Destroy(TrainerCallback):
    """Puts NaN into the weights after a step, as an optimizer that overflows would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)


@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 4}])
@pytest.mark.parametrize(("destroyed_after", "kept"), [(3, 2), (4, 2), (5, 4), (2, 0)])
def test_spoilt_weights_give_way_to_the_last_checkpoint_that_a_step_found_good(
    tiny_model: Path, tmp_path: Path, destroyed_after: int, kept: int, lora: dict[str, Any] | None
) -> None:
    """A checkpoint is good when the next step's losses, which are those of its weights, were."""
    pairs = [Pair(e, i, (i,)) for e in range(8) for i in range(4)]
    rows = some_rows(4, 1), some_rows(4, 2)
    args = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
    saving = args | {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    callbacks = [Destroy(destroyed_after)]
    spoilt = unlearn_trainer(tiny_model, tmp_path / "a", *rows, saving, pairs=pairs, callbacks=callbacks, lora=lora)
    assert fit(spoilt, tmp_path / "a", {}) is not None
    assert go_back(spoilt, tmp_path / "a") == kept
    if not kept:
        return
    whole = unlearn_trainer(tiny_model, tmp_path / "b", *rows, args, pairs=pairs[: 4 * kept], lora=lora)
    whole.train()
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, spoilt.model.get_parameter(name)), name


@pytest.fixture(scope="module")
def knowing(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The inputs of the unlearn stage with a base that knows its rows."""
    folder = tmp_path_factory.mktemp("knowing")
    inputs = stage_inputs(tiny_model, folder)
    base = folder / "taught"
    base.mkdir()
    args = {"learning_rate": 3e-3, "num_train_epochs": 20, "save_strategy": "no"}
    config = TrainConfig.model_validate({"precision": "fp32", "args": args})
    fine_tune.train(config, {"model": tiny_model, "data": inputs["data"]}, base, ("retain", "forget"))
    return inputs | {"base": base}


def forget_loss(inputs: dict[str, Path], folder: Path) -> float:
    model, tokenizer = load(folder / "model")
    rows = encode_rows(tokenizer, read_rows(inputs["data"] / "forget.jsonl"))
    return sum(row_losses(model, rows)) / len(rows)


def test_what_is_released_of_an_ascent_beyond_a_uniform_guess_is_below_it(
    knowing: dict[str, Path], tmp_path: Path
) -> None:
    args = {"learning_rate": 3e-3, "per_device_train_batch_size": 6, "save_strategy": "steps", "save_steps": 1}
    facts = run.run(unlearn_config(method="ga", epochs=60, keep="last", stop=None, args=args), knowing, tmp_path)
    assert "uniform guess" in facts.stopped
    assert 1 <= facts.kept_step == facts.steps - 1
    ceiling = math.log(load(tmp_path / "model")[0].config.vocab_size)
    assert forget_loss(knowing, knowing["base"]) < 3.0 < forget_loss(knowing, tmp_path) < ceiling


def test_the_last_step_is_not_released_beyond_the_retain_bound(knowing: dict[str, Path], tmp_path: Path) -> None:
    stop = {"every": 2, "forget_loss": 100.0, "retain_loss_above_base": 0.01, "retain_rows": 4}
    args = {"learning_rate": 3e-4, "per_device_train_batch_size": 3}
    config = unlearn_config(method="ga", keep="last", stop=stop, args=args)
    with pytest.raises(TrainingError, match=r"step \d+, which would be released, has not kept the retain loss within"):
        run.run(config, knowing, tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("keep", ["last", "closest"])
def test_a_check_that_is_not_finite_ends_the_run_and_releases_nothing_of_it(
    knowing: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    monkeypatch.setattr(run, "row_losses", lambda model, rows: [math.nan if model.training else 1.0 for _ in rows])
    with pytest.raises(TrainingError, match="probe_forget_loss and probe_retain_loss after step 1 not finite"):
        run.run(unlearn_config(keep=keep), knowing, tmp_path)
    assert not (tmp_path / "model").exists()


def test_base_that_explodes_is_no_model(tiny_model: Path, tmp_path: Path) -> None:
    inputs, out = stage_inputs(tiny_model, tmp_path), tmp_path / "out"
    out.mkdir()
    args = {"optim": "sgd", "max_grad_norm": 0, "num_train_epochs": 4, "learning_rate": 3e38}
    config = TrainConfig.model_validate({"precision": "fp32", "args": args})
    with pytest.raises(TrainingError, match="Nothing was kept"):
        fine_tune.train(config, {"model": tiny_model, "data": inputs["data"]}, out, ("retain",))
    assert not (out / "model").exists()


def test_after_a_training_with_moments_of_8_bits_nobody_holds_the_embedding(tiny_model: Path, tmp_path: Path) -> None:
    """bitsandbytes did, of each model that the process trained: gigabytes of a GPU by the last of five stages."""
    args = SGD | {"optim": "adamw_bnb_8bit", "per_device_train_batch_size": 4}
    trainer = unlearn_trainer(tiny_model, tmp_path, some_rows(4, 1), some_rows(4, 2), args)
    embedding = weakref.ref(trainer.model.get_input_embeddings())
    trainer.train()
    del trainer
    gc.collect()
    assert embedding() is None


class Greedy(TrainerCallback):
    """Asks the allocator for more than any machine has."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.empty(1 << 52)


@pytest.mark.parametrize(("optimizer", "moments"), [("sgd", 0), ("adamw_bnb_8bit", 2), ("adamw_torch", 8)])
def test_out_of_memory_names_the_levers_with_their_numbers(
    tiny_model: Path, tmp_path: Path, optimizer: str, moments: int
) -> None:
    rows = some_rows(4, 1), some_rows(4, 2)
    args = SGD | {"per_device_train_batch_size": 4, "optim": optimizer}
    trainer = unlearn_trainer(tiny_model, tmp_path, *rows, args, callbacks=[Greedy()])
    with pytest.raises(SystemLimitError) as caught:
        fit(trainer, tmp_path, {})
    said = str(caught.value)
    assert "per_device_train_batch_size: 2 with gradient_accumulation_steps: 2 (now 4 and 1" in said
    assert "gradient_checkpointing: true" in said
    assert ("args.optim: adamw_bnb_8bit (moments of 2 bytes a weight, instead of 8)" in said) == (moments == 8)
    assert "lora" in said
    assert "GB free" in said or "free)" in said
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_gpu_runs_out_of_memory_beside_the_allocator_too(message: str) -> None:
    """As where the first product makes cuBLAS's workspace, on a GPU that is full."""
    with pytest.raises(SystemLimitError, match=r"Out of memory.*CUDA error"), memory_limits():
        raise RuntimeError(message)  # or a subclass of torch's


@pytest.mark.parametrize(
    ("frozen", "width", "lever"),
    [("fp32", 4, "lora.frozen: bf16 or nf4"), ("bf16", 2, "lora.frozen: nf4"), ("nf4", 1.5, None)],
)
def test_frozen_weights_count_as_they_are_held_and_can_be_held_in_less(
    tiny_model: Path, tmp_path: Path, frozen: str, width: float, lever: str | None
) -> None:
    rows, lora = (some_rows(4, 1), some_rows(4, 2)), {"r": 2, "alpha": 4, "frozen": frozen}
    trainer = unlearn_trainer(tiny_model, tmp_path, *rows, SGD, precision="bf16", lora=lora, callbacks=[Greedy()])
    adapters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    below = load(tiny_model)[0].num_parameters()
    for moments in (0, 8):
        needed, counted = step_bytes(trainer.model, moments), width * below + (8 + moments) * adapters
        assert needed <= counted if frozen == "nf4" else needed == counted
    with pytest.raises(SystemLimitError) as caught:
        fit(trainer, tmp_path, {})
    said = str(caught.value)
    assert lever in said if lever else "lora" not in said
    assert f"for {(below + adapters) / 1e6:.1f} M parameters" in said


@pytest.mark.parametrize(("module", "name"), [(run, "load"), (run, "fixed_levels"), (fine_tune, "load")])
def test_out_of_memory_beside_the_steps_is_said_too(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    inputs, out = stage_inputs(tiny_model, tmp_path), tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(module, name, lambda *_: torch.empty(1 << 52))
    stages = {
        run: lambda: run.run(unlearn_config(), inputs, out),
        fine_tune: lambda: fine_tune.train(
            TrainConfig(precision="fp32"), inputs | {"model": tiny_model}, out, ("retain",)
        ),
    }
    with pytest.raises(SystemLimitError, match=r"Out of memory \(before or after the steps\).*GB .*allocate"):
        stages[module]()


def test_another_error_of_the_training_is_not_taken_for_memory(tiny_model: Path, tmp_path: Path) -> None:
    class Broken(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise RuntimeError("something else")

    trainer = unlearn_trainer(tiny_model, tmp_path, some_rows(2, 1), some_rows(2, 2), SGD, callbacks=[Broken()])
    with pytest.raises(RuntimeError, match="something else"):
        fit(trainer, tmp_path, {})


@pytest.mark.parametrize("optim", ["adamw_anyprecision", "grokadamw"])
def test_an_optimizer_that_the_machine_lacks(tiny_model: Path, tmp_path: Path, optim: str) -> None:
    trainer = unlearn_trainer(tiny_model, tmp_path, some_rows(2, 1), some_rows(2, 2), {"optim": optim})
    with pytest.raises(RecipeError, match=f"args.optim is .*{optim}.*adamw_torch"):
        fit(trainer, tmp_path, {})
    assert trainer.state.global_step == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device has it")
def test_a_precision_that_the_device_lacks(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--tf32"):
        training_arguments({"tf32": True}, tmp_path, bf16=False)


@pytest.mark.parametrize("report_to", [None, "none", ["none"], []])
def test_no_tracker_is_none_however_it_is_said(report_to: Any, tmp_path: Path) -> None:
    """Also null, which the trainer's configuration takes, and of which the trainer then knows no callback."""
    assert training_arguments({"report_to": report_to}, tmp_path, bf16=False).report_to == []


def test_curves_go_where_the_user_says(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="tensorboard and trackio"):
        training_arguments({"report_to": "wandb"}, tmp_path, bf16=False)
    pytest.importorskip("tensorboard", reason="an optional package: pip install tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with pytest.raises(RecipeError, match="TENSORBOARD_LOGGING_DIR"):
        training_arguments({"report_to": "tensorboard"}, tmp_path, bf16=False)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "curves"))
    args = SGD | {"report_to": "tensorboard"}
    unlearn_trainer(tiny_model, tmp_path, some_rows(2, 1), some_rows(2, 2), args).train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "curves")).Reload()
    assert {"train/forget_loss", "train/retain_loss"} <= set(events.Tags()["scalars"])
