"""What the device holds at the fullest moment of a stage of the 3B recipe, beside what the plan says.

Each line runs a few steps of a stage's own code on a model of the recipe's shape, dry: tensors are allocated and not
computed. Values that a run needs to go on are made up, and nothing is written. Traced is the most that tensors had, in
bytes; kernels' own workspaces are not among it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from benchmarks.emulated_gpu.device import Device
from benchmarks.releases import STORE
from datasets_prep import prepare
from datasets_prep.chat import encode_rows, load_tokenizer
from datasets_prep.schema import SPLITS, Encoded, read_rows
from eval import suite
from eval.attacks.copies import stand_in
from eval.attacks.quantize import quantize
from eval.attacks.relearn import relearn
from eval.scoring.probes import Scorer
from pipeline.cost import devices, memory, work
from pipeline.cost.memory import Batch, Parts
from pipeline.cost.shape import parameters
from pipeline.engine.rows import lengths_of
from pipeline.recipe import Recipe, load_recipe
from pipeline.train import fine_tune, fit, trainer
from pipeline.train.config import Shape
from pipeline.unlearn import run
from pipeline.unlearn.continuations import write_continuations

RECIPE = "fame-topics-csd-llama32-3b"
PART = (
    "data.part={languages: [EN, DE, FR, IT, ES], identities: 30, topics: [biography.birthplace, "
    "career.breakthrough_project, achievements.directorial_award, personal.hobby_or_interest]}"
)
NLL = 2.0  # nats of a token, where a method asks models
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
"""The demo's files beside its weights: its tokenizer counts the tokens of rows."""


class At(NamedTuple):
    """A recipe, what its costs follow from, and the folders that its stages read."""

    recipe: Recipe
    shape: Shape
    known: work.Planned
    texts: list[Encoded]
    inputs: dict[str, Path]
    out: Path


def prepared(changes: list[str], folder: Path, rows: Path | None) -> At:
    """The recipe, so changed, with the demo's tokenizer, on a part of FAME's ``rows`` or on the sample set."""
    source = f"file: {rows}" if rows else "sample: {seed: 3, identities: 30, topics: 4}"
    recipe = load_recipe(RECIPE, [f"data.source={{hub: null, {source}}}", *changes])
    shape = recipe.model.shape
    assert shape
    model, data = folder / "model", folder / "data"
    for made in (model, data, folder / "out", folder / "neighbours"):
        made.mkdir()
    for file in FILES:
        shutil.copy(STORE / "demo" / "model" / file, model / file)
    LlamaConfig(**shape.model_dump(), architectures=["LlamaForCausalLM"]).save_pretrained(model)
    prepare.run(recipe.data, {"model": model}, data)
    for trained in ("base", "novice"):
        (folder / trained).mkdir()
        (folder / trained / "model").symlink_to(model)
    (folder / "neighbours" / "neighbours.jsonl").touch()
    write_continuations(folder / "neighbours", [])
    of_splits = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS}
    counts = {split: len(of_split) for split, of_split in of_splits.items()}
    texts = encode_rows(load_tokenizer(model), [row for of_split in of_splits.values() for row in of_split])
    lengths = lengths_of(recipe.data, None, shape, model)
    device, host = devices.named("H100 80GB"), devices.cpu()
    known = work.Planned(shape, parameters(shape), counts, lengths, recipe.data, device, host)
    inputs = {name: folder / name for name in ("model", "data", "base", "novice", "neighbours")}
    return At(recipe, shape, known, texts, inputs, folder / "out")


def on_device(folder: Path, *, dtype: torch.dtype, attn_implementation: str | None = None, **_: Any) -> Any:
    """A model of the shape in ``folder``, in the place of ``from_pretrained``."""
    attention = {"attn_implementation": attn_implementation} if attn_implementation else {}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False, **attention)
    return model.eval()


@contextmanager
def without_values() -> Iterator[None]:
    """Inside the ``with`` block models have no weights, checks of values pass, and no model is written."""
    made_up = {
        run: {"token_log_probs": lambda _, rows: [[-NLL - i % 2 for i in range(_answer(row))] for row in rows]},
        torch: {"isfinite": lambda t: torch.ones(t.shape, dtype=torch.bool), "allclose": lambda *_, **__: True},
        AutoModelForCausalLM: {"from_pretrained": on_device},
    }
    made_up[run]["false_log_probs"] = lambda _, guides: [made_up[run]["token_log_probs"](_, row) for row in guides]
    nothing = {
        fit: ["check_rows_apart"],
        suite: ["check_rows_apart"],
        trainer: ["check_step"],
        fine_tune: ["release_weights"],
        run: ["release_weights"],
    }
    with ExitStack() as patches:
        for owner, functions in made_up.items():
            for name, function in functions.items():
                patches.enter_context(mock.patch.object(owner, name, function))
        for owner, names in nothing.items():
            for name in names:
                patches.enter_context(mock.patch.object(owner, name, _nothing))
        yield


