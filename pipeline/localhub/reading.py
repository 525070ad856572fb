"""Answers about what a repository holds."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from dulwich.objects import ObjectID
from starlette.responses import JSONResponse, Response

from pipeline.localhub.card_metadata import card_metadata
from pipeline.localhub.history import last_commits
from pipeline.localhub.hub import Call
from pipeline.localhub.large_files import LargeFile
from pipeline.localhub.messages import blob_info, date, ranged, tree_items
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import Repository
from pipeline.localhub.settings import Settings

PAGE = 1000
EXPANDED_PAGE = 50  # entries whose last commit is looked up


def repo_info(call: Call) -> Response:
    """A revision of a repository and its files; with ``blobs``, their sizes and digests."""
    with call.reading() as repository:
        sha = repository.resolve(call.part("rev", "main"))
        entries = repository.entries(sha)
        info = _summary(repository, sha)
        info["siblings"] = [{"rfilename": path} for path in entries]
        if call.flag("blobs"):
            info["siblings"] = [blob_info(entry) for entry in entries.values()]
            info["usedStorage"] = sum(entry.size for entry in entries.values())
        if call.flag("securityStatus"):
            info["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
        asked = call.request.query_params.getlist("expand") + call.request.query_params.getlist("expand[]")
        if asked:
            info = {key: value for key, value in info.items() if key in ("_id", "id", *asked)}
        return JSONResponse(info)


def _summary(repository: Repository, sha: ObjectID) -> dict[str, Any]:
    settings: Settings = repository.settings
    card = repository.files(sha).get("README.md")
    metadata = card_metadata(repository.read_blob(card.decode()).decode(errors="replace")) if card else {}
    tags = metadata.get("tags")
    *_, first = repository.history(sha)
    last = repository.commit_object(sha)
    info: dict[str, Any] = {"_id": repository.name, "id": repository.name, "author": repository.path.parent.name}
    info |= {"sha": sha.decode(), "lastModified": date(last.commit_time), "createdAt": date(first.commit_time)}
    info |= {"private": settings.is_private, "gated": settings.gated, "disabled": False, "downloads": 0, "likes": 0}
    info |= {"tags": [str(tag) for tag in tags] if isinstance(tags, list) else [], "cardData": metadata}
    for key in ("pipeline_tag", "library_name"):
        if isinstance(metadata.get(key), str):
            info[key] = metadata[key]
    return info


def list_repos(call: Call) -> Response:
    """The repositories that the sender may see, the one that changed last first."""
    query = call.request.query_params
    found = []
    for repo, path, _ in call.hub.repositories(call.kind, call.sender):
        owner = repo.split("/")[0]
        if query.get("author", owner) != owner or query.get("search", "").lower() not in repo.lower():
            continue
        try:
            repository = Repository(path)
        except Refusal:  # deleted since it was listed
            continue
        try:
            info = _summary(repository, repository.resolve("main"))
        finally:
            repository.close()
        if set(query.getlist("filter")) <= {*info["tags"], info.get("pipeline_tag"), info.get("library_name")}:
            found.append(info)
    return call.page(sorted(found, key=lambda info: str(info["lastModified"]), reverse=True), PAGE)


def auth_check(_: Call) -> Response:
    """Whether the sender may do what the route's check asks."""
    return JSONResponse({})


def tree(call: Call) -> Response:
    """Files and folders below a path."""
    with call.reading() as repository:
        sha = repository.resolve(call.part("rev"))
        below = call.part("path").strip("/")
        items = tree_items(repository.entries(sha), below, recursive=call.flag("recursive"))
        if below and not items:
            raise Refusal(404, f"{below:.1000} does not exist on {call.part('rev'):.200}", "EntryNotFound")
        if not call.flag("expand"):
            return call.page(items, PAGE)
        return call.page(_expanded(repository, sha, items), EXPANDED_PAGE)


def paths_info(call: Call) -> Response:
    """Files and folders at the given paths; a path that does not exist is left out."""
    with call.reading() as repository:
        sha = repository.resolve(call.part("rev"))
        items = {item["path"]: item for item in tree_items(repository.entries(sha), "", recursive=True)}
        asked = parse_qs(call.body.decode(errors="replace"))
        found = [items[path] for path in asked.get("paths", []) if path in items]
        return JSONResponse(_expanded(repository, sha, found) if asked.get("expand") in (["true"], ["True"]) else found)


def _expanded(repository: Repository, sha: ObjectID, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items with the commit that changed each last, and what the Hub's scanners would say of a file."""
    commits = last_commits(repository, sha)
    for item in items:
        commit = commits[item["path"]]
        title = commit.message.decode(errors="replace").partition("\n")[0]
        item["lastCommit"] = {"id": commit.id.decode(), "title": title, "date": date(commit.commit_time)}
        if item["type"] == "file":
            item["securityFileStatus"] = {"status": "unscanned", "avScan": None, "pickleImportScan": None}
    return items


def refs(call: Call) -> Response:
    """Branches and tags, and pull requests with ``include_prs``."""
    with call.reading() as repository:
        found = {
            kind: [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha}
                for name, sha in repository.refs(kind).items()
            ]
            for kind in ("heads", "tags", "pr")
        }
    answer: dict[str, Any] = {"branches": found["heads"], "tags": found["tags"], "converts": []}
    if call.flag("include_prs"):
        answer["pullRequests"] = [{**item, "name": item["ref"]} for item in found["pr"]]
    return JSONResponse(answer)


def commits(call: Call) -> Response:
    """The history of a revision, newest first."""
    with call.reading() as repository:
        items = []
        for commit in repository.history(repository.resolve(call.part("rev"))):
            title, _, message = commit.message.decode(errors="replace").partition("\n\n")
            user = commit.author.decode(errors="replace").split(" <")[0]
            items.append({"id": commit.id.decode(), "title": title, "message": message})
            items[-1] |= {"date": date(commit.commit_time), "authors": [{"user": user}]}
        return call.page(items, PAGE)


def resolve(call: Call) -> Response:
    """The bytes of a file, whole or a range of them."""
    with call.reading() as repository:
        sha = repository.resolve(call.part("rev"))
        path = call.part("path")
        headers = {"X-Repo-Commit": sha.decode(), "Accept-Ranges": "bytes"}
        oid = repository.files(sha).get(path)
        entry = repository.entry(path, oid) if oid else None
        large = repository.lfs_file(entry.sha256) if entry and entry.sha256 else None
        if entry is None or (large and not large.is_file()):
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return JSONResponse({"error": f"{path:.1000} does not exist"}, 404, headers)
        headers["ETag"] = f'"{entry.oid}"'
        if large:
            headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
            return LargeFile(large, headers={**headers, "ETag": f'"{entry.sha256}"'})
        return ranged(repository.read_blob(entry.oid), call.request.headers.get("range"), headers)
