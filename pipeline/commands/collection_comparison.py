"""What a collection's members measured, side by side, and the files that show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import DatasetCardData

from core.artifacts import json_text
from core.markdown import escape
from eval.schema import ComparedMetric, read_records, read_verdict
from eval.verdicts import compare
from model_card.comparison import ACROSS, UP, Compared, card_table, page, plot
from model_card.tables import interval
from pipeline.collection import Collection
from pipeline.engine.artifact import Artifact
from pipeline.engine.graph import Graph
from pipeline.engine.plan import duration
from pipeline.publish.collection import Listing
from pipeline.publish.schema import read_receipt

REFERENCES: tuple[Literal["base", "gold"], ...] = ("base", "gold")
ALONE = ("novice", "neighbours", "unlearn", "eval-unlearned", "compare", "gate", "card", "package", "publish")


def compared(collection: Collection, nodes: Graph, done: Mapping[str, Artifact]) -> list[Compared]:
    """Every model that was measured: base and gold once for each group, and the unlearned models."""
    models: list[Compared] = []
    groups: dict[str, str] = {}
    for name, recipe in collection.members.items():
        mine = {
            node.stage.name: (node, done[key]) for key, node in nodes.items() if name in node.members and key in done
        }
        made = {stage: artifact for stage, (_, artifact) in mine.items()}
        if "eval-base" not in made:
            continue
        node = mine["eval-base"][0]
        if node.id not in groups:
            groups[node.id] = _group(collection, list(node.members))
            models += [
                _reference(kind, groups[node.id], made)
                for kind in REFERENCES
                if f"eval-{kind}" in made and kind in made
            ]
        if "eval-unlearned" not in made:
            continue
        config = compare.Config(recipe.equivalence, recipe.eval.seed)
        like: dict[str, list[ComparedMetric]] = {}
        for to in ("gold", "base"):
            if f"eval-{to}" in made:
                entries = compare.compare(made["eval-unlearned"].path, made[f"eval-{to}"].path, config)
                like[to] = [entry for entry in entries if (entry.split == "forget") == (to == "gold")]
        models.append(
            Compared(
                name=name,
                group=groups[node.id],
                kind="unlearned",
                records=read_records(made["eval-unlearned"].path / "results.json"),
                verdict=read_verdict(made["gate"].path) if "gate" in made else None,
                like=like,
                repo=read_receipt(made["publish"].path).repo if "publish" in made else None,
                seconds=sum(made[stage].manifest.seconds for stage in ALONE if stage in made),
            )
        )
    return models


def _reference(kind: Literal["base", "gold"], group: str, made: Mapping[str, Artifact]) -> Compared:
    model, measured = made[kind], made[f"eval-{kind}"]
    records = read_records(measured.path / "results.json")
    return Compared(kind, group, kind, records, None, {}, None, model.manifest.seconds + measured.manifest.seconds)


def _group(collection: Collection, members: list[str]) -> str:
    """What these members alone have in common, by the labels of the matrix; ``all`` if they are all that there are.

    Their names, if others have it in common with them.
    """
    cells = [collection.cells[name] for name in members]
    shared = {
        axis: cells[0][axis]
        for axis, values in collection.config.matrix.items()
        if len({cell[axis] for cell in cells}) == 1 and len(values) > 1
    }
    if sum(shared.items() <= cell.items() for cell in collection.cells.values()) > len(members):
        return ", ".join(members)
    return ", ".join(collection.config.label(axis, value) for axis, value in shared.items()) or "all"


def write(
    collection: Collection, models: list[Compared], nodes: Graph, done: Mapping[str, Artifact], folder: Path
) -> Listing:
    """Write ``comparison`` as HTML, Markdown, PNG and JSON into ``folder``, and return what the Hub is to show."""
    config = collection.config
    picture, table = plot(models), card_table(models, links=collection.hub == "hf")
    seconds = sum(artifact.manifest.seconds for artifact in done.values())
    unshared = sum(done[key].manifest.seconds * len(node.members) for key, node in nodes.items() if key in done)
    spent = (
        f"{len(done)} stages took {duration(seconds)} together; without sharing, the releases would have taken "
        f"{duration(unshared)}. Time is that of the stages, on whatever machine each ran."
    )
    head = f"# {escape(config.title)}\n\n{escape(config.description)}"
    text = f"{head}\n\n![forget against retain](comparison.png)\n\n{table}\n"
    files = {"comparison.png": picture, "README.md": (_metadata(collection) + text).encode()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.png").write_bytes(picture)
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    html = page(config.title, config.description, models, picture, spent)
    (folder / "comparison.html").write_text(html, encoding="utf-8")
    plain = [
        {**model._asdict(), "records": [record.plain() for record in model.records if record.by is None],
         "verdict": model.verdict and model.verdict.passed,
         "like": {to: [entry.model_dump() for entry in entries] for to, entries in model.like.items()}}
        for model in models
    ]  # fmt: skip
    (folder / "comparison.json").write_text(json_text(plain), encoding="utf-8")
    notes = {model.repo: _note(model) for model in models if model.repo}
    private = any(recipe.publish.visibility == "private" for recipe in collection.members.values())
    return Listing(config.title, config.description, config.repo, private, notes, files)


def _metadata(collection: Collection) -> str:
    """The head of the Hub's page. The licence is that of the models, if they share one."""
    first, *others = (recipe.model.metadata for recipe in collection.members.values())
    shared: dict[str, Any] = dict(first) if all(other == first for other in others) else {}
    data = DatasetCardData(**shared, tags=["machine-unlearning"], viewer=False)
    return f"---\n{data.to_yaml()}\n---\n\n"


def _note(model: Compared) -> str:
    return (
        f"Answer probability {interval(model.record(*ACROSS))} on forget rows, {interval(model.record(*UP))} on retain "
        f"rows; gates: {model.gates}."
    )
