"""The package stage: exactly the tree that will be on the Hub, from an allow-list, scanned, signed last.

The same inputs give the same bytes of every file but ``model.sig``; the signature is random (see
:mod:`pipeline.publish.sign`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import read_facts, read_manifest, write_file
from core.digests import hash_file, weights_sha256
from core.errors import ArtifactError, GateError, InputError
from core.lineage import Forgotten, Lineage
from core.packages import package_versions
from core.progress import report
from core.weights import code_problems, weights_problems
from datasets_prep.schema import FORGOTTEN, read_forgotten, read_paraphrased, read_rows, rows_digest
from eval.schema import GATE, read_verdict
from pipeline.publish import scan, sign, tree
from pipeline.publish.bom import bill_of_materials
from pipeline.publish.config import PackageConfig, Searched
from pipeline.publish.licence import licence_problems, licence_texts
from pipeline.publish.schema import BOM, PackageFacts, Release

Recheck = Callable[[Path], list[str]]
"""Says what in a tree's verdict does not follow from the rest of the tree; empty if all does."""


def run(config: PackageConfig, inputs: Mapping[str, Path], out: Path, recheck: Recheck) -> PackageFacts:
    """Build and sign ``out/hub``.

    ``inputs``: unlearn, card, gate, data, model if the licence's text comes with the start model, and base if that is a
    release. Raises GateError unless the gate passed for exactly these weights and follows from recipe and results, and
    InputError for a pickle, unsound weights, a missing licence file, or a secret or forget answer in any file. What
    signs is not an input: see :mod:`pipeline.publish.sign`.
    """
    model = inputs["unlearn"] / "model"
    report("checking the gate")
    check_gate(inputs["gate"], model)
    left_out = _refuse_pickles(model)
    if problems := weights_problems(model):
        raise ArtifactError(f"{model}: {'; '.join(problems)}. Run the unlearn stage again.")
    if problems := code_problems(model):
        raise InputError(f"{model}: {'; '.join(problems)}, and no release holds code. Remove auto_map there.")
    if problem := config.rules.name_problem(config.repo):
        raise InputError(f"publish.repo: {problem}.")
    sign.check_settings()
    hub = out / "hub"
    report("copying")
    _copy(model, hub, tree.MODEL_FILES)
    _copy(inputs["card"], hub, tree.CARD_FILES)
    _copy(inputs["gate"], hub, (GATE,))
    _add_licence(config, [folder for folder in (inputs.get("model"), model) if folder is not None], hub)
    digest = weights_sha256(hub)
    write_file(hub / tree.RELEASE, _release(config, inputs, hub, digest))
    scanner = forget_scanner(inputs["data"], config.search_for)
    report("scanning for secrets and forget answers")
    scan.refuse_findings(hub, scanner)
    if wrong := recheck(hub):
        raise GateError(
            f"The verdict or the card does not follow from recipe and results: {' '.join(wrong)} Nothing was packaged."
        )
    report("signing")
    sign.sign_tree(hub)
    files = [path for path in hub.rglob("*") if path.is_file()]
    return PackageFacts(
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
        weights_sha256=digest,
        answers_not_searched_for=scanner.unsearched,
        left_out=left_out,
    )


def check_gate(gate: Path, weights: Path) -> None:
    """Raise GateError unless all gates passed for the weights in the folder ``weights``.

    Raises ArtifactError if no verdict can be read.
    """
    verdict = read_verdict(gate)
    if not verdict.passed:
        failed = ", ".join(judged.name for judged in verdict.failed())
        raise GateError(f"The gate failed ({failed or 'no gate passed'}); nothing was published.")
    if (digest := weights_sha256(weights)) != verdict.weights_sha256:
        raise GateError(
            f"The gate passed for the weights {verdict.weights_sha256}, and these are {digest}. Run the gate stage for "
            "these weights."
        )


