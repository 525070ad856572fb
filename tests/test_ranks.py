"""One training on two real processes (gloo): the weights, rows and pairing of one, and one builder of artifacts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from core import ranks
from core.errors import InputError, RecipeError
from core.steps import rows_per_step
from eval import suite
from eval.config import EvalConfig
from pipeline.engine import machine
from pipeline.engine.launch import CONFIGS, Children, check_launch
from pipeline.engine.runner import Store
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from pipeline.train import fit
from pipeline.train.config import TrainConfig
from pipeline.train.trainer import COLUMNS, EvenSampler, collate
from pipeline.unlearn import run
from pipeline.unlearn.config import UnlearnConfig
from tests import two_ranks
from tests.conftest import Call
from tests.eval_rows import build_data, build_speaking_model
from tests.processes import on_two_ranks
from tests.test_release import write_recipe
from tests.unlearning import stage_inputs, unlearn_config

STOP = "unlearn.stop={every: 1, forget_loss: 6.0, retain_loss_above_base: 0.1}"
CLOSEST = ("unlearn.keep=closest", STOP)
TRAININGS = ("base.train", "gold.train", "unlearn")


@given(st.integers(1, 16), st.integers(1, 8), st.integers(1, 8))
def test_a_step_is_shared_out_whole_or_refused(batch: int, parts: int, processes: int) -> None:
    args = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts, "seed": 1}
    rows = batch * parts
    if rows % processes:
        with pytest.raises(RecipeError, match=f"{rows} rows.*{processes} processes"):
            ranks.share_of_step(args, processes)
        return
    share = ranks.share_of_step(args, processes)
    assert rows_per_step(share) * processes == rows
    assert share["per_device_train_batch_size"] <= batch
    assert share["seed"] == 1
    if parts % processes == 0:
        assert share["per_device_train_batch_size"] == batch


def test_a_recipe_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"8 rows.*3 processes"):
        TrainConfig(processes=3)
    args = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    with pytest.raises(ValueError, match="micro-batches"):
        UnlearnConfig(method="gd", epochs=1, processes=2, args=args, loss_normalization="microbatch_mean")
    UnlearnConfig(method="gd", epochs=1, processes=2, args=args)


def test_processes_that_the_recipe_does_not_name_are_checked_too(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `accelerate launch … -m pipeline run unlearn RECIPE`."""
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    args = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    config = UnlearnConfig(method="gd", epochs=1, args=args, loss_normalization="microbatch_mean")
    with pytest.raises(RecipeError, match=r"micro-batches, and 3 .* over 2 processes"):
        run.run(config, {}, tmp_path)


def test_processes_enter_no_key_and_no_card() -> None:
    on_one, on_four = (
        {stage.name: stage for stage in stages(load_recipe("demo", [f"{name}.processes={n}" for name in TRAININGS]))}
        for n in (1, 2)
    )
    for name, stage in on_one.items():
        assert on_four[name].identity == stage.identity, name
    assert on_four["card"].config == on_one["card"].config


@given(st.integers(1, 30), st.integers(1, 6))
def test_every_rank_gets_equally_many_and_each_item_counts_once(items: int, count: int) -> None:
    shares = []
    for mine in range(count):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"LOCAL_RANK": mine, "RANK": mine, "WORLD_SIZE": count}.items():
                patch.setenv(name, str(value))
            shares.append(ranks.my_share(list(range(items))))
    assert len({len(share) for share in shares}) == 1
    assert sorted(item for share in shares for item, counts in share if counts) == list(range(items))


def test_the_order_of_rows_is_that_of_one_process() -> None:
    even = EvenSampler(5, 8, data_seed=7)
    alone = EvenSampler(5, 5, data_seed=7)
    for epoch in range(3):
        even.set_epoch(epoch), alone.set_epoch(epoch)
        assert list(even) == [*alone, 5, 6, 7]


