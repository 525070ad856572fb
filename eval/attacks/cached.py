"""What a forward continues from, under the name that the installed transformers has for it."""

from __future__ import annotations

from inspect import signature
from typing import Any

from transformers import DynamicCache, PreTrainedModel


def continuing(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """The argument for a forward or a generation that continues from ``cache``; transformers 5.24 renamed it."""
    return {"cache" if "cache" in signature(model.forward).parameters else "past_key_values": cache}
