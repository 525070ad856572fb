"""The one exception of the loopback Hub: a request that is answered with an error."""

from __future__ import annotations

from collections.abc import Mapping


class Refusal(Exception):  # noqa: N818  an answer to a client, not an error of ours
    """``status`` and ``message`` of the answer; ``code`` is its ``X-Error-Code``, which the client maps to errors."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
