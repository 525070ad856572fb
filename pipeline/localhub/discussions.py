"""Discussions and pull requests of a repository: one JSON file each, and ``refs/pr/N`` for what a pull request changes.

A number's ref is made before its file: a ref without a file, left by a Hub that was killed, is nobody's pull request. A
merge is written down before main moves, and counts only if main has moved.
"""

from __future__ import annotations

import html
import json
import secrets
import time
from typing import Any

from dulwich.objects import ObjectID
from dulwich.refs import Ref
from starlette.responses import JSONResponse, Response

from pipeline.localhub import history
from pipeline.localhub.hub import Call
from pipeline.localhub.messages import date, field
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import MAIN, Repository
from pipeline.localhub.settings import write_json

PAGE = 25
FOLDER = "discussions"
Discussion = dict[str, Any]


# -- the record


def _save(repository: Repository, discussion: Discussion) -> None:
    write_json(repository.path / FOLDER / f"{discussion['num']}.json", discussion)


def _load(repository: Repository, number: str) -> Discussion:
    """One discussion; 404 if there is none. A merge that was cut off is settled by where its base is."""
    path = repository.path / FOLDER / f"{number}.json"
    if not (number.isascii() and number.isdigit() and len(number) < 10 and path.is_file()):
        raise Refusal(404, f"Discussion {number:.20} not found")
    discussion: Discussion = json.loads(path.read_text(encoding="utf-8"))
    merging = discussion.pop("merging", None)
    if merging and any(commit.id.decode() == merging for commit in repository.history(_base(repository, discussion))):
        _close(discussion, "merged", discussion["author"], merging)
    return discussion


def _base(repository: Repository, discussion: Discussion) -> ObjectID:
    return repository.git.refs[Ref(discussion["base"].encode())]


def _numbers(repository: Repository) -> list[int]:
    """The numbers of all discussions, newest first."""
    return sorted((int(path.stem) for path in (repository.path / FOLDER).glob("*.json")), reverse=True)


def _event(kind: str, user: str, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": secrets.token_hex(12),
        "type": kind,
        "createdAt": date(time.time()),
        "author": {"name": user, "type": "user"},
        "data": data,
    }


def _comment(user: str, text: str) -> dict[str, Any]:
    latest = _version(user, text)
    return _event("comment", user, {"edited": False, "hidden": False, "latest": latest, "history": [latest]})


def _version(user: str, text: str) -> dict[str, Any]:
    shown = f"<p>{html.escape(text)}</p>"
    return {"raw": text, "html": shown, "updatedAt": date(time.time()), "author": {"name": user}}


def _open(repository: Repository, user: str, title: str, description: str, **more: Any) -> Discussion:
    if not title.strip():
        raise Refusal(400, "A discussion needs a title.")
    taken = [*_numbers(repository), *(int(name) for name in repository.refs("pr") if name.isdigit()), 0]
    created = {"num": max(taken) + 1, "title": title, "author": user, "createdAt": date(time.time())}
    return {**created, "status": "open", "events": [_comment(user, description)], "base": None, **more}


def open_pull_request(
    repository: Repository, user: str, title: str, description: str, base: Ref, commit: ObjectID, status: str
) -> Discussion:
    """A new pull request to ``base`` whose head is ``commit``."""
    discussion = _open(repository, user, title, description, base=base.decode(), status=status)
    if commit != repository.git.refs[base]:
        discussion["events"].append(_event("commit", user, {"subject": title, "oid": commit.decode()}))
    repository.create_ref("pr", str(discussion["num"]), commit)
    _save(repository, discussion)
    return discussion


def check_may_push(call: Call, repository: Repository, revision: str) -> None:
    """Refuse a commit to a pull request that is not open, or by somebody who neither opened it nor may write."""
    discussion = _load(repository, revision.removeprefix("refs/pr/"))
    if discussion["author"] != call.user().user:
        call.require("write")
    if discussion["status"] not in ("open", "draft"):
        raise Refusal(403, f"This pull request is {discussion['status']}.")


def _close(discussion: Discussion, status: str, user: str, merge_commit: str | None = None) -> dict[str, Any]:
    event = _event("status-change", user, {"status": status})
    discussion["status"] = status
    discussion["events"].append(event)
    if merge_commit:
        discussion["merge_commit"] = merge_commit
    return event


# -- the answers


def _summary(call: Call, discussion: Discussion) -> dict[str, Any]:
    answer = {key: discussion[key] for key in ("num", "title", "status", "createdAt")}
    answer |= {"author": {"name": discussion["author"], "type": "user"}, "isPullRequest": bool(discussion["base"])}
    return {**answer, "repo": {"name": call.repo, "type": call.kind.removesuffix("s")}}


def list_discussions(call: Call) -> Response:
    """A page of discussions, newest first."""
    query = call.request.query_params
    kinds = {"pull_request": [True], "discussion": [False]}.get(query.get("type", ""), [True, False])
    states = {"open": ("open", "draft"), "closed": ("closed", "merged")}.get(query.get("status", ""))
    with call.reading() as repository:
        found = [_summary(call, _load(repository, str(number))) for number in _numbers(repository)]
    found = [
        item
        for item in found
        if item["isPullRequest"] in kinds
        and (states is None or item["status"] in states)
        and query.get("author", item["author"]["name"]) == item["author"]["name"]
    ]
    page = query.get("p", "0")
    start = PAGE * int(page) if page.isascii() and page.isdigit() and len(page) < 7 else 0
    return JSONResponse({"count": len(found), "start": start, "discussions": found[start : start + PAGE]})


