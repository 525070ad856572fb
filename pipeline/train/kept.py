"""The weights that the early-stopping rule keeps, on disk while the training goes on."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file, load_model, save_file
from transformers import PreTrainedModel


def keep_weights(model: torch.nn.Module, target: Path) -> None:
    """Write weights for :func:`restore_weights`: adapters as they are, a whole model in bfloat16 as in a release."""
    if isinstance(model, PeftModel):
        tensors = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    else:
        tensors = _once(model, torch.bfloat16)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    save_file(tensors, partial)
    sync(partial)
    partial.replace(target)


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _once(model: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    # A tied head is the same tensor as the embedding, and safetensors refuses to store one twice.
    stored: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in stored:
            stored.add(tensor.data_ptr())
            tensors[name] = tensor.detach().to(dtype).contiguous().cpu()
    return tensors


def restore_weights(model: PreTrainedModel | PeftModel, source: Path) -> None:
    """Load the kept weights into the model."""
    if not isinstance(model, PeftModel):
        load_model(model, source)  # knows that a tied head is stored once, and refuses any other difference
        return
    kept = load_file(source)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(kept[name])
