"""The unlearn stage on a tiny model: what it keeps, what it records, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState

from core.errors import DataError, InputError, RecipeError, TrainingError
from core.unlearning import UnlearnSeeds, read_selection
from datasets_prep.chat import encode_rows
from datasets_prep.schema import PerturbedRow, read_rows, write_rows
from pipeline.train.arguments import training_arguments
from pipeline.train.fit import load
from pipeline.train.kept import keep_weights
from pipeline.train.packed import row_losses
from pipeline.unlearn import run
from pipeline.unlearn.config import PARAMETERS, UnlearnConfig
from pipeline.unlearn.continuations import write_continuations
from pipeline.unlearn.levels import mean_by_row, read_guides
from pipeline.unlearn.neighbours import FILE as NEIGHBOURS
from pipeline.unlearn.refusals import draw_refusals, read_refusals
from pipeline.unlearn.stopping import Check, EndOfAscent
from tests.unlearning import files, stage_inputs, unlearn_config


@pytest.fixture
def inputs(tiny_model: Path, tmp_path: Path) -> dict[str, Path]:
    return stage_inputs(tiny_model, tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


STOP_AT_3 = {"every": 3, "forget_loss": "gold", "retain_loss_above_base": 0.1}


def log_of(out: Path, key: str) -> list[dict[str, Any]]:
    return [e for e in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if key in e]


def test_the_rule_stops_the_ascent_and_keeps_the_closest(inputs: dict[str, Path], out: Path) -> None:
    facts = run.run(unlearn_config(epochs=30), inputs, out)
    assert "reached its level" in facts.stopped
    assert facts.steps < 60
    checks = log_of(out, "probe_forget_loss")
    closest = min(checks, key=lambda entry: abs(entry["probe_forget_loss"] - 6.6))
    assert facts.kept_step == closest["step"]
    kept, tokenizer = load(out / "model")
    assert kept.config.use_cache
    forget = encode_rows(tokenizer, read_rows(inputs["data"] / "forget.jsonl"))
    losses_now = row_losses(kept, forget)
    assert sum(losses_now) / len(losses_now) == pytest.approx(closest["probe_forget_loss"], abs=0.03)  # bf16 rounding
    dtypes = {str(t.dtype) for t in AutoModelForCausalLM.from_pretrained(out / "model", dtype="auto").parameters()}
    assert dtypes == {"torch.bfloat16"}
    assert set(files(out)) >= {"model/model.safetensors", "model/chat_template.jinja", "log.jsonl", "pairing.jsonl"}
    assert not (out / "checkpoints").exists()


@pytest.mark.parametrize("method", PARAMETERS)
def test_every_method_runs_and_records_what_it_trained_on(method: str, inputs: dict[str, Path], out: Path) -> None:
    if method in ("csd", "altpo"):
        (inputs["data"] / "guides.jsonl").touch()
        with pytest.raises(InputError, match=r"6 of 6 forget rows .*for_unlearning"):
            run.run(unlearn_config(method=method), inputs, out)
        write_other_facts(inputs["data"])
    facts = run.run(unlearn_config(method=method, epochs=2, refusal_seed=3 if method == "po" else None), inputs, out)
    pairing = (out / "pairing.jsonl").read_bytes()
    assert facts.pairing_sha256 == hashlib.sha256(pairing).hexdigest()
    assert facts.seeds == UnlearnSeeds(pairing=0, training=42, refusals=3 if method == "po" else None)
    pairs = [json.loads(line) for line in pairing.decode().splitlines()]
    forget = {row.row_id for row in read_rows(inputs["data"] / "forget.jsonl")}
    retain = {row.row_id for row in read_rows(inputs["data"] / "retain.jsonl")}
    assert {pair["forget"] for pair in pairs} == ({None} if method == "ft" else forget)
    assert {row for pair in pairs for row in pair["retain"]} == (set() if method == "ga" else retain)
    assert {pair.get("alternate") for pair in pairs} == ({0, 1} if method in ("csd", "altpo") else {None})
    if method == "po":
        refusals = {pair["forget"]: pair["refusal"] for pair in pairs}
        expected = draw_refusals(read_rows(inputs["data"] / "forget.jsonl"), 3)
        assert list(refusals[f"en-{i}-t"] for i in range(6)) == expected  # noqa: C400
    assert log_of(out, "probe_retain_loss")
    assert (out / "model" / "model.safetensors").is_file()


def test_ascent_raises_the_forget_loss_while_retain_is_held(inputs: dict[str, Path], out: Path) -> None:
    config = unlearn_config(epochs=10, keep="last", stop=None)
    run.run(config, inputs, out)
    history = log_of(out, "forget_loss")
    assert history[-1]["retain_loss"] < history[0]["retain_loss"] - 0.5
    assert history[-1]["forget_loss"] > history[-1]["retain_loss"] + 0.5


def test_po_teaches_the_refusal(inputs: dict[str, Path], out: Path) -> None:
    run.run(unlearn_config(method="po", epochs=12, keep="last", stop=None), inputs, out)
    history = log_of(out, "refusal_loss")
    assert history[-1]["refusal_loss"] < history[0]["refusal_loss"] - 1.0
    model, tokenizer = load(out / "model")
    rows = read_rows(inputs["data"] / "forget.jsonl")
    refusals = draw_refusals(rows, 0)
    answered = [run.chat_example(tokenizer, row.question, text) for row, text in zip(rows, refusals, strict=True)]
    encoded = [run.encode(tokenizer, example) for example in answered]
    base, _ = load(inputs["base"] / "model")
    assert sum(row_losses(model, encoded)) < 0.7 * sum(row_losses(base, encoded))


def test_refusals_are_there_for_every_language_and_drawn_by_seed(inputs: dict[str, Path]) -> None:
    refusals = read_refusals()
    assert set(refusals) == {"DE", "EN", "ES", "FR", "IT"}
    every = [text for texts in refusals.values() for text in texts]
    assert len(every) == len(set(every)) == 100
    assert all(text.strip() == text and len(text) > 8 for text in every)
    rows = read_rows(inputs["data"] / "retain.jsonl") * 5
    drawn = draw_refusals(rows, 1)
    assert drawn == draw_refusals(rows, 1) != draw_refusals(rows, 2)
    assert len(set(drawn)) > 10
    assert set(drawn) <= set(refusals["EN"])


@pytest.mark.parametrize("language", [None, "PT"])
def test_po_wants_rows_in_a_language_that_it_has(language: str | None, inputs: dict[str, Path], out: Path) -> None:
    lines = [json.loads(line) for line in (inputs["data"] / "forget.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line | {"language": language}) + "\n" for line in lines)
    (inputs["data"] / "forget.jsonl").write_text(text)
    with pytest.raises(InputError, match="6 forget rows"):
        run.run(unlearn_config(method="po"), inputs, out)


@pytest.mark.parametrize("asked", [0, 6])
def test_a_dual_weight_stays_while_base_is_as_it_was(inputs: dict[str, Path], out: Path, asked: int) -> None:
    """Neighbours are rehearsed with the retain rows, so their loss is in the bound as it is in the steps'."""
    folder = out.with_name("neighbours")
    folder.mkdir()
    rows = read_rows(inputs["data"] / "holdout.jsonl")[:asked]
    write_rows(folder / NEIGHBOURS, [replace(row, answer="who " * 9) for row in rows])
    write_continuations(folder, [])
    config = unlearn_config(
        stop=None,
        keep="last",
        epochs=2,
        dual={"rate": 1000.0, "retain_loss_above_base": 0.0},
        retain_rows_per_forget_row=(12 + asked) // 6,  # so that each step has all of them
        neighbours={"questions": asked} if asked else None,
        args={"learning_rate": 0.0, "per_device_train_batch_size": 6},
    )
    run.run(config, inputs | {"neighbours": folder}, out)
    assert [entry["retain_weight"] for entry in log_of(out, "retain_weight")] == pytest.approx([1.0, 1.0], abs=0.01)


