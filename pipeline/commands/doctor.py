"""`doctor`: what would fail later, before anything is downloaded or trained."""

from __future__ import annotations

import argparse

from core.errors import InputError
from pipeline.commands.prepare import prepare, surveyed
from pipeline.commands.shared import say, show
from pipeline.engine.graph import Member
from pipeline.preflight import Finding, Preflight, examine


def doctor(options: argparse.Namespace) -> int:
    """Print every check of the preflight. Returns 2 if a stage would fail."""
    failed = show_checks(options, prepare(options))
    if failed:
        say(f"Checks that failed: {failed}. Nothing was downloaded, and nothing written.")
    return InputError.exit_code if failed else 0


def show_checks(options: argparse.Namespace, member: Member) -> int:
    """Print every check of the preflight, and return how many failed."""
    recipe, stages, store = member
    states = surveyed(member)
    waiting = [stage for stage in stages if states[stage.name].artifact is None]
    findings = examine(Preflight(recipe, waiting, states, store))
    text = "\n".join(map(_line, findings)) or "Every stage is done."
    show(options, {"recipe": recipe.name, "checks": [finding._asdict() for finding in findings]}, text)
    return sum(finding.problem is not None for finding in findings)


def _line(finding: Finding) -> str:
    verdict = "FAIL" if finding.problem else "ok"
    at = f" at {finding.stage}" if finding.stage else ""
    says = f"will fail{at}: {finding.problem}" if finding.problem else finding.found
    return f"{verdict:<5} {finding.what:<20}  " + says.replace("\n", f"\n{'':<28}")
