"""What every training of a release shares: arguments, precision, loading, resuming, and the files it leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from datasets_prep.chat import load_tokenizer
from pipeline.errors import ModelError, RecipeError
from pipeline.unlearn import head
from pipeline.unlearn.attention import ROWS_SDPA

CHECKPOINTS = "checkpoints"


def native_bf16() -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def training_arguments(args: dict[str, Any], precision: str, out: Path, **fixed: Any) -> SFTConfig:
    """TRL's SFTConfig from the recipe's ``args``. Raises RecipeError where a field is unknown, reserved or refused."""
    ours = {
        "output_dir": str(out / CHECKPOINTS),
        "bf16": native_bf16() if precision == "auto" else precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "report_to": [],
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide what the guard looks for
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "save_only_model": False,
        "push_to_hub": False,
        **fixed,
    }
    reserved = sorted(set(args) & set(ours))
    if reserved:
        raise RecipeError(
            f"args: {', '.join(reserved)} {'is' if len(reserved) == 1 else 'are'} set by the pipeline; remove it."
        )
    defaults = {
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "save_total_limit": 1,
        "optim": "adamw_torch_fused",
    }
    try:
        return SFTConfig(**{**defaults, **args, **ours})
    except (TypeError, ValueError, ImportError) as error:
        raise RecipeError(f"args: the trainer's configuration (trl.SFTConfig) refuses them: {error}") from error


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model with float32 weights, and tokenizer. Raises ModelError where one of them or a chat template is absent."""
    tokenizer = load_tokenizer(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=ROWS_SDPA)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a causal language model: {error}") from error
    head.install(model)
    return model, tokenizer


def freeze_below(model: PreTrainedModel, layer: int) -> None:
    """Train the layers from ``layer`` on, and the final norm; 0 trains everything, embeddings included.

    Raises RecipeError where the model has no such layer.
    """
    layers = model.get_decoder().layers
    if layer >= len(layers):
        raise RecipeError(f"train_from_layer is {layer}, and the model has the layers 0 to {len(layers) - 1}.")
    if layer:
        for frozen in (model.get_input_embeddings(), model.get_output_embeddings(), *layers[:layer]):
            frozen.requires_grad_(False)


def fit(trainer: SFTTrainer, out: Path) -> None:
    """Train, from the last checkpoint in ``out`` if a run was cut off there, and write ``log.jsonl``."""
    checkpoints = out / CHECKPOINTS
    last = get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    steps = [entry for entry in trainer.state.log_history if "train_runtime" not in entry]  # the summary holds times
    with (out / "log.jsonl").open("w", encoding="utf-8") as file:
        # A log that came back from a checkpoint has its keys sorted.
        file.writelines(json.dumps(entry, sort_keys=True, allow_nan=False) + "\n" for entry in steps)


def save_for_release(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write bfloat16 safetensors, tokenizer and chat template: the files that are evaluated and published."""
    model.bfloat16()
    model.config.use_cache = True  # the trainer turns it off
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)
