"""The publish stage: either the repository stays what it was, or it becomes the complete, verified new release.

1. The gate's digest is checked against the packaged weights once more, and the repository's visibility is asserted,
   here and before each commit. A tag that was revoked, or is below that of another release, is refused.
2. One commit with everything goes onto a staging branch, is downloaded again into an empty folder, and verified.
3. The same operations with the same parent go onto main. This is a second commit and not a merge: the Hub merges pull
   requests only, without a parent to compare with, so it would merge over somebody else's commit in between. Here such
   a commit is answered with 412. The bytes are on the Hub already, so main's tree is compared by its ids and not
   downloaded again.
   With ``publish.via: pr`` it is a pull request instead, which is verified, and waits for those who merge it. The next
   run finds the release on main, and continues with verifying and tagging it.
4. Tag, then delete the staging branch, then see that main is still the release, and make the repository public if the
   recipe says so.

A commit whose outcome is unknown (time-out, 5xx) is never repeated blindly: reading the branch shows whether it landed.
Every step first looks at the repository. Running again after a failure therefore continues, and running again after a
success changes nothing. If a repository is public already, its new release waits on a public staging branch. The
content was scanned and is meant for the public, and readers of main still see the old release.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from core.artifacts import write_file
from core.errors import HubError, VerificationError
from core.hub_ids import newest_release
from core.progress import report
from pipeline.publish import sign, tree, trust
from pipeline.publish.config import PublishConfig
from pipeline.publish.hub import MAIN, Target, connect, hub_errors, quiet
from pipeline.publish.package import Recheck, check_gate
from pipeline.publish.pull_request import await_merge, own_pull_request
from pipeline.publish.repository import STAGING, Repository, public_against_the_recipe
from pipeline.publish.revoke import refuse_revoked, refuse_showing
from pipeline.publish.schema import RECEIPT, PublishFacts, Receipt, SignatureFacts
from pipeline.publish.trust import Signer
from pipeline.publish.upload import Upload
from pipeline.publish.verify import Verified, read_release, verify_release

ATTEMPTS = 3


def run(config: PublishConfig, inputs: Mapping[str, Path], out: Path, recheck: Recheck) -> PublishFacts:
    """Publish ``inputs["package"]/hub`` and write ``receipt.json``.

    Raises GateError unless the gate passed for these weights, HubError if the Hub refuses or cannot be reached, and
    VerificationError if the download is not the package; main and the tag are then unchanged.
    """
    package = inputs["package"] / "hub"
    check_gate(inputs["gate"], package)
    signer = _signer(config.repo, package)
    with connect(config.hub) as target, quiet():
        receipt = publish(config, package, target, signer, recheck, out)
    write_file(out / RECEIPT, receipt)
    return PublishFacts(
        repo=receipt.repo,
        commit=receipt.commit,
        tag=receipt.tag,
        visibility=receipt.visibility,
        url=receipt.url,
    )


def _signer(repo: str, package: Path) -> Signer:
    """Who signed the package. Raises VerificationError unless that is who signs here now, which is in no key."""
    try:
        return trust.check_signature(package, package / tree.SIGNATURE, sign.own_signers(repo, package))
    except VerificationError as error:
        raise VerificationError(
            f"{error} If it was packaged before the settings of what signs were changed, delete the folder "
            f"{package.parent.resolve()} and run the same command again, which packages and signs it anew."
        ) from error


def publish(
    config: PublishConfig,
    package: Path,
    target: Target,
    signer: Signer,
    recheck: Recheck,
    scratch: Path | None = None,
) -> Receipt:
    """Publish the signed tree ``package`` to ``target``; returns the receipt. Raises as :func:`run`.

    It is downloaded again into a folder below ``scratch``: that of the stage, which the next run empties if this one is
    killed.
    """
    release = read_release(package)
    if (release.repo, release.tag) != (config.repo, config.tag):
        raise VerificationError(
            f"The package was signed as {release.tag} of {release.repo}, and is to be published as {config.tag} of "
            f"{config.repo}. Run the package stage again."
        )
    publication = _Publication(config, package, target, signer, scratch)
    gated = publication.prepare()
    head = publication.hub.commit(MAIN)  # first: a newer release that lands after it moves main, which is a 412
    check_place(config, target)
    tagged = publication.tagged()
    if tagged is not None and not publication.holds_release(tagged):
        raise publication.taken(tagged)
    if tagged is not None:
        publication.check_main(head, publication.newest_release())
    publication.gate(gated)
    commit = tagged or (head if publication.holds_release(head) else None)
    if commit is None and config.via == "pr":
        publication.ask(recheck)
    if commit is None:
        staged = publication.stage(head)
        verified = publication.verify(staged, recheck)
        publication.hub.check_newest(config.tag)
        report("landing")
        commit = publication.commit(MAIN, head)
    else:  # published before, wholly or up to the tag
        verified = publication.verify(commit, recheck)
    if tagged is None:
        publication.tag(commit)
    publication.finish()
    return _receipt(config, target, signer, commit, verified)


def check_place(config: PublishConfig, target: Target) -> None:
    """Raise HubError if this release cannot be published to its repository, which is there.

    Its tag was revoked or is older than another, a revocation was cut off, others left a `.gitattributes` that no
    release may have, everybody may read what the recipe keeps private, or could load what was revoked and is private.
    """
    refuse_revoked(config.repo, config.tag, target)
    hub = Repository(config.repo, target)
    hub.check_newest(config.tag)
    if strange := tree.strange_attributes(hub.attributes(MAIN), tree.is_allowed):
        raise HubError(
            f"{config.repo} has a line in .gitattributes on main that would stay and that verify refuses, since no "
            f"signature covers it: {strange[0]!r:.80}. Nothing was changed. Remove it and its like, and run again."
        )
    private = hub.is_private()
    if config.visibility == "private" and not private:
        raise public_against_the_recipe(config.repo, "Nothing was uploaded.")
    if config.visibility == "public" and private:
        refuse_showing(config.repo, target)


class _Publication:
    """One repository, ``hub``, and the tree that is to become its content."""

    def __init__(
        self, config: PublishConfig, package: Path, target: Target, signer: Signer, scratch: Path | None
    ) -> None:
        self._config, self._package, self._target, self._signer = config, package, target, signer
        self._scratch = scratch
        self._files = tree.read_tree(package)
        self.hub = Repository(config.repo, target)
        self._api = self.hub.api
        name = tree.digest(package / tree.SIGNATURE).sha256[:12]
        self._staging = f"staging-{name}"  # the signature covers all files, so the name stands for this content

    def prepare(self) -> str | bool | None:
        """Make sure that the repository exists, private if new, and that its visibility fits the recipe.

        Returns how it is gated.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        repo = self._config.repo
        with hub_errors(f"preparing {repo}"):
            try:
                info = self._api.repo_info(repo)
            except RepositoryNotFoundError:
                self._api.create_repo(repo, private=True, exist_ok=True)
                info = self._api.repo_info(repo)
                if not info.private:
                    raise HubError(f"{repo} was created as private but is public. Nothing was uploaded.") from None
        self._refuse_public(info.private, "Nothing was uploaded.")
        return info.gated

    def _refuse_public(self, private: bool | None, done: str) -> None:
        """Raise HubError if everybody may read what the recipe keeps private; nothing unfinished is left to read."""
        if private or self._config.visibility == "public":
            return
        self._delete_staging()
        raise public_against_the_recipe(self._config.repo, done)

    def _delete_staging(self, keep: str = "") -> str | None:
        """Delete staging branches, those too that killed runs or other packages left; the commit of ``keep``."""
        repo = self._config.repo
        branches = self.hub.branches()
        with hub_errors(f"deleting staging branches of {repo}"):
            for name in branches.keys() - {keep}:
                if STAGING.fullmatch(name):
                    self._api.delete_branch(repo, branch=name)
        return branches.get(keep)

    def gate(self, gated: str | bool | None) -> None:
        """Make sure, before the upload, that the repository is gated and the collection is there, if asked for."""
        repo, wanted, collection = self._config.repo, self._config.gated, self._config.collection
        with hub_errors(f"preparing {repo}"):
            if wanted and gated != wanted:
                self._api.update_repo_settings(repo, gated=wanted)
                if self._api.repo_info(repo).gated != wanted:
                    raise HubError(f"{repo} did not become gated ({wanted}). Nothing was uploaded.")
        if collection:
            with hub_errors(f"publish.collection: reading {collection}"):
                self._api.get_collection(collection)

    def tagged(self) -> str | None:
        """The commit of this release's tag, if the repository has it."""
        return self.hub.commit(self._config.tag) if self._config.tag in self.hub.tags() else None

    def taken(self, tagged: str) -> HubError:
        """The error for a tag, at the commit ``tagged``, that is not this release."""
        name = f"{self._config.repo} has a tag {self._config.tag}"
        if self._different(self.hub.files(tagged)) == {tree.SIGNATURE}:
            return HubError(
                f"{name} with these files, signed by somebody else than {self._signer.says()}, and tags do not move. "
                "Nothing was changed. Package and publish it with what signed it then, or set publish.tag to a new "
                "version."
            )
        return HubError(
            f"{name} with other content, and tags do not move. Nothing was changed. Set publish.tag to a new version."
        )

    def newest_release(self) -> str:
        """The commit of the newest release's tag, where there is one."""
        return self.hub.commit(str(newest_release(self.hub.tags())))

    def check_main(self, head: str, release: str) -> None:
        """Raise HubError unless ``head``, where main is, is the commit of the newest release."""
        if head != release:
            raise HubError(
                f"{self._config.repo} has this release as {self._config.tag}, but somebody else committed to main: it "
                f"is at {head[:12]}, and the newest release at {release[:12]}. Set main back to that, or publish a new "
                "version."
            )

    def _different(self, remote: Mapping[str, str]) -> set[str]:
        same = {name for name in self._files.keys() & remote.keys() if self._files[name].has_id(remote[name])}
        return (self._files.keys() | remote.keys()) - same

    def holds_release(self, revision: str) -> bool:
        """Whether a commit holds this release: the same files, with this signature or another valid one of this key.

        Signatures are random, so a package that was made again differs from the published one in its signature only.
        """
        different = self._different(self.hub.files(revision))
        return not different or (different == {tree.SIGNATURE} and self._is_signed(revision))

    def _is_signed(self, revision: str) -> bool:
        with TemporaryDirectory(dir=self._scratch) as temporary:
            signature = self.hub.file(tree.SIGNATURE, revision, Path(temporary))
            if signature is None:
                return False
            try:
                trust.check_signature(self._package, signature, [self._signer])
            except VerificationError:
                return False
        return True

    def stage(self, base: str) -> str:
        """The commit of the staging branch with this tree, made from ``base``, or left by an earlier run."""
        repo, branch = self._config.repo, self._staging
        with hub_errors(f"staging in {repo}"):
            if (staged := self._delete_staging(keep=branch)) is not None:
                if not self._different(self.hub.files(branch)):
                    return staged
                self._api.delete_branch(repo, branch=branch)
            self._api.create_branch(repo, branch=branch, revision=base)
        report("uploading")
        return self.commit(branch, base)

    def ask(self, recheck: Recheck) -> NoReturn:
        """Put this tree into a pull request and verify it there. Raises HubError, since others must merge it."""
        number = own_pull_request(self.hub, self._config.tag, self.holds_release)
        ref = f"refs/pr/{number}"
        asked = self.hub.commit(ref)
        if not self.holds_release(asked):
            asked = self.commit(ref, asked)
        self.verify(asked, recheck)
        raise await_merge(self.hub, number, asked)

    def commit(self, branch: str, parent: str) -> str:
        """Commit this tree to ``branch``, in one commit on ``parent``; returns the head.

        Whatever the Hub answers, the branch is read afterwards, and its head decides.
        """
        for attempt in range(ATTEMPTS):
            time.sleep(attempt)
            self._refuse_public(self.hub.is_private(), f"Nothing was changed on {branch}.")
            refusal = self._try_commit(branch, parent)
            head = self.hub.commit(branch)
            if not self._different(self.hub.files(head)):
                return head
            if head != parent:
                if landed := self._landed(branch, parent):
                    return landed
                raise HubError(
                    f"Somebody else committed to {branch} of {self._config.repo}: it is at {head[:12]}, no longer at "
                    f"{parent[:12]}. Nothing of this release is there. Run again to continue from the new head."
                )
            if refusal is not None:
                raise HubError(f"{refusal} Nothing was changed on {branch}.")
            # The head is still the parent. Repeating is safe: if the first commit lands late, the second is a 412.
        raise HubError(f"{self._config.repo}: the Hub did not take the commit in {ATTEMPTS} attempts. Run again later.")

    def _landed(self, branch: str, parent: str) -> str | None:
        """The commit of this release if it landed on ``parent`` and others committed on top of it."""
        with hub_errors(f"reading the history of {self._config.repo}"):
            commits = [commit.commit_id for commit in self._api.list_repo_commits(self._config.repo, revision=branch)]
        since = takewhile(lambda commit: commit != parent, commits)
        return next((c for c in since if not self._different(self.hub.files(c))), None)

    def _try_commit(self, branch: str, parent: str) -> str | None:
        """Send the commit. Returns the Hub's refusal, or None if it is done or its outcome unknown."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import httpx

        removed = sorted(self.hub.files(parent).keys() - self._files.keys())
        with Upload(self._package, self._files) as files:
            operations: list[Any] = [CommitOperationDelete(path) for path in removed]
            for name in self._files:
                # The client sends open files by LFS, and paths by xet.
                source = files[name] if self._target.is_loopback else self._package / name
                operations.append(CommitOperationAdd(name, source))
            files.started("landing" if branch == MAIN else "uploading")
            try:
                with hub_errors(f"uploading to {self._config.repo}"):
                    message = f"Release {self._config.tag}"
                    self._api.create_commit(
                        self._config.repo, operations, commit_message=message, revision=branch, parent_commit=parent
                    )
            except HubError as error:
                cause = error.__cause__
                if isinstance(cause, HfHubHTTPError) and cause.response.status_code < 500:
                    return str(error).rstrip(".") + "."
                if not isinstance(cause, HfHubHTTPError | httpx.HTTPError):
                    raise
        return None

    def verify(self, commit: str, recheck: Recheck) -> Verified:
        """Download a commit, check it, and compare it with the package."""
        expected = {name: digest.sha256 for name, digest in self._files.items()}
        if tree.SIGNATURE in self._different(self.hub.files(commit)):
            del expected[tree.SIGNATURE]
        return verify_release(
            self._config.repo,
            commit,
            self._target,
            [self._signer],
            recheck,
            expected,
            self._scratch,
        )

    def tag(self, commit: str) -> None:
        """Tag a commit; a tag that appeared meanwhile must have the same content."""
        tag = self._config.tag
        try:
            with hub_errors(f"tagging {self._config.repo}"):
                self._api.create_tag(self._config.repo, tag=tag, revision=commit)
        except HubError:
            tagged = self.tagged()
            if tagged is None or not self.holds_release(tagged):
                raise

    def finish(self) -> None:
        """Delete staging branches, and set the visibility then. Raises HubError unless main is the newest release."""
        repo, public = self._config.repo, self._config.visibility == "public"
        self._delete_staging()
        self.check_main(self.hub.commit(MAIN), self.newest_release())
        with hub_errors(f"finishing {repo}"):
            if public and self.hub.is_private():
                self._api.update_repo_settings(repo, private=False)
        private = self.hub.is_private()
        self._refuse_public(private, "The release is complete.")
        if private and public:
            raise HubError(f"{repo} is not public, although the release is complete. Run again.")
        if collection := self._config.collection:
            with hub_errors(f"adding {repo} to {collection}"):
                held = {
                    item.item_id for item in self._api.get_collection(collection).items if item.item_type == "model"
                }
                if repo not in held:
                    self._api.add_collection_item(collection, repo, "model", exists_ok=True)


def _receipt(config: PublishConfig, target: Target, signer: Signer, commit: str, verified: Verified) -> Receipt:
    # The loopback Hub has a new port each time; its folder in the store stays.
    local = config.hub == "local"
    return Receipt(
        repo=config.repo,
        repo_type="model",
        endpoint="local" if local else target.endpoint,
        visibility=config.visibility,
        branch=MAIN,
        commit=commit,
        tag=config.tag,
        url=f"hub/models/{config.repo}.git" if local else f"{target.endpoint}/{config.repo}/tree/{config.tag}",
        files=verified.files,
        signature=SignatureFacts(
            file=tree.SIGNATURE,
            format="OpenSSF model-signing 1.0",
            signer=signer.says(),
        ),
        verified=verified.checks,
    )
