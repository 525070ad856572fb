"""`gate`: the verdict of each gate in a sentence, for a finished evaluation or for a table of measured models."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.errors import ArtifactError, GateError, InputError
from eval.schema import FACTS, JudgedGate, Verdict
from eval.verdicts.gates import judge
from eval.verdicts.replay import applied, by_method, lacking, read_table, replay
from pipeline.commands.prepare import index_of, prepare, surveyed
from pipeline.commands.shared import say, show
from pipeline.engine.artifact import check_artifact
from pipeline.recipe import load_gates


def gate(options: argparse.Namespace) -> int:
    """Judge what was measured, without running a stage. Raises GateError if a gate fails."""
    if options.recipe == "replay":
        return _replay(options)
    if options.file is not None:
        raise InputError(f"`gate {options.recipe}` takes no file. For a table of models: `gate replay FILE.json`.")
    member = prepare(options)
    states = surveyed(member)
    stage = member.stages[index_of(member.stages, "gate")]
    inputs: dict[str, Path] = {}
    for name, made_by in stage.inputs.items():
        artifact = states[made_by].artifact
        if artifact is None:
            raise ArtifactError(
                f"{made_by} is {states[made_by].state}, so there is nothing to judge. Run "
                f"`python -m pipeline release {options.recipe} --until eval-unlearned` first."
            )
        check_artifact(artifact)
        inputs[name] = artifact.path
    verdict = judge(stage.config, inputs)
    text = "\n".join([line for judged in verdict.gates for line in _lines(judged)] + _head(verdict))
    show(options, verdict.model_dump(mode="json"), text)
    if not verdict.passed:
        raise GateError(verdict.why)
    return 0


def _head(verdict: Verdict) -> list[str]:
    return [text for text in (verdict.selection, verdict.why) if text]


def _lines(judged: JudgedGate) -> list[str]:
    """The verdict's sentence, and below it how much it can show."""
    notes = [judged.power]
    if judged.n > 0 and not judged.certifiable_alone:
        notes.append(f"This rests on fewer than {FACTS} facts, so it cannot be certified alone.")
    notes += [part.says for part in (judged.confirmed, *judged.parts) if part]
    if judged.limits:
        notes.append(judged.limits)
    return [f"{'pass' if judged.passed else 'FAIL'}  {judged.why}", *(f"      {note}" for note in notes)]


def _replay(options: argparse.Namespace) -> int:
    if options.file is None:
        raise InputError("`gate replay` needs a file with measured models: `gate replay FILE.json`.")
    if options.set:
        raise InputError(
            "`gate replay` takes no --set. Change the gates in a file, and give it with --gates FILE.yaml."
        )
    table = read_table(Path(options.file))
    gates, others = applied(load_gates(options.gates), table)
    if not gates:
        raise InputError(
            f"{options.file} has none of the metrics that the gates of {options.gates} read. They read "
            f"{', '.join(f'{gate.metric} on {gate.split}' for gate in others)}."
        )
    judged = replay(gates, table)
    if points := [f"{gate.metric} on {gate.split}" for gate in gates if not table.has_intervals(gate)]:
        say(f"Judged by points and without min_n, since intervals or numbers of rows are missing: {', '.join(points)}.")
    for other in others:
        say(f"Not judged, since {lacking(other, table)}: {other.metric} on {other.split}.")
    passed = [model.model for model in judged if model.passed]
    value = {
        "models": [model.model_dump(mode="json") for model in judged],
        "passed": passed,
        "not_judged": [f"{other.metric} on {other.split}" for other in others],
    }
    show(options, value, "\n".join([by_method(gates, judged), "", *(f"passes: {name}" for name in passed)]))
    return 0
