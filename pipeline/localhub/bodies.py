"""Reads the bodies of requests, never more and never longer than a request deserves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from pipeline.localhub.refusal import Refusal

PATIENCE = 30.0  # seconds until the first bytes, and between any two
SLOWEST = 64 * 1024  # bytes a second, over a whole body


async def chunks(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body as it comes. 413 after ``most`` bytes, 408 if it comes too slowly."""
    clock = asyncio.get_running_loop().time
    started, received, more = clock(), 0, True
    while more:
        try:
            message = await asyncio.wait_for(request.receive(), PATIENCE)
        except TimeoutError as error:
            raise Refusal(408, f"No bytes of the body came for {PATIENCE:.0f} seconds.") from error
        if message["type"] != "http.request":
            raise ClientDisconnect
        data, more = message.get("body", b""), message.get("more_body", False)
        received += len(data)
        if received > most:
            raise Refusal(413, f"The body has more than {most} bytes.")
        if clock() - started > PATIENCE + received / SLOWEST:
            raise Refusal(408, "The body comes too slowly.")
        yield data


async def whole(request: Request, most: int) -> bytes:
    """The body in one piece. 413 before any of it is read if it says that it is too long."""
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > most:
        raise Refusal(413, f"The body has {length} bytes; at most {most} are read.")
    return b"".join([data async for data in chunks(request, most)])
