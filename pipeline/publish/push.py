"""The publish stage: either the repository stays what it was, or it becomes the complete, verified new release.

1. The gate's digest is checked against the packaged weights once more, and the repository's visibility is asserted,
   here and before each commit.
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

import re
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
from pipeline.publish.revoke import revocation_of
from pipeline.publish.schema import RECEIPT, PublishFacts, Receipt, SignatureFacts
from pipeline.publish.trust import Signer
from pipeline.publish.upload import Upload
from pipeline.publish.verify import Verified, read_release, verify_release

ATTEMPTS = 3
_STAGING = re.compile(r"staging-[0-9a-f]{12}")


def run(config: PublishConfig, inputs: Mapping[str, Path], out: Path, recheck: Recheck) -> PublishFacts:
    """Publish ``inputs["package"]/hub`` and write ``receipt.json``.

    Raises GateError unless the gate passed for these weights, HubError if the Hub refuses or cannot be reached, and
    VerificationError if the download is not the package; main and the tag are then unchanged.
    """
    package = inputs["package"] / "hub"
    check_gate(inputs["gate"], package)
    signer = trust.check_signature(package, package / tree.SIGNATURE, sign.own_signers(config.repo, package))
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
    repository = _Repository(config, package, target, signer, scratch)
    repository.prepare()
    tagged = repository.tags().get(config.tag)
    head = repository.head(MAIN)
    if tagged is not None and (revoked := revocation_of(config.repo, config.tag, target)):
        raise HubError(f"{config.tag} of {config.repo} was {revoked} Set publish.tag to a new version.")
    if tagged is not None and not repository.holds_release(tagged):
        raise HubError(
            f"{config.repo} has a tag {config.tag} with other content, and tags do not move. Nothing was changed. "
            "Set publish.tag to a new version."
        )
    if tagged is not None:
        repository.check_main(head, repository.newest_release())
    commit = tagged or (head if repository.holds_release(head) else None)
    if commit is None and config.via == "pr":
        repository.ask(recheck)
    if commit is None:
        staged = repository.stage(head)
        verified = repository.verify(staged, recheck)
        report("landing")
        commit = repository.commit(MAIN, head)
    else:  # published before, wholly or up to the tag
        verified = repository.verify(commit, recheck)
    if tagged is None:
        repository.tag(commit)
    repository.finish(commit if tagged is None else head)
    return _receipt(config, target, signer, commit, verified)


class _Repository:
    """One repository and the tree that is to become its content."""

    def __init__(
        self, config: PublishConfig, package: Path, target: Target, signer: Signer, scratch: Path | None
    ) -> None:
        self._config, self._package, self._target, self._signer = config, package, target, signer
        self._scratch = scratch
        self._files = tree.read_tree(package)
        self._api = target.api()
        name = tree.digest(package / tree.SIGNATURE).sha256[:12]
        self._staging = f"staging-{name}"  # the signature covers all files, so the name stands for this content

    def prepare(self) -> None:
        """Make sure that the repository exists, private if new, and that its visibility fits the recipe."""
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
        self._gate(info.gated)

    def _refuse_public(self, private: bool | None, done: str) -> None:
        """Raise HubError if everybody may read what the recipe keeps private; nothing unfinished is left to read."""
        repo = self._config.repo
        if private or self._config.visibility == "public":
            return
        self._delete_staging()
        raise HubError(
            f"{repo} is public, and publish.visibility is private. {done} "
            "Make it private in its settings, or set publish.visibility to public."
        )

    def _delete_staging(self, keep: str = "") -> str | None:
        """Delete staging branches, those too that killed runs or other packages left; the commit of ``keep``."""
        repo = self._config.repo
        with hub_errors(f"deleting staging branches of {repo}"):
            branches = {branch.name: branch.target_commit for branch in self._api.list_repo_refs(repo).branches}
            for name in branches.keys() - {keep}:
                if _STAGING.fullmatch(name):
                    self._api.delete_branch(repo, branch=name)
        return branches.get(keep)

    def _gate(self, gated: str | bool | None) -> None:
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

    def head(self, branch: str) -> str:
        """The commit of a branch."""
        with hub_errors(f"reading {self._config.repo}"):
            sha = self._api.repo_info(self._config.repo, revision=branch).sha
        if sha is None:
            raise HubError(f"{self._config.repo} has no commit on {branch}. Delete the repository, and run again.")
        return sha

    def tags(self) -> dict[str, str]:
        """Tag to commit."""
        with hub_errors(f"reading {self._config.repo}"):
            refs = self._api.list_repo_refs(self._config.repo)
        return {tag.name: self._peeled(tag.name, tag.target_commit) for tag in refs.tags}

    def _peeled(self, tag: str, target: str) -> str:
        # The Hub lists an annotated tag with the id of the tag object; resolving the revision gives its commit.
        return self.head(tag) if tag == self._config.tag else target

    def newest_release(self) -> str:
        """The commit of the newest release's tag, where there is one."""
        return self.head(str(newest_release(self.tags())))

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
        different = self._different(self._target.files(self._config.repo, revision))
        return not different or (different == {tree.SIGNATURE} and self._is_signed(revision))

    def _is_signed(self, revision: str) -> bool:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        with (
            TemporaryDirectory(dir=self._scratch) as temporary,
            hub_errors(f"reading the signature of {self._config.repo}"),
        ):
            try:
                signature = hf_hub_download(
                    self._config.repo,
                    tree.SIGNATURE,
                    revision=revision,
                    endpoint=self._target.endpoint,
                    token=self._target.token,
                    cache_dir=temporary,
                )
                trust.check_signature(self._package, Path(signature), [self._signer])
            except (EntryNotFoundError, VerificationError):
                return False
        return True

    def stage(self, base: str) -> str:
        """The commit of the staging branch with this tree, made from ``base``, or left by an earlier run."""
        repo, branch = self._config.repo, self._staging
        with hub_errors(f"staging in {repo}"):
            if (staged := self._delete_staging(keep=branch)) is not None:
                if not self._different(self._target.files(self._config.repo, branch)):
                    return staged
                self._api.delete_branch(repo, branch=branch)
            self._api.create_branch(repo, branch=branch, revision=base)
        report("uploading")
        return self.commit(branch, base)

    def ask(self, recheck: Recheck) -> NoReturn:
        """Put this tree into a pull request and verify it there. Raises HubError, since others must merge it."""
        repo = self._config.repo
        number = own_pull_request(self._api, repo, self._config.tag, self.holds_release)
        ref = f"refs/pr/{number}"
        asked = self.head(ref)
        if not self.holds_release(asked):
            asked = self.commit(ref, asked)
        self.verify(asked, recheck)
        raise await_merge(self._api, repo, number)

    def commit(self, branch: str, parent: str) -> str:
        """Commit this tree to ``branch``, in one commit on ``parent``; returns the head.

        Whatever the Hub answers, the branch is read afterwards, and its head decides.
        """
        for attempt in range(ATTEMPTS):
            time.sleep(attempt)
            with hub_errors(f"reading {self._config.repo}"):
                private = self._api.repo_info(self._config.repo).private
            self._refuse_public(private, f"Nothing was changed on {branch}.")
            refusal = self._try_commit(branch, parent)
            head = self.head(branch)
            if not self._different(self._target.files(self._config.repo, head)):
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
        return next((c for c in since if not self._different(self._target.files(self._config.repo, c))), None)

    def _try_commit(self, branch: str, parent: str) -> str | None:
        """Send the commit. Returns the Hub's refusal, or None if it is done or its outcome unknown."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import httpx

        removed = sorted(self._target.files(self._config.repo, parent).keys() - self._files.keys())
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
        if tree.SIGNATURE in self._different(self._target.files(self._config.repo, commit)):
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
            tagged = self.tags().get(tag)
            if tagged is None or not self.holds_release(tagged):
                raise

    def finish(self, release: str) -> None:
        """Delete staging branches, and set the visibility then. Raises HubError unless main is at ``release``."""
        repo, public = self._config.repo, self._config.visibility == "public"
        self._delete_staging()
        self.check_main(self.head(MAIN), release)
        with hub_errors(f"finishing {repo}"):
            if public and self._api.repo_info(repo).private:
                self._api.update_repo_settings(repo, private=False)
            private = self._api.repo_info(repo).private
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
