"""Whether a release's verdict and card follow from what it publishes itself, for whoever has nothing but its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from core.artifacts import read_file
from core.differences import differences
from core.errors import ArtifactError
from core.yaml_source import dotted
from datasets_prep.schema import FORGOTTEN
from eval.config import Gate
from eval.schema import PublishedResults, read_verdict
from eval.verdicts.recheck import verdict_problems
from model_card.config import OF_RECIPE, CardInputs
from model_card.metadata import EVAL_RESULTS, benchmark_files
from model_card.published import AGAIN, CARD, CardFile, due, read_published
from model_card.render import render
from pipeline.publish.schema import RELEASE, Release
from pipeline.unlearn.config import UnlearnConfig


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
    """What the card says that the evidence does not, and what `card.json` says that the rest of the release does not.

    The texts are compared byte by byte, so it is the version of this project that made the release that can say so.
    """
    try:
        inputs, evidence = read_published(tree)
        rendered, benchmarks = render(inputs, evidence), benchmark_files(evidence)
        said = CardFile(inputs=inputs, evidence=evidence.published())
        follows = CardFile(
            inputs=_due(inputs, release), evidence=due(said.evidence, evidence.records["unlearned"], release.lineage)
        )
        card = (tree / "README.md").read_text(encoding="utf-8")
    except (ArtifactError, OSError, UnicodeDecodeError) as error:
        yield f"The card cannot be rendered again: {error}"
        return
    except Exception as error:  # the schemas do not say all that a card needs, so a stranger's file may lack anything
        yield (
            f"The card cannot be rendered again: {CARD} or the recipe in {RELEASE} lacks something that a card needs "
            f"({error!r:.200})."
        )
        return
    named = (inputs.publish.repo, inputs.publish.tag, inputs.model.name, inputs.model.license)
    made = (release.repo, release.tag, release.base_model, release.license)
    if named != made:
        yield f"{CARD} is of {' '.join(named)}, and {RELEASE} of {' '.join(made)}."
    for place, value, other in differences(said.model_dump(mode="json"), follows.model_dump(mode="json")):
        yield f"{CARD}: {dotted(place)} is {value!r:.80}, and by {RELEASE} and results.json it is {other!r:.80}."
    forgotten = sum(said.evidence.counts[split].rows for split in ("forget", FORGOTTEN) if split in evidence.counts)
    if forgotten != release.forgotten.rows:
        yield f"{CARD} counts {forgotten} rows to be forgotten, and {RELEASE} {release.forgotten.rows}."
    if card != rendered:
        yield (
            "README.md is not the card that the published results, verdict and settings give with this version of the "
            f"project. If another made the release ({RELEASE} names its source), verify with that one."
        )
    yield from _benchmarks(tree, benchmarks)


def _due(inputs: CardInputs, release: Release) -> CardInputs:
    """The card's inputs with the recipe that `release.json` has. Raises ValueError if it is none."""
    parts = {name: release.recipe.get(name) for name in OF_RECIPE}
    return inputs.changed(**parts, changed_from_defaults=UnlearnConfig.changed_from_defaults(parts["unlearn"]))


def _benchmarks(tree: Path, expected: Mapping[str, str]) -> Iterator[str]:
    """Which results for benchmarks of the Hub, which it shows beside the card, are not those of the evidence."""
    folder = tree / EVAL_RESULTS
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected:
            yield f"{EVAL_RESULTS}/{name} is there, and the results give no such file."
        elif found.get(name) != expected[name].encode():
            yield f"{EVAL_RESULTS}/{name} is not what the results give."
