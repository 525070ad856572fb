"""What the tests of packaging and publishing share: a tiny release's inputs, made of real parts."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from datasets_prep.schema import Row, write_rows
from pipeline.publish import package
from pipeline.publish.config import PackageConfig

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
CONFIG = PackageConfig(repo=REPO, license="apache-2.0", base_model="demo/base", recipe={"name": "tiny"})


def make_inputs(folder: Path, model: Path) -> dict[str, Path]:
    """Artifacts of unlearn, card, gate and data, as the stages write them."""
    inputs = {name: folder / name for name in ("unlearn", "card", "gate", "data")}
    for path in inputs.values():
        path.mkdir(parents=True)
    shutil.copytree(model, inputs["unlearn"] / "model")
    (inputs["card"] / "README.md").write_text(CARD)
    (inputs["card"] / "report.html").write_text("local only")
    (inputs["card"] / "results.json").write_text('{"models": {}}')
    (inputs["card"] / "plots").mkdir()
    (inputs["card"] / "plots" / "metrics.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    write_rows(inputs["data"] / "forget.jsonl", [Row("en-0-x", 0, "Mara Quellis", "EN", "x", "Where?", ANSWER)])
    write_gate(inputs)
    return inputs


def write_gate(inputs: dict[str, Path], **changes: object) -> None:
    """A gate that passed for the weights that are there now, with ``changes``."""
    weights = (inputs["unlearn"] / "model" / "model.safetensors").read_bytes()
    verdict = {"passed": True, "weights_sha256": hashlib.sha256(weights).hexdigest(), "gates": []}
    (inputs["gate"] / "gate.json").write_text(json.dumps({**verdict, **changes}))


def build(inputs: dict[str, Path], out: Path, config: PackageConfig = CONFIG) -> Path:
    """Run the package stage; the folder of the artifact."""
    out.mkdir(parents=True)
    package.run(config, inputs, out)
    return out
