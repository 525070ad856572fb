"""What the Hub's pages say of a release: whether its signature, name, contents and gates hold.

These are the checks of `verify` that need no download and no model in memory, and so can be made for a page.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from core.errors import ReleaseError, VerificationError
from core.weights import weights_problems
from pipeline.localhub.pages.versions import Check
from pipeline.publish import sign, tree
from pipeline.publish.package import check_gate
from pipeline.publish.verify import read_release
from pipeline.recheck import problems


def release_checks(folder: Path, repo: str, tag: str) -> list[Check]:
    """Check the files of a release in ``folder``, which lies on the Hub as ``tag`` of ``repo``."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("signature", lambda: _signature(folder)),
        ("name", lambda: _name(folder, repo, tag)),
        ("contents", lambda: _contents(folder)),
        ("gates", lambda: _gates(folder)),
        ("weights", lambda: _nothing_of("headers are sound, every value is finite", weights_problems(folder))),
    ]
    found = []
    for name, check in checks:
        try:
            found.append(Check(name, passed=True, detail=check()))
        except (ReleaseError, OSError, ValueError, RecursionError) as error:
            found.append(Check(name, passed=False, detail=str(error)))
    return found


def _nothing_of(said: str, wrong: list[str]) -> str:
    if wrong:
        raise VerificationError("; ".join(wrong))
    return said


def _signature(folder: Path) -> str:
    signature = folder / tree.SIGNATURE
    if not signature.is_file():
        raise VerificationError(f"there is none ({tree.SIGNATURE})")
    key = sign.trusted_key(None)
    sign.check_signature(folder, signature, key)
    return f"covers all files, by the key {sign.key_fingerprint(key)[:16]}"


def _name(folder: Path, repo: str, tag: str) -> str:
    release = read_release(folder)
    if (release.repo, release.tag) != (repo, tag):
        raise VerificationError(f"these files are {release.tag} of {release.repo}")
    return f"{tag} of {repo}"


def _contents(folder: Path) -> str:
    release = read_release(folder)
    files = {name: file.sha256 for name, file in tree.read_tree(folder).items()}
    listed = {name: sha256 for name, sha256 in files.items() if name not in (tree.RELEASE, tree.SIGNATURE)}
    wrong = tree.differences(release.files, listed)
    return _nothing_of(f"{len(listed)} files have the digests of {tree.RELEASE}", [wrong] if wrong else [])


def _gates(folder: Path) -> str:
    check_gate(folder, folder)
    return _nothing_of("passed for these weights, by the recipe's thresholds and published values", problems(folder))
