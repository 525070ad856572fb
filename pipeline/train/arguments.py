"""The trainer's arguments: a recipe's ``args``, checked before anything is loaded, and what the pipeline sets."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from inspect import formatannotation
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from trl import SFTConfig

from core.errors import RecipeError
from core.ranks import share_of_step, world_size
from core.yaml_source import did_you_mean

CHECKPOINTS = "checkpoints"  # the trainer's folder, which is deleted at the end
TRACKERS = ("tensorboard", "trackio")
SET: dict[str, Any] = {
    # Not supported, or set by another key of the recipe: a recipe may not set them.
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "max_length": None,
    "packing": False,
    "padding_free": False,
    "assistant_only_loss": False,
    "completion_only_loss": None,  # the loss is always of the answers
    "shuffle_dataset": False,
    "train_sampling_strategy": "random",  # several processes draw the order of a single one
    "loss_type": "nll",
    "label_smoothing_factor": 0.0,
    "eos_token": None,
    "chat_template_path": None,
    "use_liger_kernel": False,
    "activation_offloading": False,
    "fp16": False,
    "eval_strategy": "no",
    "eval_on_start": False,
    "dataloader_drop_last": False,
    "auto_find_batch_size": False,
    "ignore_data_skip": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,  # it would hide what the guard looks for
    "disable_tqdm": True,
    "save_only_model": False,
    "push_to_hub": False,
}


def training_arguments(args: dict[str, Any], out: Path, *, bf16: bool, **fixed: Any) -> SFTConfig:
    """TRL's SFTConfig from the recipe's ``args``. Raises RecipeError if a field is unknown, reserved or refused."""
    reserved_values = {
        "output_dir": str(out / CHECKPOINTS),
        "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        **SET,
        **fixed,
    }
    reserved = sorted(set(args) & set(reserved_values))
    if reserved:
        raise RecipeError(
            f"args: {', '.join(reserved)} {'is' if len(reserved) == 1 else 'are'} set by the pipeline. Remove "
            f"{'it' if len(reserved) == 1 else 'them'} from the recipe."
        )
    names = [field.name for field in dataclasses.fields(SFTConfig) if field.init]
    if unknown := sorted(set(args) - set(names)):
        raise RecipeError(
            f"args.{unknown[0]}: the trainer's configuration (trl.SFTConfig) has no such argument."
            f"{did_you_mean(unknown[0], names)} Correct or remove it."
        )
    _check_types(args)
    reserved_values["report_to"] = _trackers(args.get("report_to"))
    if args.get("save_strategy") == "best":
        raise RecipeError("args.save_strategy is best, but nothing is evaluated during training; set steps or no.")
    defaults = {
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "save_total_limit": 1,
        "optim": "adamw_torch_fused",
    }
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)  # of a launcher: without fp16 and bf16 the trainer would obey it
    try:
        return SFTConfig(**{**defaults, **share_of_step(args, world_size()), **reserved_values})
    except (TypeError, ValueError, ImportError, OSError) as error:
        raise RecipeError(f"args: the trainer's configuration (trl.SFTConfig) refuses them: {error}") from error


def _check_types(args: dict[str, Any]) -> None:
    """Raise RecipeError if a value is not of its field's type; the trainer would notice only at its first step."""
    types = get_type_hints(SFTConfig)
    for name in sorted(args.keys() & types):
        try:
            TypeAdapter(types[name]).validate_python(args[name], strict=True)
        except ValidationError as error:
            kind = formatannotation(types[name])
            raise RecipeError(f"args.{name} is {args[name]!r}; its type in trl.SFTConfig is {kind}.") from error


def _trackers(report_to: str | list[str] | None) -> list[str]:
    """Where curves go. Raises RecipeError if a tracker is not supported or installed, or writes into the artifact."""
    names = [] if report_to is None else [report_to] if isinstance(report_to, str) else report_to
    names = [name for name in names if name != "none"]
    for name in names:
        if name not in TRACKERS:
            raise RecipeError(f"args.report_to is {name!r}; supported are {' and '.join(TRACKERS)}, or none.")
        if importlib.util.find_spec(name) is None:
            raise RecipeError(
                f"args.report_to: the package {name} is not installed. Run pip install {name}, or set none."
            )
        if name == "tensorboard" and not os.environ.get("TENSORBOARD_LOGGING_DIR"):
            raise RecipeError(
                "args.report_to: tensorboard writes beside the checkpoints, which are deleted at the end. Set the "
                "environment variable TENSORBOARD_LOGGING_DIR to a folder of yours."
            )
    return names