def details(call: Call) -> Response:
    """One discussion; of a pull request also what it changes and where it conflicts."""
    with call.reading() as repository:
        discussion = _load(repository, call.part("num"))
        answer = {**_summary(call, discussion), "events": discussion["events"], "diff": None}
        if discussion["base"]:
            head = repository.resolve(f"refs/pr/{discussion['num']}")
            merged = discussion.get("merge_commit")
            # What a merged pull request changed is seen from where its base was.
            base = _base(repository, discussion) if not merged else _before(repository, merged)
            answer["changes"] = {"base": discussion["base"], **({"mergeCommitId": merged} if merged else {})}
            answer["filesWithConflicts"] = [] if merged else history.merged_files(repository, base, head)[1]
            answer["diff"] = history.diff(repository, base, head) if call.flag("diff") else None
        return JSONResponse(answer)


def _before(repository: Repository, commit: str) -> ObjectID:
    try:
        parents = repository.commit_object(ObjectID(commit.encode())).parents
    except KeyError:  # its branch was squashed since
        parents = []
    return parents[0] if parents else repository.git.refs[MAIN]


def create(call: Call) -> Response:
    """A new discussion, or a draft of a pull request to main that changes nothing yet."""
    values = call.json()
    title, description = field(values, "title", str), field(values, "description", str, "")
    user = call.user().user
    with call.changing() as repository:
        if field(values, "pullRequest", bool, False):
            head = repository.git.refs[MAIN]
            discussion = open_pull_request(repository, user, title, description, MAIN, head, status="draft")
        else:
            discussion = _open(repository, user, title, description)
            _save(repository, discussion)
        return JSONResponse({**_summary(call, discussion), "url": f"{call.address()}/discussions/{discussion['num']}"})


def comment(call: Call) -> Response:
    """One more comment."""
    text = field(call.json(), "comment", str)
    with call.changing() as repository:
        discussion = _load(repository, call.part("num"))
        discussion["events"].append(_comment(call.user().user, text))
        _save(repository, discussion)
        return JSONResponse({"newMessage": discussion["events"][-1]})


def edit_comment(call: Call) -> Response:
    """Another text for one's own comment, or none at all."""
    hide = call.part("what") == "hide"
    text = "" if hide else field(call.json(), "content", str)
    user = call.user().user
    with call.changing() as repository:
        discussion = _load(repository, call.part("num"))
        event = next((e for e in discussion["events"] if e["type"] == "comment" and e["id"] == call.part("id")), None)
        if event is None:
            raise Refusal(404, "Comment not found")
        if event["author"]["name"] != user:
            call.require("write")
        latest = _version(user, text)
        kept = [] if hide else event["data"]["history"]
        event["data"] = {"edited": True, "hidden": hide, "latest": latest, "history": [*kept, latest]}
        _save(repository, discussion)
        return JSONResponse({"updatedComment": event})


def rename(call: Call) -> Response:
    """Another title."""
    title = field(call.json(), "title", str)
    with call.changing() as repository:
        discussion = _own(call, repository)
        event = _event("title-change", call.user().user, {"from": discussion["title"], "to": title})
        _save(repository, {**discussion, "title": title, "events": [*discussion["events"], event]})
        return JSONResponse({"newTitle": event})


def change_status(call: Call) -> Response:
    """Close a discussion, or open it again."""
    values = call.json()
    status = field(values, "status", str)
    if status not in ("open", "closed"):
        raise Refusal(400, f"status {status!r:.50}: use open or closed.")
    with call.changing() as repository:
        discussion = _own(call, repository)
        if discussion["status"] == "merged":
            raise Refusal(400, "This pull request is merged.")
        if text := field(values, "comment", str, ""):
            discussion["events"].append(_comment(call.user().user, text))
        event = _close(discussion, status, call.user().user)
        _save(repository, discussion)
        return JSONResponse({"newStatus": event})


def _own(call: Call, repository: Repository) -> Discussion:
    """The discussion, for who opened it or may write."""
    discussion = _load(repository, call.part("num"))
    if discussion["author"] != call.user().user:
        call.require("write")
    return discussion


def merge(call: Call) -> Response:
    """Land a pull request: all its changes as one commit on its base."""
    text = field(call.json(), "comment", str, "")
    user = call.user().user
    with call.changing() as repository:
        discussion = _load(repository, call.part("num"))
        if not discussion["base"]:
            raise Refusal(400, "This discussion is no pull request.")
        if discussion["status"] == "draft":
            raise Refusal(400, "This pull request is a draft. Open it first.")
        if discussion["status"] != "open":
            raise Refusal(400, f"This pull request is {discussion['status']}.")
        base = Ref(discussion["base"].encode())
        head = repository.resolve(f"refs/pr/{discussion['num']}")
        title = f"{discussion['title']} (#{discussion['num']})"
        old, new = history.merge(repository, base, head, title, user)
        _save(repository, {**discussion, "merging": new.decode()})
        repository.move(base, old, new)
        if text:
            discussion["events"].append(_comment(user, text))
        _close(discussion, "merged", user, new.decode())
        _save(repository, discussion)
        return JSONResponse({"mergeCommitId": new.decode(), "status": "merged"})