def test_a_rank_without_rows_has_a_batch_without_tokens_to_learn() -> None:
    batch = collate([{name: [] for name in COLUMNS}])
    assert batch["targets"].shape == (0,)
    assert batch["is_forget"].shape == (0,)
    assert batch["input_ids"].shape == (1, 2)


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of the same trainings in one process and in two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for out in (one, two):
        for kind in two_ranks.KINDS:
            (out / kind).mkdir()
    for kind in two_ranks.KINDS:
        two_ranks.train(kind, tiny_model, one / kind)
    on_two_ranks(two_ranks.train_and_compare, tiny_model, two, folder=two)
    return one, two


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("kind", two_ranks.KINDS)
def test_two_ranks_give_the_weights_of_one(trained: tuple[Path, Path], kind: str) -> None:
    one, two = (torch.load(folder / kind / "weights.pt") for folder in trained)
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) <= 1e-6
    logs = [read(folder / kind, "log.json") for folder in trained]
    for first, second in zip(*(log["log"] for log in logs), strict=True):
        epoch = {"epoch": first["epoch"]}  # a share of the micro-batches, and empty ones are among them
        assert second | epoch == pytest.approx(first, rel=5e-6, abs=1e-5)  # losses, token counts, gradient norms
    assert logs[1]["losses"] == pytest.approx(logs[0]["losses"], abs=1e-5)


def test_the_ranks_share_the_recorded_pairing(trained: tuple[Path, Path]) -> None:
    forget, retain = two_ranks.FORGET, two_ranks.RETAIN
    recorded = [
        [list(forget[pair.forget].input_ids), *(list(retain[i].input_ids) for i in pair.retain)]
        for pair in two_ranks.PAIRS
    ]
    ranks_saw = [read(trained[1] / "unlearn", f"seen-{rank}.json") for rank in (0, 1)]
    in_turn = [item for micro_batches in zip(*ranks_saw, strict=True) for items in micro_batches for item in items]
    assert [item for item in in_turn if item] == recorded
    for first, second in list(zip(*ranks_saw, strict=True))[:2]:  # until the deck of 17 retain rows is dealt anew
        assert not [row for item in first for row in item[1:] if row in [row for item in second for row in item[1:]]]


def test_sharded_weights_give_the_same_gradients(trained: tuple[Path, Path]) -> None:
    """FSDP2 itself, on the CPU: the shared header, the head in tiles and the shared measuring run inside it."""
    for form, gaps in read(trained[1], "sharded.json").items():
        assert gaps["gradient"] <= 1e-5, form
        assert gaps["losses"] <= 1e-5, form


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MULTI_GPU])
def test_base_is_measured_where_the_trainer_computes(kind: DistributedType) -> None:
    """A launch that shards the weights leaves them on the host until the training begins (meta is the device here)."""
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(distributed_type=kind), args=SimpleNamespace(device=torch.device("meta"))
    )
    model = torch.nn.Linear(1, 1)
    fit.place(trainer, model)
    assert model.weight.is_meta == (kind != DistributedType.MULTI_GPU)  # the trainer itself has placed that one