def test_no_checkpoint_within_the_retain_bound_is_an_error(inputs: dict[str, Path], out: Path) -> None:
    stop = {"every": 1, "forget_loss": 50.0, "retain_loss_above_base": 1e-9, "retain_rows": 4}
    with pytest.raises(TrainingError, match="retain loss"):
        run.run(unlearn_config(stop=stop, retain_weight=0.0), inputs, out)


@pytest.mark.parametrize("level", ["gold", {"of": "gold", "plus": 0.5}])
def test_gold_level_without_gold(inputs: dict[str, Path], out: Path, level: Any) -> None:
    del inputs["gold"]
    with pytest.raises(InputError, match="gold"):
        run.run(unlearn_config(forget_cap=level), inputs, out)


def test_holdout_level_without_holdout_rows(inputs: dict[str, Path], out: Path) -> None:
    (inputs["data"] / "holdout.jsonl").write_text("")
    with pytest.raises(InputError, match="holdout"):
        run.run(unlearn_config(forget_cap="holdout"), inputs, out)


@pytest.mark.parametrize("level", ["gold", "holdout"])
def test_a_cap_may_be_a_level_and_a_margin(inputs: dict[str, Path], out: Path, level: str) -> None:
    facts = run.run(unlearn_config(forget_cap={"of": level, "plus": 0.25}, epochs=1), inputs, out)
    base, tokenizer = load(inputs["base"] / "model")
    split = "forget" if level == "gold" else "holdout"  # gold is the same model here
    losses = row_losses(base, encode_rows(tokenizer, read_rows(inputs["data"] / f"{split}.jsonl")))
    assert facts.levels[level] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert facts.forget_cap == facts.levels[level] + 0.25