def _nothing(*_: Any, **__: Any) -> None:
    """In the place of a function. A Mock would keep the models that it is called with."""


def _answer(row: Encoded) -> int:
    return len(row.input_ids) - row.completion_start


def training(at: At) -> Parts:
    """Two steps of the base stage."""
    config = at.recipe.base.train
    assert config
    fine_tune.train(config, at.inputs, at.out, ("retain", "forget", "unrehearsed"))
    return work.training(at.recipe.base, at.known, splits=("retain", "forget", "unrehearsed")).parts


def unlearning(at: At) -> Parts:
    """One pass of the unlearn stage, with what it measures before."""
    run.run(at.recipe.unlearn, at.inputs, at.out)
    return work.unlearning(at.recipe.unlearn, at.known).parts


def scoring(at: At) -> Parts:
    """A scoring pass over all rows."""
    Scorer(suite.load(at.inputs["model"], "cuda"), at.recipe.eval.batch_tokens).score(at.texts)
    return memory.of_scoring(at.shape, _forward(at), 2, packed=False)


def quantizing(at: At, form: str) -> Parts:
    """A copy in ``form`` and a scoring pass with it."""
    model = suite.load(at.inputs["model"], "cuda")
    with stand_in(model) as copied:
        quantize(copied, form)
        Scorer(copied, at.recipe.eval.batch_tokens).score(at.texts)
    return memory.of_scoring(at.shape, _forward(at), 2, packed=False)


def relearning(at: At) -> Parts:
    """Two steps of relearning a copy, while the measured model waits on the host."""
    robustness = at.recipe.eval.robustness
    assert robustness
    assert robustness.relearn
    settings, lengths = robustness.relearn, at.known.lengths
    assert lengths
    model = suite.load(at.inputs["model"], "cuda")
    with stand_in(model) as copied:
        relearn(copied, at.texts[: 2 * settings.batch_rows], settings.model_copy(update={"steps": 2}), 0)
    batch = lengths.mean(at.known.rows or {}).fullest(settings.batch_rows)
    return memory.of_relearning(at.shape, batch, 2, settings.rank)


def _forward(at: At) -> Batch:
    tokens, answers = sum(len(row.input_ids) for row in at.texts), sum(map(_answer, at.texts))
    whole = min(at.recipe.eval.batch_tokens, tokens)
    return Batch(whole, round(whole * answers / tokens))


TWO_STEPS = ["base.train.args.max_steps=2", "base.train.args.save_strategy=no"]
ONE_PASS = ["unlearn.epochs=1", "unlearn.args.save_strategy=no"]
OF_8B = [
    "model.parameters=8030261248",
    "model.shape={num_hidden_layers: 32, hidden_size: 4096, intermediate_size: 14336, num_attention_heads: 32, "
    "num_key_value_heads: 8, vocab_size: 128256, tie_word_embeddings: false}",
]
ADAPTERS = "lora={r: 16, alpha: 32, frozen: bf16}"
Work = Callable[[At], Parts]
CASES: dict[str, tuple[Work, list[str]]] = {
    "base: 16 rows x 4, checkpointed": (training, TWO_STEPS),
    "unlearn by csd: 16 + 16 + 32 rows x 4, checkpointed": (unlearning, ONE_PASS),
    "scoring, 16,384 tokens in bf16": (scoring, []),
    "rounded to int8, and scoring": (lambda at: quantizing(at, "int8"), []),
    "rounded to nf4, and scoring": (lambda at: quantizing(at, "nf4"), []),
    "relearning, 16 rows": (relearning, []),
    "8 B, LoRA over bf16: base": (training, [*TWO_STEPS, *OF_8B, f"base.train.{ADAPTERS}"]),
    "8 B, LoRA over bf16: unlearn by csd": (unlearning, [*ONE_PASS, *OF_8B, f"unlearn.{ADAPTERS}"]),
    "8 B, relearning by adapters, 8 rows": (
        relearning,
        [*OF_8B, "eval.robustness.relearn.rank=16", "eval.robustness.relearn.batch_rows=8"],
    ),
}
"""By what a line says: what runs, and what is changed in :data:`RECIPE`."""


def peaks(names: list[str], device: Device, rows: Path | None) -> Iterator[str]:
    """A line for each case."""
    yield "| work | traced | computed | ratio |\n|---|--:|--:|--:|"
    device.run_dry()
    for name in names:
        run_case, changes = CASES[name]
        with tempfile.TemporaryDirectory(prefix="memory-") as folder, without_values():
            source = [PART] if rows else ["card.dataset=null"]  # the sample set has its own name
            at = prepared([*changes, *source], Path(folder), rows)
            device.reset_peak()
            before = device.held
            computed = sum(run_case(at).values())
            traced = device.peak - before
        yield f"| {name} | {traced / 1e9:.2f} GB | {computed / 1e9:.2f} GB | {computed / traced:.2f} |"
