"""A repository of a model on the Hub, as it is now: its tags, branches, commits and files."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from core.artifacts import read_file
from core.errors import ArtifactError, HubError
from core.hub_ids import REVOKED, is_release_tag, newest_release
from pipeline.publish.hub import MAIN, Target, hub_errors
from pipeline.publish.schema import RELEASE, Release
from pipeline.publish.tree import HUB_FILES

STAGING = re.compile(r"staging-[0-9a-f]{12}")  # the branch of a publication, by digits of its signature's digest


def public_against_the_recipe(what: str, done: str) -> HubError:
    """The error for what everybody may read and the recipe keeps private; ``done`` says what was done before."""
    return HubError(
        f"{what} is public, and publish.visibility is private. {done} Make it private in its settings, or set "
        "publish.visibility to public."
    )


class Repository:
    """The repository ``name`` (owner/name) on a Hub; ``api`` is the client for everything else.

    Every method raises HubError if the Hub refuses or cannot be reached.
    """

    def __init__(self, name: str, target: Target) -> None:
        self.name, self.api = name, target.api()

    def is_private(self) -> bool:
        """Whether only its owner may read it."""
        with hub_errors(f"reading {self.name}"):
            return bool(self.api.repo_info(self.name).private)

    def tags(self) -> list[str]:
        """The names of its tags."""
        with hub_errors(f"reading {self.name}"):
            return [tag.name for tag in self.api.list_repo_refs(self.name).tags]

    def releases(self) -> dict[str, str]:
        """The tags of its releases, with their commits."""
        return {tag: self.commit(tag) for tag in self.tags() if is_release_tag(tag)}

    def check_newest(self, tag: str) -> None:
        """Raise HubError if a release ``tag`` that is not there is older than another, be that revoked and purged.

        What main holds is a release before it has its tag.
        """
        tags, landed = self.tags(), self.signed_tag(MAIN)
        newest = newest_release([tag, landed or tag, *(name.removeprefix(REVOKED) for name in tags)])
        if tag not in tags and newest != tag:
            raise HubError(
                f"{newest} of {self.name} is newer than {tag}, and main holds the newest release. Nothing was changed. "
                f"Set publish.tag to a version above {newest}."
            )

    def branches(self) -> dict[str, str]:
        """Its branches, with their commits."""
        with hub_errors(f"reading {self.name}"):
            return {branch.name: branch.target_commit for branch in self.api.list_repo_refs(self.name).branches}

    def open_pull_requests(self) -> list[str]:
        """The refs of its pull requests that are neither merged nor closed."""
        with hub_errors(f"reading pull requests of {self.name}"):
            refs = self.api.list_repo_refs(self.name, include_pull_requests=True).pull_requests
            if not refs:  # discussions, which can be switched off, are not asked for
                return []
            asked = self.api.get_repo_discussions(self.name, discussion_type="pull_request")
            over = {f"refs/pr/{each.num}" for each in asked if each.status in ("merged", "closed")}
        return [each.ref for each in refs if each.ref not in over]

    def commit(self, revision: str) -> str:
        """The commit of a branch or tag. The Hub lists an annotated tag with the id of the tag itself instead."""
        with hub_errors(f"reading {self.name} at {revision}"):
            commit = self.api.repo_info(self.name, revision=revision).sha
        if commit is None:
            raise HubError(
                f"{self.name} has no commit at {revision}. Name another revision, or delete the repository if it is "
                "empty, and run again."
            )
        return commit

    def files(self, revision: str) -> dict[str, str]:
        """The Hub's id of every file: sha256 for large files, else git's. Files that the Hub adds are left out."""
        from huggingface_hub.hf_api import RepoFile

        with hub_errors(f"listing {self.name}"):
            listed = list(self.api.list_repo_tree(self.name, revision=revision, recursive=True))
        files = {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in listed if isinstance(f, RepoFile)}
        return {path: oid for path, oid in sorted(files.items()) if path not in HUB_FILES}

    def file(self, path: str, revision: str, folder: Path) -> Path | None:
        """A file, downloaded into the empty ``folder`` and so past all caches; None if the revision has it not."""
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with hub_errors(f"reading {path} of {self.name}"):
            try:
                return Path(self.api.hf_hub_download(self.name, path, revision=revision, cache_dir=folder))
            except RemoteEntryNotFoundError:  # EntryNotFoundError is also what the client says if nobody answers
                return None

    def attributes(self, revision: str) -> str:
        """The text of the `.gitattributes` of a revision."""
        with tempfile.TemporaryDirectory() as temporary:
            path = self.file(HUB_FILES[0], revision, Path(temporary))
            return path.read_text(encoding="utf-8", errors="replace") if path else ""

    def signed_tag(self, revision: str) -> str | None:
        """The tag that a revision was signed as; None if its `release.json` is not there or cannot be read."""
        release = self.release(revision)
        return release.tag if release else None

    def release(self, revision: str) -> Release | None:
        """The `release.json` of a revision, whose signature nobody has checked; None if there is none to be read."""
        with tempfile.TemporaryDirectory() as temporary:
            path = self.file(RELEASE, revision, Path(temporary))
            try:
                return read_file(path, Release, "") if path else None
            except ArtifactError:
                return None
