"""Low-rank adapters: added before training, and merged into the weights after it; the merge is checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from accelerate.utils import extract_model_from_parallel
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel, set_seed

from core.errors import RecipeError, TrainingError
from datasets_prep.schema import Encoded
from pipeline.train.config import Lora
from pipeline.train.packed import completion_logits, packed_batches

ADAPTER = "default"  # peft's name for the only one
MERGE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
"""Of the largest logit, by the precision of the weights. In float32 sums in another order are a hundred times closer;
in bfloat16, where each weight and product is rounded anew, 30 layers were 0.031 apart (docs/measurements/fame.md)."""


def add_adapters(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """The model with new adapters, the only weights to be trained.

    Raises RecipeError if a name is no layer's, or peft refuses a layer.
    """
    refuse_no_module(model, lora)
    set_seed(seed)  # the adapters' first values, also after a restart
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise RecipeError(f"lora.target_modules: peft refuses {lora.target_modules}: {error}") from error
    refuse_on_head(adapted)  # type: ignore[arg-type]
    return adapted  # type: ignore[return-value]


def refuse_no_module(model: PreTrainedModel, lora: Lora) -> None:
    """Raise RecipeError if no layer has one of the names; peft takes such a name if another one is a layer's."""
    if isinstance(lora.target_modules, str):
        return
    names = [name for name, _ in model.named_modules()]
    if absent := [end for end in lora.target_modules if not any(f".{name}".endswith(f".{end}") for name in names)]:
        head = model.get_output_embeddings()
        linears = [n for n, each in model.named_modules() if isinstance(each, torch.nn.Linear) and each is not head]
        raise RecipeError(
            f"lora.target_modules: this model has no layer {', '.join(absent)}. Name some of its linear layers "
            f"({', '.join(sorted({name.split('.')[-1] for name in linears}))}), or set all-linear."
        )


def refuse_on_head(model: PeftModel) -> None:
    """Raise RecipeError if the head or the embeddings have an adapter, whatever the model calls them."""
    outer = (model.get_output_embeddings(), model.get_input_embeddings())
    adapted = [name for name, module in model.named_modules() if module in outer and hasattr(module, "lora_A")]
    if adapted:
        raise RecipeError(
            f"lora.target_modules puts adapters on {', '.join(adapted)}. Head and embeddings take none: they may be "
            "one tensor, which cannot be merged twice. Name linear layers inside the blocks, or set all-linear."
        )


def merge(model: PeftModel, rows: Sequence[Encoded]) -> PreTrainedModel:
    """The plain model with the adapters merged into its weights, those of nf4 as they were rounded.

    Raises TrainingError if its logits at the answers of ``rows`` differ from those of the model with adapters.
    """
    # Without the trainer's autocast around the forward: in bfloat16 the two would differ by rounding alone.
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    before = _logits(model, rows)
    tolerance = MERGE_TOLERANCE[model.dtype]
    merged = merged_in_float32(model)
    gap = float((_logits(merged, rows) - before).abs().max() / before.abs().max())
    if not gap <= tolerance:
        raise TrainingError(
            f"The merged adapters give other logits than the trained ones (largest difference {gap:.1e} of the largest "
            f"logit, allowed {tolerance:.0e}), so the release would not be the trained model. Nothing was kept. "
            "Train without lora, or report this with the model's name."
        )
    return merged


def merged_in_float32(model: PeftModel) -> PreTrainedModel:
    """The plain model: each weight with what its adapter adds, rounded once, layer by layer.

    peft rounds what is added too, and after nf4 it would round the sum to 4 bits again.
    """
    plain: Any = model.get_base_model()
    if getattr(plain, "is_quantized", False):
        plain.dequantize()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                weight = cast("torch.Tensor", layer.get_base_layer().weight)
                weight.copy_(weight.float() + cast("Any", layer).get_delta_weight(ADAPTER).float())
    unloaded: PreTrainedModel = cast("Any", model).unload()
    return unloaded


@torch.no_grad()
def _logits(model: Any, rows: Sequence[Encoded]) -> torch.Tensor:
    """At the answers of ``rows``, shape (N, V), without dropout."""
    return torch.cat([completion_logits(model, batch) for _, _, batch in packed_batches(model, rows, logits=True)])
