"""Read a recipe's YAML so that every value remembers its file and line.

Reading is stricter than YAML 1.1: duplicate keys, aliases and tags are errors, `1e-5` is a number, and `no`, `on` and
dates are text.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from core.errors import RecipeError

Place = tuple[str | int, ...]
LARGEST = 10**15
"""A whole number of a recipe is below it."""


class WithoutAnchors(yaml.SafeLoader):
    """A safe loader that takes no anchors: nine lines of them can stand for a billion values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node. Raises ComposerError if it has an anchor."""
        event = self.peek_event()
        if getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)


class _Loader(WithoutAnchors):
    """YAML 1.2's plain scalars: numbers with or without a point, true and false, null, and text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own field)


_FLOAT = re.compile(r"[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$|[-+]?\.inf$|\.nan$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|false)$"), list("tf"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9]\d*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(null|~|)$"), ["n", "~", ""])


@dataclass
class Tree:
    """A mapping read from YAML, and the place (`file:line`) of each key."""

    values: dict[str, Any]
    places: dict[Place, str] = field(default_factory=dict)

    def place(self, path: Place) -> str:
        """The place (`file:line`) of the value at ``path``, or of its nearest parent if the value is absent."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "the recipe")


def dotted(path: Iterable[str | int]) -> str:
    """A key's path as people write it: ``gates[0].min_n``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`` Did you mean X?`` for the closest of ``words``, or an empty text."""
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def read_tree(file: Path, shown: str) -> Tree:
    """The mapping in a YAML file. Raises RecipeError, with file and line, if it does not hold one."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{shown}: cannot be read ({error}). Give a recipe's name, or the path of a YAML file."
        ) from error
    tree = Tree({}, {(): f"{shown}:1"})
    tree.values = _parse(text, shown, (), tree.places)
    if not isinstance(tree.values, dict):
        raise RecipeError(f"{shown}:1: a recipe is a mapping of keys to values. See pipeline/recipes/demo.yaml.")
    return tree


def _parse(text: str, shown: str, path: Place, places: dict[Place, str]) -> Any:
    try:
        node = _composed(text)
        return None if node is None else _plain(_Loader(""), node, shown, path, places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{shown}:{line}: not readable as YAML: {error.problem or error.context}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{shown}: not readable as YAML: {' '.join(str(error).split())}.") from error


@lru_cache  # the members of a collection share what they extend
def _composed(text: str) -> yaml.Node | None:
    """The nodes of a document, which nobody changes, or None if there is none."""
    return _Loader(text).get_single_node()


def _plain(loader: _Loader, node: yaml.Node, shown: str, path: Place, places: dict[Place, str]) -> Any:
    places.setdefault(path, f"{shown}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        _refuse_tag(node, "map", shown)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = f"{shown}:{key_node.start_mark.line + 1}"
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise RecipeError(f"{line}: the key {key!r} of {dotted(path) or 'the recipe'} is not text.")
            if key in result:
                first = places[(*path, key)]
                raise RecipeError(f"{line}: {dotted((*path, key))} is given twice, first at {first}. Keep one of them.")
            places[(*path, key)] = line
            result[key] = _plain(loader, value_node, shown, (*path, key), places)
        return result
    if isinstance(node, yaml.SequenceNode):
        _refuse_tag(node, "seq", shown)
        return [_plain(loader, item, shown, (*path, i), places) for i, item in enumerate(node.value)]
    try:
        value = loader.construct_object(node, deep=True)
    except (KeyError, AttributeError) as error:  # a tag that does not fit the text behind it: `!!bool x`
        raise RecipeError(
            f"{shown}:{node.start_mark.line + 1}: {node.value!r:.60} is not of the tag {node.tag}."
        ) from error
    if isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{shown}:{node.start_mark.line + 1}: {dotted(path)} is {value}. Give a finite number.")
    if isinstance(value, int) and abs(value) >= LARGEST:  # plans multiply it, and some numbers fit no float
        raise RecipeError(
            f"{shown}:{node.start_mark.line + 1}: {dotted(path)} has more than 15 digits. Give a smaller number."
        )
    return value


def _refuse_tag(node: yaml.Node, plain: str, shown: str) -> None:
    if node.tag != f"tag:yaml.org,2002:{plain}":
        raise RecipeError(f"{shown}:{node.start_mark.line + 1}: not readable as YAML here: the tag {node.tag}.")


def merge(below: Tree, above: Tree) -> Tree:
    """``above`` over ``below``: mappings are merged key by key, any other value replaces the lower one."""
    places = {**below.places, **above.places}

    def join(under: Any, over: Any, path: Place) -> Any:
        if isinstance(under, dict) and isinstance(over, dict):
            return {key: join(under.get(key), over.get(key, under.get(key)), (*path, key)) for key in {**under, **over}}
        if under is not over:  # replaced: the places that the lower file gave below it are void
            inside = [p for p in below.places if p[: len(path)] == path and len(p) > len(path)]
            for place in inside:
                if place not in above.places:
                    places.pop(place, None)
        return over

    return Tree(join(below.values, above.values, ()), places)


def override(tree: Tree, assignment: str) -> Tree:
    """``tree`` with one ``--set a.b.c=VALUE``; VALUE is read as YAML. A number in the key is the index of a list."""
    key, equals, text = assignment.partition("=")
    shown = f"--set {assignment:.200}"
    if not equals or not key or not all(key.split(".")):
        raise RecipeError(f"{shown}: write KEY=VALUE with a dotted key, for example --set data.seed=7.")
    parts = key.split(".")
    places = {path: place for path, place in tree.places.items() if path[: len(parts)] != tuple(parts)}
    path: Place = ()
    values = copy.deepcopy(tree.values)
    target: Any = values
    for i, part in enumerate(parts):
        step: str | int = part
        if isinstance(target, list):
            if not part.isdecimal() or len(part) > 9 or int(part) >= len(target):
                raise RecipeError(f"{shown}: {dotted(path)} is a list of {len(target)}; give an index below that.")
            step = int(part)
        elif not isinstance(target, dict):
            raise RecipeError(f"{shown}: {dotted(path)} is {target!r} and holds no keys. Set {dotted(path)} itself.")
        path = (*path, step)
        if i < len(parts) - 1:
            if isinstance(target, dict) and target.get(part) is None:
                target[part] = {}
            target = target[step]
        else:
            places[path] = shown
            target[step] = _parse(text, shown, path, places)
    return Tree(values, {**places, **{p: shown for p in places if p[: len(path)] == path}})