def forget_scanner(data: Path, search_for: Sequence[Searched] = ()) -> scan.Scanner:
    """What finds the answers of the forget set and of what was forgotten before, and on request questions and names.

    Raises ArtifactError if the data artifact has no forget rows, and InputError if names are asked for and it does not
    say them.
    """
    rows = read_rows(data / "forget.jsonl")
    if not rows:
        raise ArtifactError(
            f"{data / 'forget.jsonl'} has no rows, so there are no answers to search for. Run the data stage again."
        )
    rows += read_forgotten(data)
    if "names" in search_for and (unnamed := sum(not row.name for row in rows)):
        raise InputError(
            f"publish.search_for has names, and {unnamed} of the {len(rows)} rows to be forgotten name nobody in a "
            "column of its own. Name that in data.source.columns.name, or take names out of publish.search_for."
        )
    reworded = [row for row in read_paraphrased(data / "paraphrased.jsonl") if row.split in ("forget", FORGOTTEN)]
    answers = [row.answer for row in rows] + [row.answer for row in reworded]
    questions = [row.question for row in rows] + [row.question for row in reworded]
    return scan.Scanner(
        answers,
        questions if "questions" in search_for else (),
        [str(row.name) for row in rows] if "names" in search_for else (),
    )


def refuse_answers(said: Mapping[str, Any], data: Path, search_for: Sequence[Searched]) -> None:
    """Raise InputError if what a release says of its recipe, by section, holds what is to be forgotten."""
    scanner = forget_scanner(data, search_for)
    found = {
        section: sorted(scanner.kinds(json.dumps(content, ensure_ascii=False).encode(), tree.RELEASE))
        for section, content in said.items()
    }
    listed = [f"{section} holds {' and '.join(kinds)}" for section, kinds in found.items() if kinds]
    if listed:
        raise InputError(f"What the release would show of its recipe: {'; '.join(listed)}. Say it in other words.")


def _refuse_pickles(model: Path) -> list[str]:
    """The names of files that are left out. Raises InputError if a file there can run code."""
    names = {path.relative_to(model).as_posix(): path for path in sorted(model.rglob("*")) if path.is_file()}
    if pickles := [name for name, path in names.items() if tree.is_pickle(path)]:
        raise InputError(
            f"{model} holds files that can run code when they are loaded: {', '.join(pickles)}. "
            "Save the weights as safetensors, and remove these files."
        )
    return [name for name in names if not tree.is_allowed(name, tree.MODEL_FILES)]


def _add_licence(config: PackageConfig, sources: Sequence[Path], hub: Path) -> None:
    for name, text in licence_texts(config, config.repo, config.base_model, sources).items():
        (hub / name).write_text(text, encoding="utf-8")
    if problems := licence_problems(config, config.repo, hub):
        raise InputError(f"The release does not meet the licence {config.license}: {'; '.join(problems)}.")


def _copy(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and tree.is_allowed(name, patterns):
            if path.is_symlink():  # it may point to any file of this machine
                raise ArtifactError(f"{path} is a link. Put the file itself there.")
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name)


def _release(config: PackageConfig, inputs: Mapping[str, Path], hub: Path, weights: str) -> Release:
    """The content of release.json: what this release was made from, and the digest of every other file.

    The bill of materials, which says part of this for other tools, is written first.
    """
    data = {path.name: hash_file(path) for path in sorted(inputs["data"].glob("*.jsonl"))}
    made_with = read_manifest(inputs["unlearn"]).packages  # the weights, which may be older than this installation
    (hub / BOM).write_text(bill_of_materials(config, hub, data, made_with), encoding="utf-8")
    forgotten = [*read_forgotten(inputs["data"]), *read_rows(inputs["data"] / "forget.jsonl")]
    return Release(
        repo=config.repo,
        tag=config.tag,
        base_model=config.base_model,
        license=config.license,
        weights_sha256=weights,
        recipe=config.recipe,
        data=data,
        gate_sha256=hash_file(hub / GATE),
        source=read_manifest(inputs["card"]).git,
        packages=package_versions(),
        forgotten=Forgotten(rows=len(forgotten), sha256=rows_digest(forgotten)),
        lineage=read_facts(inputs["base"], Lineage).releases if "base" in inputs else [],
        files={name: digest.sha256 for name, digest in tree.read_tree(hub).items()},
    )
