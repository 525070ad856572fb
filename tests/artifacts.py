"""Artifacts for tests, of the types that the stages write: whoever renames a field finds it here, or does not build."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.artifacts import FileEntry, Git, Made, Manifest, write_file
from core.digests import MANIFEST, artifact_key
from core.strict import Strict
from core.unlearning import UnlearnFacts, UnlearnSeeds
from datasets_prep.schema import DataFacts, DigestedSource, FalseAnswerFacts, SplitSizes
from eval.schema import JudgedGate, Verdict
from pipeline.publish.schema import Receipt, SignatureFacts, VerifiedCheck


def judged_gate(**changes: Any) -> JudgedGate:
    """A gate that passed: 0.125 (0.1 to 0.2) is at most 0.25."""
    gate = JudgedGate(
        metric="answer_probability",
        split="forget",
        rule="at most 0.25",
        measured=0.125,
        ci_low=0.1,
        ci_high=0.2,
        at_least=None,
        at_most=0.25,
        n=40,
        min_n=40,
        passed=True,
        why="0.125 is measured.",
        reason="a test",
        limits=None,
        certifiable_alone=False,
        smallest_difference=0.0234,
        power="With 40 rows it sees little.",
        confirmed=None,
        parts=[],
    )
    return gate.changed(**changes)


def verdict_of(*gates: JudgedGate, weights_sha256: str = "ab" * 32, selection: str | None = None) -> Verdict:
    """What `gate.json` says of ``gates``."""
    passed = bool(gates) and all(gate.passed for gate in gates)
    return Verdict(
        passed=passed, why="All is said.", weights_sha256=weights_sha256, selection=selection, gates=list(gates)
    )


def unlearn_facts(**changes: Any) -> UnlearnFacts:
    """A run of 32 steps that reached its level."""
    facts = UnlearnFacts(
        levels={},
        forget_cap=None,
        pairing_sha256="ef" * 32,
        seeds=UnlearnSeeds(pairing=0, training=42, refusals=None),
        stopped="all epochs done",
        steps=32,
        kept_step=32,
        bounds=None,
        dual=None,
    )
    return facts.changed(**changes)


def data_facts(source: dict[str, Any]) -> DataFacts:
    """What the data stage says of rows from ``source``."""
    return DataFacts(
        source=DigestedSource.model_validate(source | {"rows_sha256": "ab" * 32}),
        rows_in=3,
        rows=SplitSizes(forget=1, retain=1, holdout=1, unrehearsed=0),
        identities=3,
        mixed_identities=0,
        left_out={},
        checks={},
        perturbed=FalseAnswerFacts(
            rows=0,
            answers=0,
            mixed=0,
            from_trained_rows=0,
            rows_with_fewer=0,
            rows_without=0,
            guides=0,
            guides_mixed=0,
        ),
        tokens={},
    )


def demo_data_facts() -> DataFacts:
    """What the data stage says of the demo's rows: every gate of the demo can be measured on them."""
    facts = data_facts({"sample": {"seed": 2026, "identities": 5, "topics": 10}})
    return facts.changed(
        rows_in=250,
        rows=SplitSizes(forget=40, retain=140, holdout=50, unrehearsed=20),
        identities=25,
        perturbed=facts.perturbed.changed(rows=140, answers=420),
    )


def receipt(**changes: Any) -> Receipt:
    """A release on the loopback Hub."""
    made = Receipt(
        repo="demo/x",
        repo_type="model",
        endpoint="local",
        visibility="private",
        branch="main",
        commit="c" * 40,
        tag="v1",
        url="hub/models/demo/x.git",
        files={"README.md": "ab" * 32},
        signature=SignatureFacts(file="model.sig", format="OpenSSF", signer="the key ab"),
        verified=[VerifiedCheck(name="digests", detail="1 file is what was packaged")],
    )
    return made.changed(**changes)


def toy_made() -> Made:
    """How an artifact of the stage x without config and inputs came to be."""
    return Made(
        stage="x",
        version="1",
        key=artifact_key("x", "1", {}, {}),
        config={},
        inputs={},
        facts={},
        seconds=1.0,
        peak_memory_bytes=1,
        git=Git(commit=None, dirty=False),
        packages={},
        device="cpu",
        argv=[],
    )


def write_manifest(artifact: Path, stage: str, facts: Strict, **changes: Any) -> None:
    """The manifest of an artifact of ``stage`` that says ``facts``."""
    manifest = Manifest(
        stage=stage,
        version="1",
        key="0" * 64,
        config={},
        inputs={},
        facts=facts.model_dump(mode="json"),
        seconds=12.3,
        peak_memory_bytes=1000,
        git=Git(commit="c" * 40, dirty=False),
        packages={"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"},
        device="cpu (AMD EPYC 9B14, threads: 2)",
        argv=["pipeline"],
        digest="0" * 64,
        files={"model": FileEntry(sha256="0" * 64, size=1, mtime_ns=1, ctime_ns=1, inode=1)},
    )
    write_file(artifact / MANIFEST, manifest.changed(**changes))


Place = tuple[str | int, ...]


def fields(content: object, at: Place = ()) -> Iterator[tuple[Place, bool]]:
    """The place of every field of ``content``, those of its parts too, and whether a reader needs it."""
    if isinstance(content, Strict):
        kinds = {name: field.is_required() or name == "version" for name, field in type(content).model_fields.items()}
    elif dataclasses.is_dataclass(content):
        kinds = {field.name: field.default is dataclasses.MISSING for field in dataclasses.fields(content)}
    else:
        parts = content if isinstance(content, dict) else dict(enumerate(content)) if isinstance(content, list) else {}
        for key, part in parts.items():
            yield from fields(part, (*at, key))
        return
    for name, needed in kinds.items():
        yield (*at, name), needed
        yield from fields(getattr(content, name), (*at, name))


def part_at(value: Any, place: Place) -> Any:
    """What stands at ``place`` of a JSON value."""
    for step in place:
        value = value[step]
    return value


def renamed(value: Any, place: Place) -> Any:
    """A JSON value whose key at ``place`` is called otherwise."""
    changed = copy.deepcopy(value)
    holder = part_at(changed, place[:-1])
    holder[f"{place[-1]}_"] = holder.pop(place[-1])
    return changed
