"""Large files, by git's LFS protocol; their list, and their removal for good."""

from __future__ import annotations

import hashlib
import hmac
import time
from contextlib import closing
from typing import Any, Literal

from starlette.responses import FileResponse, JSONResponse, Response

from pipeline.localhub import history
from pipeline.localhub.bodies import chunks
from pipeline.localhub.hub import Call, Hub
from pipeline.localhub.messages import MAX_NUMBER, date, field
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import Repository
from pipeline.localhub.uploads import receiving

ADDRESS_SECONDS = 24 * 3600  # how long an address is good for
PAGE = 1000


class LargeFile(FileResponse):
    """The bytes of a large file, in pieces: each takes a turn of a thread, which costs more than to read 64 KB."""

    chunk_size = 1 << 20


def batch(call: Call) -> Response:
    """An address for each large file that is to be sent, unless it is here already, or to be fetched.

    Files of equal content are one: the client would send its one open file in two threads at once.
    """
    values = call.json()
    operation = field(values, "operation", str)
    if operation not in ("upload", "download") or values.get("hash_algo", "sha256") != "sha256":
        raise Refusal(400, "Only uploads and downloads by sha256 are supported.")
    call.check("discuss" if operation == "upload" else "files")
    sizes = {field(item, "oid", str): field(item, "size", int) for item in field(values, "objects", list)}
    objects = []
    with call.reading() as repository:
        for oid, size in sizes.items():
            answer: dict[str, Any] = {"oid": oid, "size": size}
            here = repository.lfs_file(oid).is_file()
            if operation == "download" and not here:
                answer["error"] = {"code": 404, "message": "Object does not exist"}
            elif operation == "download":
                answer["actions"] = {"download": {"href": _address(call, "download", oid, size)}}
            elif not here:
                base = call.request.scope["path"].removesuffix("/objects/batch")
                verify = f"{call.hub.endpoint}{base}/verify"
                answer["actions"] = {
                    "upload": {"href": _address(call, "upload", oid, size)},
                    "verify": {"href": verify},
                }
            objects.append(answer)
    return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")


def _address(call: Call, action: Literal["upload", "download"], oid: str, size: int) -> str:
    # The client sends no token with the bytes, so the address carries its own permission.
    path = f"{call.request.scope['path'].removesuffix('/objects/batch')}/{action}/{oid}"
    expires = int(time.time()) + ADDRESS_SECONDS
    signature = _sign(call.hub, path, size, expires)
    return f"{call.hub.endpoint}{path}?size={size}&expires={expires}&signature={signature}"


def _sign(hub: Hub, path: str, size: int, expires: int) -> str:
    return hmac.new(hub.secret, f"{path}?{size}&{expires}".encode(), hashlib.sha256).hexdigest()


def _signed_size(call: Call) -> int:
    """The size that a valid address was made for; 403 if it is not one of ours, or too old."""
    query = call.request.query_params
    try:
        size, expires = int(query["size"]), int(query["expires"])
    except (KeyError, ValueError) as error:
        raise Refusal(403, "This address is not complete.") from error
    expected = _sign(call.hub, call.request.scope["path"], size, expires)
    if not hmac.compare_digest(expected.encode(), query.get("signature", "").encode()) or expires < time.time():
        raise Refusal(403, "This address is not valid, or it has expired.")
    return size


async def upload(call: Call) -> Response:
    """Receive the bytes of one large file, in a stream."""
    size = _signed_size(call)
    with closing(Repository(call.path)) as repository:
        target = repository.lfs_file(call.part("oid"))
    with receiving(target, target.name, size) as receiver:
        async for data in chunks(call.request, MAX_NUMBER):
            receiver.write(data)
        receiver.finish()
    return Response(status_code=200)


def download(call: Call) -> Response:
    """The bytes of one large file."""
    _signed_size(call)
    with call.reading() as repository:
        file = repository.lfs_file(call.part("oid"))
        if not file.is_file():
            raise Refusal(404, "Object does not exist", "EntryNotFound")
        return LargeFile(file)


def verify(call: Call) -> Response:
    """Whether an uploaded file exists with this size."""
    with call.reading() as repository:
        values = call.json()
        file = repository.lfs_file(field(values, "oid", str))
        if not file.is_file() or file.stat().st_size != values.get("size"):
            raise Refusal(404, "The uploaded file does not exist, or has another size.")
        return JSONResponse({})


def list_files(call: Call) -> Response:
    """Every large file that was uploaded, with a name that a commit gives it."""
    with call.reading() as repository:
        names: dict[str, tuple[str, str | None]] = {}
        for kind in ("heads", "tags", "pr"):
            for of, sha in repository.refs(kind).items():
                for commit in repository.history(repository.resolve(sha)):
                    for entry in repository.entries(commit.id).values():
                        names.setdefault(entry.sha256 or "", (entry.path, f"refs/{kind}/{of}"))
        items = []
        for file in sorted((repository.path / "lfs").glob("*/" + "[0-9a-f]" * 64)):
            name, ref = names.get(file.name, (file.name, None))
            facts = file.stat()
            item: dict[str, Any] = {"fileOid": file.name, "oid": file.name, "filename": name, "ref": ref}
            items.append({**item, "size": facts.st_size, "pushedAt": date(facts.st_mtime)})
        return call.page(items, PAGE)


def delete_files(call: Call) -> Response:
    """Remove large files for good, by default from the commits too."""
    deletions = field(call.json(), "deletions", dict)
    digests = {str(sha) for sha in field(deletions, "sha", list)}
    with call.changing() as repository:
        if missing := [digest for digest in digests if not repository.lfs_file(digest).is_file()]:
            raise Refusal(404, f"There is no large file {missing[0]}.", "EntryNotFound")
        history.remove_large_files(repository, digests, rewrite=field(deletions, "rewriteHistory", bool, True))
        return JSONResponse({})
