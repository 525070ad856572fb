"""Weights rounded to 8 or 4 bits, as a user of the release may load them.

Quantization can bring forgotten facts back: unlearning often moves weights by less than a step of the coarse grid.
bitsandbytes rounds each weight matrix and returns it in the model's own precision. Its 4-bit layers compute with
exactly these weights; its 8-bit layers also round activations, which is left out here.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core.errors import ModelError, SystemLimitError


def quantize(model: PreTrainedModel, form: str) -> None:
    """Round the linear layers of ``model`` to ``int8`` (a scale per output), ``nf4`` or ``fp4`` (a scale per 64).

    Embeddings and the head stay as they are, and so do fused experts, as when transformers loads a model in these
    formats. Raises ModelError if the model has no layer to round.
    """
    head = model.get_output_embeddings()
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear | Conv1D) and layer is not head]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no linear layer that could be rounded to {form}, so this attack shows "
            "nothing. Remove eval.robustness.quantize from the recipe."
        )
    with torch.inference_mode():
        for layer in layers:
            if isinstance(layer, Conv1D):  # GPT-2's: a linear layer with its weight turned round
                layer.weight.copy_(_rounded(layer.weight.T, form).T)
            else:
                layer.weight.copy_(_rounded(layer.weight, form))


def try_quantization(form: str, device: str) -> None:
    """Raise SystemLimitError if bitsandbytes cannot round to ``form`` on this device."""
    try:
        _rounded(torch.ones(64, 64, device=device), form)
    except Exception as error:  # a library that is missing or not made for the device: of many unrelated classes
        reason = " ".join(str(error).split())
        raise SystemLimitError(
            f"bitsandbytes cannot round weights to {form} on {device} ({reason:.200}). Install a version that is made "
            "for this device, or remove the format from the recipe."
        ) from error


def _rounded(weight: torch.Tensor, form: str) -> torch.Tensor:
    from bitsandbytes import functional  # only this attack needs the package

    if form == "int8":
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half().contiguous())
        return functional.int8_vectorwise_dequant(codes, scales).to(weight.dtype)
    codes, state = functional.quantize_4bit(weight.contiguous(), quant_type=form)
    return functional.dequantize_4bit(codes, state).to(weight.dtype)
