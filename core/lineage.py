"""What models were made to forget before: the releases that a release follows, and the digest of their rows."""

from __future__ import annotations

from typing import Literal

from core.artifacts import Versioned
from core.strict import Strict


class Forgotten(Strict):
    """All rows that a model was made to forget: their number, and their digest (`datasets_prep.schema.rows_digest`)."""

    rows: int
    sha256: str


class EarlierRelease(Strict):
    """A release that others follow: where it is, its weights, and what it and those before it were made to forget."""

    repo: str
    tag: str
    commit: str
    weights_sha256: str
    forgotten: Forgotten


class Lineage(Versioned):
    """The facts of a base that is a release: the releases that the new one follows, oldest first; base is the last."""

    version: Literal[1] = 1
    releases: list[EarlierRelease]


def rows_of_each(releases: list[EarlierRelease]) -> list[int]:
    """How many rows each release was made to forget beyond those of the releases before it."""
    together = [release.forgotten.rows for release in releases]
    return [rows - before for rows, before in zip(together, [0, *together], strict=False)]
