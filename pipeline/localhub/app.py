"""The Hub's HTTP protocol, as far as ``huggingface_hub`` 2.4 speaks it for models and datasets.

Paths are matched as they were sent: a quoted ``/`` (a branch ``refs%2Fpr%2F1``) stays inside its segment.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from core.hub_ids import is_hub_id
from pipeline.localhub.card_metadata import card_metadata, check_card
from pipeline.localhub.messages import blob_info, field, json_object, ranged, read_commit, tree_items
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import (
    LFS_SUFFIXES,
    MAX_REGULAR_BYTES,
    Repository,
    receiving,
    visibility,
)

UPLOAD_SECONDS = 24 * 3600  # how long an upload address is good for
USER = "local"
KINDS = {"model": "models", "dataset": "datasets"}

Handler = Callable[[Request, bytes], Response]


def build_app(folder: Path, endpoint: str, token: str) -> ASGIApp:
    """The Hub for the repositories in ``folder``, reachable at ``endpoint``, writable with ``token``."""
    hub = _Hub(folder, endpoint, token)
    m, git = "/api/{kind}/{ns}/{name}", "/{ns}/{name}.git/info/lfs"
    table: list[tuple[str, str, Handler]] = [
        ("GET", "/api/whoami-v2", hub.whoami),
        ("POST", "/api/repos/create", hub.create_repo),
        ("DELETE", "/api/repos/delete", hub.delete_repo),
        ("POST", "/api/validate-yaml", hub.validate_yaml),
        ("GET", m, hub.repo_info),
        ("GET", m + "/revision/{rev}", hub.repo_info),
        ("GET", m + "/auth-check", hub.auth_check),
        ("GET", m + "/auth-check/write", hub.auth_check_write),
        ("PUT", m + "/settings", hub.settings),
        ("POST", m + "/preupload/{rev}", hub.preupload),
        ("POST", m + "/commit/{rev}", hub.commit),
        ("GET", m + "/tree/{rev}", hub.tree),
        ("GET", m + "/tree/{rev}/{path:path}", hub.tree),
        ("POST", m + "/paths-info/{rev}", hub.paths_info),
        ("GET", m + "/refs", hub.refs),
        ("GET", m + "/commits/{rev}", hub.commits),
        ("POST", m + "/branch/{ref}", hub.create_branch),
        ("DELETE", m + "/branch/{ref}", hub.delete_branch),
        ("POST", m + "/tag/{rev}", hub.create_tag),
        ("DELETE", m + "/tag/{ref}", hub.delete_tag),
        *(("POST", f"{of}{git}/objects/batch", hub.lfs_batch) for of in ("", "/{kind}")),
        *(("POST", f"{of}{git}/verify", hub.lfs_verify) for of in ("", "/{kind}")),
        *(("GET", f"{of}/{{ns}}/{{name}}/resolve/{{rev}}/{{path:path}}", hub.resolve) for of in ("", "/{kind}")),
    ]
    routes = [Route(path, _endpoint(handler), methods=[method]) for method, path, handler in table]
    routes += [Route(f"{of}{git}/upload/{{oid}}", hub.lfs_put, methods=["PUT"]) for of in ("", "/{kind}")]
    return _RawPath(Starlette(routes=routes, exception_handlers={Refusal: _refuse}))


class _RawPath:
    """Lets the router see the path as it was sent, so that a quoted slash does not split a segment."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii")}
        await self._app(scope, receive, send)


def _endpoint(handler: Handler) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        body = await request.body()
        return await run_in_threadpool(handler, request, body)

    return endpoint


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # noqa: S101  registered for it
    # A header holds latin-1 and no line ends; the body has the message as it is.
    headers = {"X-Error-Message": error.message.encode("ascii", "replace").decode().replace("\n", " ")}
    if error.code:
        headers["X-Error-Code"] = error.code
    return JSONResponse({"error": error.message}, error.status, headers)


