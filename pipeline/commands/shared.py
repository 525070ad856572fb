"""What several commands need: the recipe and its stages, the store, and where output goes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.errors import InputError, RecipeError

if TYPE_CHECKING:
    from pipeline.engine.runner import Stage, Status, Store
    from pipeline.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
STORE = "UNLEARN_RELEASE_STORE"  # what publishing reads: the loopback Hub and the demo's key lie in the store


def prepare(options: argparse.Namespace) -> tuple[Recipe, list[Stage], Store]:
    """The recipe of the command, its stages and its store. Raises RecipeError or InputError."""
    from pipeline.engine.runner import Store
    from pipeline.recipe import load_recipe
    from pipeline.stages import stages

    recipe = load_recipe(options.recipe, options.set)
    return recipe, stages(recipe), Store(store_root(options), recipe.name)


def store_root(options: argparse.Namespace) -> Path:
    """The store, relative to this project's root; shown short where that is also the current folder."""
    place = ROOT / Path(getattr(options, "store", None) or os.environ.get(STORE) or "runs").expanduser()
    return place.relative_to(ROOT) if Path.cwd() == ROOT and place.is_relative_to(ROOT) else place


def hub_of(options: argparse.Namespace, repo: str) -> Literal["local", "hf"]:
    """Where a repository is: as ``--hub`` says, else ``local`` where the store's loopback Hub holds it."""
    held = (store_root(options) / "hub" / "models" / f"{repo}.git").is_dir()
    chosen: Literal["local", "hf"] = options.hub or ("local" if held else "hf")
    return chosen


def check_repository(repo: str, argument: str) -> None:
    """Raise InputError, naming the argument, if ``repo`` is not the full id of a repository."""
    from core.hub_ids import check_hub_id

    try:
        check_hub_id(repo)
    except ValueError as error:
        raise InputError(
            f"{argument}: {error}. Old names without an owner have one, too: gpt2 is openai-community/gpt2."
        ) from error


def surveyed(stages: Sequence[Stage], store: Store) -> dict[str, Status]:
    """The state of every stage by name."""
    from pipeline.engine.runner import survey

    return {stage.name: state for stage, state in survey(stages, store)}


def index_of(stages: Sequence[Stage], name: str) -> int:
    """The place of a stage in the list. Raises InputError, with the nearest name, where there is none."""
    from core.yaml_source import did_you_mean

    names = [stage.name for stage in stages]
    if name not in names:
        raise InputError(f"No stage is called {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}.")
    return names.index(name)


def refuse_unpinned(recipe: Recipe) -> None:
    """Raise RecipeError where the recipe names something that could be another tomorrow."""
    if keys := recipe.unpinned():
        raise RecipeError(
            f"{', '.join(keys)}: not pinned, and a release is made from exact commits only. Look up the commit on the "
            f"repository's page and write its 40 hex digits into the recipe, or give --set {keys[0]}=SHA. "
            f"`--dry-run` shows the plan without it."
        )


def show(options: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    """The result of a command on stdout: ``value`` with ``--json``, else ``text``."""
    print(json.dumps(value, indent=1, ensure_ascii=False) if options.json else text)


def say(text: str) -> None:
    """Talk to the user, on stderr."""
    print(text, file=sys.stderr, flush=True)
