"""The YAML block at the head of a README.md, and the Hub's rules for it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from core.hub_ids import is_hub_id

_BLOCK = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---\s*(?:\n|\Z)", re.DOTALL)


def card_metadata(content: str) -> dict[str, Any]:
    """The metadata of a card; ``{}`` if there is none or it cannot be read."""
    block = _BLOCK.match(content)
    try:
        metadata = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def check_card(content: str) -> tuple[list[str], list[str]]:
    """Errors, for which a commit is refused, and warnings."""
    block = _BLOCK.match(content)
    if block is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"the metadata is not YAML: {error}"], []
    if not isinstance(metadata, dict):
        return ["the metadata is not a mapping"], []
    return _errors(metadata), [] if "license" in metadata else ["no license in the metadata"]


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
            errors.append(f'"{key}" holds a value that is not allowed: {values}')
    index = metadata.get("model-index")
    if index is not None and not (
        isinstance(index, list) and all(isinstance(m, dict) and m.get("name") and "results" in m for m in index)
    ):
        errors.append('"model-index" must be a list of {name, results}')
    return errors


def _is_model(name: str) -> bool:
    """Whether ``name`` can be a model's; old models (gpt2) have a name without an owner."""
    return is_hub_id(name if "/" in name else f"owner/{name}")
