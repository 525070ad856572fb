"""Collections: named lists of repositories, one JSON file each."""

from __future__ import annotations

import json
import re
import secrets
import time
import unicodedata
from pathlib import Path
from typing import Any

from filelock import FileLock
from starlette.responses import JSONResponse, Response

from core.hub_ids import is_hub_id
from pipeline.localhub.hub import KINDS, Call, Hub, may_see
from pipeline.localhub.messages import date, field
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.settings import read_settings, write_json

PAGE = 100
MAX_TITLE, MAX_TEXT, MAX_ITEMS = 60, 500, 1000
Collection = dict[str, Any]
_NAME = re.compile(r"[a-z0-9-]{1,80}-[0-9a-f]{24}")


def _folder(hub: Hub) -> Path:
    return hub.folder / "collections"


def _lock(hub: Hub) -> FileLock:
    _folder(hub).mkdir(parents=True, exist_ok=True)
    return FileLock(str(_folder(hub) / "all.lock"))


def _path(hub: Hub, slug: str) -> Path:
    namespace, _, name = slug.partition("/")
    if not _NAME.fullmatch(name) or not is_hub_id(f"{namespace}/x"):
        raise Refusal(404, f"Collection not found: {slug:.200}")
    return _folder(hub) / namespace / f"{name}.json"


def _load(call: Call) -> Collection:
    """The collection of the request's address, if the sender may see it."""
    slug = f"{call.part('ns')}/{call.part('slug')}"
    path = _path(call.hub, slug)
    if path.is_file():
        collection: Collection = json.loads(path.read_text(encoding="utf-8"))
        if may_see(call.sender, collection["namespace"], private=collection["private"]):
            return collection
    raise Refusal(404, f"Collection not found: {slug:.200}")


def _save(hub: Hub, collection: Collection) -> None:
    write_json(_path(hub, collection["slug"]), {**collection, "lastUpdated": date(time.time())})


def _shown(call: Call, collection: Collection) -> Collection:
    """A collection as the sender may see it: without the private repositories of others."""
    owner = {"name": collection["namespace"], "type": "user"}
    seen = [item for item in collection["items"] if _visible(call, item["type"], item["id"])]
    items = [{**item, "position": position} for position, item in enumerate(seen)]
    return {**collection, "items": items, "owner": owner, "upvotes": 0, "isUpvotedByUser": False}


def _visible(call: Call, kind: str, repo: str) -> bool:
    if kind not in KINDS or not is_hub_id(repo):
        return False
    settings = read_settings(call.hub.path(KINDS[kind], repo))
    return settings is not None and (not settings.is_private or bool(call.sender and call.sender.may("read", repo)))


def _text(values: dict[str, Any], name: str, most: int, default: str | None = None) -> str:
    text: str = field(values, name, str, default)
    if len(text) > most or (name == "title" and not text.strip()):
        raise Refusal(400, f"{name!r} has {len(text)} characters; 1 to {most} are allowed.")
    return text


def create(call: Call) -> Response:
    """A new collection; 409, with its address, if the namespace has one of this title."""
    values = call.json()
    namespace, title = field(values, "namespace", str), _text(values, "title", MAX_TITLE)
    if not is_hub_id(f"{namespace}/x"):
        raise Refusal(400, f"Invalid namespace: {namespace:.200}")
    call.require("write", namespace)
    with _lock(call.hub):
        for existing in _all(call.hub):
            if (existing["namespace"], existing["title"]) == (namespace, title):
                return JSONResponse({"error": "This collection exists already", "slug": existing["slug"]}, 409)
        plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
        words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "collection"
        now = date(time.time())
        collection = {
            "slug": f"{namespace}/{words}-{secrets.token_hex(12)}",
            "namespace": namespace,
            "title": title,
            "description": _text(values, "description", MAX_TEXT, ""),
            "private": field(values, "private", bool, False),
            "theme": "orange",
            "position": 0,
            "items": [],
            "lastUpdated": now,
        }
        _save(call.hub, collection)
    return JSONResponse(_shown(call, collection))