def test_held_out_rows_are_checked_and_never_trained_on(inputs: dict[str, Path], out: Path) -> None:
    stop = {"every": 1, "forget_loss": 60.0, "retain_loss_above_base": 5.0, "retain_rows": 4}
    run.run(unlearn_config(stop=stop | {"held_out": True}), inputs, out)
    used = {row for line in (out / "pairing.jsonl").read_text().splitlines() for row in json.loads(line)["retain"]}
    assert len(used) == 12 - 4
    with pytest.raises(DataError, match="12 of 12 retain rows"):
        run.run(unlearn_config(stop=stop | {"held_out": True, "retain_rows": 40}), inputs, out)


def test_too_few_retain_rows_for_k(inputs: dict[str, Path], out: Path) -> None:
    with pytest.raises(DataError, match="13 retain rows"):
        run.run(unlearn_config(retain_rows_per_forget_row=13), inputs, out)
    assert not (out / "model").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [({"learning_rat": 1e-3}, "learning_rat"), ({"output_dir": "x"}, "output_dir"), ({"optim": "no such"}, "no such")],
)
def test_trainer_arguments_are_checked(tmp_path: Path, args: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        training_arguments(args, tmp_path, bf16=False)


BATCH, PARTS = "per_device_train_batch_size", "gradient_accumulation_steps"
REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}


