"""`python -m benchmarks.emulated_gpu`: its recipes are sound. The device is built and used by the command alone."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from benchmarks.emulated_gpu import memory, walk
from benchmarks.emulated_gpu.device import install
from eval import suite
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from pipeline.train import fine_tune, fit
from tests.conftest import Call


@pytest.mark.parametrize("name", walk.WALKS)
def test_a_walk_is_the_recipe_for_3b_on_a_gpu_with_a_smaller_model(name: str, call: Call, tmp_path: Path) -> None:
    recipe, until, sets = walk.WALKS[name]
    path = str(walk.written(name, tmp_path))
    walked, large = load_recipe(path, [*walk.LESS, *sets]), load_recipe(recipe)
    assert (walked.eval.device, walked.unlearn.method) == ("cuda", large.unlearn.method)
    assert walked.base.train is not None
    assert walked.base.train.precision == "bf16"
    assert until in {stage.name for stage in stages(walked)}
    words = [word for change in (*walk.LESS, *sets, "eval.device=cpu") for word in ("--set", change)]
    done = call("doctor", path, "--store", str(tmp_path / "store"), *words)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", memory.CASES)
def test_what_is_traced_has_the_shape_of_the_large_model(name: str) -> None:
    _, changes = memory.CASES[name]
    shape = load_recipe(memory.RECIPE, changes).model.shape
    assert shape
    assert shape.vocab_size == 128_256
    assert memory.parameters(shape) == pytest.approx(8.03e9 if name.startswith("8 B") else 3.21e9, rel=0.01)


def test_what_is_left_out_of_a_trace_keeps_no_model() -> None:
    model = torch.nn.Linear(1, 1)
    gone = weakref.ref(model)
    with memory.without_values():
        for function in (fit.check_rows_apart, suite.check_rows_apart, fine_tune.release_weights):
            function(model, None, [])
        del model
        assert gone() is None


def test_only_products_that_count_are_counted() -> None:
    with walk.Products() as products:
        torch.ones(2, 3) @ torch.ones(3, 2)
        torch.ones(400, 300) @ torch.ones(300, 2)
    assert products.made == {"cpu": 1}


def test_a_torch_that_has_looked_for_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="torch was imported before"):
        install(tmp_path)
