"""A Hub that is killed at any change of its disk is whole afterwards, and the same request finishes what it began."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from dulwich import porcelain
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from pipeline.localhub.repository import Repository
from pipeline.localhub.server import LocalHub
from tests.localhub import add, api, hub  # noqa: F401

CHANGES = (
    "replace",
    "rename",
    "unlink",
    "remove",
    "mkdir",
    "rmdir",
    "link",
)  # all ways in which the Hub's disk changes
Step = Callable[[HfApi, str], object]


class Killed(BaseException):
    """Nothing that the Hub could catch."""


@contextmanager
def killed_at(point: int) -> Iterator[list[int]]:
    """From its ``point``-th change on, the Hub's disk stays as it is. Gives the number of changes that were tried."""
    tried = [0]

    def dying(change: Callable) -> Callable:
        def changed(*args: object, **more: object) -> object:
            tried[0] += 1
            if tried[0] >= point:
                raise Killed
            return change(*args, **more)

        return changed

    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, dying(getattr(os, name)))
        patch.setattr(
            "huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None)
        )  # before it tries again
        yield tried


def nothing(_api: HfApi, _repo: str) -> None:
    return None


def with_files(api: HfApi, repo: str) -> None:
    api.create_commit(repo, [add("a", b"1"), add("m.safetensors", b"22")], commit_message="x")
    api.create_commit(repo, [add("m.safetensors", b"333")], commit_message="y")


def with_pull_request(api: HfApi, repo: str) -> None:
    api.create_commit(repo, [add("b", b"1")], commit_message="PR", create_pr=True)


def merge(api: HfApi, repo: str) -> None:
    if api.get_discussion_details(repo, 1).status != "merged":
        api.merge_pull_request(repo, 1)
    assert api.file_exists(repo, "b")
    assert len(api.list_repo_commits(repo)) == 2


def squash(api: HfApi, repo: str) -> None:
    api.super_squash_history(repo)
    assert len(api.list_repo_commits(repo)) == 1


def remove_large(api: HfApi, repo: str) -> None:
    api.permanently_delete_lfs_files(repo, list(api.list_lfs_files(repo)))
    assert api.list_repo_files(repo) == [".gitattributes", "a"]
    assert not list(api.list_lfs_files(repo))


def commit(api: HfApi, repo: str) -> None:
    api.create_commit(repo, [add("n.safetensors", b"22"), add("c", b"1")], commit_message="x")
    assert api.file_exists(repo, "n.safetensors")


def branch_and_tag(api: HfApi, repo: str) -> None:
    api.create_branch(repo, branch="b/c", exist_ok=True)
    api.create_tag(repo, tag="v1", exist_ok=True)
    assert {ref.name for ref in api.list_repo_refs(repo).branches} == {"main", "b/c"}


def open_pull_request(api: HfApi, repo: str) -> None:
    api.create_commit(repo, [add("b", b"1")], commit_message="PR", create_pr=True)
    newest = next(iter(api.get_repo_discussions(repo)))
    assert api.list_repo_files(repo, revision=f"refs/pr/{newest.num}") == [".gitattributes", "b"]


def settings(api: HfApi, repo: str) -> None:
    api.update_repo_settings(repo, private=True, gated="auto")
    assert api.repo_info(repo).private


def move(api: HfApi, repo: str) -> None:
    if api.repo_exists(repo):
        api.move_repo(repo, f"moved/{repo.split('/')[1]}")
    assert api.repo_exists(f"moved/{repo.split('/')[1]}")


def delete(api: HfApi, repo: str) -> None:
    api.delete_repo(repo, missing_ok=True)
    api.create_repo(repo)
    assert api.list_repo_files(repo) == [".gitattributes"]


def collect(api: HfApi, repo: str) -> None:
    slug = api.create_collection(repo.replace("/", " "), namespace="demo", exists_ok=True).slug
    assert len(api.add_collection_item(slug, repo, "model", exists_ok=True).items) == 1


def whole(folder: Path) -> None:
    """Every repository that exists is sound git, and every ref's files are there."""
    for settings_file in folder.glob("models/*/*.git/hub.json"):
        assert not list(porcelain.fsck(str(settings_file.parent)))
        repository = Repository(settings_file.parent)
        for kind in ("heads", "tags", "pr"):
            for sha in repository.refs(kind).values():  # type: ignore[arg-type]
                for entry in repository.entries(repository.resolve(sha)).values():
                    assert entry.sha256 is None or repository.lfs_file(entry.sha256).stat().st_size == entry.size
        repository.close()


@pytest.mark.parametrize(
    ("before", "step"),
    [
        *((nothing, step) for step in (commit, branch_and_tag, open_pull_request, settings, move, delete, collect)),
        (with_pull_request, merge),
        (with_files, squash),
        (with_files, remove_large),
    ],
)
def test_killed_at_every_change(
    api: HfApi, hub: LocalHub, before: Step, step: Step, caplog: pytest.LogCaptureFixture
) -> None:
    point, finished = 1, False
    while not finished:
        repo = f"demo/{step.__name__}{point}"
        api.create_repo(repo)
        before(api, repo)
        with killed_at(point) as tried, suppress(HfHubHTTPError, AssertionError, RuntimeError):
            step(api, repo)
        finished = tried[0] < point
        whole(hub.folder)
        step(api, repo)
        whole(hub.folder)
        for owner in ("demo", "moved"):
            api.delete_repo(f"{owner}/{repo.split('/')[1]}", missing_ok=True)
        point += 1 if point < 12 else 6  # a removal has many steps, all alike
    assert point > 2  # there was something to be killed at
    caplog.clear()  # the tracebacks of the killed Hub
