"""Who sends a request, by the token that it carries, and what this token allows.

The user ``local`` owns the Hub, and with it every namespace. Others are made by :meth:`Tokens.issue` and own the
namespace of their name. ``tokens.json`` holds digests of tokens, never a token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from core.hub_ids import check_hub_id
from pipeline.localhub.refusal import Refusal
from pipeline.localhub.settings import write_json

OWNER = "local"
Role = Literal["read", "write", "fineGrained"]
Right = Literal["read", "discuss", "write"]
# The Hub's names for what a fine-grained token may do, in our three steps.
PERMISSIONS: dict[Right, str] = {"read": "repo.content.read", "discuss": "discussion.write", "write": "repo.write"}
IMPLIED: dict[Right, tuple[Right, ...]] = {
    "read": ("read", "discuss", "write"),
    "discuss": ("discuss", "write"),
    "write": ("write",),
}


@dataclass(frozen=True)
class Sender:
    """The user of a token. ``scopes``, for fine-grained ones: a repository or a namespace to its permissions."""

    user: str
    role: Role = "write"
    name: str = "local"
    scopes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    expires: float | None = None

    def may(self, right: Right, repo: str) -> bool:
        """Whether the token gives this right to a repository (owner/name), or to a namespace, of the user's own."""
        namespace = repo.split("/")[0]
        if self.role == "fineGrained":
            given = {permission for scope in (repo, namespace) for permission in self.scopes.get(scope, ())}
            return any(PERMISSIONS[implied] in given for implied in IMPLIED[right])
        return self.user in (OWNER, namespace) and (right == "read" or self.role == "write")

    def may_discuss(self) -> bool:
        """Whether the token may open discussions where its user may read: all but read-only ones."""
        return self.role == "write"

    def whoami(self, namespaces: Sequence[str]) -> dict[str, Any]:
        """The answer to whoami. Every namespace in use counts as an organisation of the owner."""
        token: dict[str, Any] = {"displayName": self.name, "role": self.role}
        if self.role == "fineGrained":
            token["fineGrained"] = {
                "global": [],
                "scoped": [
                    {"entity": {"type": "model" if "/" in scope else "org", "name": scope}, "permissions": [*granted]}
                    for scope, granted in self.scopes.items()
                ],
            }
        owned = [name for name in namespaces if name != self.user] if self.user == OWNER else []
        orgs = [{"type": "org", "name": name, "roleInOrg": "admin"} for name in owned]
        return {"type": "user", "name": self.user, "fullname": self.user, "orgs": orgs, "auth": {"accessToken": token}}


class Tokens:
    """The tokens of a Hub's folder. Several processes may serve and change it."""

    def __init__(self, folder: Path, owners_token: str) -> None:
        self._file = folder / "tokens.json"
        self._owners_token = owners_token

    def sender(self, authorization: str | None) -> Sender | None:
        """Who sent a request with this header; None without one. 401 if the token is unknown or has expired."""
        if authorization is None:
            return None
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "basic":
            token = _password(token)
        if hmac.compare_digest(token.encode(), self._owners_token.encode()):
            return Sender(OWNER)
        known = self._read().get(_digest(token))
        if known is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        sender = Sender(**known)
        if sender.expires is not None and sender.expires < time.time():
            raise Refusal(401, f'User Access Token "{sender.name}" is expired')
        return sender

    def issue(
        self,
        user: str,
        role: Role = "write",
        scopes: Mapping[str, Sequence[str]] | None = None,
        seconds: float | None = None,
        name: str = "token",
    ) -> str:
        """A new token, which makes this Hub stand in for the real one with other users; with ``seconds`` it expires.

        Raises ValueError if ``user`` is no name of a namespace.
        """
        check_hub_id(f"{user}/any")
        token = new_token()
        expires = None if seconds is None else time.time() + seconds
        with FileLock(str(self._file.with_suffix(".lock"))):
            sender = Sender(user, role, name, dict(scopes or {}), expires)
            write_json(self._file, {**self._read(), _digest(token): asdict(sender)})
        return token

    def _read(self) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return value


def new_token() -> str:
    """A token that nobody can guess."""
    return "hf_local" + secrets.token_hex(16)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _password(basic: str) -> str:
    """The password of Basic credentials: git sends the token there."""
    try:
        return base64.b64decode(basic, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""
