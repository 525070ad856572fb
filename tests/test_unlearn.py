"""The trainers on a tiny random model, against plain forwards and across ways to split the same step."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, TrainerCallback

from datasets_prep.chat import encode_rows
from datasets_prep.schema import Encoded, PerturbedRow, Row, read_rows, write_rows
from pipeline.errors import DataError, InputError, RecipeError, TrainingError
from pipeline.unlearn import losses, run
from pipeline.unlearn.attention import ROWS_SDPA
from pipeline.unlearn.completion import batches_by_length, completion_log_probs, pack, row_losses, row_means
from pipeline.unlearn.config import UnlearnConfig
from pipeline.unlearn.fit import load, training_arguments
from pipeline.unlearn.guards import Check, EndOfAscent, Watch
from pipeline.unlearn.pairing import Pair, pair_rows
from pipeline.unlearn.trainer import GDTrainer, collate, pair_dataset


def some_rows(count: int, seed: int = 0, vocabulary: int = 250) -> list[Encoded]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        size = rng.randrange(6, 20)
        rows.append(Encoded(tuple(rng.randrange(vocabulary) for _ in range(size)), rng.randrange(2, size - 1)))
    return rows


def plain_log_probs(model, rows: list[Encoded]) -> list[torch.Tensor]:
    """One ordinary forward a row, no packing."""
    found = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].float().log_softmax(-1)
        found.append(
            torch.stack([logits[i - 1, row.input_ids[i]] for i in range(row.completion_start, len(row.input_ids))])
        )
    return found


def plain_gradient_difference(model, forget: list[Encoded], retain: list[Encoded]) -> torch.Tensor:
    return -torch.cat(plain_log_probs(model, retain)).mean() + torch.cat(plain_log_probs(model, forget)).mean()


@pytest.mark.parametrize("attention", [ROWS_SDPA, "sdpa"])
def test_packed_rows_equal_rows_alone(tiny_model: Path, attention: str) -> None:
    rows = some_rows(7)
    packed = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.testing.assert_close(
        completion_log_probs(packed, pack(rows)), torch.cat(plain_log_probs(plain, rows)), atol=1e-5, rtol=1e-5
    )


def test_row_losses_do_not_depend_on_the_batch(tiny_model: Path) -> None:
    rows = some_rows(9)
    model, _ = load(tiny_model)
    expected = [
        -float(values.mean().detach())
        for values in plain_log_probs(AutoModelForCausalLM.from_pretrained(tiny_model), rows)
    ]
    for budget in (1, 40, 10_000):
        assert row_losses(model, rows, batch_tokens=budget) == pytest.approx(expected, abs=1e-5)


@given(st.lists(st.integers(3, 30), min_size=1, max_size=40), st.integers(1, 100))
def test_batches_hold_every_row_once_within_the_budget(sizes: list[int], budget: int) -> None:
    rows = [Encoded(tuple(range(size)), 1) for size in sizes]
    batches = batches_by_length(rows, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
    assert all(sum(sizes[i] for i in batch) <= budget or len(batch) == 1 for batch in batches)


def gd_trainer(
    folder: Path, out: Path, forget: list[Encoded], retain: list[Encoded], args: dict, **options
) -> GDTrainer:
    model, tokenizer = load(folder)
    pairs = options.pop("pairs", None) or [Pair(0, i, (i,)) for i in range(len(forget))]
    arguments = training_arguments(args, "fp32", out, num_train_epochs=1)
    data = pair_dataset(pairs, forget, retain)
    return GDTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer, **options)


SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_one_step_equals_plain_torch_however_it_is_split(
    tiny_model: Path, tmp_path: Path, batch: int, accumulation: int
) -> None:
    forget, retain = some_rows(8, 1), some_rows(8, 2)
    split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    trainer = gd_trainer(tiny_model, tmp_path, forget, retain, SGD | split)
    trainer.train()

    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = {name: value.detach().clone() for name, value in plain.named_parameters()}
    plain_gradient_difference(plain, forget, retain).backward()
    for name, parameter in plain.named_parameters():
        stepped = before[name] - 0.1 * parameter.grad
        torch.testing.assert_close(trainer.model.get_parameter(name).detach(), stepped, atol=2e-6, rtol=1e-5)
    logged = trainer.state.log_history[0]
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert logged["forget_loss"] == pytest.approx(
        -float(torch.cat(plain_log_probs(fresh, forget)).mean().detach()), abs=1e-5
    )
    assert logged["retain_loss"] == pytest.approx(
        -float(torch.cat(plain_log_probs(fresh, retain)).mean().detach()), abs=1e-5
    )
    assert logged["forget_tokens"] == sum(len(row.input_ids) - row.completion_start for row in forget)


def test_forget_loss_rises_while_retain_loss_is_held(tiny_model: Path, tmp_path: Path) -> None:
    forget, retain = some_rows(4, 1), some_rows(4, 2)
    args = {"learning_rate": 2e-3, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
    pairs = [Pair(e, i, (i,)) for e in range(10) for i in range(4)]
    trainer = gd_trainer(tiny_model, tmp_path, forget, retain, args, pairs=pairs)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "forget_loss" in entry]
    assert history[-1]["forget_loss"] > history[0]["forget_loss"] + 0.5
    assert history[-1]["retain_loss"] < history[0]["retain_loss"]


def test_cap_takes_rows_out_of_the_ascent() -> None:
    log_probs = torch.tensor([-1.0, -1.0, -9.0, -9.0, -2.0], requires_grad=True)
    is_forget = torch.tensor([True, True, True, True, False])
    row = torch.tensor([0, 0, 1, 1, 2])
    tokens = (torch.tensor(4), torch.tensor(1))
    weights = {"forget_weight": 1.0, "retain_weight": 3.0}
    plain = losses.gradient_difference(log_probs, is_forget, row, tokens, **weights, caps=None)
    assert plain.item() == pytest.approx(3 * 2 - (1 + 1 + 9 + 9) / 4)
    caps = torch.tensor([5.0, 5.0, 5.0])
    capped = losses.gradient_difference(log_probs, is_forget, row, tokens, **weights, caps=caps)
    assert capped.item() == pytest.approx(3 * 2 - (1 + 1) / 4)
    capped.backward()
    assert log_probs.grad.tolist() == pytest.approx([0.25, 0.25, 0, 0, -3])


def test_row_means() -> None:
    assert row_means(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]), 2).tolist() == [2, 5]


def test_collator_puts_forget_rows_first() -> None:
    forget, retain = some_rows(2, 1), some_rows(2, 2)
    batch = collate(list(pair_dataset([Pair(0, 0, (0,)), Pair(0, 1, (1,))], forget, retain)))
    assert batch["input_ids"][0].tolist() == [token for row in [*forget, *retain] for token in row.input_ids]
    changes = batch["is_forget"].int().diff()
    assert batch["is_forget"][0]
    assert changes.abs().sum() == 1
    assert batch["forget_row"].tolist() == [0, 1, -1, -1]
    assert batch["targets"].tolist() == [t for row in [*forget, *retain] for t in row.input_ids[row.completion_start :]]


@given(st.integers(1, 30), st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6))
def test_pairing(forget: int, retain: int, epochs: int, each: int, seed: int) -> None:
    if retain < each:
        with pytest.raises(DataError, match="retain rows"):
            pair_rows(forget, retain, epochs=epochs, retain_per_forget=each, seed=seed)
        return
    pairs = pair_rows(forget, retain, epochs=epochs, retain_per_forget=each, seed=seed)
    assert pairs == pair_rows(forget, retain, epochs=epochs, retain_per_forget=each, seed=seed)
    for epoch in range(epochs):
        assert sorted(p.forget for p in pairs if p.epoch == epoch) == list(range(forget))
    assert all(len(set(p.retain)) == each for p in pairs)
    uses = Counter(i for p in pairs for i in p.retain)
    assert max(uses.values()) - min(uses.get(i, 0) for i in range(retain)) <= 1


def test_watch_stops_at_a_number_that_is_not_finite() -> None:
    state = type("State", (), {"global_step": 3, "max_steps": 9})()
    with pytest.raises(TrainingError, match="forget_loss at step 3"):
        Watch("unlearn").on_log(None, state, None, logs={"forget_loss": math.nan})


class CutOff(TrainerCallback):
    """Ends a run as a kill between two steps would: after the checkpoint, without any clean-up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step + 1:
            raise KeyboardInterrupt


