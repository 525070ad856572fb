"""What every handler works with: the Hub, and a call that knows its sender and what the sender may do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from core.hub_ids import is_hub_id
from pipeline.localhub.messages import json_object
from pipeline.localhub.rate_limit import RateLimit
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.repository import Repository
from pipeline.localhub.settings import Settings, read_settings
from pipeline.localhub.tokens import Right, Sender, Tokens

KINDS = {"model": "models", "dataset": "datasets"}
Needs = Literal["nothing", "token", "read", "files", "discuss", "write"]  # what a route asks of its sender


@dataclass(frozen=True)
class Hub:
    """The repositories in ``folder``, reachable at ``endpoint``. ``secret`` signs the addresses of uploads."""

    folder: Path
    endpoint: str
    tokens: Tokens
    secret: bytes
    rate: RateLimit | None = None

    def path(self, kind: str, repo: str) -> Path:
        """Where a repository (owner/name) lies. ``kind`` is as in its address: models or datasets."""
        if kind not in KINDS.values():
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        if not is_hub_id(repo):
            raise Refusal(400, f"Invalid repository name: {repo:.200}")
        return self.folder / kind / f"{repo}.git"

    def repositories(self, kind: str, sender: Sender | None) -> Iterator[tuple[str, Path, Settings]]:
        """Name, place and settings of what the sender may see, sorted by name."""
        if kind not in KINDS.values():
            raise Refusal(404, "Sorry, we can't find the page you are looking for.")
        for path in sorted((self.folder / kind).glob("*/*.git")):
            repo = f"{path.parent.name}/{path.name.removesuffix('.git')}"
            settings = read_settings(path)
            if settings is not None and may_see(sender, repo, private=settings.is_private):
                yield repo, path, settings

    def namespaces(self) -> list[str]:
        """The owners of models, sorted."""
        models = self.folder / "models"
        return sorted(path.name for path in models.iterdir() if path.is_dir()) if models.is_dir() else []


def page_of(kind: str, repo: str) -> str:
    """The address of a repository's page, below that of the Hub; ``kind`` is models or datasets."""
    return f"{'' if kind == 'models' else f'/{kind}'}/{repo}"


def may_see(sender: Sender | None, what: str, *, private: bool) -> bool:
    """Whether a sender may see a repository, or what is in a namespace."""
    return not private or (sender is not None and sender.may("read", what))


@dataclass(frozen=True)
class Call:
    """A request, with its sender and its body. :meth:`check` is asked before the body is read."""

    hub: Hub
    request: Request
    sender: Sender | None
    body: bytes = field(default=b"", repr=False)

    # -- what was sent

    def part(self, name: str, default: str = "") -> str:
        """A part of the path, unquoted."""
        return unquote(str(self.request.path_params.get(name, default)))

    def flag(self, name: str) -> bool:
        """Whether a switch of the query is on."""
        return self.request.query_params.get(name, "").lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty body is an empty object."""
        return json_object(self.body) if self.body else {}

    # -- what it is about

    @property
    def kind(self) -> str:
        """The folder of the repository's kind: models or datasets; the addresses of models' files do not say it."""
        return self.part("kind", "models")

    @property
    def repo(self) -> str:
        """owner/name."""
        return f"{self.part('ns')}/{self.part('name')}"

    @property
    def path(self) -> Path:
        """Where the repository of the request's address lies."""
        return self.hub.path(self.kind, self.repo)

    def address(self) -> str:
        """The page of the repository."""
        return f"{self.hub.endpoint}{page_of(self.kind, self.repo)}"

    @contextmanager
    def reading(self) -> Iterator[Repository]:
        """The repository of the request's address."""
        with closing(Repository(self.path)) as repository:
            yield repository

    @contextmanager
    def changing(self) -> Iterator[Repository]:
        """The repository of the request's address, locked."""
        with Repository.lock(self.path), closing(Repository(self.path)) as repository:
            repository.break_locks()
            yield repository

    # -- who may

    def user(self) -> Sender:
        """The sender; 401 if the request names none."""
        if self.sender is None:
            raise Refusal(401, "Invalid username or password.")
        return self.sender

    def check(self, needs: Needs) -> None:
        """Refuse a sender who may not do what the route does. Whether a private repository exists is not told."""
        if needs == "nothing":
            return
        if needs == "token":
            self.user()
            return
        settings = read_settings(self.path)
        if settings is None or not may_see(self.sender, self.repo, private=settings.is_private):
            if self.sender is None:
                raise Refusal(401, "Invalid username or password.", "RepoNotFound")
            raise Refusal(404, "Repository not found", "RepoNotFound")
        if needs == "files":
            self._check_gate(settings)
        elif needs == "discuss":
            self.require("discuss")
        elif needs == "write":
            self.require("write")

    def require(self, right: Right, repo: str | None = None) -> None:
        """Refuse a sender without this right to the repository of the request, or to ``repo`` or a namespace."""
        sender = self.user()
        if sender.may(right, repo or self.repo) or (right == "discuss" and sender.may_discuss()):
            return
        if sender.role == "read":
            raise Refusal(403, "Forbidden: you must use a write token to do this.")
        raise Refusal(403, f"You don't have the rights to do this in {repo or self.repo}.")

    def _check_gate(self, settings: Settings) -> None:
        """Files of a gated repository are for its owner and for whoever was let in."""
        if not settings.gated or (self.sender and self.sender.may("read", self.repo)):
            return
        restricted = f"Access to {self.kind.removesuffix('s')} {self.repo} is restricted."
        if self.sender is None:
            raise Refusal(401, f"{restricted} You must have access to it and be authenticated.", "GatedRepo")
        state = settings.access.get(self.sender.user)
        if state != "accepted" or self.sender.role == "fineGrained":
            waits = {"pending": " Your request waits for a decision.", "rejected": " Your request was rejected."}
            raise Refusal(403, f"{restricted}{waits.get(state or '', ' Ask for access on its page.')}", "GatedRepo")

    # -- the answer

    def page(self, items: list[Any], most: int) -> Response:
        """One page of a list; the address of the next goes into the header, as the Hub does it."""
        asked = self.request.query_params
        start = _number(asked.get("cursor"), 0, len(items))
        count = _number(asked.get("limit"), most, most) or most
        headers = {}
        if start + count < len(items):
            query = urlencode([*((k, v) for k, v in asked.multi_items() if k != "cursor"), ("cursor", start + count)])
            headers["Link"] = f'<{self.hub.endpoint}{self.request.scope["path"]}?{query}>; rel="next"'
        return JSONResponse(items[start : start + count], headers=headers)


def _number(text: str | None, default: int, most: int) -> int:
    """A number of the query; out of range is the nearest that is allowed."""
    return min(int(text), most) if text and text.isascii() and text.isdigit() and len(text) < 10 else default
