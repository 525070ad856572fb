"""Computed memory against the tensors of real steps of a small model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from datasets_prep.schema import Encoded
from eval.attacks.copies import stand_in
from eval.attacks.relearn import relearn
from eval.config import Relearn
from eval.scoring import batches
from eval.scoring.harness import BoundedLM
from eval.scoring.probes import Scorer
from pipeline.cost import memory, shape
from pipeline.cost.memory import Batch
from pipeline.train import head
from pipeline.train.arguments import training_arguments
from pipeline.train.config import TrainConfig
from pipeline.train.fit import freeze_below, load
from pipeline.train.lora import add_adapters
from pipeline.train.trainer import CompletionTrainer, row_dataset
from pipeline.unlearn.pairing import Pair
from pipeline.unlearn.reference import BaseDistribution
from tests.live_memory import LiveMemory
from tests.unlearning import some_counterfactual, unlearn_trainer

WITHIN = 0.15
ROWS, LENGTH, ANSWER = 8, 100, 40
VOCABULARY = 2000


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the proportions of a large one: most of its weights are in its layers."""
    place = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=576, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def known(folder: Path) -> Any:
    read = shape.read_shape(folder / "config.json")
    assert read
    return read


def rows(count: int, seed: int = 0) -> list[Encoded]:
    drawn = random.Random(seed)
    return [Encoded(tuple(drawn.randrange(600) for _ in range(LENGTH)), LENGTH - ANSWER) for _ in range(count)]


def total(parts: memory.Parts) -> int:
    return sum(parts.values())


