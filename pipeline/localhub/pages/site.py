"""Who visits the pages, and how an answer looks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from pipeline.localhub.hub import Call, Hub, Needs
from pipeline.localhub.pages.versions import Judge, Versions
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.tokens import OWNER, Sender

LOGIN_SECONDS = 12 * 3600
# A page may load its style and its own pictures, and nothing else from anywhere.
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    undefined=jinja2.StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {"size": _size, "day": _day, "url": lambda text: quote(str(text), safe="")}
_templates.filters["path"] = lambda text: quote(str(text), safe="/")


@dataclass
class Logins:
    """Links that let the owner in, each once, and the visits that they began. Nothing of it outlives the process."""

    keys: set[str] = field(default_factory=set)
    visits: dict[str, float] = field(default_factory=dict)

    def key(self) -> str:
        """A key for one login."""
        key = secrets.token_urlsafe(24)
        self.keys.add(key)
        return key

    def use(self, key: str) -> str | None:
        """The visit that a key begins; None if it is not one, or was used."""
        try:
            self.keys.remove(key)
        except KeyError:
            return None
        visit = secrets.token_urlsafe(24)
        self.visits[visit] = time.time() + LOGIN_SECONDS
        return visit

    def is_visit(self, visit: str | None) -> bool:
        """Whether a visit has begun and is not over."""
        return visit is not None and self.visits.get(visit, 0) > time.time()


@dataclass
class Site:
    """The pages of a Hub. ``judge`` checks a release; without one the pages say nothing of it."""

    hub: Hub
    judge: Judge | None = None
    logins: Logins = field(default_factory=Logins)

    def __post_init__(self) -> None:
        self.versions = Versions(self.judge)
        self._cookie = f"visit_{self.hub.endpoint.rsplit(':', 1)[-1]}"  # cookies don't tell ports apart

    def link(self) -> str:
        """An address that lets its first reader in as the owner, to look."""
        return f"{self.hub.endpoint}/login?key={self.logins.key()}"

    def login(self, request: Request) -> Response:
        """Begin a visit with a key, or say that it was used."""
        visit = self.logins.use(request.query_params.get("key", ""))
        if visit is None:
            return self.message(403, "This link was used already, or it is not one of this Hub's.")
        answer = RedirectResponse("/", 303, HEADERS)
        answer.set_cookie(self._cookie, visit, LOGIN_SECONDS, httponly=True, samesite="strict")
        return answer

    def visitor(self, request: Request) -> Sender | None:
        """The owner, to look only, if the request belongs to a visit; else who its token says."""
        if self.logins.is_visit(request.cookies.get(self._cookie)):
            return Sender(OWNER, "read")
        return self.hub.tokens.sender(request.headers.get("authorization"))

    def page(self, template: str, call: Call | None = None, status: int = 200, **values: Any) -> Response:
        """A page of a template."""
        known = call is not None and call.sender is not None
        html = _templates.get_template(template).render(known=known, **values)
        return HTMLResponse(html, status, HEADERS)

    def message(self, status: int, text: str) -> Response:
        """A page that says why there is no other."""
        return self.page("message.html.jinja", status=status, text=text)

    def route(self, path: str, needs: Needs, view: Callable[[Site, Call], Response]) -> Route:
        """Answer a path with a view. Who may not see a thing is not told whether it exists."""

        def answer(request: Request) -> Response:
            try:
                call = Call(self.hub, request, self.visitor(request))
                call.check(needs)
                return view(self, call)
            except Refusal as refusal:
                if refusal.code == "GatedRepo":
                    return self.message(403, refusal.message)
                if refusal.status in (401, 404) or refusal.code == "RepoNotFound":
                    return self.message(404, "There is nothing here that you may see.")
                return self.message(refusal.status, refusal.message)

        async def endpoint(request: Request) -> Response:
            return await run_in_threadpool(answer, request)

        return Route(path, endpoint, methods=["GET"])
