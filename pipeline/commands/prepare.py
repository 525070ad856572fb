"""Preparation for the commands on a recipe: its stages, its store, and the state of each stage."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from core.errors import InputError, RecipeError
from core.yaml_source import did_you_mean
from pipeline.collection import load
from pipeline.commands.shared import say, store_root
from pipeline.engine.graph import Member, graph, states_of, survey
from pipeline.engine.remote import remote_of
from pipeline.engine.runner import Stage, Status, Store, fetch
from pipeline.recipe import Recipe
from pipeline.stages import stages


def prepare(options: argparse.Namespace) -> Member:
    """The recipe of the command, its stages and its store. Raises RecipeError or InputError."""
    recipe = load(options.recipe, options.set)
    return Member(recipe, stages(recipe), store_of(options, recipe.name))


def store_of(options: argparse.Namespace, name: str) -> Store:
    """The store of a recipe's artifacts, with the one that other machines share. Raises InputError for a wrong URL."""
    url = getattr(options, "remote_store", None)  # of the commands that build
    return Store(store_root(options), name, remote_of(url) if url else None)


def bring(options: argparse.Namespace, stages: Sequence[Stage], store: Store) -> None:
    """Fetch what is not done here, and is in the remote store if one is given, and say so."""
    for stage in fetch(stages, store):
        say(f"{stage.name:<15} fetched from {options.remote_store}")


def surveyed(member: Member) -> dict[str, Status]:
    """The state of every stage by name; nothing is run or written."""
    nodes = graph({"": member})
    return states_of(nodes, survey(nodes), "")


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
