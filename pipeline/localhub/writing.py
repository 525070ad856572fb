"""Changes of what a repository holds: commits, branches, tags."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from pipeline.localhub import discussions, history
from pipeline.localhub.hub import Call
from pipeline.localhub.messages import decoded, field, read_commit
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import is_large


def preupload(call: Call) -> Response:
    """How to upload each file, and the digest of the file at its path, so that the client skips unchanged files."""
    with call.reading() as repository:
        sha = repository.resolve(call.part("rev"))
        present = repository.files(sha)
        files = []
        for file in field(call.json(), "files", list):
            path, size = field(file, "path", str), field(file, "size", int)
            sample = decoded(field(file, "sample", str, ""), path)
            item: dict[str, Any] = {"path": path, "uploadMode": "lfs" if is_large(path, size, sample) else "regular"}
            if (oid := present.get(path)) is not None:
                entry = repository.entry(path, oid)
                item["oid"] = entry.sha256 or entry.oid
            files.append({**item, "shouldIgnore": False})
        return JSONResponse({"files": files})


def commit(call: Call) -> Response:
    """All operations of an ndjson body as one commit, on the branch or as a new pull request."""
    header, operations = read_commit(call.body)
    title = field(header, "summary", str)
    description = field(header, "description", str, "")
    parent = field(header, "parentCommit", str, "") or None
    message = f"{title}\n\n{description}" if description else title
    user = call.user().user
    revision = call.part("rev")
    with call.changing() as repository:
        answer: dict[str, Any] = {"success": True, "hookOutput": ""}
        if call.flag("create_pr"):
            ref = repository.branch(revision)
            _, new = repository.build(ref, parent, operations, message, user)
            opened = discussions.open_pull_request(repository, user, title, description, ref, new, status="open")
            sha = new.decode()
            answer["pullRequestUrl"] = f"{call.address()}/discussions/{opened['num']}"
        else:
            if revision.startswith("refs/pr/"):
                discussions.check_may_push(call, repository, revision)
            else:
                call.require("write")
            sha = repository.commit(revision, parent, operations, message, user)
        return JSONResponse({**answer, "commitOid": sha, "commitUrl": f"{call.address()}/commit/{sha}"})


def create_branch(call: Call) -> Response:
    """A branch at ``startingPoint``, or at main."""
    with call.changing() as repository:
        start = field(call.json(), "startingPoint", str, "main") or "main"
        repository.create_ref("heads", call.part("ref"), repository.resolve(start))
        return JSONResponse({})


def delete_branch(call: Call) -> Response:
    """Remove a branch."""
    with call.changing() as repository:
        repository.delete_ref("heads", call.part("ref"))
        return JSONResponse({})


def create_tag(call: Call) -> Response:
    """A tag at a revision."""
    with call.changing() as repository:
        repository.create_ref("tags", field(call.json(), "tag", str), repository.resolve(call.part("rev")))
        return JSONResponse({})


def delete_tag(call: Call) -> Response:
    """Remove a tag."""
    with call.changing() as repository:
        repository.delete_ref("tags", call.part("ref"))
        return JSONResponse({})


def super_squash(call: Call) -> Response:
    """The history of a branch as one commit."""
    with call.changing() as repository:
        if call.part("rev").startswith("refs/"):
            raise Refusal(400, "Only the history of a branch can be squashed.")
        message = field(call.json(), "message", str, "Super-squash branch")
        history.squash(repository, call.part("rev"), message, call.user().user)
        return JSONResponse({})
