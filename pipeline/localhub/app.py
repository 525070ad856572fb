"""The Hub's HTTP protocol, as ``huggingface_hub`` 2.4 speaks it for models, datasets and collections.

A route says what it needs of its sender, and that is checked before any of the body is read. Paths are matched as they
were sent: a quoted ``/`` (a branch ``refs%2Fpr%2F1``) stays inside its segment.
"""

from __future__ import annotations

import logging
import secrets
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dulwich.errors import ChecksumMismatch, FileFormatException
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.localhub import account, collection, discussions, git_clone, jobs, large_files, reading, writing
from pipeline.localhub.bodies import whole
from pipeline.localhub.hub import Call, Hub, Needs
from pipeline.localhub.refusal import Refusal

_log = logging.getLogger(__name__)
Handler = Callable[[Call], Response]
MAX_BODY = 8 << 20
MAX_COMMIT = 256 << 20  # the small files of a commit are in its body
MAX_CARD = 1 << 20
GIT = ("/info/refs", "/git-upload-pack", "/info/lfs/objects/batch")

R, COLLECTION = "/api/{kind}/{ns}/{name}", "/api/collections/{ns}/{slug}"
D = R + "/discussions/{num}"
ROUTES: list[tuple[str, str, Needs, Handler]] = [
    ("GET", "/api/collections", "nothing", collection.list_collections),
    ("POST", "/api/collections", "token", collection.create),
    ("GET", COLLECTION, "nothing", collection.show),
    ("PATCH", COLLECTION, "token", collection.update),
    ("DELETE", COLLECTION, "token", collection.delete),
    ("POST", COLLECTION + "/items", "token", collection.add_item),
    ("PATCH", COLLECTION + "/items/{item}", "token", collection.update_item),
    ("DELETE", COLLECTION + "/items/{item}", "token", collection.delete_item),
    ("GET", "/api/jobs/hardware", "nothing", jobs.hardware),
    ("GET", "/api/jobs/{ns}", "token", jobs.list_jobs),
    ("POST", "/api/jobs/{ns}", "token", jobs.run),
    ("GET", "/api/jobs/{ns}/{job}", "token", jobs.show),
    ("POST", "/api/jobs/{ns}/{job}/cancel", "token", jobs.cancel),
    ("GET", "/api/whoami-v2", "token", account.whoami),
    ("GET", "/api/{kind}", "nothing", reading.list_repos),
    ("POST", "/api/repos/create", "token", account.create_repo),
    ("DELETE", "/api/repos/delete", "token", account.delete_repo),
    ("POST", "/api/repos/move", "token", account.move_repo),
    ("POST", "/api/validate-yaml", "nothing", account.validate_yaml),
    ("PUT", R + "/settings", "write", account.settings),
    ("GET", R + "/user-access-request/{state}", "write", account.access_requests),
    ("POST", R + "/user-access-request/handle", "write", account.handle_access),
    ("POST", R + "/user-access-request/grant", "write", account.grant_access),
    ("GET", R, "read", reading.repo_info),
    ("GET", R + "/revision/{rev}", "read", reading.repo_info),
    ("GET", R + "/auth-check", "files", reading.auth_check),
    ("GET", R + "/auth-check/write", "write", reading.auth_check),
    ("GET", R + "/tree/{rev}", "read", reading.tree),
    ("GET", R + "/tree/{rev}/{path:path}", "read", reading.tree),
    ("POST", R + "/paths-info/{rev}", "read", reading.paths_info),
    ("GET", R + "/refs", "read", reading.refs),
    ("GET", R + "/commits/{rev}", "read", reading.commits),
    ("POST", R + "/preupload/{rev}", "discuss", writing.preupload),
    ("POST", R + "/commit/{rev}", "discuss", writing.commit),
    ("POST", R + "/branch/{ref}", "write", writing.create_branch),
    ("DELETE", R + "/branch/{ref}", "write", writing.delete_branch),
    ("POST", R + "/tag/{rev}", "write", writing.create_tag),
    ("DELETE", R + "/tag/{ref}", "write", writing.delete_tag),
    ("POST", R + "/super-squash/{rev}", "write", writing.super_squash),
    ("GET", R + "/lfs-files", "write", large_files.list_files),
    ("POST", R + "/lfs-files/batch", "write", large_files.delete_files),
    ("GET", R + "/discussions", "read", discussions.list_discussions),
    ("POST", R + "/discussions", "discuss", discussions.create),
    ("GET", D, "read", discussions.details),
    ("POST", D + "/comment", "discuss", discussions.comment),
    ("POST", D + "/comment/{id}/{what}", "discuss", discussions.edit_comment),
    ("POST", D + "/title", "discuss", discussions.rename),
    ("POST", D + "/status", "discuss", discussions.change_status),
    ("POST", D + "/merge", "write", discussions.merge),
]
FILES: list[tuple[str, str, Needs, Handler]] = [  # their addresses begin with the name of a model, or with datasets/
    ("GET", "/resolve/{rev}/{path:path}", "files", reading.resolve),
    ("POST", "/ask-access", "read", account.ask_access),
    *(("GET", f"{git}/info/refs", "files", git_clone.info_refs) for git in (".git", "")),
    *(("POST", f"{git}/git-upload-pack", "files", git_clone.upload_pack) for git in (".git", "")),
    ("POST", ".git/info/lfs/objects/batch", "read", large_files.batch),
    ("POST", ".git/info/lfs/verify", "discuss", large_files.verify),
    ("GET", ".git/info/lfs/download/{oid}", "nothing", large_files.download),
]
LONGEST: dict[Handler, int] = {writing.commit: MAX_COMMIT, account.validate_yaml: MAX_CARD}