@pytest.mark.parametrize(
    ("method", "changes", "measured"),
    [
        ("gd", {}, False),
        ("gd", {"retain_loss": "kl"}, True),
        ("gd", {"dual": {"rate": 1.0, "retain_loss_above_base": 0.1}}, True),
        ("gd", {"forget_cap": "gold"}, True),
        ("gd", {"stop": {"every": 1, "forget_loss": 6.0, "retain_loss_above_base": 0.1}}, True),
        ("npo", {}, True),
        ("klm", {}, True),
    ],
)
def test_base_is_placed_before_it_is_measured(
    method: str, changes: dict[str, Any], measured: bool, tiny_model: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    config = unlearn_config(method=method, keep="last", **({"stop": None} | changes))
    seen: list[str] = []

    def levels(*_: Any) -> None:
        seen.append("measured")
        raise InterruptedError

    monkeypatch.setattr(run, "place", lambda *_: seen.append("placed"))
    monkeypatch.setattr(run, "fixed_levels", levels)
    inputs = stage_inputs(tiny_model, tmp_path)
    with pytest.raises(InterruptedError):
        run.run(config, inputs, tmp_path)
    assert seen == (["placed", "measured"] if measured else ["measured"])


def test_a_stage_on_two_processes_is_the_same_artifact(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    """As a user starts it: `release` runs accelerate, which runs the stage on two processes."""
    recipe = str(write_recipe(tmp_path, tiny_model))
    saves = ("--set", "base.train.args.save_strategy=steps")
    common = ("--until", "base", "--json", "--set", "base.train.precision=fp32", *saves)
    found = {}
    for processes in ("2", "1"):
        store = tmp_path / processes
        done = call("release", recipe, "--store", str(store), *common, "--set", f"base.train.processes={processes}")
        assert done.returncode == 0, done.stderr
        found[processes] = store / "tiny" / "base"
        assert sorted(path.name for path in found[processes].iterdir()) == ["log.jsonl", "manifest.json", "model"]
        assert [p.name for p in (store / "store" / "base").iterdir() if p.suffix != ""] == []
    keys = [json.loads((path / "manifest.json").read_text())["key"] for path in found.values()]
    assert keys[0] == keys[1]
    two, one = (load_file(path / "model" / "model.safetensors") for path in found.values())
    for name, tensor in one.items():  # bfloat16: where two sums fall on two sides of a rounding, one unit apart
        torch.testing.assert_close(two[name], tensor, atol=1e-6, rtol=2**-7)
    for two_line, one_line in zip(*((path / "log.jsonl").open() for path in found.values()), strict=True):
        assert json.loads(two_line) == pytest.approx(json.loads(one_line), abs=1e-5)
    again = call("release", recipe, "--store", str(tmp_path / "2"), *common)
    assert "done already" in again.stderr.splitlines()[-1]


@pytest.fixture
def speaking(tmp_path: Path) -> dict[str, Path]:
    """The inputs of an evaluation, of a model whose answers are words."""
    return {"model": build_speaking_model(tmp_path / "speaking"), "data": build_data(tmp_path)}


def test_an_evaluation_on_two_processes_says_the_same(speaking: dict[str, Path], tmp_path: Path) -> None:
    attacks = {"first_words": 0.5, "other_language": True, "steering": {}}
    asked = {"sampling": {"samples": 4, "k": [1, 2]}, "robustness": attacks}
    config = EvalConfig.model_validate({"max_new_tokens": 4, "bootstrap_samples": 100, **asked})
    places = {name: tmp_path / name for name in ("two", "one")}
    for place in places.values():
        place.mkdir()
    on_two_ranks(suite.run, config, speaking, places["two"], folder=tmp_path)
    suite.run(config, speaking, places["one"])
    found = [
        [(place / name).read_text() for name in ("results.json", "samples.jsonl", "lm_eval/fame_topics.json")]
        for place in places.values()
    ]
    two, one = found
    for ours, theirs in zip(*(json.loads(each[0]) for each in found), strict=True):
        numbers = {key: pytest.approx(theirs[key], abs=1e-5) for key in ("value", "ci_low", "ci_high")}
        assert ours == {**theirs, **numbers}
    samples = [[json.loads(line) for line in each[1].splitlines()] for each in found]
    assert [row.get("sampled") for row in samples[0]] == [row.get("sampled") for row in samples[1]]
    assert [row.get("generation") for row in samples[0]] == [row.get("generation") for row in samples[1]]
    assert json.loads(two[2])["results"].keys() == json.loads(one[2])["results"].keys()


def test_an_error_on_several_processes_is_said_once(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, tiny_model))
    spoilt = ("--set", "base.train.args.learning_rate=1e30", "--set", "base.train.processes=2")
    done = call("release", recipe, "--store", str(tmp_path / "store"), "--until", "base", *spoilt)
    assert done.returncode == 3, done.stderr
    errors = [line for line in done.stderr.splitlines() if "rror" in line]
    assert len(errors) == 1
    assert "not finite" in errors[0]
    assert not (tmp_path / "store" / "tiny" / "base").exists()


def test_where_to_launch_is_checked_before_anything_runs(call: Call, tiny_model: Path, tmp_path: Path) -> None:
    recipe = str(write_recipe(tmp_path, tiny_model))
    for where, said in (
        ("slurm", "Give local, ddp, fsdp2, zero3"),
        ("fsdp2-nodes", "--machine_rank"),
        ("x.yaml", "no such"),
    ):
        done = call("release", recipe, "--store", str(tmp_path / "store"), "--launch", where)
        assert done.returncode == 2
        assert said in done.stderr
    if not torch.cuda.is_available():
        done = call("release", recipe, "--store", str(tmp_path / "store"), "--launch", "fsdp2")
        assert done.returncode == 2
        assert "need GPUs" in done.stderr
    sharded = tmp_path / "sharded.yaml"
    sharded.write_text((CONFIGS / "fsdp2.yaml").read_text())
    sets = ("--set", "unlearn.processes=2", "--set", "unlearn.keep=closest")
    done = call("release", recipe, "--store", str(tmp_path / "store"), "--launch", str(sharded), *sets)
    assert done.returncode == 2
    assert "keep: closest needs all of them" in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("where", "sets", "waiting", "said"),
    [
        ("local", ["unlearn.processes=1"], ["unlearn"], None),
        ("ddp", ["unlearn.processes=1"], ["unlearn"], "no stage .* has `processes` above 1"),
        ("ddp", ["eval.processes=2"], ["unlearn"], None),
        (
            "zero3",
            ["eval.processes=2"],
            ["unlearn"],
            "no stage .* has `processes` above 1",
        ),  # evaluations are not sharded
        ("zero3", ["unlearn.processes=2", "unlearn.keep=last"], ["unlearn"], None),
        ("zero3", ["unlearn.processes=2", *CLOSEST], ["unlearn"], "needs all of them"),
        ("zero3", ["unlearn.processes=2", *CLOSEST], ["gate"], None),
        ("zero3", ["base.train.processes=2", *CLOSEST], ["base", "unlearn"], None),
        ("ddp", ["unlearn.processes=2", *CLOSEST, "unlearn.gradient_norms_every=2"], ["unlearn"], None),
        (
            "fsdp2",
            ["unlearn.processes=2", "unlearn.keep=last", "unlearn.gradient_norms_every=2"],
            ["unlearn"],
            "gradient_norms_every needs",
        ),
    ],
)
def test_a_way_to_launch_fits_the_recipe(where: str, sets: list[str], waiting: list[str], said: str | None) -> None:
    recipe = load_recipe("demo", sets)
    config = CONFIGS / f"{'ddp' if where == 'local' else where}.yaml"
    with pytest.raises(InputError, match=said) if said else nullcontext():
        check_launch(where, config, recipe, stages(recipe), waiting)