def _kind(values: dict[str, Any]) -> str:
    """The folder of repositories of a request's type."""
    kind = values.get("type") or "model"
    if kind not in KINDS:
        raise Refusal(400, f"The loopback Hub keeps no repositories of the type {kind!r}.")
    return KINDS[kind]


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class _Hub:
    """The handlers. Each takes the request and its body and returns the answer, or raises Refusal."""

    def __init__(self, folder: Path, endpoint: str, token: str) -> None:
        self._folder = folder
        self._endpoint = endpoint
        self._token = token
        self._upload_secret = secrets.token_bytes(32)

    # -- who may do what

    def _authenticated(self, request: Request) -> bool:
        header = request.headers.get("authorization")
        if header is None:
            return False
        if not hmac.compare_digest(header.encode(), f"Bearer {self._token}".encode()):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return True

    def _require_token(self, request: Request) -> None:
        if not self._authenticated(request):
            raise Refusal(401, "Invalid username or password.")

    def _path(self, kind: str, namespace: str, name: str) -> Path:
        """Where a repository lies. ``kind`` is as in its address, where models have none."""
        if kind not in KINDS.values():
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        if not is_hub_id(f"{namespace}/{name}"):
            raise Refusal(400, f"Invalid repository name: {namespace}/{name}")
        return self._folder / kind / namespace / f"{name}.git"

    def _path_of(self, request: Request) -> Path:
        kind, namespace, name = (unquote(request.path_params.get(key, "models")) for key in ("kind", "ns", "name"))
        return self._path(kind, namespace, name)

    @contextmanager
    def _open(self, request: Request, *, write: bool = False) -> Iterator[Repository]:
        """The repository of the request's path, locked if ``write``. Refuses a sender who may not see or change it."""
        path = self._path_of(request)
        authenticated = self._authenticated(request)
        if not authenticated and visibility(path) != "public":  # the answer does not tell whether it exists
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        if write and not authenticated:
            raise Refusal(401, "Invalid username or password.")
        with Repository.lock(path) if write else nullcontext(), closing(Repository(path)) as repository:
            yield repository

    # -- account and repositories

    def whoami(self, request: Request, _: bytes) -> Response:
        """The one user, who may write everywhere. Every namespace in use counts as the user's organisation."""
        self._require_token(request)
        models = self._folder / "models"
        names = sorted(p.name for p in models.iterdir() if p.is_dir()) if models.is_dir() else []
        orgs = [{"type": "org", "name": name, "roleInOrg": "admin"} for name in names if name != USER]
        access = {"accessToken": {"displayName": "local", "role": "write"}}
        return JSONResponse({"type": "user", "name": USER, "fullname": USER, "orgs": orgs, "auth": access})

    def create_repo(self, request: Request, body: bytes) -> Response:
        """A new repository; 409, with its address, if it exists."""
        self._require_token(request)
        values = json_object(body)
        namespace = values.get("organization") or USER
        name = field(values, "name", str)
        path = self._path(_kind(values), namespace, name)
        visibility = values.get("visibility") or ("private" if values.get("private") else "public")
        answer = {"url": f"{self._endpoint}/{namespace}/{name}", "name": f"{namespace}/{name}"}
        with Repository.lock(path):
            try:
                Repository.create(path, visibility)
            except Refusal as refusal:
                return JSONResponse({**answer, "error": refusal.message}, refusal.status)
        return JSONResponse(answer)

    def delete_repo(self, request: Request, body: bytes) -> Response:
        """Remove a repository with everything in it."""
        self._require_token(request)
        values = json_object(body)
        path = self._path(_kind(values), values.get("organization") or USER, field(values, "name", str))
        with Repository.lock(path):
            Repository(path).close()
            (path / "hub.json").unlink()  # from here on it does not exist, even if the removal is interrupted
            shutil.rmtree(path)
        return JSONResponse({})

    def settings(self, request: Request, body: bytes) -> Response:
        """Change the visibility."""
        with self._open(request, write=True) as repository:
            values = json_object(body)
            if values.get("gated"):
                raise Refusal(400, "The loopback Hub has no gated repositories.")
            if "visibility" in values:
                repository.set_visibility(field(values, "visibility", str))
            return JSONResponse({"visibility": repository.visibility})

    def auth_check(self, request: Request, _: bytes) -> Response:
        """Whether the sender may read."""
        with self._open(request):
            return JSONResponse({})

    def auth_check_write(self, request: Request, _: bytes) -> Response:
        """Whether the sender may write."""
        with self._open(request, write=True):
            return JSONResponse({})

    def validate_yaml(self, _: Request, body: bytes) -> Response:
        """Whether the metadata of a card would be accepted."""
        errors, warnings = check_card(field(json_object(body), "content", str))
        answer = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        return JSONResponse(answer, 400 if errors else 200)

    # -- reading

    def repo_info(self, request: Request, _: bytes) -> Response:
        """A revision of a repository and its files; with ``blobs``, their sizes and digests."""
        with self._open(request) as repository:
            sha = repository.resolve(unquote(request.path_params.get("rev", "main")))
            entries = repository.entries(sha)
            card = entries.get("README.md")
            metadata = card_metadata(repository.read_blob(card.oid).decode(errors="replace")) if card else {}
            siblings: list[dict[str, Any]] = [{"rfilename": path} for path in entries]
            if request.query_params.get("blobs"):
                siblings = [blob_info(entry) for entry in entries.values()]
            repo_id = f"{repository.path.parent.name}/{repository.path.stem}"
            info: dict[str, Any] = {"_id": repo_id, "id": repo_id, "author": repository.path.parent.name}
            info |= {"sha": sha.decode(), "lastModified": _date(repository.commit_object(sha).commit_time)}
            info |= {"private": repository.visibility == "private", "gated": False, "disabled": False}
            info |= {"tags": metadata.get("tags") or [], "cardData": metadata, "siblings": siblings}
            return JSONResponse(info)

    def tree(self, request: Request, _: bytes) -> Response:
        """Files and folders below a path."""
        with self._open(request) as repository:
            sha = repository.resolve(unquote(request.path_params["rev"]))
            below = unquote(request.path_params.get("path", "")).strip("/")
            recursive = request.query_params.get("recursive", "").lower() in ("true", "1")
            items = tree_items(repository.entries(sha), below, recursive=recursive)
            if below and not items:
                raise Refusal(404, f"{below} does not exist on {request.path_params['rev']}", "EntryNotFound")
            return JSONResponse(items)

    def paths_info(self, request: Request, body: bytes) -> Response:
        """Files and folders at the given paths; a path that does not exist is left out."""
        with self._open(request) as repository:
            sha = repository.resolve(unquote(request.path_params["rev"]))
            items = {item["path"]: item for item in tree_items(repository.entries(sha), "", recursive=True)}
            paths = parse_qs(body.decode(errors="replace")).get("paths", [])
            return JSONResponse([items[path] for path in paths if path in items])

    def refs(self, request: Request, _: bytes) -> Response:
        """Branches and tags."""
        with self._open(request) as repository:
            branches, tags = (
                [
                    {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha}
                    for name, sha in repository.refs(kind).items()
                ]
                for kind in ("heads", "tags")
            )
            return JSONResponse({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def commits(self, request: Request, _: bytes) -> Response:
        """The history of a revision, newest first."""
        with self._open(request) as repository:
            sha = repository.resolve(unquote(request.path_params["rev"]))
            items = []
            for commit in repository.history(sha):
                title, _sep, message = commit.message.decode().partition("\n\n")
                items.append({"id": commit.id.decode(), "title": title, "message": message})
                items[-1] |= {"date": _date(commit.commit_time), "authors": [{"user": USER}]}
            return JSONResponse(items)

    def resolve(self, request: Request, _: bytes) -> Response:
        """The bytes of a file, whole or a range of them."""
        with self._open(request) as repository:
            sha = repository.resolve(unquote(request.path_params["rev"]))
            path = unquote(request.path_params["path"])
            entry = repository.entries(sha).get(path)
            headers = {"X-Repo-Commit": sha.decode(), "Accept-Ranges": "bytes"}
            if entry is None:
                headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
                return JSONResponse({"error": f"{path} does not exist"}, 404, headers)
            headers["ETag"] = f'"{entry.oid}"'
            if entry.sha256:
                headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
                file = repository.lfs_file(entry.sha256)
                return FileResponse(file, headers={**headers, "ETag": f'"{entry.sha256}"'})
            return ranged(repository.read_blob(entry.oid), request.headers.get("range"), headers)

    # -- writing

    def preupload(self, request: Request, body: bytes) -> Response:
        """How to upload each file, and the digest of the file at its path, so that the client skips unchanged files."""
        with self._open(request, write=True) as repository:
            entries = repository.entries(repository.resolve(unquote(request.path_params["rev"])))
            files = []
            for file in field(json_object(body), "files", list):
                path, size = field(file, "path", str), field(file, "size", int)
                sample = base64.b64decode(field(file, "sample", str))
                large = size > MAX_REGULAR_BYTES or path.endswith(tuple(LFS_SUFFIXES)) or b"\0" in sample
                item: dict[str, Any] = {"path": path, "uploadMode": "lfs" if large and size else "regular"}
                if (entry := entries.get(path)) is not None:
                    item["oid"] = entry.sha256 or entry.oid
                files.append({**item, "shouldIgnore": False})
            return JSONResponse({"files": files})

    def commit(self, request: Request, body: bytes) -> Response:
        """All operations of an ndjson body as one commit."""
        if request.query_params.get("create_pr"):
            raise Refusal(400, "The loopback Hub has no pull requests.")
        header, operations = read_commit(body)
        with self._open(request, write=True) as repository:
            message = field(header, "summary", str)
            if description := header.get("description"):
                message += f"\n\n{description}"
            branch = unquote(request.path_params["rev"])
            sha = repository.commit(branch, header.get("parentCommit"), operations, message)
            url = f"{self._endpoint}/{request.path_params['ns']}/{request.path_params['name']}/commit/{sha}"
            return JSONResponse({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def create_branch(self, request: Request, body: bytes) -> Response:
        """A branch at ``startingPoint``, or at main."""
        with self._open(request, write=True) as repository:
            start = (json_object(body) if body else {}).get("startingPoint") or "main"
            repository.create_ref("heads", unquote(request.path_params["ref"]), repository.resolve(start))
            return JSONResponse({})

    def delete_branch(self, request: Request, _: bytes) -> Response:
        """Remove a branch."""
        with self._open(request, write=True) as repository:
            repository.delete_ref("heads", unquote(request.path_params["ref"]))
            return JSONResponse({})

    def create_tag(self, request: Request, body: bytes) -> Response:
        """A tag at a revision."""
        with self._open(request, write=True) as repository:
            commit = repository.resolve(unquote(request.path_params["rev"]))
            repository.create_ref("tags", field(json_object(body), "tag", str), commit)
            return JSONResponse({})

    def delete_tag(self, request: Request, _: bytes) -> Response:
        """Remove a tag."""
        with self._open(request, write=True) as repository:
            repository.delete_ref("tags", unquote(request.path_params["ref"]))
            return JSONResponse({})

    # -- large files

    def lfs_batch(self, request: Request, body: bytes) -> Response:
        """The address for the upload of each large file; none for a file that is here already."""
        with self._open(request, write=True) as repository:
            values = json_object(body)
            if values.get("operation") != "upload" or values.get("hash_algo", "sha256") != "sha256":
                raise Refusal(400, "Only uploads by sha256 are supported.")
            objects = []
            for item in field(values, "objects", list):
                oid, size = field(item, "oid", str), field(item, "size", int)
                answer: dict[str, Any] = {"oid": oid, "size": size}
                if not repository.lfs_file(oid).is_file():
                    answer["actions"] = self._upload_actions(request, oid, size)
                objects.append(answer)
            return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")

    def _upload_actions(self, request: Request, oid: str, size: int) -> dict[str, Any]:
        # The client sends no token with the bytes, so the address carries its own permission.
        base = request.scope["path"].removesuffix("/objects/batch")
        expires = int(time.time()) + UPLOAD_SECONDS
        signature = self._sign(f"{base}/upload/{oid}", size, expires)
        href = f"{self._endpoint}{base}/upload/{oid}?size={size}&expires={expires}&signature={signature}"
        return {"upload": {"href": href}, "verify": {"href": f"{self._endpoint}{base}/verify"}}

    def _sign(self, path: str, size: int, expires: int) -> str:
        return hmac.new(self._upload_secret, f"{path}?{size}&{expires}".encode(), hashlib.sha256).hexdigest()

    async def lfs_put(self, request: Request) -> Response:
        """Receive the bytes of one large file, in a stream."""
        query = request.query_params
        try:
            size, expires = int(query["size"]), int(query["expires"])
        except (KeyError, ValueError) as error:
            raise Refusal(403, "This upload address is not complete.") from error
        expected = self._sign(request.scope["path"], size, expires)
        if not hmac.compare_digest(expected, query.get("signature", "")) or expires < time.time():
            raise Refusal(403, "This upload address is not valid, or it has expired.")
        path, digest = self._path_of(request), request.path_params["oid"]
        with closing(Repository(path)) as repository, receiving(repository, digest, size) as receiver:
            async for data in request.stream():
                receiver.write(data)
            receiver.finish()
        return Response(status_code=200)

    def lfs_verify(self, request: Request, body: bytes) -> Response:
        """Whether an uploaded file exists with this size."""
        with self._open(request, write=True) as repository:
            values = json_object(body)
            file = repository.lfs_file(field(values, "oid", str))
            if not file.is_file() or file.stat().st_size != values.get("size"):
                raise Refusal(404, "The uploaded file does not exist, or has another size.")
            return JSONResponse({})
