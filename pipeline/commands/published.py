"""`verify` and `hub`: check what was published, and serve the loopback Hub."""

from __future__ import annotations

import argparse

from core.errors import InputError
from core.hub_ids import check_repository
from pipeline.commands.shared import hub_of, show, store_root
from pipeline.engine.live import watching
from pipeline.localhub.server import serve
from pipeline.publish.hub import connect
from pipeline.publish.sign import trusted_key
from pipeline.publish.verify import verify_release
from pipeline.recheck import problems
from pipeline.release_checks import release_checks


def verify(options: argparse.Namespace) -> int:
    """Check a published release from the outside.

    Raises InputError if REPO is not the id of a repository, VerificationError if a check fails.
    """
    check_repository(options.repo, "verify")
    key = trusted_key(options.key)
    with connect(hub_of(options, options.repo)) as target, watching("verify"):
        verified = verify_release(options.repo, options.revision, target.endpoint, target.token, key, problems)
    value = {
        "repo": options.repo,
        "commit": verified.commit,
        "verified": [check.model_dump() for check in verified.checks],
    }
    lines = [f"ok  {check.name:<14} {check.detail}" for check in verified.checks]
    show(options, value, "\n".join([f"{options.repo} at {verified.commit}", *lines]))
    return 0


def hub(options: argparse.Namespace) -> int:
    """Serve the loopback Hub's repositories, also as pages. Raises InputError if nothing was published there."""
    folder = store_root(options) / "hub"
    if not (folder / "models").is_dir():
        raise InputError(f"{folder}: nothing was published there yet. Run `make release`, or name another --store.")
    serve(folder, options.port, release_checks)
    return 0
