"""How answers are generated: as this project asks for them, and not as the checkpoint says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def end_at(model: PreTrainedModel, token: int) -> None:
    """Let generations of ``model`` end at ``token`` too: a template may end turns with another than the checkpoint."""
    own = model.generation_config
    ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    if token not in ends:
        own.eos_token_id = [*(end for end in ends if end is not None), token]


def keep_special_tokens_alone(model: PreTrainedModel) -> None:
    """Take a checkpoint's own settings for generation out of ``model``, but for its special tokens.

    What a call of `generate` leaves open comes from these, even with a configuration of its own: with a repetition
    penalty, as Qwen's checkpoints have, other answers are the likeliest.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
