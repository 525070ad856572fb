"""Attention over packed rows without the products between rows.

transformers' own SDPA attends over the whole packed sequence under a block-diagonal mask, which costs T^2 for T
tokens. Rows are short, so most of that work is wasted. Here the packed queries, keys and values are laid out as
(rows, longest row), attended causally row by row, and packed again; every other layer still sees no padding. A shared
prefix is computed once in the packed form and copied into the layout of every row.

Plain causal attention without a mask is what the fused kernels of every device compute. So an accelerator runs its
flash attention here and needs neither FlexAttention nor a kernel of its own. Short rows on a CPU are the exception:
PyTorch's kernel is slower there than eager attention (several times slower in bfloat16). Layers with a sliding window
get a banded mask of (longest row, longest row), but only where a row is longer than the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from core.errors import ModelError

ROWS_SDPA = "rows_sdpa"
WRITTEN_OUT_TO = {torch.bfloat16: 128, torch.float32: 80}
"""Rows of up to so many tokens get eager attention on a CPU; docs/measurements/time-and-memory.md."""


def row_layout(lengths: Sequence[int], header: int) -> dict[str, torch.Tensor]:
    """Indices between the packed form (T) and the padded one (B, L), for rows with a shared prefix (``header`` tokens).

    The packed form begins with the shared prefix; then follow the other tokens of each row. ``rows_padded`` of shape
    (B, L) holds the packed index of each position, 0 at padding. ``rows_packed`` of shape (T,) holds each packed
    token's index into the flattened (B x L); the prefix is taken from the first row, since its states are the same in
    all rows.
    """
    longest = max(lengths)
    sizes = torch.tensor(lengths)[:, None]
    own_starts = (sizes - header).cumsum(0) - (sizes - header)
    place = torch.arange(longest)[None, :]
    shared, inside = place < header, place < sizes
    padded = torch.where(shared, place, torch.where(inside, own_starts + place, 0))
    own = (inside & ~shared).flatten().nonzero()[:, 0]
    return {"rows_padded": padded, "rows_packed": torch.cat([torch.arange(header), own])}


@contextmanager
def attending_rows(model: PreTrainedModel) -> Iterator[None]:
    """Inside the ``with`` block a model that was loaded to generate runs on packed rows.

    Raises ModelError if its attention cannot be replaced.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(ROWS_SDPA)
    if model.config._attn_implementation != ROWS_SDPA:
        raise ModelError(
            f"{type(model).__name__} has an attention of its own, which cannot be replaced: packed rows would see each "
            "other. Use a model whose attention is one of transformers' interface."
        )
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def rows_sdpa_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    rows_padded: torch.Tensor | None = None,
    rows_packed: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention interface of transformers: heads first in, (1, T, heads, size) out.

    Raises ModelError if a row is longer than the part of it that a layer looks at, and this is no sliding window.
    """
    if rows_padded is None or rows_packed is None:
        raise ValueError(
            f"the attention {ROWS_SDPA!r} runs on packed rows only; to generate, load the model with another attention"
        )
    rows, longest = rows_padded.shape

    def padded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[0].index_select(1, rows_padded.flatten()).unflatten(1, (rows, longest)).transpose(0, 1)

    # Padding comes after the row's own tokens, so the causal mask alone hides it from them.
    window = _window(module, longest, kwargs)
    if window:
        ones = torch.ones(longest, longest, dtype=torch.bool, device=value.device)
        output = torch.nn.functional.scaled_dot_product_attention(
            padded(query),
            padded(key),
            padded(value),
            attn_mask=ones.tril() & ones.triu(1 - window),
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=True,
        )
    elif value.device.type == "cpu" and longest <= WRITTEN_OUT_TO.get(value.dtype, 0) and not dropout:
        output = written_out(padded(query), padded(key), padded(value), scaling)
    else:
        output = torch.nn.functional.scaled_dot_product_attention(
            padded(query), padded(key), padded(value), dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=True
        )
    return output.transpose(1, 2).flatten(0, 1).index_select(0, rows_packed)[None], None


def _window(module: torch.nn.Module, longest: int, given: Mapping[str, Any]) -> int | None:
    """Tokens that each one of this layer sees, itself included; None if it sees all of a row of ``longest`` tokens.

    Layers with a window pass it on as ``sliding_window``. Some models tell it to the mask alone, as those do that
    attend in chunks; then ModelError is raised if it is shorter than the row.
    """
    if window := given.get("sliding_window"):
        return int(window) if window < longest else None
    hidden = ["attention_chunk_size"] if "sliding_window" in given else ["attention_chunk_size", "sliding_window"]
    for name in hidden:
        size = getattr(module.config, name, None)
        if size and size < longest:
            raise ModelError(
                f"A row has {longest} tokens, and {type(module).__name__} with {name} {size} is supported for rows of "
                f"up to {size} only. Shorten the longer rows or leave them out; data.max_tokens: {size} names them."
            )
    return None


def written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None = None
) -> torch.Tensor:
    """Eager causal attention of shape (B, heads, L, size): two products and a softmax, all in the dtype of ``value``.

    ``key`` and ``value`` may have fewer heads than ``query`` (grouped-query attention): consecutive query heads share
    one.
    """
    together = query.shape[1] // key.shape[1]
    length, size = query.shape[2:]
    query = query.to(value.dtype).unflatten(1, (-1, together)).flatten(2, 3)  # the heads of a key, one below the other
    scores = (query @ key.to(value.dtype).transpose(-1, -2)).unflatten(2, (together, length))
    future = torch.full((length, length), -torch.inf, dtype=scores.dtype, device=scores.device).triu(1)
    weights = torch.softmax(torch.add(future, scores, alpha=size**-0.5 if scaling is None else scaling), -1)
    output = weights.to(value.dtype).flatten(2, 3) @ value
    return output.unflatten(2, (together, length)).flatten(1, 2)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """No mask: the layout keeps rows apart, attention is causal, and layers name their sliding windows themselves."""


AttentionInterface.register(ROWS_SDPA, rows_sdpa_forward)
AttentionMaskInterface.register(ROWS_SDPA, _no_mask)
