"""Read JSON that may be anybody's: a file that a user gives, or one that a stranger published."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100  # whatever walks through a value, or prints it, calls itself so often
_TOO_DEEP = f"lists and objects are more than {MAX_DEPTH} deep in each other"


def loads(text: str | bytes, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """What JSON text says; the hook is that of :func:`json.loads`. Raises ValueError if it is not JSON, or too deep."""
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    inside = [value]
    for _ in range(MAX_DEPTH):
        inside = [part for whole in inside for part in _parts(whole) if isinstance(part, dict | list)]
        if not inside:
            return value
    raise ValueError(_TOO_DEEP)


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
