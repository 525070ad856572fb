"""Where two configurations differ."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

from core.yaml_source import Place


class Absent(Enum):
    """The value of a key that only the other configuration has."""

    ABSENT = "(absent)"

    def __repr__(self) -> str:
        return self.value


ABSENT = Absent.ABSENT


def differences(old: Any, new: Any, path: Place = ()) -> Iterator[tuple[Place, Any, Any]]:
    """(path, old value, new value) of each difference, at the deepest path inside mappings and lists.

    A key that only one of them has is ABSENT in the other, which is not None. Lists of different lengths differ as a
    whole. A tuple equals the list that JSON makes of it.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from differences(old.get(key, ABSENT), new.get(key, ABSENT), (*path, key))
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple) and len(old) == len(new):
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, (*path, i))
    elif old != new:
        yield path, old, new
