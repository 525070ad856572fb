"""A base that is a release: verified as a stranger would, taken from that download, and with what it forgot."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from core.errors import DataError, InputError
from core.lineage import EarlierRelease, Forgotten, Lineage
from core.places import holder, store
from datasets_prep.schema import read_forgotten, rows_digest
from pipeline.publish import sign, tree
from pipeline.publish.hub import connect
from pipeline.publish.package import Recheck
from pipeline.publish.schema import Release
from pipeline.publish.verify import read_release, verify_release


def fetch(release: str, start: Mapping[str, str], data: Path, out: Path, recheck: Recheck) -> Lineage:
    """Verify ``release``, ``owner/name@v1.0.0``, and put its model into ``out/model``. The lineage ends with it.

    ``start`` are name and licence of the recipe's start model. Raises VerificationError if a check fails, HubError if
    it cannot be downloaded, InputError if it was made from another start model, DataError if ``data`` has not exactly
    the rows that it was made to forget.
    """
    repo, _, tag = release.partition("@")
    verified_tree = out / "verified"
    signers = sign.trusted_signers(repo)
    with connect(holder(repo, store()), anonymous=True) as target:
        verified = verify_release(repo, tag, target, signers, recheck, scratch=out, keep=verified_tree)
    made = read_release(verified_tree)
    _check_start(release, made, start)
    _check_rows(release, made.forgotten, data)
    (out / "model").mkdir()
    for path in verified_tree.iterdir():
        if tree.is_allowed(path.name, tree.MODEL_FILES):
            path.rename(out / "model" / path.name)
    shutil.rmtree(verified_tree)
    own = EarlierRelease(
        repo=repo,
        tag=tag,
        commit=verified.commit,
        weights_sha256=made.weights_sha256,
        forgotten=made.forgotten,
    )
    return Lineage(releases=[*made.lineage, own])


def _check_start(release: str, made: Release, start: Mapping[str, str]) -> None:
    for key, needed in (("name", made.base_model), ("license", made.license)):
        if start[key] != needed:
            raise InputError(
                f"model.{key} is {start[key]}, and {release} was made from {needed}. Give that one's section."
            )


def _check_rows(release: str, forgotten: Forgotten, data: Path) -> None:
    rows = read_forgotten(data)
    digest = rows_digest(rows)
    if (len(rows), digest) != (forgotten.rows, forgotten.sha256):
        raise DataError(
            f"data.request.forgotten selects {len(rows)} rows (sha256 {digest[:12]}…), and with the releases before it "
            f"{release} was made to forget {forgotten.rows} (sha256 {forgotten.sha256[:12]}…). Give exactly these, as "
            "its data had them: the same source and columns, and the selections of all earlier requests, or the files "
            "runs/RECIPE/data/forget.jsonl of their runs."
        )
