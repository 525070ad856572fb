"""The block of YAML at the head of a README.md. Reading one is bounded: it may be anybody's."""

from __future__ import annotations

import re
from typing import Any

import yaml

from core.yaml_source import WithoutAnchors

MAX_METADATA = 64 << 10  # characters; PyYAML takes a second for so many
_BLOCK = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---\s*(?:\n|\Z)", re.DOTALL)


def split(card: str) -> tuple[str | None, str]:
    """The block, None if there is none, and what comes after it."""
    block = _BLOCK.match(card)
    return (block[1], card[block.end() :]) if block else (None, card)


def load(block: str) -> Any:
    """What the block says. Raises ValueError if it is not YAML, has anchors, or is too long."""
    if len(block) > MAX_METADATA:
        raise ValueError(f"it has {len(block)} characters; at most {MAX_METADATA} are read")
    try:
        return yaml.load(block, WithoutAnchors)  # noqa: S506  a safe loader
    except Exception as error:  # PyYAML raises many kinds for tags, dates and numbers that it cannot read
        raise ValueError(f"{error!s:.300}" or type(error).__name__) from error