@pytest.mark.parametrize(("shardable", "used"), [(True, "fsdp2.yaml"), (False, "ddp.yaml")])
def test_only_a_stage_that_may_be_sharded_is(
    shardable: bool, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = dataclasses.replace(stages(load_recipe("demo"))[0], name="x", processes=2, shardable=shardable)

    def start(argv: list[str], **_: Any) -> None:
        raise InterruptedError(argv)

    monkeypatch.setattr(subprocess, "Popen", start)
    options = argparse.Namespace(recipe="demo", set=[], debug=False)
    with pytest.raises(InterruptedError) as caught:
        Children().launch(CONFIGS / "fsdp2.yaml", stage, options, Store(tmp_path, "demo"))
    argv = caught.value.args[0]
    assert argv[argv.index("--config_file") + 1] == str(CONFIGS / used)
    assert argv[argv.index("--num_processes") + 1] == "2"
    assert argv[argv.index("run") + 1] == "x"


def test_processes_find_the_memory_of_a_gpu_that_stages_of_this_process_have_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator keeps what a stage freed, and the first of the processes is on the same GPU."""
    stage = dataclasses.replace(stages(load_recipe("demo"))[0], processes=2)
    seen: list[str] = []
    gpu = SimpleNamespace(empty_cache=lambda: seen.append("given back"), reset_peak_memory_stats=lambda: None)

    def start(argv: list[str], **_: Any) -> None:
        seen.append("started")
        raise InterruptedError

    monkeypatch.setattr(machine, "_cuda", lambda: gpu)
    monkeypatch.setattr(subprocess, "Popen", start)
    options = argparse.Namespace(recipe="demo", set=[], debug=False)
    with pytest.raises(InterruptedError):
        Children().launch(CONFIGS / "ddp.yaml", stage, options, Store(tmp_path, "demo"))
    assert seen == ["given back", "started"]


def test_a_process_waits_as_long_as_the_first_one_does(tmp_path: Path) -> None:
    """Which may wait for another runner's build: longer than torch's 30 minutes, after which all of them ended."""
    on_two_ranks(two_ranks.waits_for_days, folder=tmp_path)


@pytest.mark.parametrize("content", ["- ddp", "a: [", ""])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=r"mine\.yaml: cannot be read as a configuration of accelerate"):
        check_launch(str(file), file, load_recipe("demo"), [], ["unlearn"])


def test_a_file_that_says_another_precision_than_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text((CONFIGS / "ddp.yaml").read_text().replace('mixed_precision: "no"', "mixed_precision: bf16"))
    with pytest.raises(InputError, match=r"mine\.yaml: its mixed_precision is 'bf16'.*`precision` decides"):
        check_launch(str(file), file, load_recipe("demo"), [], ["unlearn"])
