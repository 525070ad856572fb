"""The Hub's rules for the metadata at the head of a README.md."""

from __future__ import annotations

import math
import re
from typing import Any

from core import card_head
from core.hub_ids import is_hub_id


def card_metadata(content: str) -> dict[str, Any]:
    """The metadata of a card, as JSON can hold it; ``{}`` if there is none or it cannot be read."""
    block, _ = card_head.split(content)
    try:
        metadata = card_head.load(block) if block is not None else {}
    except ValueError:
        return {}
    return _plain(metadata) if isinstance(metadata, dict) else {}


def _plain(value: Any) -> Any:
    """YAML's dates, sets, bytes, and numbers that JSON lacks, as text."""
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value).encode(errors="replace").decode()


def check_card(content: str) -> tuple[list[str], list[str]]:
    """Errors, for which a commit is refused, and warnings."""
    block, _ = card_head.split(content)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = card_head.load(block)
    except ValueError as error:
        return [f"the metadata is not YAML: {error}"], []
    if not isinstance(metadata, dict):
        return ["the metadata is not a mapping"], []
    plain: dict[str, Any] = _plain(metadata)
    return _errors(plain), [] if "license" in plain else ["no license in the metadata"]


def _errors(metadata: dict[str, Any]) -> list[str]:
    errors = []
    if not re.fullmatch(r"[a-z0-9.-]+", str(metadata.get("license", "other"))):
        errors.append('"license" must be an identifier such as apache-2.0')
    for key, is_allowed in (
        ("tags", re.compile(r".+").fullmatch),
        ("language", re.compile(r"[a-z]{2,3}(-\w+)?|multilingual|code").fullmatch),
        ("base_model", _is_model),
    ):
        values = metadata.get(key, [])
        values = values if isinstance(values, list) else [values]
        if not all(isinstance(value, str) and is_allowed(value) for value in values):
            errors.append(f'"{key}" holds a value that is not allowed: {values!s:.200}')
    index = metadata.get("model-index")
    if index is not None and not (
        isinstance(index, list) and all(isinstance(m, dict) and m.get("name") and "results" in m for m in index)
    ):
        errors.append('"model-index" must be a list of {name, results}')
    return errors


def _is_model(name: str) -> bool:
    """Whether ``name`` can be a model's; old models (gpt2) have a name without an owner."""
    return is_hub_id(name if "/" in name else f"owner/{name}")
