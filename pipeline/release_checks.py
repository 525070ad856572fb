"""What the Hub's pages say of a release: the checks of `verify` that need no download and no model in memory."""

from __future__ import annotations

from pathlib import Path

from core.errors import ReleaseError
from pipeline.localhub.pages.versions import Check
from pipeline.publish.sign import trusted_signers
from pipeline.publish.tree import read_tree, take_hub_files
from pipeline.publish.verify import file_steps
from pipeline.recheck import problems


def release_checks(folder: Path, repo: str, tag: str) -> list[Check]:
    """Check the files of a release in ``folder``, which lies on the Hub as ``tag`` of ``repo``."""
    try:
        attributes = take_hub_files(folder)
        files = {name: digest.sha256 for name, digest in read_tree(folder).items()}
        steps = file_steps(folder, files, repo, tag, trusted_signers(repo), problems, attributes=attributes)
    except ReleaseError as error:
        return [Check("signature", passed=False, detail=str(error))]
    found = []
    for name, check in steps:
        try:
            found.append(Check(name, passed=True, detail=check()))
        except (ReleaseError, OSError, ValueError, RecursionError) as error:
            found.append(Check(name, passed=False, detail=str(error)))
    return found