def test_the_shape_has_the_models_parameters(folder: Path, known: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert shape.parameters(known) == sum(p.numel() for p in model.parameters())
    assert shape.layer_parameters(known) == sum(p.numel() for p in model.model.layers[0].parameters())
    adapted = add_adapters(model, TrainConfig.model_validate({"lora": {"r": 4, "alpha": 8}}).lora, 0)  # type: ignore[arg-type]
    config = TrainConfig.model_validate({"lora": {"r": 4, "alpha": 8}})
    assert config.lora
    assert shape.adapter_parameters(known, config.lora) == sum(
        p.numel() for p in adapted.parameters() if p.requires_grad
    )


CHECKPOINTED = {"gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("changes", "args", "count"),
    [
        ({"precision": "bf16"}, {}, ROWS),
        ({"precision": "fp32"}, {}, ROWS),
        ({"precision": "bf16"}, {}, 1),
        ({"precision": "bf16"}, CHECKPOINTED, ROWS),
        ({"precision": "bf16"}, {"activation_checkpointing": True, "gradient_checkpointing": False}, ROWS),
        ({"precision": "bf16"}, {"activation_checkpointing": False, "gradient_checkpointing": True}, ROWS),
        ({"precision": "fp32"}, {"optim": "sgd"}, ROWS),
        ({"precision": "fp32"}, {"optim": "adafactor"}, ROWS),
        ({"precision": "fp32"}, {"optim": "adamw_bnb_8bit"}, ROWS),
        ({"precision": "bf16"}, CHECKPOINTED | {"gradient_accumulation_steps": 2}, ROWS),
        ({"precision": "bf16", "train_from_layer": 2}, {}, ROWS),
        ({"precision": "bf16", "lora": {"r": 8, "alpha": 16}}, {}, ROWS),
        ({"precision": "fp32", "lora": {"r": 8, "alpha": 16}}, CHECKPOINTED, ROWS),
        ({"precision": "bf16", "lora": {"r": 8, "alpha": 16, "frozen": "bf16"}}, {}, ROWS),
        ({"precision": "bf16", "lora": {"r": 8, "alpha": 16, "frozen": "bf16"}}, CHECKPOINTED, ROWS),
        ({"precision": "bf16", "lora": {"r": 8, "alpha": 16, "frozen": "nf4"}}, {}, ROWS),
        ({"precision": "bf16", "lora": {"r": 8, "alpha": 16, "frozen": "nf4"}}, CHECKPOINTED, ROWS),
    ],
)
def test_a_training_step_needs_what_is_computed(
    folder: Path, known: Any, tmp_path: Path, changes: dict[str, Any], args: dict[str, Any], count: int
) -> None:
    args = args | {"per_device_train_batch_size": count}
    config = TrainConfig.model_validate({**changes, "args": args})
    arguments = training_arguments({**args, "max_steps": 2}, tmp_path, bf16=config.precision == "bf16")
    model, tokenizer = load(folder, config.frozen)
    freeze_below(model, config.train_from_layer)
    trained: Any = add_adapters(model, config.lora, 0) if config.lora else model
    steps = 2 * count * args.get("gradient_accumulation_steps", 1)
    trainer = CompletionTrainer(
        trained, args=arguments, train_dataset=row_dataset(rows(steps)), processing_class=tokenizer
    )
    with LiveMemory(trained.parameters()) as measured:
        trainer.train()
    batch = Batch(count * LENGTH, count * ANSWER)
    computed = memory.of_training(known, config, batch, bf16=config.precision == "bf16")
    assert total(computed) == pytest.approx(measured.peak, rel=WITHIN)


@pytest.mark.parametrize("method", ["gd", "klm", "csd"])
def test_an_unlearning_step_needs_what_is_computed(folder: Path, known: Any, tmp_path: Path, method: str) -> None:
    forget, retain = rows(ROWS, 1), rows(ROWS, 2)
    guides = [[row] for row in rows(ROWS, 3)]
    pairs = [Pair(0, i, (i,), 0 if method == "csd" else None) for i in range(ROWS)]
    args = {"per_device_train_batch_size": ROWS // 2}
    options = {"method": method, "retain_rows_per_forget_row": 1, "pairs": pairs, "guides": guides}
    trainer = unlearn_trainer(folder, tmp_path, forget, retain, args, precision="bf16", **options)
    model, config = trainer.model, trainer.config
    heads = []
    if config.retain_kl:
        trainer.base = BaseDistribution(model, dict(enumerate(retain)), trainer.accelerator.autocast)
        heads.append(trainer.base.head.weight)
    if method == "csd":
        found = some_counterfactual(model, forget, guides, 0, trainer.accelerator.autocast)
        trainer.counterfactual = found
        novice = cast("Any", load(folder)[0]).requires_grad_(False)
        found.novice = BaseDistribution(novice, dict(enumerate(forget)), trainer.accelerator.autocast)
        heads += [found.base.head.weight, found.novice.head.weight]
    with LiveMemory([*model.parameters(), *heads]) as measured:  # type: ignore[union-attr]
        trainer.train()
    count = ROWS // 2 * (3 if config.trains_on_false_answers else 2)
    batch = Batch(count * LENGTH, count * ANSWER)
    assert total(memory.of_unlearning(known, config, batch, bf16=True)) == pytest.approx(measured.peak, rel=WITHIN)


def test_a_large_vocabulary_is_projected_in_tiles(
    folder: Path, known: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (head, memory):
        monkeypatch.setattr(module, "LOGITS_BYTES", 2**20)
        monkeypatch.setattr(module, "TILE", 256)
    args = {"per_device_train_batch_size": ROWS}
    model, tokenizer = load(folder)
    arguments = training_arguments({**args, "max_steps": 2}, tmp_path, bf16=True)
    trainer = CompletionTrainer(
        model, args=arguments, train_dataset=row_dataset(rows(2 * ROWS)), processing_class=tokenizer
    )
    with LiveMemory(model.parameters()) as measured:
        trainer.train()
    config = TrainConfig.model_validate({"precision": "bf16", "args": args})
    computed = memory.of_training(known, config, Batch(ROWS * LENGTH, ROWS * ANSWER), bf16=True)
    assert total(computed) == pytest.approx(measured.peak, rel=WITHIN)


@pytest.fixture
def evaluated(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("tokens", [400, 2000])
def test_a_scoring_pass_needs_what_is_computed(evaluated: Any, known: Any, tokens: int) -> None:
    with LiveMemory(evaluated.parameters()) as measured:
        Scorer(evaluated, tokens).score(rows(40))
    computed = memory.of_scoring(known, Batch(tokens, tokens * ANSWER // LENGTH), 4, packed=True)
    assert total(computed) == pytest.approx(measured.peak, rel=WITHIN)


@pytest.mark.parametrize(("rank", "dtype"), [(None, torch.float32), (4, torch.float32), (4, torch.bfloat16)])
def test_a_relearning_needs_what_is_computed(evaluated: Any, known: Any, rank: int | None, dtype: torch.dtype) -> None:
    measuring = evaluated.to(dtype)
    with LiveMemory(measuring.parameters()) as measured, stand_in(measuring) as model:
        relearn(model, rows(ROWS), Relearn(steps=2, batch_rows=ROWS, rank=rank), 0)
    computed = total(memory.of_relearning(known, Batch(ROWS * LENGTH, ROWS * ANSWER), dtype.itemsize, rank))
    beside = dtype.itemsize * shape.parameters(known)  # on a CPU the measured model does not move
    assert computed + beside == pytest.approx(measured.peak, rel=WITHIN)


def test_suites_and_generations_need_what_is_computed(
    folder: Path, evaluated: Any, known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory.FORWARD_BYTES == batches.FORWARD_BYTES
    assert memory.LOGITS_BYTES == head.LOGITS_BYTES
    assert memory.TILE == head.TILE
    for module in (batches, memory):
        monkeypatch.setattr(module, "FORWARD_BYTES", 2**24)
    model = BoundedLM(evaluated, AutoTokenizer.from_pretrained(folder), 64)
    asked = [(("", ""), list(row.input_ids[:-ANSWER]), list(row.input_ids[-ANSWER:])) for row in rows(40)]
    with LiveMemory(evaluated.parameters()) as measured:
        model._loglikelihood_tokens(asked)
    assert total(memory.of_suites(known, LENGTH, 4)) == pytest.approx(measured.peak, rel=WITHIN)
    ids = torch.tensor([row.input_ids for row in rows(16)])
    with LiveMemory(evaluated.parameters()) as measured:
        evaluated.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=1, eos_token_id=None)
    computed = total(memory.of_generation(known, 16, LENGTH + 20, 4, packed=False))
    assert computed == pytest.approx(measured.peak, rel=WITHIN)
