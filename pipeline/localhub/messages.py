"""Reads the client's request bodies, and builds the items of the answers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.responses import Response

from pipeline.localhub.card_metadata import check_card
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import Add, Delete, Entry

MAX_NUMBER = 1 << 50


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object, or a 400."""
    try:
        value = json.loads(body, parse_constant=_no_constant)
        if b"\\ud" in body.lower():  # half a character, escaped, is JSON but no text that can be written anywhere
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The body is not JSON: {error!s:.200}") from error
    if not isinstance(value, dict):
        raise Refusal(400, "The body is not a JSON object.")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def field(values: Any, name: str, kind: type, default: Any = None) -> Any:
    """``values[name]``, or ``default`` if it is missing; a 400 if that is of another type, or below 0."""
    if not isinstance(values, dict):
        raise Refusal(400, f"An object with {name!r} is expected, not {type(values).__name__}.")
    given = values.get(name)
    value: Any = default if given is None else given
    wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
    if wrong or (kind is int and not 0 <= value < MAX_NUMBER):
        raise Refusal(400, f"{name!r} is missing or not of type {kind.__name__}.")
    return value


def date(seconds: float) -> str:
    """A time as the Hub writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def blob_info(entry: Entry) -> dict[str, Any]:
    """A file in the answer to repo_info with ``blobs``."""
    info: dict[str, Any] = {"rfilename": entry.path, "size": entry.size, "blobId": entry.oid}
    if entry.sha256:
        info["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return info


def tree_items(entries: dict[str, Entry], below: str, *, recursive: bool) -> list[dict[str, Any]]:
    """The files and folders below a path, in the form of the tree and paths-info answers."""
    prefix = f"{below}/" if below else ""
    items: dict[str, dict[str, Any]] = {}
    for path, entry in entries.items():
        if not path.startswith(prefix):
            continue
        parts = path[len(prefix) :].split("/")
        for end in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:end])
            # The id of a folder is not used by the client; it only has to be stable.
            oid = hashlib.sha1(folder.encode(), usedforsecurity=False).hexdigest()
            items.setdefault(folder, {"type": "directory", "path": folder, "oid": oid, "size": 0})
        if recursive or len(parts) == 1:
            items[path] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
            if entry.sha256:
                items[path]["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return list(items.values())


def ranged(content: bytes, range_header: str | None, headers: dict[str, str]) -> Response:
    """``content``, or the one range of it that a Range header asks for."""
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", range_header or "")
    if match is None or match.groups() == ("", ""):
        return Response(content, headers=headers, media_type="application/octet-stream")
    first, last = match.groups()
    start = int(first) if first else max(0, len(content) - int(last))
    end = min(len(content), int(last) + 1) if first and last else len(content)
    if start >= end:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
    headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    return Response(content[start:end], 206, headers, media_type="application/octet-stream")


def read_commit(body: bytes) -> tuple[dict[str, Any], Sequence[Add | Delete]]:
    """The header and the operations of a commit's ndjson body."""
    header: dict[str, Any] | None = None
    operations: list[Add | Delete] = []
    for line in body.splitlines():
        item = json_object(line)
        key, value = item.get("key"), field(item, "value", dict)
        if key == "header":
            header = value
            continue
        path = field(value, "path", str)
        if key == "file":
            operations.append(Add(path, content=_content(value)))
            if path == "README.md":
                _refuse_bad_card(operations[-1])
        elif key == "lfsFile":
            operations.append(Add(path, sha256=field(value, "oid", str), size=_size(value)))
        elif key in ("deletedFile", "deletedFolder"):
            operations.append(Delete(path, folder=key == "deletedFolder"))
        else:
            raise Refusal(400, f"Unknown operation {key!r}.")
    if header is None:
        raise Refusal(400, "The commit has no header.")
    return header, operations


def _content(value: dict[str, Any]) -> bytes:
    text = field(value, "content", str)
    if value.get("encoding", "utf-8") != "base64":
        return str(text).encode()
    return decoded(text, value["path"])


def decoded(text: str, path: str) -> bytes:
    """The bytes of a file, or the first of them, that were sent as base64."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refusal(400, f"{path:.200}: the content is not base64.") from error


def _size(value: dict[str, Any]) -> int | None:
    return None if value.get("size") is None else field(value, "size", int)


def _refuse_bad_card(card: Add | Delete) -> None:
    assert isinstance(card, Add)  # noqa: S101  just made
    errors, _ = check_card((card.content or b"").decode(errors="replace"))
    if errors:
        raise Refusal(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
