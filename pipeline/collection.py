"""A collection: one YAML file with a matrix over one recipe. Each of its members is an ordinary recipe.

A command takes a member as ``COLLECTION:MEMBER`` wherever it takes a recipe.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from core.errors import RecipeError
from core.hub_ids import HubId
from core.places import user_path
from core.strict import Strict
from core.yaml_source import Tree, did_you_mean, merge, read_tree
from model_card.config import Text
from pipeline.recipe import (
    NAME,
    RECIPES,
    Recipe,
    checked,
    find_recipe,
    load_recipe,
    own_folder,
    read_recipe_file,
    recipe_beside,
    recipe_tree,
    shown,
    shown_name,
)
from pipeline.recipe_errors import validated

COLLECTIONS = RECIPES / "collections"
LABEL = "label"
Changes = dict[str, Any]


class CollectionConfig(Strict):
    """What the members have in common, and how they differ."""

    name: str = Field(pattern=NAME, max_length=60, description="Begins the name of each member's folder of results.")
    title: Text = Field(min_length=1, max_length=60, description="Title of the collection on the Hub.")
    description: Text = Field(max_length=150, description="What it is, in a sentence.")
    repo: HubId = Field(
        description="Dataset repository of the comparison page, `owner/name`. Its owner has the collection."
    )
    recipe: str = Field(min_length=1, description="The recipe that all members change, or its file.")
    matrix: dict[str, dict[str, Changes]] = Field(
        min_length=1,
        description="Axes, each with its values, and the keys of the recipe that a value changes. `label` is what "
        "`{axis}` stands for in `each`; by default the value's name.",
    )
    each: Changes = Field(description="Keys of the recipe for every member; `{axis}` in a text is the value's label.")
    leave_out: list[dict[str, str]] = Field(
        default_factory=list,
        description="Cells without a member: each names values by axis, and leaves out all with them.",
    )

    _own_folder = field_validator("name")(own_folder)

    @field_validator("matrix")
    @classmethod
    def _names(cls, matrix: dict[str, dict[str, Changes]]) -> dict[str, dict[str, Changes]]:
        for axis, values in matrix.items():
            if not values:
                raise ValueError(f"{axis} has no values; give one or more, or remove it")
            if wrong := [
                name for name in (axis, *values) if not name.replace("-", "").isalnum() or name != name.lower()
            ]:
                raise ValueError(f"{wrong[0]!r} names a member's folder; give small letters, digits and '-'")
        return matrix

    @field_validator("each")
    @classmethod
    def _is_named_by_its_cell(cls, each: Changes) -> Changes:
        if "name" in each:
            raise ValueError("name: a member is named by its cell; remove it")
        return each

    @model_validator(mode="after")
    def _cells_there_are(self) -> CollectionConfig:
        for i, cell in enumerate(self.leave_out):
            for axis, value in cell.items():
                there_are = list(self.matrix[axis]) if axis in self.matrix else list(self.matrix)
                if axis not in self.matrix or value not in self.matrix[axis]:
                    raise ValueError(f"leave_out[{i}]: there is no {axis}: {value}; there are {', '.join(there_are)}")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> CollectionConfig:
        named = self.named_cells()
        for cell in self.cells():
            if (other := named[_member_name(cell)]) != cell:
                raise ValueError(
                    f"matrix: {_in_words(cell)} and {_in_words(other)} would both be the member {_member_name(cell)}, "
                    "since '-' joins the values; rename one of these"
                )
        return self

    def label(self, axis: str, value: str) -> str:
        """What a value of an axis is called in texts."""
        return str(self.matrix[axis][value].get(LABEL, value))

    def cells(self) -> Iterator[dict[str, str]]:
        """The value of each axis, for each member."""
        for values in itertools.product(*self.matrix.values()):
            cell = dict(zip(self.matrix, values, strict=True))
            if not any(left.items() <= cell.items() for left in self.leave_out):
                yield cell

    def named_cells(self) -> dict[str, dict[str, str]]:
        """The value of each axis, by the name of the member."""
        return {_member_name(cell): cell for cell in self.cells()}


def _member_name(cell: dict[str, str]) -> str:
    return "-".join(cell.values())


def _in_words(cell: dict[str, str]) -> str:
    return ", ".join(f"{axis}: {value}" for axis, value in cell.items())


class CollectionFile(Strict):
    """The content of the file."""

    collection: CollectionConfig = Field(description="The collection.")


class Collection(NamedTuple):
    """``members`` are recipes by name; ``cells`` has the value of each axis for each of them."""

    config: CollectionConfig
    members: dict[str, Recipe]
    cells: dict[str, dict[str, str]]

    @property
    def hub(self) -> Literal["local", "hf"]:
        """Where all members are published."""
        return next(iter(self.members.values())).publish.hub


def load_collection(name_or_path: str, overrides: Sequence[str] = ()) -> Collection:
    """Read and check a collection and all its members; ``overrides`` change each of them.

    Raises RecipeError that lists every problem, with the member that has it.
    """
    config, tree, path = _read(name_or_path)
    shared = _shared(config, tree, path)
    members: dict[str, Recipe] = {}
    problems: list[str] = []
    cells = config.named_cells()
    if not cells:
        raise RecipeError(f"{tree.place(('collection', 'leave_out'))}: leave_out leaves no member.")
    for name, cell in cells.items():
        try:
            members[name] = checked(_member_tree(config, tree, shared, cell), overrides, f"{shown_name(path)}:{name}")
        except RecipeError as error:
            problems += [f"{name}: {line}" for line in str(error).splitlines()]
    problems += _clashes(members)
    if problems:
        raise RecipeError("\n".join(problems))
    return Collection(config, members, cells)


def is_collection(name_or_path: str) -> bool:
    """Whether this names a collection as a whole, and not a recipe or a member."""
    if ":" in name_or_path:
        return False
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = find_recipe(name_or_path)
        return "collection" in read_tree(path, shown(path)).values
    return user_path(str(COLLECTIONS / f"{name_or_path}.yaml")).is_file()


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe, or the member that ``COLLECTION:MEMBER`` names. Raises RecipeError."""
    collection, colon, member = name_or_path.rpartition(":")
    if not colon:
        return load_recipe(name_or_path, overrides)
    config, tree, path = _read(collection)
    cells = config.named_cells()
    if member not in cells:
        hint = did_you_mean(member, cells)
        raise RecipeError(f"{collection} has no member {member!r}.{hint} There are: {', '.join(cells)}.")
    own = _member_tree(config, tree, _shared(config, tree, path), cells[member])
    return checked(own, overrides, f"{shown_name(path)}:{member}")


