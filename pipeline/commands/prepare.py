"""Preparation for the commands on a recipe: its stages, its store, and the state of each stage."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from core.errors import InputError, RecipeError
from core.yaml_source import did_you_mean
from pipeline.collection import load
from pipeline.commands.shared import store_root
from pipeline.engine.runner import Stage, Status, Store, survey
from pipeline.recipe import Recipe
from pipeline.stages import stages


def prepare(options: argparse.Namespace) -> tuple[Recipe, list[Stage], Store]:
    """The recipe of the command, its stages and its store. Raises RecipeError or InputError."""
    recipe = load(options.recipe, options.set)
    return recipe, stages(recipe), Store(store_root(options), recipe.name)


def surveyed(stages: Sequence[Stage], store: Store) -> dict[str, Status]:
    """The state of every stage by name."""
    return {stage.name: state for stage, state in survey(stages, store)}


def index_of(stages: Sequence[Stage], name: str) -> int:
    """The place of a stage in the list. Raises InputError, with the nearest name, if there is none."""
    names = [stage.name for stage in stages]
    if name not in names:
        raise InputError(f"No stage is called {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}.")
    return names.index(name)


def refuse_other_gates(recipe: Recipe, wanted: Sequence[Stage]) -> None:
    """Raise RecipeError if a card, and what follows from it, is wanted for gates that the command line changed.

    They may be tried out up to the gate stage. A release has those of its recipe, which were set before its results.
    """
    changed = [
        assignment for assignment in recipe.origin.overrides if assignment.partition("=")[0].split(".")[0] == "gates"
    ]
    if changed and any(stage.name == "card" for stage in wanted):
        raise RecipeError(
            f"--set {changed[0]:.60}: a release has the gates of its recipe. Write them there; or try them out with "
            "`--until gate`, `run gate` or `gate`."
        )