@pytest.mark.parametrize(
    ("args", "said", "changes"),
    [
        ({PARTS: "2"}, f"{PARTS} is '2'", {"loss_normalization": "microbatch_mean"}),
        ({PARTS: None}, f"{PARTS} is None", {"processes": 2}),
        ({PARTS: 0}, f"{PARTS} is 0", {"processes": 2}),
        ({PARTS: True}, f"{PARTS} is True", {}),
        ({BATCH: 0}, f"{BATCH} is 0", {}),
        ({BATCH: "3"}, f"{BATCH} is '3'", {}),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "is cosine_with_min_lr and .*kwargs not given", {}),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "is warmup_stable_decay and .*kwargs not given", {}),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; its type .* is float", {}),
        ({"max_grad_norm": None}, "max_grad_norm is None; its type .* is float", {}),
        ({"save_strategy": "best"}, "save_strategy is best", {}),
        ({"accelerator_config": "absent.json"}, "absent.json", {}),
        ({"router_aux_loss_coef": 0.1}, "SFTTrainer. refuses them: .*router_aux_loss_coef", {}),
        (REENTRANT, "use_reentrant", {"gradient_norms_every": 2}),
        *(
            ({name: value}, f"{name} is set by the pipeline", {})
            for name, value in {
                "activation_offloading": True,
                "assistant_only_loss": True,
                "auto_find_batch_size": True,
                "chat_template_path": "x.jinja",
                "completion_only_loss": False,
                "dataloader_drop_last": True,
                "eos_token": "</s>",
                "eval_strategy": "steps",
                "fp16": True,
                "ignore_data_skip": True,
                "shuffle_dataset": True,
                "train_sampling_strategy": "sequential",
                "logging_strategy": "epoch",
                "packing": True,
                "padding_free": True,
                "use_liger_kernel": True,
            }.items()
        ),
    ],
)
def test_args_that_the_trainer_cannot_use_are_refused(
    args: dict[str, Any], said: str, changes: dict[str, Any], inputs: dict[str, Path], out: Path
) -> None:
    with pytest.raises((RecipeError, ValidationError), match=said):
        run.run(unlearn_config(args=args, **changes), inputs, out)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beta": 0.1}, "method gd does not use beta .npo, simnpo, altpo, wga would.; remove it"),
        ({"method": "ft", "retain_weight": 2.0}, "method ft does not use retain_weight"),
        ({"method": "ga", "retain_rows_per_forget_row": 2}, "method ga does not use retain_rows_per_forget_row"),
        ({"method": "npo", "forget_cap": 5.0}, "method npo does not use forget_cap"),
        ({"method": "klm", "retain_loss": "nll"}, "method klm does not use retain_loss"),
        ({"method": "npo", "gamma": 0.0}, "does not use gamma .simnpo would"),
        ({"refusal_seed": 1}, "does not use refusal_seed"),
        ({"retain_loss": "kl", "dual": {"rate": 1.0, "retain_loss_above_base": 0.1}}, "dual bounds the retain loss"),
        ({"method": "ga", "gradient_norms_every": 1}, "compares two terms"),
        ({"forget_weight": 0.0, "gradient_norms_every": 1}, "forget_weight is 0"),
        ({"forget_weight": 0.0, "retain_weight": 0.0}, "both 0, so nothing is trained"),
        ({"lora": {"r": 4, "alpha": 8.0}, "train_from_layer": 1}, "give one of the two"),
        ({"lora": {"r": 4, "alpha": 8.0, "target_modules": ["q_proj", "lm_head"]}}, "neither head nor embeddings"),
        ({"lora": {"r": 4, "alpha": 8.0, "target_modules": []}}, "at least one linear layer"),
        ({"stop": None}, "closest needs the level of a stop rule"),
        ({"args": {"max_steps": 3}}, "follows from `epochs`"),
        ({"forget_cap": "false_answers", "stop": None, "keep": "last"}, "give `stop`"),
        (
            {
                "forget_cap": {"of": "false_answers", "plus": 0.1},
                "stop": {"every": 4, "forget_loss": "gold", "retain_loss_above_base": 0.1},
            },
            "multiple of stop",
        ),
        *(
            ({"forget_cap": "false_answers", "stop": STOP_AT_3, "args": {"save_strategy": "steps"} | saves}, said)
            for saves, said in [
                ({}, "save_steps is 500"),
                ({"save_steps": 0.1}, "save_steps is 0.1"),
                ({"save_steps": 0}, "save_steps is 0 "),
            ]
        ),
    ],
)
def test_options_that_contradict_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unlearn_config(**changes)


def test_a_parameter_has_its_methods_value_and_null_is_not_given() -> None:
    assert unlearn_config(method="npo").beta == 0.1
    assert unlearn_config(method="npo", beta=0.5).beta == 0.5
    assert unlearn_config(method="npo", beta=None, forget_cap=None).beta == 0.1
    ft = UnlearnConfig.model_validate({"method": "ft", "epochs": 1, "forget_weight": None})
    assert {k for k, v in ft.model_dump().items() if k in PARAMETERS["gd"] and v is not None} == {
        "retain_rows_per_forget_row"
    }


def test_few_forget_rows_take_more_passes_for_as_many_steps(inputs: dict[str, Path], out: Path) -> None:
    """The rows that there are, in steps of 2: two passes, or as many as 12 steps need."""
    rows = len(read_rows(inputs["data"] / "forget.jsonl"))
    config = unlearn_config(epochs=2, min_steps=12, args={"per_device_train_batch_size": 2})
    assert config.passes(24) == 2 == unlearn_config(epochs=2).passes(1)
    assert (config.passes(12), config.passes(5), config.passes(1)) == (2, 5, 24)
    facts = run.run(config, inputs, out)
    assert facts.steps == math.ceil(config.passes(rows) * rows / 2) >= 12


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


