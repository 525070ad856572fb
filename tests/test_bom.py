"""The bill of materials of a release: valid CycloneDX, and what `release.json` and the results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from core.artifacts import json_text
from core.digests import hash_file
from eval.schema import PublishedResults
from pipeline.publish.bom import bill_of_materials
from pipeline.publish.config import PackageConfig
from tests.publishing import MEASURED

DATA = {"forget.jsonl": "a" * 64, "retain.jsonl": "b" * 64}
PACKAGES = {"python": "3.11.9", "torch": "2.13.0", "huggingface_hub": "2.4.0"}
RECIPE = {"model": {"name": "demo/base", "revision": "c" * 40}, "unlearn": {"method": "csd"}}
TERMS = {"name": "Falcon LLM Licence", "license_name": "falcon-llm", "url": "https://falconllm.tii.ae/terms.html"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    results = PublishedResults(models={"base": [], "unlearned": [MEASURED]})
    (folder / "results.json").write_text(json_text(results.plain()))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def made(tree: Path, **changes: object) -> tuple[str, dict]:
    given = {"repo": "demo/x", "tag": "v1.0.0", "license": "apache-2.0", "base_model": "demo/base", "recipe": RECIPE}
    text = bill_of_materials(PackageConfig.model_validate({**given, **changes}), tree, DATA, PACKAGES)
    return text, json.loads(text)


@pytest.mark.parametrize("changes", [{}, {"license": "llama4"}, {"license": "other", "terms": TERMS}, {"recipe": {}}])
def test_it_is_valid(tree: Path, changes: dict) -> None:
    text, _ = made(tree, **changes)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = text.replace('"performanceMetrics"', '"performanceMetric"')
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_it_names_what_the_release_is_made_of(tree: Path) -> None:
    _, bom = made(tree)
    release = bom["metadata"]["component"]
    assert (release["type"], release["name"], release["version"]) == ("machine-learning-model", "demo/x", "v1.0.0")
    assert release["licenses"][0]["license"]["id"] == "Apache-2.0"
    assert release["purl"] == "pkg:huggingface/demo/x@v1.0.0"
    assert release["pedigree"]["ancestors"][0]["version"] == "c" * 40
    (weights,) = release["components"]
    assert weights["hashes"] == [{"alg": "SHA-256", "content": hash_file(tree / "model.safetensors")}]
    parts = {part["name"]: part for part in bom["components"]}
    assert parts.keys() == {"demo/base", *DATA, *PACKAGES}
    assert parts["forget.jsonl"]["hashes"][0]["content"] == "a" * 64
    assert parts["huggingface_hub"]["purl"] == "pkg:pypi/huggingface-hub@2.4.0"
    depends = {entry["ref"]: entry.get("dependsOn", []) for entry in bom["dependencies"]}
    assert set(depends["release"]) == {part["bom-ref"] for part in bom["components"]}


def test_it_says_what_was_measured(tree: Path) -> None:
    _, bom = made(tree)
    assert bom["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == [
        {
            "type": "answer_probability",
            "slice": "forget",
            "value": "0.125",
            "confidenceInterval": {"lowerBound": "0.1", "upperBound": "0.2"},
        }
    ]


def test_the_same_release_has_the_same_bytes_and_no_time(tree: Path) -> None:
    text, bom = made(tree)
    assert made(tree)[0] == text
    assert "timestamp" not in bom["metadata"]
    assert bom["serialNumber"] != made(tree, tag="v1.0.1")[1]["serialNumber"]
