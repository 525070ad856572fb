"""The ``--set`` values that a release may show: none that name files of this machine, or people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from core.yaml_source import Tree, override
from model_card.config import WITHHELD

_ABSENT = object()
_NOT_SHOWN = (
    "model",
    "model.path",
    "model.license_file",
    "model.chat_template",
)  # a template is long, and the release has it anyway
_NO_CONTENT = ("resources", "publish.visibility", "publish.via", "publish.gated", "publish.collection")
"""Where stages run, and how the Hub shows a release: the same release may be made and shown in other ways."""


def published(
    assignments: Sequence[str], data: dict[str, Any], public: dict[str, Any], without_effect: Collection[str]
) -> list[str]:
    """The ``KEY=VALUE`` of the command line as a release may show them, in their order.

    ``data`` is the dumped data section, and ``public`` the part that a release shows. A value of this section is shown
    if it is the section's final value and all of it is public; otherwise it becomes ``KEY=WITHHELD``. Keys in
    ``without_effect`` change no result and are left out, as those in :data:`_NO_CONTENT` and below them are.
    """
    shown = []
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        path = key.split(".")
        if path[-1] in without_effect or f"{key}.".startswith(tuple(f"{name}." for name in _NO_CONTENT)):
            continue
        value = _at(override(Tree({}), assignment).values, path)
        # Several lines could end the code block around the command, and a YAML comment may say anything.
        plain = text == "".join(text.splitlines()) and " #" not in text
        if plain and _is_public(path, value, {"data": data}, {"data": public}):
            shown.append(assignment)
        else:
            shown.append(f"{key}={WITHHELD}")
    return shown


def _is_public(path: Sequence[str], value: Any, everything: dict[str, Any], public: dict[str, Any]) -> bool:
    if path[0] == "data":
        final = _at(everything, path)
        return final == _at(public, path) and _is_in(value, final)
    return value is None or ".".join(path) not in _NOT_SHOWN


def _at(tree: Any, path: Sequence[str]) -> Any:
    """The value at a dotted key; its numbers are indices of lists."""
    for part in path:
        if isinstance(tree, list):
            tree = tree[int(part)] if part.isdecimal() and int(part) < len(tree) else _ABSENT
        else:
            tree = tree.get(part, _ABSENT) if isinstance(tree, dict) else _ABSENT
    return tree


def _is_in(given: Any, final: Any) -> bool:
    """Whether everything given is in the final value, which also has defaults."""
    if isinstance(given, dict) and isinstance(final, dict):
        return all(_is_in(value, final.get(key, _ABSENT)) for key, value in given.items())
    if isinstance(given, list) and isinstance(final, list):
        return len(given) == len(final) and all(map(_is_in, given, final))
    return bool(given == final)
