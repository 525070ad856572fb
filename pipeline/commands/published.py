"""`verify`, `revoke` and `hub`: check what was published, take it back, and serve the loopback Hub."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from typing import Literal

from core.errors import ArtifactError, HubError, InputError
from core.hub_ids import check_repository
from pipeline.commands.shared import hub_of, show, store_root
from pipeline.engine.live import watching
from pipeline.localhub.rate_limit import WINDOW
from pipeline.publish.hub import connect, hf_endpoint
from pipeline.publish.package import forget_scanner
from pipeline.publish.revoke import CANNOT_TAKE_BACK, PURGED, STILL_HELD, Revoker, check_reason
from pipeline.publish.scan import Scanner
from pipeline.publish.schema import RECEIPT, read_receipt
from pipeline.publish.sign import given_signer, trusted_signers
from pipeline.publish.verify import verify_release
from pipeline.recheck import problems
from pipeline.release_checks import release_checks


def verify(options: argparse.Namespace) -> int:
    """Check a published release from the outside.

    Raises InputError if REPO is not the id of a repository or nobody is named who may have signed it, VerificationError
    if a check fails.
    """
    check_repository(options.repo, "verify")
    given = {name: getattr(options, name) for name in ("key", "ca", "identity", "issuer")}
    signers = trusted_signers(options.repo, given_signer(**given))
    hub = hub_of(options, options.repo)
    with connect(hub, anonymous=True) as target, watching("verify"):
        verified = verify_release(options.repo, options.revision, target, signers, problems)
    value = {
        "repo": options.repo,
        "hub": hub,
        "commit": verified.commit,
        "verified": [check.model_dump() for check in verified.checks],
    }
    lines = [f"ok  {check.name:<14} {check.detail}" for check in verified.checks]
    show(options, value, "\n".join([f"{options.repo} at {verified.commit}, on {_place(options, hub)}", *lines]))
    return 0


def _place(options: argparse.Namespace, hub: Literal["local", "hf"]) -> str:
    """Which Hub that is, in words: after a rehearsal, the store has a repository of the same name."""
    return f"the loopback Hub of {store_root(options)}" if hub == "local" else hf_endpoint()


def revoke(options: argparse.Namespace) -> int:
    """Revoke a release, or say what that would do. Raises InputError for a wrong name or reason, HubError.

    The exit code is HubError's where a purge was asked for and the Hub still holds the weights.
    """
    check_repository(options.repo, "revoke")
    if options.successor is not None:
        check_repository(options.successor, "--successor")
    reason = check_reason(options.reason, _scanners(options))
    hub = hub_of(options, options.repo)
    with connect(hub) as target:
        revoker = Revoker(options.repo, options.tag, target)
        plan = revoker.plan(reason, options.successor, hide=options.hide, purge=options.purge)
        held: list[str] = []
        if not options.dry_run:
            with watching("revoke"):
                revoker.run(plan)
                held = revoker.held(plan)
    value = {
        "repo": options.repo,
        "hub": hub,
        **plan.revocation.model_dump(),
        "steps": list(plan.steps),
        "held": held,
        "done": not options.dry_run,
    }
    place = _place(options, hub)
    said = f"{options.repo} {', '.join(plan.revocation.revisions)}, on {place}: {plan.revocation}"
    head = "This would be done:" if options.dry_run else "Done:" if plan.steps else "Nothing was left to do."
    rest = _after_purge(options, held) if options.purge else CANNOT_TAKE_BACK
    show(options, value, "\n".join([said, head, *(f"  {step}" for step in plan.steps), "", rest]))
    return HubError.exit_code if held else 0


def _scanners(options: argparse.Namespace) -> Iterator[Scanner]:
    """What finds the forget answers of the releases that this store published to the repository."""
    for receipt in sorted(store_root(options).glob(f"*/publish/{RECEIPT}")):
        with suppress(ArtifactError):  # what cannot be read must not stop a revocation
            if read_receipt(receipt.parent).repo == options.repo:
                yield forget_scanner(receipt.parent.parent / "data")


def _after_purge(options: argparse.Namespace, held: list[str]) -> str:
    if options.dry_run:
        return "With --purge this cannot be undone."
    return STILL_HELD.format("\n".join(f"  {file}" for file in held)) if held else PURGED


def hub(options: argparse.Namespace) -> int:
    """Serve the loopback Hub's repositories, also as pages.

    Raises InputError if nothing was published there, or if it is to answer nothing.
    """
    from pipeline.localhub.server import serve  # brings the server and its pages

    if options.rate is not None and options.rate < 1:
        raise InputError(f"--rate {options.rate}: give how many requests a token may send in {WINDOW} s, at least 1.")
    folder = store_root(options) / "hub"
    if not (folder / "models").is_dir():
        raise InputError(f"{folder}: nothing was published there yet. Run `make release`, or name another --store.")
    serve(folder, options.port, options.rate, release_checks)
    return 0
