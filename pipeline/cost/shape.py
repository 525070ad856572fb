"""The shape of a model, and the sizes that follow from it. It is read from files: weights and torch are not needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import bounded_json
from pipeline.train.config import Lora, ModelConfig, Shape


def start_folder(config: ModelConfig, fetched: Path | None) -> Path | None:
    """The folder of the start model: that of the ``fetched`` one, else the recipe's; None if it is not here."""
    return fetched or (Path(config.path).expanduser() if config.path else None)


def config_file(config: ModelConfig, fetched: Path | None) -> Path | None:
    """The start model's ``config.json``, if it is on this machine: in its folder, or in the Hub's cache."""
    if folder := start_folder(config, fetched):
        return folder / "config.json"
    if config.hub and config.hub.revision:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(config.hub.id, "config.json", revision=config.hub.revision)
        return Path(cached) if isinstance(cached, str) else None
    return None


def shape_of(config: ModelConfig, fetched: Path | None) -> Shape | None:
    """The start model's shape: of its ``config.json`` if that is on this machine, else the recipe's."""
    file = config_file(config, fetched)
    return (read_shape(file) if file else None) or config.shape


EXPERTS = {"num_experts", "num_local_experts", "n_routed_experts"}
"""What a ``config.json`` calls the number of experts, of which one layer has many."""


def read_shape(file: Path) -> Shape | None:
    """The shape that a ``config.json`` describes; None if it cannot be read, or is no plain decoder's."""
    try:
        values: dict[str, Any] = bounded_json.loads(file.read_text(encoding="utf-8"))
        values.setdefault("num_key_value_heads", values.get("num_attention_heads"))
        values.setdefault("tie_word_embeddings", True)  # transformers 4 left its default out of the file
        if any(values.get(name) for name in EXPERTS):
            return None
        return Shape.model_validate({name: values.get(name) for name in Shape.model_fields})
    except (OSError, ValueError, AttributeError):
        return None


def heads_width(shape: Shape) -> tuple[int, int]:
    """Width of all queries, and of all keys."""
    size = shape.head_dim or shape.hidden_size // shape.num_attention_heads
    return shape.num_attention_heads * size, shape.num_key_value_heads * size


def linears(shape: Shape) -> Mapping[str, tuple[int, int]]:
    """The linear layers of one decoder layer by name: width in, width out."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = heads_width(shape)
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def layer_products(shape: Shape) -> int:
    """Weights of one layer's linear layers."""
    return sum(width_in * width_out for width_in, width_out in linears(shape).values())


def largest_product(shape: Shape) -> int:
    """Weights of the largest of these layers."""
    return max(width_in * width_out for width_in, width_out in linears(shape).values())


def layer_parameters(shape: Shape) -> int:
    """Weights of one layer, norms included."""
    return layer_products(shape) + 2 * shape.hidden_size


def head_parameters(shape: Shape) -> int:
    """Weights of the head."""
    return shape.vocab_size * shape.hidden_size


def parameters(shape: Shape) -> int:
    """All weights; tied ones count once."""
    outer = head_parameters(shape) * (1 if shape.tie_word_embeddings else 2) + shape.hidden_size
    return shape.num_hidden_layers * layer_parameters(shape) + outer


def adapter_parameters(shape: Shape, lora: Lora) -> int:
    """Weights of the adapters."""
    ends = lora.target_modules
    chosen = [
        widths
        for name, widths in linears(shape).items()
        if isinstance(ends, str) or name in {e.split(".")[-1] for e in ends}
    ]
    return shape.num_hidden_layers * lora.r * sum(width_in + width_out for width_in, width_out in chosen)


def trained_layers(shape: Shape, train_from_layer: int) -> int:
    """Layers that are not frozen; none if there is no such layer, which stops the training and not the plan."""
    return max(0, shape.num_hidden_layers - train_from_layer)


def trained_parameters(shape: Shape, lora: Lora | None, train_from_layer: int) -> int:
    """Weights that a training moves."""
    if lora:
        return adapter_parameters(shape, lora)
    if train_from_layer:
        return trained_layers(shape, train_from_layer) * layer_parameters(shape) + shape.hidden_size
    return parameters(shape)
