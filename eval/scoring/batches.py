"""How many texts share a forward: as many as its largest tensor allows.

That is the logits where texts are scored, and the keys and values where they are generated. Both grow with the padded
tokens of a batch: 128 questions of 3,000 tokens have 300 GB of logits over a vocabulary of 128,256.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

FORWARD_BYTES = 2**31
"""Bytes of the logits, or of the keys and values, of one forward at most. A text that needs more goes alone."""


def logits_bytes(model: PreTrainedModel, *, softmax: bool = False) -> int:
    """Of one position, in the model's own precision; with ``softmax`` also those in float32 that lm-eval makes."""
    vocabulary: int = model.config.get_text_config().vocab_size
    return vocabulary * (model.dtype.itemsize + (4 if softmax else 0))


def cache_bytes(model: PreTrainedModel) -> int:
    """Keys and values of one position in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * int(config.num_hidden_layers * heads * size) * model.dtype.itemsize


def rows_at_once(tokens: int, token_bytes: int, most: int) -> int:
    """How many rows of ``tokens`` positions share a forward: at most ``most``, at least one."""
    return max(1, min(most, FORWARD_BYTES // (max(tokens, 1) * token_bytes)))


def in_batches(lengths: Sequence[int], token_bytes: int, most: int) -> list[list[int]]:
    """The indices of texts of so many ``lengths``, longest first, in batches that are padded to their first text."""
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # stable
        if not room:
            batches.append([])
            room = rows_at_once(lengths[index], token_bytes, most)
        batches[-1].append(index)
        room -= 1
    return batches
