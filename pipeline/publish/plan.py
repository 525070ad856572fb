"""What a publication would change, from the package and the repository as it is now. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.places import holder, store
from core.strict import Strict
from pipeline.localhub.repository import is_large
from pipeline.publish import tree
from pipeline.publish.config import PublishConfig
from pipeline.publish.hub import MAIN, Target, connect, hub_errors
from pipeline.publish.repository import Repository


class PlannedFile(Strict):
    """A file of the release: what will be done with it, ``lfs`` or ``regular``; ``unchanged`` if it is there."""

    path: str
    size: int
    how: str


class PublicationPlan(Strict):
    """The whole change. ``exists`` tells whether there is a repository, ``tagged`` whether it has the tag."""

    repo: str
    exists: bool
    visibility: str
    tag: str
    tagged: bool
    files: list[PlannedFile]
    removed: list[str]
    settings: list[str]

    def lines(self) -> Iterator[str]:
        """For people."""
        sent = [file for file in self.files if file.how != "unchanged"]
        state = "exists" if self.exists else "will be created, private"
        yield f"{self.repo} {state}; {self.visibility}"
        if self.tagged:
            yield f"  the tag {self.tag} is there; it is compared with the package and stays"
            return
        for file in self.files:
            yield f"  {file.how:<9} {file.size:>15,} bytes  {file.path}"
        yield from (f"  removed   {'':>21}  {path}" for path in self.removed)
        yield f"  {len(sent)} of {len(self.files)} files, {sum(file.size for file in sent):,} bytes, in one commit"
        yield f"  the tag {self.tag} is set"
        yield from (f"  {setting}" for setting in self.settings)


def planned(config: PublishConfig, package: Path) -> PublicationPlan:
    """The plan for the packaged tree ``package`` on the recipe's Hub. Raises HubError if the Hub does not answer."""
    if config.hub == "local" and holder(config.repo, store()) != "local":
        return plan_publication(config, package, None)
    with connect(config.hub) as target:
        return plan_publication(config, package, target)


def plan_publication(config: PublishConfig, package: Path, target: Target | None) -> PublicationPlan:
    """The plan for the packaged tree ``package``; without a target, for a repository that does not exist.

    Raises HubError if the Hub does not answer.
    """
    local = tree.read_tree(package)
    info = _info(config, target) if target else None
    settings = {
        f"it becomes {config.visibility}": config.visibility == "public" and (not info or info.private),
        f"access to it becomes {config.gated}": config.gated and (not info or info.gated != config.gated),
        f"it is added to the collection {config.collection}": config.collection,
        "main is reached by a pull request that others merge": config.via == "pr",
    }
    remote: dict[str, str] = {}
    tags: list[str] = []
    if target and info:
        hub = Repository(config.repo, target)
        remote, tags = hub.files(MAIN), hub.tags()
        how = _modes(config, package, local, target)
    else:
        how = {name: _expected(package / name) for name in local}
    files = []
    for name, digest in local.items():
        same = name in remote and digest.has_id(remote[name])
        files.append(PlannedFile(path=name, size=digest.size, how="unchanged" if same else how[name]))
    return PublicationPlan(
        repo=config.repo,
        exists=info is not None,
        visibility="private" if not info or info.private else "public",
        tag=config.tag,
        tagged=config.tag in tags,
        files=files,
        removed=sorted(remote.keys() - local.keys()),
        settings=[setting for setting, changes in settings.items() if changes],
    )


def _info(config: PublishConfig, target: Target) -> Any:
    from huggingface_hub.errors import RepositoryNotFoundError

    with hub_errors(f"reading {config.repo}"):
        try:
            return target.api().repo_info(config.repo)
        except RepositoryNotFoundError:
            return None


def _modes(config: PublishConfig, package: Path, local: dict[str, tree.Digest], target: Target) -> dict[str, str]:
    """What the Hub says of each file: ``lfs`` or ``regular``. The client asks this before an upload, too."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub._commit_api import _fetch_upload_modes
    from huggingface_hub.utils import build_hf_headers

    additions = [CommitOperationAdd(name, package / name) for name in local]
    with hub_errors(f"asking {config.repo} how files are stored"):
        _fetch_upload_modes(
            additions=additions,
            repo_type="model",
            repo_id=config.repo,
            headers=build_hf_headers(token=target.token),
            revision=MAIN,
            endpoint=target.endpoint,
        )
    return {addition.path_in_repo: str(addition._upload_mode) for addition in additions}


def _expected(path: Path) -> str:
    """What a new repository would say: by ending, size, and whether it looks like text."""
    with path.open("rb") as file:
        sample = file.read(512)
    return "lfs" if is_large(path.name, path.stat().st_size, sample) else "regular"
