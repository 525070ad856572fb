"""One function for each page."""

from __future__ import annotations

import mimetypes
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dulwich.objects import ObjectID
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from core.hub_ids import REVOKED
from pipeline.localhub.card_metadata import card_metadata
from pipeline.localhub.hub import KINDS, Call, page_of
from pipeline.localhub.messages import tree_items
from pipeline.localhub.pages.card import MAX_CARD, card_html, revocation
from pipeline.localhub.pages.site import HEADERS, Site
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import Repository

MOST_COMMITS = 200
PICTURES = ("image/png", "image/jpeg", "image/webp", "image/gif")  # an SVG can hold a script
TEXTS = (".md", ".json", ".jinja", ".yaml", ".yml", ".txt", ".sig", ".jsonl", ".csv")
NAMES = ("LICENSE", "NOTICE", ".gitattributes")


def page_routes(site: Site) -> list[Route]:
    """The addresses of the pages."""

    async def style(_: Request) -> Response:
        return FileResponse(Path(__file__).with_name("style.css"), media_type="text/css", headers=HEADERS)

    async def login(request: Request) -> Response:
        return site.login(request)

    routes = [site.route("/", "nothing", home), Route("/style.css", style), Route("/login", login)]
    for of in ("/datasets/{ns}/{name}", "/{ns}/{name}"):
        routes += [
            site.route(of, "read", card),
            site.route(of + "/tree/{rev}", "read", files),
            site.route(of + "/commits/{rev}", "read", commits),
            site.route(of + "/versions", "read", versions),
            site.route(of + "/raw/{rev}/{path:path}", "files", raw),
            site.route(of + "/commit/{rev}", "read", elsewhere),
            site.route(of + "/discussions/{num}", "read", elsewhere),
        ]
    return routes


def _base(call: Call) -> str:
    """The address of a repository's pages."""
    return page_of(call.kind, call.repo)


def _about(call: Call, repository: Repository, metadata: dict[str, Any]) -> dict[str, Any]:
    """What the head of each page of a repository shows."""
    access = list(repository.settings.access.values())
    return {
        "repo": call.repo,
        "base": _base(call),
        "kind": call.kind.removesuffix("s"),
        "settings": repository.settings,
        "accepted": access.count("accepted"),
        "pending": access.count("pending"),
        "revoked": revocation(metadata),
    }


def _readme(repository: Repository, sha: ObjectID) -> tuple[str, dict[str, Any]]:
    """The text of a revision's card, and its metadata."""
    oid = repository.files(sha).get("README.md")
    text = repository.read_blob(oid.decode()).decode(errors="replace") if oid else ""
    return text, card_metadata(text)


def home(site: Site, call: Call) -> Response:
    """Every repository that the visitor may see."""
    found = []
    for kind in KINDS.values():
        for repo, path, settings in call.hub.repositories(kind, call.sender):
            try:
                repository = Repository(path)
            except Refusal:  # deleted since it was listed
                continue
            with closing(repository):
                sha = repository.resolve("main")
                _, metadata = _readme(repository, sha)
                found.append(
                    {
                        "repo": repo,
                        "base": page_of(kind, repo),
                        "kind": kind.removesuffix("s"),
                        "settings": settings,
                        "revoked": revocation(metadata) is not None,
                        "tags": list(repository.refs("tags")),
                        "changed": repository.commit_object(sha).commit_time,
                    }
                )
    return site.page("home.html.jinja", call, found=sorted(found, key=lambda item: -item["changed"]))


def card(site: Site, call: Call) -> Response:
    """The card of a repository, as main has it."""
    with call.reading() as repository:
        sha = repository.resolve("main")
        text, metadata = _readme(repository, sha)
        about = _about(call, repository, metadata)
    html = card_html(text, f"{about['base']}/raw/main") if text else None
    facts = {key: _words(metadata.get(key)) for key in ("license", "base_model", "language", "datasets", "tags")}
    facts = {key.replace("_", " "): value for key, value in facts.items() if value}
    return site.page("card.html.jinja", call, **about, html=html, facts=facts, cut=len(text) > MAX_CARD, now="card")


def _words(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value or "")


def files(site: Site, call: Call) -> Response:
    """The files of a revision, with sizes and digests."""
    with call.reading() as repository:
        rev = call.part("rev")
        sha = repository.resolve(rev)
        items = [i for i in tree_items(repository.entries(sha), "", recursive=True) if i["type"] == "file"]
        about = _about(call, repository, _readme(repository, sha)[1])
    return site.page("files.html.jinja", call, **about, rev=rev, sha=sha.decode(), items=items, now="files")


def commits(site: Site, call: Call) -> Response:
    """The history of a revision, newest first."""
    with call.reading() as repository:
        rev = call.part("rev")
        sha = repository.resolve(rev)
        items = []
        for commit in islice(repository.history(sha), MOST_COMMITS):
            title, _, rest = commit.message.decode(errors="replace").partition("\n")
            user = commit.author.decode(errors="replace").split(" <")[0]
            item = {"id": commit.id.decode(), "title": title, "message": rest.strip(), "user": user}
            items.append({**item, "time": commit.commit_time})
        about = _about(call, repository, _readme(repository, sha)[1])
    return site.page("commits.html.jinja", call, **about, rev=rev, items=items, most=MOST_COMMITS, now="commits")


def versions(site: Site, call: Call) -> Response:
    """Tags, each with what was checked of it, and branches."""
    with call.reading() as repository:
        about = _about(call, repository, _readme(repository, repository.resolve("main"))[1])
        named = repository.refs("tags")
        marks = [name for name in named if name.startswith(REVOKED)]  # main's card may be a newer release's
        said = [revocation(_readme(repository, repository.resolve(place))[1]) for place in ("main", *marks)]
        revoked = {tag for each in said if each for tag in each["revisions"]}
        tags = [
            {
                "name": name,
                "sha": sha,
                "revoked": name in revoked,
                "checks": site.versions.checks(repository, name, sha),
            }
            for name, sha in named.items()
        ]
        tags.sort(
            key=lambda tag: repository.commit_object(ObjectID(str(tag["sha"]).encode())).commit_time, reverse=True
        )
        branches = repository.refs("heads")
        pulls = repository.refs("pr")
    return site.page(
        "versions.html.jinja", call, **about, versions=tags, branches=branches, pulls=pulls, now="versions"
    )


def elsewhere(_: Site, call: Call) -> Response:
    """The files of the commit or pull request whose address the client prints."""
    rev = call.part("rev") or f"refs/pr/{call.part('num')}"
    return RedirectResponse(f"{_base(call)}/tree/{quote(rev, safe='')}", 303, HEADERS)


def raw(_: Site, call: Call) -> Response:
    """The bytes of a file: a picture or text to look at, anything else to save."""
    path = call.part("path")
    with call.reading() as repository:
        oid = repository.files(repository.resolve(call.part("rev"))).get(path)
        if oid is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        entry = repository.entry(path, oid)
        guessed = mimetypes.guess_type(path)[0]
        name = path.rsplit("/", 1)[-1]
        kind = guessed if guessed in PICTURES else "application/octet-stream"
        if name.endswith(TEXTS) or name in NAMES:
            kind = "text/plain; charset=utf-8"
        headers = {**HEADERS, "Content-Security-Policy": "default-src 'none'; sandbox"}
        if kind == "application/octet-stream":
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
        if entry.sha256 is None:
            return Response(repository.read_blob(entry.oid), headers=headers, media_type=kind)
        large = repository.lfs_file(entry.sha256)
        if not large.is_file():
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return FileResponse(large, headers=headers, media_type=kind)
