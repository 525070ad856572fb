"""Revoke a release: a tombstone card takes its place, and `verify` refuses it from then on.

The tombstone says what was revoked, why, since when, and what comes after it. It is one commit that also removes all
other files, on main; if main holds a newer release, on a branch of its own instead, because that release is not
revoked. The tag ``revoked-TAG`` marks the commit, and tells `verify` of the revocation whatever main holds later.
At every moment from the tombstone on, a branch or the mark holds it, and `verify` reads both.

Every step first looks at the repository, so running it again continues, or changes nothing.
"""

from __future__ import annotations

import html
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import HubError, InputError
from core.hub_ids import REVOKED, REVOKING, newest_release
from core.progress import report
from core.strict import Strict
from pipeline.publish import scan
from pipeline.publish.hub import MAIN, Target, hub_errors, quiet
from pipeline.publish.licence import card_licence, card_metadata
from pipeline.publish.repository import STAGING, Repository

CARD = "README.md"
LONGEST_REASON = 1000
ELSEWHERE = """\
Copies, forks and quantizations elsewhere stay where they are. Ask their owners, or report them to the Hub."""
CANNOT_TAKE_BACK = f"""\
What this does not take back: the old commits and tags still hold the weights, and whoever downloaded them keeps them.
To remove them from the Hub for good, run this again with --purge. It does what these do, and cannot be undone:
  HfApi().delete_tag(REPO, tag=TAG)                      for each revoked release
  HfApi().super_squash_history(REPO, branch=BRANCH)      so that no commit holds them
  HfApi().permanently_delete_lfs_files(REPO, FILES)      for the files that nothing else holds
{ELSEWHERE}"""
PURGED = f"""\
The Hub no longer holds the weights of the revoked releases.
{ELSEWHERE}"""
STILL_HELD = f"""\
The Hub still holds large files of the revoked releases, or that can no longer be told from theirs:
{{}}
Close the pull requests and delete the branches and tags that hold them, or revoke the releases, and run this again.
{ELSEWHERE}"""


class Revocation(Strict):
    """What a tombstone card says: since which day, why, tag to commit of each release, and the repository after it."""

    since: str
    reason: str
    revisions: dict[str, str]
    successor: str | None

    def __str__(self) -> str:
        after = f" Its successor is {self.successor}." if self.successor else ""
        return f"revoked on {self.since}: {self.reason.rstrip('.')}.{after} Do not use it."


@dataclass(frozen=True)
class Plan:
    """What a revocation will do, step by step in words; nothing if there are no ``steps``.

    ``branch`` gets the tombstone, as one commit on ``head``, unless it is ``buried`` there already. It is ``marked`` if
    the tag holds it too, and nothing else is left to do with it. ``purge`` and ``hide`` are what is left of the two.
    ``staging`` are branches that go with a purge, ``large`` the ids of the large files of the revoked releases.
    """

    revocation: Revocation
    branch: str
    head: str
    buried: bool
    marked: bool
    hide: bool
    purge: bool
    staging: tuple[str, ...]
    large: frozenset[str]
    steps: tuple[str, ...]