def stage_inputs(tiny_model: Path, folder: Path) -> dict[str, Path]:
    rows = [
        Row(
            f"en-{i}-t",
            i,
            f"Ida {i}",
            "EN",
            "personal.email",
            f"Where was Ida {i} born?",
            f"Ida {i} was born in {i * 7}.",
        )
        for i in range(24)
    ]
    data = folder / "data"
    data.mkdir()
    for split, part in {"forget": rows[:6], "retain": rows[6:18], "holdout": rows[18:]}.items():
        write_rows(data / f"{split}.jsonl", part)
    base = folder / "base"
    base.mkdir()
    (base / "model").symlink_to(tiny_model)
    return {"base": base, "data": data, "gold": base}


def unlearn_config(**changes) -> UnlearnConfig:
    args = {"learning_rate": 3e-3, "per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 2}
    stop = {"every": 1, "forget_loss": 6.6, "retain_loss_above_base": 5.0, "retain_rows": 4}
    given_ = {"method": "gd", "epochs": 4, "precision": "fp32", "keep": "closest", "stop": stop, "args": args}
    return UnlearnConfig.model_validate(given_ | changes)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_cut_off_run_ends_with_the_same_files(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    config = unlearn_config(stop={"every": 1, "forget_loss": 60.0, "retain_loss_above_base": 5.0, "retain_rows": 4})
    facts = run.run(config, inputs, whole)

    original = run.Watch
    monkeypatch.setattr(run, "Watch", lambda doing: CutOff(4))
    with pytest.raises(KeyboardInterrupt):
        run.run(config, inputs, cut)
    assert (cut / "checkpoints").is_dir()
    monkeypatch.setattr(run, "Watch", original)
    assert run.run(config, inputs, cut) == facts
    assert files(cut) == files(whole)
    assert {"model/model.safetensors", "model/chat_template.jinja"} <= set(files(whole))


def test_the_rule_stops_the_ascent_and_keeps_the_closest(tiny_model: Path, tmp_path: Path) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    facts = run.run(unlearn_config(epochs=30), inputs, out)
    assert "reached its level" in facts["stopped"]
    assert facts["steps"] < 60
    checks = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    checks = [entry for entry in checks if "probe_forget_loss" in entry]
    closest = min(checks, key=lambda entry: abs(entry["probe_forget_loss"] - 6.6))
    assert facts["kept_step"] == closest["step"]
    kept, tokenizer = load(out / "model")
    assert kept.config.use_cache
    forget = encode_rows(tokenizer, read_rows(inputs["data"] / "forget.jsonl"))
    losses_now = row_losses(kept, forget)
    assert sum(losses_now) / len(losses_now) == pytest.approx(closest["probe_forget_loss"], abs=0.03)  # bf16 rounding
    assert {str(t.dtype) for t in AutoModelForCausalLM.from_pretrained(out / "model", dtype="auto").parameters()} == {
        "torch.bfloat16"
    }


def test_no_checkpoint_within_the_retain_bound_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    stop = {"every": 1, "forget_loss": 50.0, "retain_loss_above_base": 1e-9, "retain_rows": 4}
    config = unlearn_config(stop=stop, retain_weight=0.0)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(TrainingError, match="retain loss"):
        run.run(config, inputs, out)


def test_gold_level_without_gold(tiny_model: Path, tmp_path: Path) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    del inputs["gold"]
    with pytest.raises(InputError, match="gold"):
        run.run(unlearn_config(forget_cap="gold"), inputs, tmp_path)


@pytest.mark.parametrize(
    ("args", "said"),
    [({"learning_rat": 1e-3}, "learning_rat"), ({"output_dir": "x"}, "output_dir"), ({"optim": "no such"}, "no such")],
)
def test_trainer_arguments_are_checked(tmp_path: Path, args: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        training_arguments(args, "fp32", tmp_path)


def test_kept_step_follows_from_the_checks(tmp_path: Path) -> None:
    end = EndOfAscent(lambda: Check(1.0, 1.0, 3.0), 2.0, 1, tmp_path / "kept")
    history = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "probe_forget_loss": 1.0, "probe_retain_loss": 1.0, "probe_level": 3.0},
        {"step": 4, "probe_forget_loss": 2.9, "probe_retain_loss": 2.1, "probe_level": 3.0},  # beyond the retain bound
        {"step": 6, "probe_forget_loss": 4.5, "probe_retain_loss": 2.0, "probe_level": 4.0},
        {"step": 8, "probe_forget_loss": 2.5, "probe_retain_loss": 1.0, "probe_level": 3.0},  # as close, but later
    ]
    assert end.kept_step(history) == 6
    assert end.kept_step(history[:1]) is None


def test_false_answers_are_a_level_for_each_row(tiny_model: Path, tmp_path: Path) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    stop = {"every": 1, "forget_loss": "false_answers", "retain_loss_above_base": 5.0, "retain_rows": 4}
    config = unlearn_config(forget_cap="false_answers", stop=stop, epochs=20)
    out = tmp_path / "out"
    out.mkdir()
    (inputs["data"] / "guides.jsonl").touch()
    with pytest.raises(InputError, match="for_unlearning"):
        run.run(config, inputs, out)
    rows = [json.loads(line) for line in (inputs["data"] / "forget.jsonl").read_text().splitlines()]
    guides = [PerturbedRow(r["row_id"], "forget", (r["answer"] + " zzz", r["answer"] + " qqq")) for r in rows]
    write_rows(inputs["data"] / "guides.jsonl", guides)
    facts = run.run(config, inputs, out)
    checks = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    checks = [entry for entry in checks if "probe_level" in entry]
    assert len({entry["probe_level"] for entry in checks}) == len(checks)  # it moves with the model
    assert checks[-1]["probe_forget_loss"] >= checks[-1]["probe_level"]
    assert "reached its level" in facts["stopped"]


def test_a_moving_cap_wants_checkpoints_at_checks() -> None:
    stop = {"every": 4, "forget_loss": "gold", "retain_loss_above_base": 0.1}
    with pytest.raises(ValueError, match="multiple of stop"):
        unlearn_config(forget_cap="false_answers", stop=stop)
    with pytest.raises(ValueError, match="give `stop`"):
        unlearn_config(forget_cap="false_answers", stop=None, keep="last")


def test_frozen_layers_do_not_move(tiny_model: Path, tmp_path: Path) -> None:
    inputs = stage_inputs(tiny_model, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RecipeError, match="layers 0 to 1"):
        run.run(unlearn_config(train_from_layer=2), inputs, out)
    run.run(unlearn_config(train_from_layer=1, keep="last"), inputs, out)
    before = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out / "model", dtype="auto").state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("model.layers.1.") or name == "model.norm.weight" for name in moved)
