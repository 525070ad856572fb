"""A walk over stages without a recipe, as the commands walk those of a release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from core.errors import ReleaseError
from pipeline.commands.prepare import surveyed
from pipeline.engine.artifact import Artifact
from pipeline.engine.graph import Member, execute, graph
from pipeline.engine.runner import Stage, Status, Store


def member(stages: Sequence[Stage], store: Store) -> Member:
    """These stages as a release, whose recipe nothing reads."""
    return Member(cast("Any", None), stages, store)


def make(stages: Sequence[Stage], store: Store) -> dict[str, Artifact]:
    """Build what is not done, and return all. Raises the first error of a stage."""
    done: dict[str, Artifact] = {}
    for node, outcome in execute(graph({"": member(stages, store)}), lambda _, build: build()):
        if isinstance(outcome, ReleaseError):
            raise outcome
        assert outcome
        done[node.stage.name] = outcome
    return done


def states(stages: Sequence[Stage], store: Store) -> dict[str, Status]:
    """The state of every stage by name."""
    return surveyed(member(stages, store))
