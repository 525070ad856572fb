"""The base, gold and novice stages: fine-tune the start model on the rows it is meant to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import TrainingError
from core.ranks import is_first
from datasets_prep.chat import encode_rows
from datasets_prep.schema import read_rows
from pipeline.train.arguments import training_arguments
from pipeline.train.config import TrainConfig
from pipeline.train.facts import TrainingFacts, TrainingSeeds
from pipeline.train.fit import (
    delete_checkpoints,
    fit,
    freeze_below,
    load,
    memory_limits,
    release_weights,
    row_digest,
    whole_model,
)
from pipeline.train.guards import Watch
from pipeline.train.lora import add_adapters
from pipeline.train.precision import in_bf16
from pipeline.train.trainer import CompletionTrainer, row_dataset


@memory_limits()
def train(config: TrainConfig, inputs: Mapping[str, Path], out: Path, splits: Sequence[str]) -> TrainingFacts:
    """Fine-tune ``inputs["model"]`` on ``splits`` of ``inputs["data"]``.

    Writes ``model/`` and ``log.jsonl``; an interrupted run continues from its last checkpoint. Raises TrainingError if
    a guard stops the run, RecipeError if the trainer refuses ``config.args``, SystemLimitError if memory runs out.
    """
    arguments = training_arguments(config.args, out, bf16=in_bf16(config, inputs))
    rows = [row for split in splits for row in read_rows(inputs["data"] / f"{split}.jsonl")]
    model, tokenizer = load(inputs["model"], config.frozen)
    freeze_below(model, config.train_from_layer)

    def adapted(model: Any) -> Any:
        return add_adapters(model, config.lora, arguments.seed) if config.lora else model

    trained = adapted(model)
    encoded = encode_rows(tokenizer, rows)
    trainer = CompletionTrainer(
        trained,
        args=arguments,
        train_dataset=row_dataset(encoded),
        processing_class=tokenizer,
        callbacks=[Watch("train")],
    )
    refused = fit(trainer, out, {"train": config.identity(), "rows": row_digest(encoded)})
    if refused:
        raise TrainingError(
            f"train: {refused}, so the model did not learn its rows. Nothing was kept. Lower the learning rate, or add "
            "warm-up steps."
        )
    trained = whole_model(trainer, trained, lambda: adapted(load(inputs["model"], config.frozen)[0]))
    if is_first():
        release_weights(trained, tokenizer, encoded, out / "model")
        delete_checkpoints(out)
    return TrainingFacts(
        rows=len(rows),
        steps=trainer.state.global_step,
        splits=list(splits),
        seeds=TrainingSeeds(training=arguments.seed),
    )
