"""Answers about the sender and about repositories as a whole: made, moved, set, removed, and who may read them."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

from starlette.responses import JSONResponse, Response

from pipeline.localhub.card_metadata import check_card
from pipeline.localhub.hub import KINDS, Call, page_of
from pipeline.localhub.messages import date, field
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import Repository
from pipeline.localhub.settings import FILE, Access, Settings

STATES = ("accepted", "pending", "rejected")


def whoami(call: Call) -> Response:
    """Who the token belongs to."""
    return JSONResponse(call.user().whoami(call.hub.namespaces()))


def _kind(values: dict[str, Any]) -> str:
    """The folder of repositories of a request's type."""
    kind: str = field(values, "type", str, "model")
    if kind not in KINDS:
        raise Refusal(400, f"The loopback Hub keeps no repositories of the type {kind!r:.50}.")
    return KINDS[kind]


def _named(call: Call, values: dict[str, Any]) -> str:
    """The repository that a body names, by its name and an organisation or the sender."""
    owner = field(values, "organization", str, "") or call.user().user
    return f"{owner}/{field(values, 'name', str)}"


def create_repo(call: Call) -> Response:
    """A new repository; 409, with its address, if it exists."""
    values = call.json()
    kind, repo = _kind(values), _named(call, values)
    path = call.hub.path(kind, repo)
    # A token for one repository may not make it: the right to a namespace is asked.
    call.require("write", repo.split("/")[0])
    default = "private" if field(values, "private", bool, False) else "public"
    settings = Settings(field(values, "visibility", str, default))
    url = f"{call.hub.endpoint}{page_of(kind, repo)}"
    answer = {"url": url, "name": repo, "id": repo}
    with Repository.lock(path):
        try:
            Repository.create(path, settings)
        except Refusal as refusal:
            return JSONResponse({**answer, "error": refusal.message}, refusal.status)
    return JSONResponse(answer)


def delete_repo(call: Call) -> Response:
    """Remove a repository with everything in it."""
    values = call.json()
    repo = _named(call, values)
    path = call.hub.path(_kind(values), repo)
    call.require("write", repo)
    with Repository.lock(path):
        Repository(path).close()
        (path / FILE).unlink()  # from here on it does not exist, even if the removal is interrupted
        shutil.rmtree(path)
    return JSONResponse({})


def move_repo(call: Call) -> Response:
    """Give a repository another name or owner."""
    values = call.json()
    kind = _kind(values)
    names = [field(values, key, str) for key in ("fromRepo", "toRepo")]
    old, new = (call.hub.path(kind, name) for name in names)
    for name in (names[0], names[1].split("/")[0]):
        call.require("write", name)
    with ExitStack() as locks:
        for path in sorted({old, new}):  # always in one order, so that two moves cannot wait for each other
            locks.enter_context(Repository.lock(path))
        Repository(old).close()
        if (new / FILE).is_file():
            raise Refusal(409, f"There is a repository {names[1]} already.")
        shutil.rmtree(new, ignore_errors=True)
        old.rename(new)
    return JSONResponse({})


def settings(call: Call) -> Response:
    """Change who may see a repository, and whether its files are gated."""
    values = call.json()
    with call.changing() as repository:
        changed = repository.settings
        if "visibility" in values:
            changed = replace(changed, visibility=field(values, "visibility", str))
        elif "private" in values:
            changed = replace(changed, visibility="private" if field(values, "private", bool) else "public")
        if "gated" in values:
            changed = replace(changed, gated=values["gated"])
        repository.set_settings(changed)
    return JSONResponse({"visibility": changed.visibility, "private": changed.is_private, "gated": changed.gated})


def validate_yaml(call: Call) -> Response:
    """Whether the metadata of a card would be accepted."""
    errors, warnings = check_card(field(call.json(), "content", str))
    answer = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return JSONResponse(answer, 400 if errors else 200)


def ask_access(call: Call) -> Response:
    """Ask to read a gated repository: granted at once if it is ``auto``."""
    user = call.user().user
    with call.changing() as repository:
        gated = repository.settings.gated
        if not gated:
            raise Refusal(400, "This repository is not gated.")
        state: Access = "accepted" if gated == "auto" else repository.settings.access.get(user, "pending")
        repository.set_settings(repository.settings.with_access(user, state))
    return JSONResponse({"status": state})


def access_requests(call: Call) -> Response:
    """Who asked to read a gated repository, by the answer."""
    wanted = call.part("state")
    if wanted not in STATES:
        raise Refusal(400, f"Use one of {', '.join(STATES)}.")
    now = date(time.time())
    with call.reading() as repository:
        found = [
            {
                "requestId": user,
                "user": {"user": user, "fullname": user},
                "status": state,
                "timestamp": now,
            }
            for user, state in sorted(repository.settings.access.items())
            if state == wanted
        ]
    return call.page(found, 100)


def handle_access(call: Call) -> Response:
    """Answer somebody who asked, or take the answer back."""
    values = call.json()
    user = field(values, "user", str, "") or field(values, "requestId", str)
    state = field(values, "status", str)
    if state not in STATES:
        raise Refusal(400, f"Use one of {', '.join(STATES)}.")
    with call.changing() as repository:
        if user not in repository.settings.access:
            raise Refusal(404, f"{user:.100} did not ask for access.")
        repository.set_settings(repository.settings.with_access(user, cast(Access, state)))
    return JSONResponse({})


def grant_access(call: Call) -> Response:
    """Let somebody in who did not ask."""
    user = field(call.json(), "user", str)
    with call.changing() as repository:
        if repository.settings.access.get(user) == "accepted":
            raise Refusal(400, f"{user:.100} has access already.")
        repository.set_settings(repository.settings.with_access(user, "accepted"))
    return JSONResponse({})
