"""Loading a causal language model, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from core import memory
from core.errors import ModelError

NAMED = 5  # missing weights that a message names


def load_model(folder: Path, **settings: Any) -> PreTrainedModel:
    """The model in ``folder``; ``settings`` are those of transformers.

    Raises ModelError if it cannot be loaded, or weights that its config.json asks for are not there: transformers would
    draw them at random.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True, **settings
        )
    except Exception as error:  # safetensors raises a class of its own, and damaged files raise nearly anything
        if memory.ran_out(error):
            raise
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder}: cannot be loaded as a causal language model ({reason:.200}). Make or fetch it again, or "
            "give a model of another architecture."
        ) from error
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        named = ", ".join(missing[:NAMED]) + (" …" if len(missing) > NAMED else "")
        raise ModelError(
            f"{folder}: {len(missing)} weights that its config.json asks for are not in it ({named}). Give the "
            "checkpoint whole, with the config.json that belongs to it."
        )
    return model  # type: ignore[no-any-return]


def skeleton(configuration: Path, **settings: Any) -> PreTrainedModel:
    """The model that a ``config.json`` describes, without weights; ``settings`` are those of transformers.

    Raises ModelError if transformers has no such model, or it does not take the settings.
    """
    try:
        config = AutoConfig.from_pretrained(configuration.parent, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **settings)
    except Exception as error:  # as in load_model
        reason = " ".join(str(error).split())
        raise ModelError(f"{configuration}: describes no model that can be trained here ({reason:.300}).") from error
    return model  # type: ignore[no-any-return]
