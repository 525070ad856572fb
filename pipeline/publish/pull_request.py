"""A release as a pull request, for repositories where others approve what reaches main."""

from __future__ import annotations

from collections.abc import Callable

from core.errors import HubError
from pipeline.publish.hub import MAIN, hub_errors
from pipeline.publish.repository import Repository

TEXT = """\
This release was built, passed its gates and was signed by the pipeline; `{tag}` will be its tag. What lies here was
downloaded again and verified. Merge it as it is: after another commit on main it has to be made anew.
"""


def own_pull_request(hub: Repository, tag: str, holds_release: Callable[[str], bool]) -> int:
    """The number of the pull request for this release: that of an earlier run, or a new one.

    A draft that was cut off is continued. Those with other content for the same tag, or for an older main, are closed.
    Those that somebody else opened are left alone: who opens one may commit to it at any time.
    """
    title, repo, api = f"Release {tag}", hub.name, hub.api
    found = None
    with hub_errors(f"looking for a pull request in {repo}"):
        waiting = api.get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open")
        named = [asked for asked in waiting if asked.title == title]
        account = api.whoami()["name"] if named else None
        numbers = sorted(asked.num for asked in named if asked.author == account)
    main = hub.commit(MAIN)
    for number in numbers:
        ref = f"refs/pr/{number}"
        with hub_errors(f"reading pull request {number} of {repo}"):
            newest = [commit.commit_id for commit in api.list_repo_commits(repo, revision=ref)[:2]]
        if found is None and main in newest and (newest[0] == main or holds_release(ref)):
            found = number
        else:
            with hub_errors(f"closing pull request {number} of {repo}"):
                api.change_discussion_status(repo, number, "closed", comment="Replaced.")
    if found is not None:
        return found
    with hub_errors(f"opening a pull request in {repo}"):
        return api.create_pull_request(repo, title, description=TEXT.format(tag=tag)).num


def await_merge(hub: Repository, number: int, commit: str) -> HubError:
    """Show the pull request, verified at ``commit``, to those who approve; the error that says that it waits."""
    repo, api = hub.name, hub.api
    with hub_errors(f"opening pull request {number} of {repo}"):
        asked = api.get_discussion_details(repo, number)
        if asked.status == "draft":
            api.change_discussion_status(repo, number, "open")
    return HubError(
        f"Pull request {number} of {repo} holds this release, verified at commit {commit}, and waits to be merged: "
        f"{asked.url}. Run the same command again after that: main is then verified and tagged."
    )