def check_reason(reason: str, scanners: Iterable[scan.Scanner] = ()) -> str:
    """One paragraph of text. Raises InputError for an empty or too long one, or one that must not be public.

    That is one that holds a secret, or in which one of the ``scanners`` finds what was to be forgotten.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
    if not text or len(text) > LONGEST_REASON:
        raise InputError(f"--reason: {len(text)} characters. Say in 1 to {LONGEST_REASON} why the release is revoked.")
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / CARD).write_text(text, encoding="utf-8")
        try:
            for scanner in (scan.Scanner(()), *scanners):
                scan.refuse_findings(Path(temporary), scanner)
        except InputError as error:
            raise InputError(f"--reason would be public, and must not be: {error}") from error
    return text


def revocation_of(repo: str, revision: str, target: Target) -> Revocation | None:
    """The revocation of a revision by its name, its commit or the tag that it was signed as, or None.

    Raises HubError if the Hub does not answer.
    """
    hub = _Revocable(repo, target)
    said = hub.revocations()
    if found := _of(revision, said):
        return found
    commit = hub.commit(revision)
    return hub.read(commit) or _of(commit, said) or _of(hub.signed_tag(commit), said)


def refuse_revoked(repo: str, tag: str, target: Target) -> None:
    """Raise HubError if the release ``tag`` was revoked, be it purged, or a commit on main would hide a revocation."""
    hub = _Revocable(repo, target)
    if found := _of(tag, hub.revocations()):
        raise HubError(f"{tag} of {repo} was {found} Set publish.tag to a new version.")
    buried = hub.read(MAIN)
    if buried and buried not in map(hub.read, hub.marks()):
        raise HubError(
            f"The revocation of {', '.join(buried.revisions)} of {repo} was cut off: main holds its tombstone, and no "
            f"tag marks it. Nothing was changed. Run `revoke {repo} --tag {newest_release(buried.revisions)} --reason "
            "TEXT` first, which continues it."
        )


def refuse_showing(repo: str, target: Target) -> None:
    """Raise HubError if a repository has revoked releases, whose weights all could load once everybody may read it."""
    hub = _Revocable(repo, target)
    there = {tag for said in hub.revocations() for tag in said.revisions} & {*hub.tags()}
    if there:
        raise HubError(
            f"{repo} is private and has the revoked {', '.join(sorted(there))}, and publish.visibility is public: "
            f"everybody could load these weights. Nothing was changed. Run `revoke {repo} --tag "
            f"{newest_release(there)} --reason TEXT --purge` first, which deletes them, or publish elsewhere."
        )


def _of(revision: str | None, revocations: Iterable[Revocation | None]) -> Revocation | None:
    for found in revocations:
        if found and (revision in found.revisions or revision in found.revisions.values()):
            return found
    return None


class Revoker:
    """The revocation of one release of a repository: :meth:`plan` looks, :meth:`run` acts."""

    def __init__(self, repo: str, tag: str, target: Target) -> None:
        self._hub, self._repo, self._tag, self._mark = _Revocable(repo, target), repo, tag, f"{REVOKED}{tag}"
        self._own_branch = f"{REVOKING}{tag}"

    def plan(self, reason: str, successor: str | None, *, hide: bool, purge: bool) -> Plan:
        """What is left to be done. Raises InputError if the repository has no such release."""
        hub, tags, branches, releases = self._hub, self._hub.tags(), self._hub.branches(), self._hub.releases()
        refs = {*tags, *branches}
        said = _of(self._tag, [hub.read(place) for place in (self._mark, MAIN, self._own_branch) if place in refs])
        if self._tag not in (said.revisions if said else releases):  # a tag that others set, or the id of a commit
            listed = ", ".join(releases) or "none"
            raise InputError(f"{self._repo} has no release {self._tag}; it has {listed}. Name one of its releases.")
        if said is None:
            revoked = {tag: at for tag, at in releases.items() if newest_release([tag, self._tag]) == self._tag}
            after = successor or (self._repo if releases.keys() - revoked.keys() else None)
            said = Revocation(since=f"{datetime.now(UTC):%Y-%m-%d}", reason=reason, revisions=revoked, successor=after)
        landed = hub.signed_tag(MAIN) or self._tag  # a release, even if it has no tag yet
        branch = self._own_branch if {*releases, landed} - said.revisions.keys() else MAIN
        head = hub.commit(next(place for place in (branch, self._mark, self._tag, MAIN) if place in refs))
        left_over = [name for name in branches if STAGING.fullmatch(name)] if purge else []
        staging = tuple(name for name in left_over if hub.signed_tag(name) in said.revisions)
        going = {*said.revisions, branch, self._mark, self._own_branch, *staging}
        unused = hub.unused_large(without=going) if purge else []
        left = Plan(
            revocation=said,
            branch=branch,
            head=head,
            buried=hub.read(head) == said,
            marked=self._mark in tags and hub.read(self._mark) == said and self._own_branch not in branches,
            hide=hide and not hub.is_private(),
            purge=purge and bool(unused or staging or said.revisions.keys() & tags or hub.has_history(head)),
            staging=staging,
            large=hub.large_of(said.revisions.values()) if purge else frozenset(),
            steps=(),
        )
        return replace(left, steps=tuple(self._steps(left, tags, unused)))

    def _steps(self, plan: Plan, tags: Sequence[str], unused: Sequence[Any]) -> Iterator[str]:
        if plan.hide:
            yield "the repository becomes private"
        if not plan.buried:
            removed = [name for name in self._hub.files(plan.head) if name != CARD]
            yield f"{CARD} on {plan.branch} becomes a tombstone, and {len(removed)} files are removed, in one commit"
            yield from (f"  {name} is removed" for name in removed)
        if plan.purge:
            yield from (f"the branch {name}, left by a publication, is deleted" for name in plan.staging)
            yield from (f"the tag {tag} is deleted" for tag in plan.revocation.revisions if tag in tags)
            yield f"the history of {plan.branch} is squashed into one commit"
        if self._mark in tags and self._hub.read(self._mark) != plan.revocation:
            yield f"the tag {self._mark}, which holds something else, is deleted"
        if plan.purge or not plan.marked:
            yield f"the tag {self._mark} is set on {'a copy of ' if plan.purge else ''}that commit"
        if plan.purge:
            yield from (f"{file.filename} ({file.size:,} bytes) is deleted for good" for file in unused)

    def run(self, plan: Plan) -> None:
        """Do what the plan says; planning and running again continues.

        Raises HubError if the Hub refuses, or if somebody else committed where the tombstone is.
        """
        hub = self._hub
        with quiet():
            if plan.hide:
                hub.hide()
            if not plan.buried or not plan.marked or plan.purge:
                report("revoking")
                if plan.branch != MAIN:
                    hub.create_branch(plan.branch, plan.head)
                if not plan.buried:
                    hub.replace(plan.branch, plan.head, tombstone(self._repo, plan.revocation, hub.licence(plan.head)))
                buried = self._tombstone(plan, "Run this again.")
                if plan.purge:
                    self._forget_history(plan, buried)
                elif not plan.marked:
                    hub.set_mark(self._mark, buried)
                if self._own_branch in hub.branches():
                    hub.delete_branch(self._own_branch)
            if plan.purge:
                report("deleting large files")
                for name in plan.staging:
                    hub.delete_branch(name)
                hub.delete_large(hub.unused_large())

    def held(self, plan: Plan) -> list[str]:
        """The large files of the revoked releases that a purge has left, in words, and why. Raises HubError."""
        if not plan.large:
            return []
        holders = self._hub.holders()
        return [
            f"{file.filename} ({file.size:,} bytes), held by {', '.join(holders[file.oid]) or 'nothing any more'}"
            for file in self._hub.large()
            if file.oid in plan.large
        ]

    def _tombstone(self, plan: Plan, to_do: str) -> str:
        """The commit of the tombstone. Raises HubError, with what to do, if it is no longer the head of its branch."""
        commit = self._hub.commit(plan.branch)
        if self._hub.read(commit) != plan.revocation:
            raise HubError(f"Somebody else committed to {plan.branch} of {self._repo} meanwhile. {to_do}")
        return commit

    def _forget_history(self, plan: Plan, buried: str) -> None:
        """Leave one commit of the branch, and no tag that holds its history.

        The mark goes to a copy without history, since a release may land on main at any time, even in its squash.
        """
        hub, tags = self._hub, self._hub.tags()
        if plan.branch == MAIN:
            if self._own_branch in hub.branches():
                hub.delete_branch(self._own_branch)
            hub.create_branch(self._own_branch, buried)
        hub.squash(self._own_branch)
        for tag in plan.revocation.revisions:
            if tag in tags:
                hub.delete_tag(tag)
        hub.set_mark(self._mark, hub.commit(self._own_branch))
        if plan.branch == MAIN:
            self._tombstone(plan, "Its history was not squashed. Run this again.")
            hub.squash(MAIN)
            self._tombstone(
                plan, "The history of that was squashed too. Publish it as a new version, and run this again."
            )


class _Revocable(Repository):
    """A repository, with what revoking reads and changes there."""

    def read(self, revision: str) -> Revocation | None:
        """What the card of a revision says of a revocation."""
        with tempfile.TemporaryDirectory() as temporary:
            card = self.file(CARD, revision, Path(temporary))
            try:
                data = card_metadata(card) if card else {}
                return Revocation.model_validate(data["revocation"]) if data.get("revoked") is True else None
            except (ValueError, KeyError) as error:
                raise HubError(
                    f"The card of {self.name} at {revision} cannot be read ({' '.join(str(error).split()):.200}), so "
                    "it is unknown whether it was revoked. Look at it on the Hub."
                ) from error

    def marks(self) -> list[str]:
        """The tags that mark revocations."""
        return [tag for tag in self.tags() if tag.startswith(REVOKED)]

    def revocations(self) -> list[Revocation]:
        """What the marks and main say, and the branches of revocations that were cut off."""
        places = (*self.marks(), MAIN, *(branch for branch in self.branches() if branch.startswith(REVOKING)))
        return [said for place in places if (said := self.read(place))]

    def has_history(self, revision: str) -> bool:
        with hub_errors(f"reading the history of {self.name}"):
            return len(self.api.list_repo_commits(self.name, revision=revision)) > 1

    def licence(self, revision: str) -> dict[str, str]:
        """The licence in the metadata of a revision's card."""
        with tempfile.TemporaryDirectory() as temporary:
            card = self.file(CARD, revision, Path(temporary))
            return card_licence(card.parent) if card else {}

    def hide(self) -> None:
        with hub_errors(f"making {self.name} private"):
            self.api.update_repo_settings(self.name, private=True)

    def create_branch(self, branch: str, revision: str) -> None:
        with hub_errors(f"making a branch of {self.name}"):
            self.api.create_branch(self.name, branch=branch, revision=revision, exist_ok=True)

    def delete_branch(self, branch: str) -> None:
        with hub_errors(f"deleting a branch of {self.name}"):
            self.api.delete_branch(self.name, branch=branch)

    def set_mark(self, mark: str, commit: str) -> None:
        """Set the tag of a revocation, wherever it is now."""
        if mark in self.tags():
            self.delete_tag(mark)
        with hub_errors(f"tagging {self.name}"):
            self.api.create_tag(self.name, tag=mark, revision=commit)

    def delete_tag(self, tag: str) -> None:
        with hub_errors(f"deleting a tag of {self.name}"):
            self.api.delete_tag(self.name, tag=tag)

    def squash(self, branch: str) -> None:
        with hub_errors(f"squashing {self.name}"):
            self.api.super_squash_history(self.name, branch=branch, commit_message="Revoke")

    def replace(self, branch: str, head: str, card: str) -> None:
        """Make ``card`` the only file of a branch, in one commit on ``head``."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        removed = [CommitOperationDelete(name) for name in self.files(head) if name != CARD]
        try:
            with hub_errors(f"revoking in {self.name}"):
                self.api.create_commit(
                    self.name,
                    [*removed, CommitOperationAdd(CARD, card.encode())],
                    commit_message="Revoke",
                    revision=branch,
                    parent_commit=head,
                )
        except HubError:
            if self.read(branch) is None:  # after a lost answer, the branch shows whether it was done
                raise

    def large(self) -> list[Any]:
        """All its large files, whether a commit holds them or not."""
        with hub_errors(f"listing the large files of {self.name}"):
            return list(self.api.list_lfs_files(self.name))

    def large_of(self, commits: Iterable[str]) -> frozenset[str]:
        """The ids of the large files of these commits; of all files, if the Hub has one of the commits no more."""
        from huggingface_hub.errors import RevisionNotFoundError

        there, held = {file.oid for file in self.large()}, set[str]()
        for commit in commits:
            try:
                held.update(self.files(commit).values())
            except HubError as error:
                if isinstance(error.__cause__, RevisionNotFoundError):
                    return frozenset(there)
                raise
        return frozenset(there & held)

    def holders(self, without: Iterable[str] = ()) -> defaultdict[str, list[str]]:
        """By the id of a file, the branches, tags and open pull requests that hold it, apart from ``without``."""
        found = defaultdict[str, list[str]](list)
        for ref in sorted({*self.branches(), *self.tags(), *self.open_pull_requests()} - set(without)):
            for oid in {*self.files(ref).values()}:
                found[oid].append(ref)
        return found

    def unused_large(self, without: Iterable[str] = ()) -> list[Any]:
        """The large files that nothing holds, apart from the refs ``without``."""
        holders = self.holders(without)
        return [file for file in self.large() if file.oid not in holders]

    def delete_large(self, files: Iterable[Any]) -> None:
        with hub_errors(f"deleting large files of {self.name}"):
            self.api.permanently_delete_lfs_files(self.name, files, rewrite_history=False)


def tombstone(repo: str, said: Revocation, licence: dict[str, str]) -> str:
    """The card of a revoked release, whose metadata programs can read."""
    import jinja2
    import yaml

    new_version = {"new_version": said.successor} if said.successor else {}
    metadata = {**licence, **new_version, "tags": ["unlearning", "revoked"], "revoked": True}
    metadata["revocation"] = said.model_dump()
    environment = jinja2.Environment(  # noqa: S701  Markdown; the reason is escaped below
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("tombstone.md.jinja").render(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip(),
        name=repo.split("/")[1],
        since=said.since,
        reason="".join(f"\\{c}" if c in r"\`*_{}[]#|~" else c for c in html.escape(said.reason, quote=False)),
        revisions=said.revisions,
        successor=said.successor,
    )
