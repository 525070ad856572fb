"""The machine-learning bill of materials of a release: CycloneDX 1.6, ECMA-424.

It names what the weights are made of, for tools that read such lists: the start model at its commit, the data by their
digests, the packages, the licence, and what was measured. The same release gives the same bytes: it holds no time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from core.artifacts import json_text, read_file
from core.digests import hash_file
from eval.schema import PublishedResults
from pipeline.publish.config import PackageConfig


def bill_of_materials(config: PackageConfig, tree: Path, data: Mapping[str, str], packages: Mapping[str, str]) -> str:
    """The JSON of the list, with the ``data`` of `release.json` and the ``packages`` of the unlearning.

    Raises ArtifactError.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.output.json import JsonV1Dot6

    release, base = _release(config, tree), _base(config)
    parts = [base, *(_data(name, sha256) for name, sha256 in data.items()), *map(_package, packages.items())]
    name = uuid5(NAMESPACE_URL, f"https://huggingface.co/{config.repo}/tree/{config.tag}")
    bom = Bom(serial_number=name, components=parts)
    bom.metadata.component = release
    bom.register_dependency(release, parts)
    text = json.loads(JsonV1Dot6(bom).output_as_string())
    del text["metadata"]["timestamp"]  # the schema allows a list without a time
    text["metadata"]["component"]["modelCard"] = _model_card(config, tree)  # the library has no class for it
    return json_text(text)


def _release(config: PackageConfig, tree: Path) -> Any:
    from cyclonedx.model import ExternalReference, ExternalReferenceType, XsUri
    from cyclonedx.model.component import Component, ComponentType, Pedigree
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.spdx import fixup_id

    spdx, rules = fixup_id(config.license), config.rules
    return Component(
        name=config.repo,
        version=config.tag,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="release",
        purl=_purl("huggingface", config.repo, config.tag),
        licenses=[DisjunctiveLicense(id=spdx, name=None if spdx else rules.name, url=XsUri(rules.url))],
        pedigree=Pedigree(ancestors=[_base(config)]),
        components=[_file(path) for path in sorted(tree.glob("*.safetensors"))],
        external_references=[
            ExternalReference(
                type=ExternalReferenceType.DISTRIBUTION, url=XsUri(f"https://huggingface.co/{config.repo}")
            )
        ],
    )


def _base(config: PackageConfig) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    made_from = config.recipe.get("model")
    revision = made_from.get("revision") if isinstance(made_from, dict) else None
    version = str(revision) if revision else None
    return Component(
        name=config.base_model,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="start-model",
        purl=_purl("huggingface", config.base_model, version),
    )


def _file(path: Path) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    return Component(name=path.name, type=ComponentType.FILE, bom_ref=path.name, hashes=[_sha256(hash_file(path))])


def _data(name: str, sha256: str) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    return Component(name=name, type=ComponentType.DATA, bom_ref=f"data-{name}", hashes=[_sha256(sha256)])


def _package(package: tuple[str, str]) -> Any:
    from cyclonedx.model.component import Component, ComponentType

    name, version = package
    purl = None if name == "python" else _purl("pypi", name.replace("_", "-").lower(), version)
    kind = ComponentType.PLATFORM if name == "python" else ComponentType.LIBRARY
    return Component(name=name, version=version, type=kind, bom_ref=f"package-{name}", purl=purl)


def _sha256(digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _purl(kind: str, name: str, version: str | None) -> Any:
    from packageurl import PackageURL

    namespace, _, name = name.rpartition("/")
    return PackageURL(type=kind, namespace=namespace or None, name=name, version=version)


def _model_card(config: PackageConfig, tree: Path) -> dict[str, Any]:
    """What the release is and how it was measured: values of the unlearned model on whole splits, with intervals."""
    results = read_file(tree / "results.json", PublishedResults, "Run the card stage again.")
    unlearned = config.recipe.get("unlearn")
    method = unlearned.get("method") if isinstance(unlearned, dict) else None
    metrics = [
        {
            "type": record.metric,
            "slice": record.split,
            "value": str(record.value),
            "confidenceInterval": {"lowerBound": str(record.ci_low), "upperBound": str(record.ci_high)},
        }
        for record in results.models["unlearned"]
        if record.by is None
    ]
    return {
        "modelParameters": {"task": "text-generation", "approach": {"type": "supervised"}},
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "properties": [{"name": "unlearning:method", "value": str(method)}] if method else [],
    }