def build_app(hub: Hub, pages: Sequence[BaseRoute]) -> ASGIApp:
    """The application that answers for ``hub``, to the client and, by its ``pages``, to a browser."""
    routes: list[BaseRoute] = []
    for of in ("/{ns}/{name}", "/{kind}/{ns}/{name}"):
        table = [(method, of + path, needs, handler) for method, path, needs, handler in FILES]
        routes += [_route(hub, *entry) for entry in table]
        routes.append(Route(of + ".git/info/lfs/upload/{oid}", _streaming(hub), methods=["PUT"]))
    routes = [*(_route(hub, *entry) for entry in ROUTES), *routes, *pages]
    errors: dict[type[Exception], Callable[[Request, Exception], Any]] = {
        **{Refusal: _refuse, HTTPException: _no_route, ClientDisconnect: _gone},
        **dict.fromkeys((zlib.error, FileFormatException, ChecksumMismatch), _damaged),
    }
    return _Front(Starlette(routes=routes, exception_handlers=errors))


def _route(hub: Hub, method: str, path: str, needs: Needs, handler: Handler) -> Route:
    async def endpoint(request: Request) -> Response:
        limits = hub.rate.take(request.headers.get("authorization", "")) if hub.rate else {}
        call = await run_in_threadpool(_admit, hub, request, needs)
        body = await whole(request, LONGEST.get(handler, MAX_BODY))
        response = await run_in_threadpool(handler, replace(call, body=body))
        response.headers.update(limits)
        return response

    return Route(path, endpoint, methods=[method])


def _streaming(hub: Hub) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        return await large_files.upload(Call(hub, request, None))

    return endpoint


def _admit(hub: Hub, request: Request, needs: Needs) -> Call:
    """The call of a sender who may make it."""
    call = Call(hub, request, hub.tokens.sender(request.headers.get("authorization")))
    call.check(needs)
    return call


class _Front:
    """Lets the router see the path as it was sent, so that a quoted slash does not split a segment; numbers answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        number, answered = secrets.token_hex(8), False

        async def numbered(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app({**scope, "path": scope["raw_path"].decode("latin-1")}, receive, numbered)
        except Exception:
            if not answered:
                raise
            # uvicorn would hang up, on the next request perhaps; the sender has an answer, and this is for us.
            _log.exception("request %s: %s %s", number, scope["method"], scope["raw_path"].decode("latin-1"))


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # noqa: S101  registered for it
    # A header holds printable ASCII without spaces at its ends; the body has the message as it is.
    shown = "".join(char if " " <= char <= "~" else " " for char in error.message.encode("ascii", "replace").decode())
    headers = {"X-Error-Message": shown[:500].strip()}
    if error.status == 401 and request.scope["path"].endswith(GIT):
        headers["WWW-Authenticate"] = 'Basic realm="the loopback Hub"'  # git sends a token only if it is asked
    if error.code:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message}, error.status, {**headers, **error.headers})


async def _damaged(request: Request, error: Exception) -> Response:
    """What is read in git's objects does not change, unless the disk did it."""
    message = (
        f"What this Hub holds of this repository is damaged on its disk ({error}). `git fsck` in its folder "
        "names the object: take it from a copy, or delete the repository and publish again."
    )
    return await _refuse(request, Refusal(500, message))


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  registered for it
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it: the client has hung up