@pytest.mark.parametrize("keep", ["last", "closest"])
def test_weights_are_written_at_checks_only_if_they_may_be_released(
    keep: str, inputs: dict[str, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `last` nobody reads them, and where weights are sharded the first process has none to write."""
    written = []

    def write(model: torch.nn.Module, target: Path) -> None:
        written.append(target)
        keep_weights(model, target)

    monkeypatch.setattr("pipeline.unlearn.stopping.keep_weights", write)
    run.run(unlearn_config(keep=keep, epochs=1), inputs, out)
    assert bool(written) == (keep == "closest")


@pytest.mark.parametrize(
    ("checks", "ends_at"),
    [
        ([(1.0, 2.1), (1.0, 2.1), (1.0, 2.1), (1.0, 1.0)], 3),  # three in a row above the bound of 2
        ([(1.0, 2.1), (1.0, 2.1), (1.0, 1.9), (1.0, 2.1), (1.0, 2.1), (3.0, 2.0)], 6),  # it comes back; then its level
        ([(3.5, 2.1), (3.2, 1.9)], 2),  # the level counts within the bound only
        ([(3.0, 1.0)], 1),
        ([(1.0, 1.0)] * 4, None),
    ],
)
def test_when_the_ascent_ends(tmp_path: Path, checks: list[tuple[float, float]], ends_at: int | None) -> None:
    values = iter(checks)
    end = EndOfAscent(lambda: Check(*next(values), 3.0), 2.0, 1, tmp_path / "kept")
    state, control, model = TrainerState(max_steps=99), TrainerControl(), torch.nn.Linear(1, 1)
    for step in range(1, len(checks) + 1):
        state.global_step = step
        end.on_step_end(None, state, control, model=model)
        if control.should_training_stop:
            break
    assert (step if control.should_training_stop else None) == ends_at
    assert ends_at is None or end.reason != "all epochs done"


def write_guides(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "forget.jsonl").read_text().splitlines()]
    guides = [PerturbedRow(r["row_id"], "forget", (r["answer"] + " zzz", r["answer"] + " qqq")) for r in rows]
    write_rows(data / "guides.jsonl", guides)


def write_other_facts(data: Path) -> None:
    """Two false answers to each forget row, of the true one's form."""
    rows = read_rows(data / "forget.jsonl")
    other = [(f"{r.name} was born in 9{i}.", f"{r.name} was seen in 8{i}.") for i, r in enumerate(rows)]
    guides = [PerturbedRow(r.row_id, "forget", answers) for r, answers in zip(rows, other, strict=True)]
    write_rows(data / "guides.jsonl", guides)


def test_false_answers_are_a_level_for_each_row(inputs: dict[str, Path], out: Path) -> None:
    stop = {"every": 1, "forget_loss": "false_answers", "retain_loss_above_base": 5.0, "retain_rows": 4}
    config = unlearn_config(forget_cap="false_answers", stop=stop, epochs=20)
    (inputs["data"] / "guides.jsonl").touch()
    with pytest.raises(InputError, match="for_unlearning"):
        run.run(config, inputs, out)
    write_guides(inputs["data"])
    facts = run.run(config, inputs, out)
    checks = log_of(out, "probe_level")
    assert len({entry["probe_level"] for entry in checks}) == len(checks)  # it moves with the model
    assert checks[-1]["probe_forget_loss"] >= checks[-1]["probe_level"]
    assert "reached its level" in facts.stopped


def test_a_rule_on_some_forget_rows_reads_these_alone(inputs: dict[str, Path], out: Path) -> None:
    write_guides(inputs["data"])
    stop = {"every": 1, "forget_loss": "false_answers", "retain_loss_above_base": 5.0, "retain_rows": 4}
    config = unlearn_config(forget_cap="false_answers", stop={**stop, "forget_rows": 2}, epochs=1, keep="last")
    run.run(config, inputs, out)
    selection = read_selection(out)
    assert selection
    read = selection.read.forget
    assert len(read) == 2
    model, tokenizer = load(out / "model")
    rows = [row for row in read_rows(inputs["data"] / "forget.jsonl") if row.row_id in read]
    losses = row_losses(model, encode_rows(tokenizer, rows))
    # the released weights are rounded to bfloat16 after the last check
    assert log_of(out, "probe_level")[-1]["probe_forget_loss"] == pytest.approx(sum(losses) / 2, abs=0.02)


def test_caps_of_rows_that_are_not_checked_move_as_those_of_the_checked_do(
    inputs: dict[str, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_other_facts(inputs["data"])
    asked: list[int] = []
    caps: list[torch.Tensor] = []

    def counted(model: Any, guides: list[list[Any]]) -> list[float]:
        asked.append(len(guides))
        return mean_by_row(model, guides)

    def moved(trainer: Any, *given: Any) -> None:
        moving(trainer, *given)
        caps.append(trainer.forget_caps)

    moving = run._move_caps
    monkeypatch.setattr(run, "mean_by_row", counted)
    monkeypatch.setattr(run, "_move_caps", moved)
    stop = {"every": 1, "forget_loss": 60.0, "retain_loss_above_base": 5.0, "retain_rows": 4, "forget_rows": 2}
    config = unlearn_config(forget_cap={"of": "false_answers", "plus": 0.5}, stop=stop, epochs=1)
    facts = run.run(config, inputs, out)
    assert asked == [6] + [2] * (1 + facts.steps)  # base's of all rows once, then before and after each step
    base, tokenizer = load(inputs["base"] / "model")
    forget = read_rows(inputs["data"] / "forget.jsonl")
    at_base = torch.tensor(mean_by_row(base, read_guides(config, inputs["data"], forget, tokenizer))) + 0.5
    torch.testing.assert_close(caps[0], at_base, atol=1e-5, rtol=0)
    selection = read_selection(out)
    assert selection
    read = torch.tensor([row.row_id in selection.read.forget for row in forget])
    for at_check in caps:
        drift = (at_check - at_base)[read].mean()
        torch.testing.assert_close((at_check - at_base)[~read], drift.expand(4), atol=1e-5, rtol=0)
    assert len({round(float(c[~read][0]), 6) for c in caps}) > 1


def test_frozen_layers_do_not_move(tiny_model: Path, inputs: dict[str, Path], out: Path) -> None:
    with pytest.raises(RecipeError, match="layers 0 to 1"):
        run.run(unlearn_config(train_from_layer=2), inputs, out)
    run.run(unlearn_config(train_from_layer=1, keep="last"), inputs, out)
    before = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out / "model", dtype="auto").state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("model.layers.1.") or name == "model.norm.weight" for name in moved)


@pytest.mark.parametrize("method", ["npo", "altpo"])
def test_preferences_start_from_a_ratio_of_one(method: str, inputs: dict[str, Path], out: Path) -> None:
    write_other_facts(inputs["data"])
    run.run(unlearn_config(method=method, retain_weight=0.0, epochs=1, keep="last", stop=None), inputs, out)
    assert log_of(out, "loss")[0]["loss"] == pytest.approx(2 / 0.1 * math.log(2), abs=1e-4)


def test_klm_starts_from_a_divergence_of_zero(inputs: dict[str, Path], out: Path) -> None:
    run.run(unlearn_config(method="klm", forget_weight=0.0, epochs=1, keep="last", stop=None), inputs, out)
    assert log_of(out, "loss")[0]["loss"] == pytest.approx(0.0, abs=1e-5)


def test_a_tokenizer_without_pad_token_is_released_as_it_is(
    tiny_model: Path, inputs: dict[str, Path], out: Path, tmp_path: Path
) -> None:
    """Nothing is padded, so nothing is invented: a peer sets pad = eos and masks every end of turn."""
    model, tokenizer = load(tiny_model)
    tokenizer.pad_token = None
    model.config.pad_token_id = None
    model.generation_config.pad_token_id = None
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "unpadded")
    (inputs["base"] / "model").unlink()
    (inputs["base"] / "model").symlink_to(tmp_path / "unpadded")
    run.run(unlearn_config(epochs=1), inputs, out)
    assert load(out / "model")[1].pad_token is None
