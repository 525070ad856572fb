"""``git clone`` and ``git fetch``, by git's smart protocol over HTTP; dulwich packs the objects."""

from __future__ import annotations

import zlib
from io import BytesIO
from typing import Any

from dulwich.protocol import ReceivableProtocol
from dulwich.server import DictBackend, UploadPackHandler
from starlette.responses import Response

from pipeline.localhub.hub import Call
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import Repository

SERVICE = "git-upload-pack"
MAX_WANTS = 8 << 20  # what a client that has a long history says of it
NO_CACHE = {"Cache-Control": "no-cache"}


def info_refs(call: Call) -> Response:
    """What there is to fetch."""
    if call.request.query_params.get("service") != SERVICE:
        raise Refusal(403, "The loopback Hub takes commits by its API; with git it can be read only.")
    with call.reading() as repository:
        answer = b"001e# service=git-upload-pack\n0000" + _talk(repository, b"", advertise=True)
    return Response(answer, media_type=f"application/x-{SERVICE}-advertisement", headers=NO_CACHE)


def upload_pack(call: Call) -> Response:
    """The objects that a client lacks."""
    body = call.body
    if call.request.headers.get("content-encoding") == "gzip":
        body = _unpacked(body)
    with call.reading() as repository:
        answer = _talk(repository, body, advertise=False)
    return Response(answer, media_type=f"application/x-{SERVICE}-result", headers=NO_CACHE)


def _unpacked(body: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        unpacked = stream.decompress(body, MAX_WANTS)
    except zlib.error as error:
        raise Refusal(400, f"The body is not gzip: {error}") from error
    if stream.unconsumed_tail:
        raise Refusal(413, f"The body has more than {MAX_WANTS} bytes.")
    return unpacked


def _talk(repository: Repository, said: bytes, *, advertise: bool) -> bytes:
    written = BytesIO()
    protocol = ReceivableProtocol(BytesIO(said).read, written.write)
    repositories: dict[str, Any] = {"/": repository.git}
    try:
        UploadPackHandler(
            DictBackend(repositories), ["/"], protocol, stateless_rpc=True, advertise_refs=advertise
        ).handle()
    except Exception as error:  # dulwich raises many kinds for what is not git's protocol
        raise Refusal(400, f"This is not git's protocol: {error!s:.200}") from error
    return written.getvalue()
