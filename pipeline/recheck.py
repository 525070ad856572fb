"""Whether a release's verdict follows from what the release itself publishes, for whoever has nothing but its files."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from core.artifacts import read_file
from core.errors import ArtifactError
from datasets_prep.schema import FORGOTTEN
from eval.config import Gate
from eval.schema import PublishedResults, read_verdict
from eval.verdicts.recheck import verdict_problems
from pipeline.publish.schema import RELEASE, Release

AGAIN = "Ask its publisher to publish it again."


def problems(tree: Path) -> list[str]:
    """What in a release's tree does not follow from the rest of it, one sentence each; empty if all does."""
    try:
        release = read_file(tree / RELEASE, Release, AGAIN)
        gates = TypeAdapter(list[Gate]).validate_python(release.recipe.get("gates"))
        results = read_file(tree / "results.json", PublishedResults, AGAIN)
        verdict = read_verdict(tree)
    except ArtifactError as error:
        return [str(error)]
    except ValidationError as error:
        return [f"{RELEASE} has no gates that can be read ({error.error_count()} problems)."]
    found = verdict_problems(verdict, gates, results.models)
    if release.lineage and all(gate.split != FORGOTTEN or gate.at_most is None for gate in gates):
        found.append(f"It follows {len(release.lineage)} releases, and no gate holds what they were made to forget.")
    return found
