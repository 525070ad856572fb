"""`compare`: evaluate another checkpoint with the recipe's suite, and compare it with the one made here."""

from __future__ import annotations

import argparse

from core.errors import ArtifactError, ReleaseError
from core.hub_ids import HubRef, check_repository
from eval.schema import ComparedMetric, read_comparison, read_measured, read_other_prompts
from pipeline.commands.building import watched
from pipeline.commands.prepare import index_of, prepare, surveyed
from pipeline.commands.shared import hub_of, show
from pipeline.engine.artifact import Artifact
from pipeline.engine.graph import Member, execute, graph
from pipeline.engine.runner import needed
from pipeline.publish.hub import MAIN, connect
from pipeline.publish.repository import Repository
from pipeline.stages import compared_with


def compare(options: argparse.Namespace) -> int:
    """Evaluate the checkpoint and print the table.

    Raises InputError if ``--to`` names no repository, ArtifactError if this recipe has no evaluation yet.
    """
    repo, _, revision = options.to.partition("@")
    check_repository(repo, f"--to {options.to}")
    recipe, stages, store = prepare(options)
    ours = stages[index_of(stages, "eval-unlearned")]
    evaluated = needed(stages, ours)
    states = surveyed(Member(recipe, evaluated, store))
    if missing := [name for name, state in states.items() if state.artifact is None]:
        raise ArtifactError(
            f"{missing[0]} is {states[missing[0]].state}, so there is nothing to compare with. Run "
            f"`python -m pipeline release {options.recipe} --until eval-unlearned` first."
        )
    with connect(hub_of(options, repo), anonymous=True) as target:
        commit = Repository(repo, target).commit(revision or MAIN)
        checkpoint = HubRef(id=repo, revision=commit)
        added = compared_with(recipe, checkpoint, ours, endpoint=target.endpoint, token=target.token)
        done: dict[str, Artifact] = {}
        for node, outcome in execute(graph({"": Member(recipe, [*evaluated, *added], store)}), watched):
            if isinstance(outcome, ReleaseError):
                raise outcome
            if outcome:
                done[node.stage.name] = outcome
    compared = read_comparison(done["compare"].path).metrics
    same = len({read_measured(done[name].path) for name in ("eval-unlearned", "eval-other")}) == 1
    metrics = [entry.model_dump(mode="json") for entry in compared]
    prompts = read_other_prompts(done["eval-other"].path)
    value = {
        "recipe": recipe.name,
        "to": repo,
        "commit": commit,
        "same_weights": same,
        "other_prompts": prompts and prompts.model_dump(mode="json"),
        "metrics": metrics,
    }
    notes = [f"Theirs was {prompts.says()}."] if prompts else []
    notes += ["The weights are the same."] if same else []
    show(options, value, "\n\n".join(["\n".join(_table(compared, repo, commit)), *notes]))
    return 0


def _table(compared: list[ComparedMetric], repo: str, commit: str) -> list[str]:
    lines = [
        f"theirs: {repo} at {commit}",
        "difference: ours - theirs, with its 95 % interval; equivalent: shown to be within the margin",
        "could show: the narrowest margin that so many rows show in 80 % of samples if there is no difference",
        "",
        "| metric | split | n | ours | theirs | difference | margin | could show | verdict |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for entry in compared:
        numbers = [_number(value) for value in (entry.ours, entry.theirs, entry.margin, entry.smallest_margin)]
        difference = "–"
        if entry.difference is not None:
            difference = f"{entry.difference:.3f} ({entry.ci_low:.3f} to {entry.ci_high:.3f})"
        cells = (entry.metric, entry.split, entry.n, *numbers[:2], difference, *numbers[2:], entry.verdict)
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