def _all(hub: Hub) -> list[Collection]:
    paths = sorted(_folder(hub).glob("*/*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def list_collections(call: Call) -> Response:
    """The collections that the sender may see, of some owners or with some items."""
    query = call.request.query_params
    owners, items = query.getlist("owner"), query.getlist("item")
    found = []
    for collection in _all(call.hub):
        namespace = collection["namespace"]
        if not may_see(call.sender, namespace, private=collection["private"]) or (owners and namespace not in owners):
            continue
        shown = _shown(call, collection)
        del shown["position"]  # the client counts them
        held = {f"{item['type']}s/{item['id']}" for item in shown["items"]}
        if not items or held & set(items):
            found.append(shown)
    return call.page(found, PAGE)


def show(call: Call) -> Response:
    """One collection."""
    return JSONResponse(_shown(call, _load(call)))


def update(call: Call) -> Response:
    """Another title, description, theme, position or visibility."""
    values = call.json()
    with _lock(call.hub):
        collection = _mine(call)
        changes = {
            "title": _text(values, "title", MAX_TITLE, collection["title"]),
            "description": _text(values, "description", MAX_TEXT, collection["description"]),
            "theme": field(values, "theme", str, collection["theme"]),
            "private": field(values, "private", bool, collection["private"]),
            "position": field(values, "position", int, collection["position"]),
        }
        _save(call.hub, {**collection, **changes})
        return JSONResponse({"success": True, "data": _shown(call, {**collection, **changes})})


def delete(call: Call) -> Response:
    """Remove a collection; its repositories stay."""
    with _lock(call.hub):
        _path(call.hub, _mine(call)["slug"]).unlink()
        return JSONResponse({})


def _mine(call: Call) -> Collection:
    """The collection of the request's address, for who may change it."""
    collection = _load(call)
    call.require("write", collection["namespace"])
    return collection


def add_item(call: Call) -> Response:
    """One more repository; 409 if it is in the collection."""
    values = call.json()
    item = field(values, "item", dict)
    repo, kind = field(item, "id", str), field(item, "type", str)
    if kind not in KINDS:
        raise Refusal(400, f"The loopback Hub has no {kind!r:.50} for a collection.")
    with _lock(call.hub):
        collection = _mine(call)
        if not _visible(call, kind, repo):
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if any((i["id"], i["type"]) == (repo, kind) for i in collection["items"]):
            raise Refusal(409, "Item already in collection")
        if len(collection["items"]) >= MAX_ITEMS:
            raise Refusal(400, f"A collection holds at most {MAX_ITEMS} items.")
        added = {"_id": secrets.token_hex(12), "id": repo, "type": kind, **_note(_text(values, "note", MAX_TEXT, ""))}
        collection["items"].append(added)
        _save(call.hub, collection)
        return JSONResponse(_shown(call, collection))


def _note(text: str) -> dict[str, Any]:
    return {"note": {"text": text}} if text else {}


def update_item(call: Call) -> Response:
    """Another note or place for an item."""
    values = call.json()
    with _lock(call.hub):
        collection = _mine(call)
        item = _item(collection, call.part("item"))
        if "note" in values:
            item.pop("note", None)
            item |= _note(_text(values, "note", MAX_TEXT))
        if "position" in values:
            collection["items"].remove(item)
            collection["items"].insert(field(values, "position", int), item)
        _save(call.hub, collection)
        return JSONResponse({"success": True})


def delete_item(call: Call) -> Response:
    """Take an item out."""
    with _lock(call.hub):
        collection = _mine(call)
        collection["items"].remove(_item(collection, call.part("item")))
        _save(call.hub, collection)
        return JSONResponse({})


def _item(collection: Collection, number: str) -> Collection:
    found: Collection | None = next((item for item in collection["items"] if item["_id"] == number), None)
    if found is None:
        raise Refusal(404, "Item not found in the collection")
    return found
