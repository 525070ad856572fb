"""What publishing writes: `release.json` in the repository, `receipt.json` on this machine, and the stages' facts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from core.artifacts import Git, Versioned, read_file
from core.lineage import EarlierRelease, Forgotten
from core.strict import Strict

RELEASE = "release.json"
BOM = "bom.cdx.json"  # as tools that read CycloneDX look for it
RECEIPT = "receipt.json"


class Release(Versioned):
    """The content of `release.json`: what a release is, and what it was made from.

    ``repo`` and ``tag`` are where it belongs: a signed tree in another place is not this release. ``recipe`` are the
    parts of the recipe that may be shown. ``data``, ``gate_sha256`` and ``files`` are sha256 of the data's files, of
    `gate.json` and of every other file of the tree. ``source`` is what its card was written by, and ``packages`` what
    it was packaged with: they can render the card again. ``forgotten`` are all rows that the model was made to forget,
    ``lineage`` the releases that it follows, oldest first.
    """

    version: Literal[4] = 4
    repo: str
    tag: str
    base_model: str
    license: str
    weights_sha256: str
    recipe: dict[str, JsonValue]
    data: dict[str, str]
    gate_sha256: str
    forgotten: Forgotten
    lineage: list[EarlierRelease]
    source: Git
    packages: dict[str, str]
    files: dict[str, str]


class PackageFacts(Strict):
    """The tree in numbers, the digest of the weights, and how many forget answers no search could find.

    ``left_out`` are files of the model's folder that are not part of a release.
    """

    files: int
    bytes: int
    weights_sha256: str
    answers_not_searched_for: int
    left_out: list[str]


class VerifiedCheck(Strict):
    """One check that a published release passed, in a few words."""

    name: str
    detail: str


class SignatureFacts(Strict):
    """A signature's file and format, and who signed: the sha256 of a key, or a name and who vouches for it."""

    file: str
    format: str
    signer: str


class Receipt(Versioned):
    """The content of `receipt.json`: what was published where, and what was verified after downloading it again.

    For the loopback Hub, ``endpoint`` is "local" and ``url`` is the folder in the store. ``files`` maps name to sha256.
    """

    version: Literal[2] = 2
    repo: str
    repo_type: Literal["model"]
    endpoint: str
    visibility: Literal["private", "public"]
    branch: str
    commit: str
    tag: str
    url: str
    files: dict[str, str]
    signature: SignatureFacts
    verified: list[VerifiedCheck]


class PublishFacts(Strict):
    """Where a release is."""

    repo: str
    commit: str
    tag: str
    visibility: str
    url: str


def read_receipt(publish: Path) -> Receipt:
    """The receipt in the artifact of the publish stage. Raises ArtifactError."""
    return read_file(publish / RECEIPT, Receipt, "Run the publish stage again.")
