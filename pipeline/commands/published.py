"""`verify` and `hub`: look at what was published."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from core.errors import InputError
from pipeline.commands.shared import hub_of, show, store_root
from pipeline.engine.live import watching
from pipeline.localhub.server import serve
from pipeline.publish.hub import connect
from pipeline.publish.sign import trusted_key
from pipeline.publish.verify import verify_release


def verify(options: argparse.Namespace) -> int:
    """Check a published release from the outside. Raises VerificationError where it does not hold."""
    key = trusted_key(options.key)
    with connect(hub_of(options, options.repo)) as target, watching("verify"):
        found = verify_release(options.repo, options.revision, target.endpoint, target.token, key)
    value = {"repo": options.repo, "commit": found.commit, "verified": [asdict(check) for check in found.checks]}
    lines = [f"ok  {check.name:<14} {check.detail}" for check in found.checks]
    show(options, value, "\n".join([f"{options.repo} at {found.commit}", *lines]))
    return 0


def hub(options: argparse.Namespace) -> int:
    """Serve the loopback Hub's repositories. Raises InputError where nothing was published there."""
    folder = store_root(options) / "hub"
    if not (folder / "models").is_dir():
        raise InputError(f"{folder}: nothing was published there yet. Run `make release`, or name another --store.")
    serve(folder, options.port)
    return 0