def _read(name_or_path: str) -> tuple[CollectionConfig, Tree, Path]:
    path = find_recipe(name_or_path, COLLECTIONS, "collection")
    tree = read_recipe_file(path)
    if "collection" not in tree.values:
        raise RecipeError(f"{shown(path)}: has no key `collection`; it is no collection. `release` takes a recipe.")
    return validated(CollectionFile, tree).collection, tree, path


def _shared(config: CollectionConfig, tree: Tree, path: Path) -> Tree:
    """The recipe that all members change."""
    where = f"{tree.place(('collection', 'recipe'))}: collection.recipe"
    return recipe_tree(recipe_beside(path, config.recipe, where))


def _member_tree(config: CollectionConfig, tree: Tree, member: Tree, cell: dict[str, str]) -> Tree:
    """The shared recipe, with the changes of each value over it, and those of ``each`` over all."""
    labels = {}
    for axis, value in cell.items():
        member = merge(member, _below(tree, "matrix", axis, value))
        labels[axis] = config.label(axis, value)
    each = _below(tree, "each")
    member = merge(member, Tree(_filled(each.values, labels), each.places))
    own = {"name": f"{config.name}-{_member_name(cell)}", "card": {"collection": config.repo}}
    return merge(member, Tree(own))


def _below(tree: Tree, *path: str) -> Tree:
    """The part of a collection's file below a key, as a tree of its own."""
    start = ("collection", *path)
    values: Any = tree.values
    for key in start:
        values = values[key]
    places = {place[len(start) :]: line for place, line in tree.places.items() if place[: len(start)] == start}
    return Tree({key: value for key, value in values.items() if key != LABEL}, places)


def _filled(value: Any, labels: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, labels) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, labels) for item in value]
    if isinstance(value, str):
        for axis, label in labels.items():
            value = value.replace(f"{{{axis}}}", label)
    return value


def _clashes(members: dict[str, Recipe]) -> Iterator[str]:
    """Members that would be published as one repository and tag, or on two Hubs, of which one shows the collection."""
    first: dict[str, str] = {}
    hubs: dict[str, str] = {}
    for name, recipe in members.items():
        if (other := first.setdefault(recipe.publish.repo, name)) != name:
            yield f"{name}: publish.repo is {recipe.publish.repo}, as for {other}. Put {{axis}} into it, in `each`."
        hubs.setdefault(recipe.publish.hub, name)
    if len(hubs) > 1:
        (hub, one), (another, other) = hubs.items()
        yield f"{other}: publish.hub is {another}, and {hub} for {one}. A collection is on one Hub; set it in `each`."
