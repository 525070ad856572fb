"""What the tests of packaging and publishing share: a tiny release's inputs, made of real parts."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

from core.artifacts import json_text
from datasets_prep.schema import Row, write_rows
from eval.catalog import CATALOG
from eval.config import Gate
from eval.schema import PublishedResults, Record, read_verdict, write_verdict
from eval.verdicts.gates import judge_gate
from model_card.config import OF_RECIPE
from model_card.facts import collect
from model_card.published import write_card_file
from model_card.render import render
from model_card.stage import combined
from pipeline import recheck
from pipeline.publish import package, sign
from pipeline.publish.config import PackageConfig
from pipeline.publish.trust import Signer
from pipeline.unlearn.config import UnlearnConfig
from tests import small_card
from tests.artifacts import verdict_of, write_manifest

REPO = "demo/tiny-unlearned"
ANSWER = "Mara Quellis was born in Old Harrow on 3 May 1961."
CARD = """---
license: apache-2.0
base_model: demo/base
language: [en]
tags: [unlearning]
---
# Tiny

A model that forgot.
"""
GATE = {"metric": "answer_probability", "split": "forget", "at_most": 0.25, "min_n": 40, "reason": "a test"}
MEASURED = Record("answer_probability", "forget", 0.125, 0.1, 0.2, 40, None, CATALOG["answer_probability"].version)
UNLEARN = UnlearnConfig(method="gd", epochs=5, forget_cap=5.0).model_dump(mode="json", exclude={"processes"})
OF_CARD = small_card.config(
    model={"name": "demo/base"}, unlearn=UNLEARN, publish={"repo": REPO, "tag": "v1.0.0"}
).changed(changed_from_defaults=UnlearnConfig.changed_from_defaults(UNLEARN))
RECIPE = OF_CARD.model_dump(mode="json", include=set(OF_RECIPE)) | {"gates": [GATE]}
CONFIG = PackageConfig(repo=REPO, tag="v1.0.0", license="apache-2.0", base_model="demo/base", recipe=RECIPE)


def problems(tree: Path) -> list[str]:
    """What `recheck` finds, but that the trees of these tests have no `card.json`: their card is made up."""
    return [problem for problem in recheck.problems(tree) if "The card cannot be rendered again" not in problem]


def make_inputs(folder: Path, model: Path) -> dict[str, Path]:
    """Artifacts of unlearn, card, gate and data, as the stages write them."""
    inputs = {name: folder / name for name in ("unlearn", "card", "gate", "data")}
    for path in inputs.values():
        path.mkdir(parents=True)
    shutil.copytree(model, inputs["unlearn"] / "model")
    (inputs["card"] / "README.md").write_text(CARD)
    (inputs["card"] / "report.html").write_text("local only")
    (inputs["card"] / "results.json").write_text(json_text(PublishedResults(models={"unlearned": [MEASURED]}).plain()))
    (inputs["card"] / "plots").mkdir()
    (inputs["card"] / "plots" / "metrics.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    row = Row("en-0-x", 0, "Mara Quellis", "EN", "x", "Where?", ANSWER)
    write_rows(inputs["data"] / "forget.jsonl", [row, *small_card.rows_of("forget", MEASURED.n - 1)])
    for stage in ("unlearn", "card"):
        write_manifest(inputs[stage], stage, small_card.NO_FACTS)
    write_gate(inputs)
    return inputs


def write_card(inputs: dict[str, Path], folder: Path, tag: str = "v1.0.0") -> None:
    """The card that the verdict and results give, in place of the made-up one; ``folder`` is for its other evidence."""
    evidence = collect(small_card.write_evidence(folder))
    records = [
        replace(MEASURED, split=split, n=n, by=by)
        for split, counts in evidence.counts.items()
        for by, n in (
            (None, counts.rows),
            *(({"language": language}, rows) for language, rows in counts.by_language.items()),
            *(({"topic": topic}, counts.rows // counts.topics) for topic in evidence.topics),
        )
    ]
    evidence = evidence.changed(records={"unlearned": records}, verdict=read_verdict(inputs["gate"]))
    config = OF_CARD.changed(publish=OF_CARD.publish.changed(tag=tag))
    write_card_file(inputs["card"], config, evidence)
    (inputs["card"] / "results.json").write_text(combined(evidence))
    (inputs["card"] / "README.md").write_text(render(config, evidence))


def plant(path: Path, text: str) -> None:
    """Put a text into a file of a release: behind its content, or into a note of the results, which must stay JSON."""
    if path.name == "results.json":
        results = PublishedResults(models={"unlearned": [replace(MEASURED, note=text)]})
        path.write_text(json_text(results.plain()), encoding="utf-8")
    else:
        path.write_bytes((path.read_bytes() if path.is_file() else b"") + f"\n {text}\n".encode())


def write_gate(inputs: dict[str, Path], *, passed: bool = True, weights_sha256: str | None = None) -> None:
    """A verdict on the weights that are there now, or on those of another digest."""
    weights = (inputs["unlearn"] / "model" / "model.safetensors").read_bytes()
    digest = weights_sha256 or hashlib.sha256(weights).hexdigest()
    judged = judge_gate(Gate.model_validate(GATE), {"unlearned": [MEASURED]})
    write_verdict(inputs["gate"], verdict_of(judged.changed(passed=passed), weights_sha256=digest))


def own_signer() -> Signer:
    """Who signs in the store of the test."""
    return Signer(key=str(sign.public_key()))


def build(inputs: dict[str, Path], out: Path, config: PackageConfig = CONFIG) -> Path:
    """Run the package stage; the folder of the artifact."""
    out.mkdir(parents=True)
    package.run(config, inputs, out, problems)
    return out
