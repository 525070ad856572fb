"""What is wrong in a recipe or another YAML file: every problem in a sentence, with its key's path and line."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from core.errors import RecipeError
from core.strict import Strict
from core.yaml_source import Tree, did_you_mean, dotted

PROBLEMS, SHOWN = 30, 500  # problems that an error lists, and characters of a value that it quotes
Model = TypeVar("Model", bound=Strict)


def validated(model: type[Model], tree: Tree, beside: Sequence[str] = ()) -> Model:
    """The model in a tree. Raises RecipeError that lists every problem with its key's path and line.

    ``beside`` are the keys that a file may have at its top beside those of the model.
    """
    try:
        return model.model_validate(tree.values)
    except ValidationError as error:
        problems = _relevant([dict(problem) for problem in error.errors()])
        said = list(dict.fromkeys(_explain(problem, tree, model, beside) for problem in problems[:PROBLEMS]))
        more = [f"and {len(problems) - PROBLEMS} more."] if len(problems) > PROBLEMS else []
        raise RecipeError("\n".join(said + more)) from error


def _relevant(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop the problems of a union's other members ("not a number") if one member says what is wrong inside it."""
    inner = {tuple(p["loc"][:-2]) for p in problems if len(p["loc"]) > 2}
    return [
        p for p in problems if not (p["type"].endswith(("_type", "literal_error")) and tuple(p["loc"][:-1]) in inner)
    ]


def _explain(problem: dict[str, Any], tree: Tree, model: type[Strict], beside: Sequence[str]) -> str:
    """One sentence on one finding of pydantic: where, what was given, what is allowed."""
    path = _path_in(tree.values, problem["loc"])
    where = f"{tree.place(path)}: {dotted(path) or 'recipe'}"
    kind = problem["type"]
    if kind == "extra_forbidden":
        allowed = sorted(_keys_at(path[:-1], model).union(beside if len(path) == 1 else ()))
        return f"{where}: unknown key.{did_you_mean(str(path[-1]), allowed)} Allowed here: {', '.join(allowed)}."
    if kind == "missing":
        missing = dotted((*path, problem["loc"][-1]))
        return f"{tree.place(path)}: {missing} is missing. Add it."
    message = problem["msg"].removeprefix("Value error, ").removesuffix(".")
    if kind == "value_error":
        return f"{where}: {message}."
    return f"{where} is {_shortened(problem['input'])}: {message[0].lower()}{message[1:]}."


def _shortened(value: object) -> str:
    """What was given, as far as it is worth reading."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _path_in(values: Any, loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """The location that pydantic gives, without parts that are not in the recipe, such as the member of a union."""
    path: list[str | int] = []
    for part in loc:
        inside = part in values if isinstance(values, dict) else isinstance(values, list) and isinstance(part, int)
        if inside:
            path.append(part)
            values = values[part]
    return tuple(path)


def _keys_at(path: Sequence[str | int], model: type[Strict]) -> set[str]:
    """The keys that the mapping at ``path`` may have: the fields of the models that its type names."""
    models = [model]
    for part in path:
        if isinstance(part, str):
            fields = [model.model_fields[part].annotation for model in models if part in model.model_fields]
            if fields:  # else it is a key of a mapping whose values are sections
                models = [model for annotation in fields for model in sections(annotation)]
    return {key for model in models for key in model.model_fields}


def sections(annotation: Any) -> list[type[Strict]]:
    """The models that a field's type names, each a section of the recipe."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict):
        return [model for argument in get_args(annotation) for model in sections(argument)]
    return []
