"""The paths that a recipe names, which begin at the folder of the file that names them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from core.yaml_source import Place, Tree, dotted

# In a recipe, and in the changes to it that a collection lists.
_PATHS = re.compile(
    r"(collection\.(each|matrix\.[^.]+\.[^.]+)\.)?"
    r"(model\.(path|license_file)|data\.source\.(file|files\.\w+)|data\.request\.\w+\[\d+\]\.file)"
)


def located(tree: Tree, folder: Path) -> Tree:
    """The tree of a file in ``folder``, with each relative path in it as a path from there."""
    return Tree(_located(tree.values, folder.absolute(), ()), tree.places)


def _located(value: Any, folder: Path, place: Place) -> Any:
    if isinstance(value, dict):
        return {key: _located(item, folder, (*place, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_located(item, folder, (*place, index)) for index, item in enumerate(value)]
    if isinstance(value, str) and value and _PATHS.fullmatch(dotted(place)):
        return value if value.startswith("~") else str(folder / value)
    return value


def as_seen_from(folder: Path, path: str) -> str:
    """How a file in ``folder`` names a path that was given in the current folder; an absolute one stays as it is."""
    return path if path.startswith(("/", "~")) else os.path.relpath(path, folder)
