"""Whether a release's verdict and card follow from what it publishes itself, for whoever has nothing but its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from core.artifacts import read_file
from core.errors import ArtifactError
from datasets_prep.schema import FORGOTTEN
from eval.config import Gate
from eval.schema import PublishedResults, read_verdict
from eval.verdicts.recheck import verdict_problems
from model_card.published import AGAIN, CARD, read_card_file, render_from_published
from pipeline.publish.schema import RELEASE, Release


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
    found = [*verdict_problems(verdict, gates, results.models), *_card(tree, release)]
    if release.lineage and all(gate.split != FORGOTTEN or gate.at_most is None for gate in gates):
        found.append(f"It follows {len(release.lineage)} releases, and no gate holds what they were made to forget.")
    return found


def _card(tree: Path, release: Release) -> Iterator[str]:
    """What the card says that the evidence does not.

    The texts are compared byte by byte, so it is the version of this project that made the release that can say so.
    """
    try:
        inputs = read_card_file(tree).inputs
        rendered = render_from_published(tree)
        card = (tree / "README.md").read_text(encoding="utf-8")
    except (ArtifactError, OSError, UnicodeDecodeError) as error:
        yield f"The card cannot be rendered again: {error}"
        return
    except Exception as error:  # the schema does not say all that a card needs, so a stranger's file may lack anything
        yield f"The card cannot be rendered again: {CARD} lacks something that a card needs ({error!r:.200})."
        return
    said = (inputs.publish.repo, inputs.publish.tag, inputs.model.name, inputs.model.license)
    made = (release.repo, release.tag, release.base_model, release.license)
    if said != made:
        yield f"{CARD} is of {' '.join(said)}, and {RELEASE} of {' '.join(made)}."
    if card != rendered:
        yield (
            "README.md is not the card that the published results, verdict and settings give with this version of the "
            f"project. If another made the release ({CARD} names its commit), verify with that one."
        )
