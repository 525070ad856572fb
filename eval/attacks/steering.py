"""Steering: a direction is added to the output of a layer, which may bring out what a model only holds back.

The direction is the difference of two means over rows, of the hidden state at the last token of the prompt. It is added
once at every position (activation addition with a difference in means, arXiv 2406.11717). Each model is steered along
its own directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedModel

from core.progress import report
from datasets_prep.schema import Encoded, Row
from eval.attacks.residual import at_layers, layers_of
from eval.scoring.packed_linear import packed

ROWS = 200
"""Rows of a mean, at most, over all languages."""

States = Mapping[str, torch.Tensor]
"""The hidden state (width,) of each row by ``row_id``, in float32."""
Directions = Iterator[tuple[list[str], torch.Tensor]]
"""Forget rows, and the direction (width,) in which the model is steered when they are asked."""


def layer_at(model: PreTrainedModel, depth: float) -> int:
    """The index of the layer up to which the share ``depth`` of the layers lies, itself included."""
    return max(round(depth * len(layers_of(model))), 1) - 1


def last_states(model: PreTrainedModel, layer: int, examples: Mapping[str, Encoded]) -> States:
    """The output of a layer at the last token of each example's prompt."""
    states = {}
    with packed(model), torch.inference_mode():
        for done, (row_id, example) in enumerate(examples.items(), start=1):
            seen: list[torch.Tensor] = []
            ids = torch.tensor([example.input_ids[: example.completion_start]], device=model.device)
            with at_layers(model, {layer: seen.append}):
                model(input_ids=ids, logits_to_keep=1, use_cache=False)
            states[row_id] = seen[0][0, -1].float()
            report("hidden states", done, len(examples))
    return states


def to_the_next_language(forget: Sequence[Row], retain: Sequence[Row], states: States) -> Directions:
    """From the retain rows in a forget row's language to those in the next one; nothing if there is one language.

    Rows in a language that no retain row has are left out.
    """
    languages = languages_of(retain)
    means = {name: _mean([row for row in retain if row.language == name], states) for name in languages}
    for i, language in enumerate(languages if len(languages) > 1 else ()):
        asked = [row.row_id for row in forget if row.language == language]
        if asked:
            yield asked, means[languages[(i + 1) % len(languages)]] - means[language]


def to_the_known(forget: Sequence[Row], retain: Sequence[Row], holdout: Sequence[Row], states: States) -> Directions:
    """From holdout rows, which no model knows, to retain rows; nothing if there are no holdout rows."""
    if holdout:
        yield [row.row_id for row in forget], _mean(retain, states) - _mean(holdout, states)


def languages_of(rows: Sequence[Row]) -> list[str]:
    """The languages of the rows, sorted."""
    return sorted({row.language for row in rows if row.language})


def steered(model: PreTrainedModel, layer: int, direction: torch.Tensor) -> AbstractContextManager[None]:
    """Inside the ``with`` block ``direction`` is added to the output of a layer, at every position."""
    return at_layers(model, {layer: lambda states: states.add_(direction.to(states.dtype))})


def _mean(rows: Sequence[Row], states: States) -> torch.Tensor:
    return torch.stack([states[row.row_id] for row in rows]).mean(dim=0)
