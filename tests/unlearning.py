"""What the tests of unlearning share: random rows, plain forwards to compare with, a trainer and a stage on them."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback

from datasets_prep.chat import load_tokenizer
from datasets_prep.schema import Encoded, Row, write_rows
from pipeline.train.arguments import training_arguments
from pipeline.train.fit import load
from pipeline.train.lora import add_adapters
from pipeline.unlearn.config import UnlearnConfig
from pipeline.unlearn.counterfactual import Counterfactual, Levels, answers_by_place
from pipeline.unlearn.levels import false_log_probs
from pipeline.unlearn.pairing import Pair
from pipeline.unlearn.reference import BaseDistribution, Precision
from pipeline.unlearn.trainer import UnlearnTrainer, pair_dataset

SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}


def row(
    name: str | None, topic: str | None, language: str = "EN", answer: str = "a", question: str = "Where is {}?"
) -> Row:
    """A row about somebody whose name the question holds in the place of `{}`."""
    text = question.format(name)
    return Row(f"{language}-{name}-{topic}-{text}", name, name, language, topic, text, answer)


def some_rows(count: int, seed: int = 0, vocabulary: int = 250) -> list[Encoded]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        size = rng.randrange(6, 20)
        rows.append(Encoded(tuple(rng.randrange(vocabulary) for _ in range(size)), rng.randrange(2, size - 1)))
    return rows


def some_levels(rows: list[Encoded], guides: list[list[Encoded]], seed: int) -> list[Levels]:
    """About half of the tokens are content and a quarter ends, with levels from 0.02 to 3 nats below certainty.

    One row has none of them. Each form token has some place in each of the row's ``guides``.
    """
    rng = random.Random(seed)
    found = []
    for place, (row, false) in enumerate(zip(rows, guides, strict=True)):
        content = [place > 0 and rng.random() < 0.5 for _ in row.input_ids[row.completion_start :]]
        ends = [place > 0 and not c and rng.random() < 0.5 for c in content]
        nats = tuple(-rng.uniform(0.02, 3.0) if c or e else 0.0 for c, e in zip(content, ends, strict=True))
        sizes = [len(other.input_ids) - other.completion_start for other in false]
        form = tuple(tuple(rng.randrange(size) for _ in range(content.count(False))) for size in sizes)
        found.append(Levels(tuple(content), nats, form))
    return found


def some_others(rows: list[Encoded], levels: list[Levels]) -> list[list[tuple[int, ...]]]:
    """No, one or two beginnings about others of each row that has content."""
    beginnings = [[row.input_ids[: row.completion_start], (3, 4)] for row in rows]
    return [asked[: i % 3 if any(levels[i].content) else 0] for i, asked in enumerate(beginnings)]


def some_counterfactual(
    model: Any, rows: list[Encoded], guides: list[list[Encoded]], seed: int, precision: Precision
) -> Counterfactual:
    """What ``model`` says at the answers of ``rows`` and of ``guides``, with :func:`some_levels`.

    It is the novice too.
    """
    levels = some_levels(rows, guides, seed)
    others = some_others(rows, levels)
    base = BaseDistribution(model, answers_by_place(rows, guides, others), precision)
    return Counterfactual(base, base, levels, false_log_probs(model, guides), [len(each) for each in others])


def of_type(model_type: str, tokenizer_of: Path, folder: Path, **more: Any) -> Path:
    """A tiny random model of a type of transformers in ``folder``, with the tokenizer of another model."""
    shutil.copytree(tokenizer_of, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type,
        vocab_size=AutoConfig.from_pretrained(tokenizer_of).vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        **{"initializer_range": 0.2, **more},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def plain_logits(model: Any, rows: list[Encoded]) -> list[torch.Tensor]:
    """Logits at the answer tokens of each row, from one ordinary forward a row: no packing."""
    return [
        model(input_ids=torch.tensor([row.input_ids])).logits[0, row.completion_start - 1 : -1].float() for row in rows
    ]


def plain_log_probs(model: Any, rows: list[Encoded]) -> list[torch.Tensor]:
    """Log-probabilities of each row's answer tokens, from full logits."""
    return [
        torch.stack(
            [line[t] for line, t in zip(logits.log_softmax(-1), row.input_ids[row.completion_start :], strict=True)]
        )
        for logits, row in zip(plain_logits(model, rows), rows, strict=True)
    ]


def unlearn_trainer(
    folder: Path, out: Path, forget: list[Encoded], retain: list[Encoded], args: dict[str, Any], **options: Any
) -> UnlearnTrainer:
    """A trainer on ``pairs`` (one to one, unless given), with fields of the config; gradient difference by default."""
    guides = options.pop("guides", ())
    pairs = options.pop("pairs", None) or [Pair(0, i, (i,)) for i in range(len(forget))]
    callbacks = options.pop("callbacks", [])
    config = UnlearnConfig.model_validate({"method": "gd", "epochs": 1} | options)
    model, tokenizer = load(folder, config.frozen)
    arguments = training_arguments(args, out, bf16=config.precision == "bf16", num_train_epochs=1)
    trained: Any = add_adapters(model, config.lora, arguments.seed) if config.lora else model
    return UnlearnTrainer(
        trained,
        config=config,
        args=arguments,
        train_dataset=pair_dataset(pairs, forget, retain, guides),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def bigrams(folder: Path, follows: dict[str | int, dict[str | int, float]]) -> Any:
    """A Llama whose layers do nothing: each token alone says what follows it, with the given probabilities."""
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def token(of: str | int) -> int:
        return of if isinstance(of, int) else int(tokenizer.convert_tokens_to_ids(of))

    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_(), layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(model.config.hidden_size**-0.5)  # so that a unit vector stays one
        model.set_output_embeddings(torch.nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False))
        embedding, head = model.get_input_embeddings().weight.zero_(), model.lm_head.weight.zero_()
        for place, (before, nexts) in enumerate(follows.items()):
            embedding[token(before), place] = 1.0
            head[:, place] = -30.0
            for after, probability in nexts.items():
                head[token(after), place] = math.log(probability)
    return model


def stage_inputs(tiny_model: Path, folder: Path) -> dict[str, Path]:
    """Artifacts of data and models: 6 forget, 12 retain and 6 holdout rows, and the tiny model as all of these.

    No row is kept from the unlearning, so the file of those is empty.
    """
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
    parts = {"forget": rows[:6], "retain": rows[6:18], "holdout": rows[18:], "unrehearsed": []}
    for split, part in parts.items():
        write_rows(data / f"{split}.jsonl", part)
    base = folder / "base"
    base.mkdir()
    (base / "model").symlink_to(tiny_model)
    return {"base": base, "data": data, "gold": base, "novice": base, "model": tiny_model}


def unlearn_config(**changes: Any) -> UnlearnConfig:
    """Eight steps of three pairs with a check after each, and what ``changes`` says."""
    args = {"learning_rate": 3e-3, "per_device_train_batch_size": 3, "save_strategy": "steps", "save_steps": 2}
    stop = {"every": 1, "forget_loss": 6.6, "retain_loss_above_base": 5.0, "retain_rows": 4}
    given = {"method": "gd", "epochs": 4, "precision": "fp32", "keep": "closest", "stop": stop, "args": args}
    return UnlearnConfig.model_validate(given | changes)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class CutOff(TrainerCallback):
    """Ends a run as a kill between two steps would: after the checkpoint of ``step``, without any clean-up."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt
