"""`auto` is the precision that the model's products are faster in, the same for every training of a release."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datasets_prep.schema import Encoded
from pipeline.train import precision, start_model
from pipeline.train.arguments import training_arguments
from pipeline.train.config import ModelConfig, TrainConfig
from pipeline.train.facts import Products
from pipeline.train.fit import load
from pipeline.train.trainer import CompletionTrainer, row_dataset
from pipeline.unlearn.config import UnlearnConfig
from tests.unlearning import files


@pytest.fixture
def _knows_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.mark.parametrize(
    ("fp32", "bf16", "faster"), [(1.0, 0.3, "bf16"), (1.0, 0.8, "bf16"), (1.0, 0.9, "fp32"), (0.65, 1.0, "fp32")]
)
@pytest.mark.usefixtures("_knows_bf16")
def test_bfloat16_has_to_be_clearly_faster(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float, faster: str
) -> None:
    monkeypatch.setattr(precision, "_seconds", lambda *_: (fp32, bf16))
    measured = precision.products(tiny_model)
    assert measured == Products(precision=faster, fp32_seconds=fp32, bf16_seconds=bf16)


@pytest.mark.usefixtures("_knows_bf16")
def test_it_measures_the_products_of_the_models_own_layers(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, measured_products: Callable[..., tuple[float, float]]
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(precision, "_seconds", lambda *shape: seen.append(shape) or measured_products(*shape))
    monkeypatch.setattr(precision, "LEAST", 8)
    measured = precision.products(tiny_model)
    config = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    assert seen == [(config["hidden_size"], config["intermediate_size"])]
    assert measured.fp32_seconds
    assert measured.bf16_seconds


def test_a_processor_without_bfloat16_is_not_measured(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert precision.products(tiny_model) == Products.unmeasured("fp32")


def test_trainings_take_what_the_model_stage_measured_and_their_keys_know_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is trained from a model that was measured otherwise has another key: its input has another content."""
    config = ModelConfig.model_validate({"path": str(tiny_model), "name": "demo/x", "license": "apache-2.0"})
    content = {}
    for number, (faster, seconds) in enumerate([("fp32", 1.0), ("bf16", 1.0), ("bf16", 2.0)]):
        measured = Products(precision=faster, fp32_seconds=seconds, bf16_seconds=seconds)
        monkeypatch.setattr(precision, "products", lambda _, measured=measured: measured)
        out = tmp_path / str(number)
        out.mkdir()
        assert start_model.run(config, {}, out).products == measured
        for training in (TrainConfig(), UnlearnConfig(method="gd", epochs=1)):
            assert precision.in_bf16(training, {"model": out}) == (faster == "bf16")
        content[number] = files(out)
    assert content[0] != content[1] == content[2]


def test_a_recipe_that_names_a_precision_needs_no_measurement() -> None:
    assert precision.in_bf16(TrainConfig(precision="bf16"), {})
    assert not precision.in_bf16(TrainConfig(precision="fp32"), {})


@pytest.mark.parametrize(("bf16", "has"), [(False, "no"), (True, "bf16")])
def test_what_a_launcher_says_of_the_precision_is_not_the_recipes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16: bool, has: str
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16" if bf16 else "bf16")
    arguments = training_arguments({}, tmp_path, bf16=bf16)
    model, tokenizer = load(tiny_model)
    rows = row_dataset([Encoded((5, 6, 7, 8), 2)])
    trainer = CompletionTrainer(model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    assert trainer.accelerator.mixed_precision == has
