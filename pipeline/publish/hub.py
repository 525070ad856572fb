"""The Hub of a release: the loopback Hub in the store, or the Hub at HF_ENDPOINT.

The real Hub's token is never kept here. The client asks for it at each request, in its own order (a trusted publisher's
by HF_OIDC_RESOURCE, HF_TOKEN, the file HF_TOKEN_PATH), and so renews one that ends soon. One that the Hub refuses with
401 before that is asked for anew, once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from core.errors import HubError
from core.places import store

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import httpx

HUB = "https://huggingface.co"
LOOPBACK = ("127.0.0.1", "localhost")
MAIN = "main"


@dataclass(frozen=True)
class Target:
    """Where to send requests, and with which token: True is the client's own, False is none."""

    endpoint: str
    token: str | bool

    @property
    def is_loopback(self) -> bool:
        """Whether the Hub is on this machine. Such a Hub has no xet storage, so large files are sent by LFS."""
        return urlsplit(self.endpoint).hostname in LOOPBACK

    def api(self) -> HfApi:
        """The client for it."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token)


def hf_endpoint() -> str:
    """The address of the real Hub: HF_ENDPOINT, or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


@contextmanager
def connect(hub: Literal["local", "hf"], *, anonymous: bool = False) -> Iterator[Target]:
    """The Hub of a recipe; ``local`` runs during the body only.

    Raises HubError if there is no token, unless ``anonymous``, or if the client cannot get the one it is told to get.
    """
    if hub == "local":
        from pipeline.localhub.server import LocalHub  # brings the server and its pages

        with _no_proxy(), _client(), LocalHub(store() / "hub") as running:
            yield Target(running.endpoint, running.token)
        return
    endpoint = hf_endpoint()
    with _client(endpoint):
        yield Target(endpoint, has_token() if anonymous else need_token())


def has_token() -> bool:
    """Whether the client has a token for the real Hub. Raises HubError if a trusted publisher gets none."""
    from huggingface_hub import get_token

    try:
        with hub_errors("asking for a token"):
            return get_token() is not None
    except (KeyError, TypeError) as error:  # the client takes answers apart without looking
        raise HubError(f"asking for a token: the answer has another form ({error!r}).{_of_publisher()}") from error


def need_token() -> bool:
    """True. Raises HubError if the client has no token for the real Hub."""
    if not has_token():
        raise HubError(f"There is no token for {hf_endpoint()}. Set HF_TOKEN, or run 'hf auth login'.")
    return True


@contextmanager
def _client(renewing: str | None = None) -> Iterator[None]:
    """The client's sessions with limits in time; those to ``renewing`` ask for another token after a 401."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import httpx
    from huggingface_hub.utils._http import default_client_factory

    def factory() -> httpx.Client:
        session = default_client_factory()
        # It would wait forever for a lost answer. After a time-out the outcome is unknown, and we look it up.
        session.timeout = httpx.Timeout(300, connect=30)
        if renewing:
            session.auth = _renewing(renewing)
        return session

    set_client_factory(factory)  # it closes the session, so the next one also reads the environment again
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def _renewing(endpoint: str) -> httpx.Auth:
    """Send a request to ``endpoint`` again if its token was refused and the client gets another one."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import _auth, httpx

    class Renewing(httpx.Auth):
        def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
            sent = request.headers.get("authorization")
            response = yield request
            if response.status_code == 401 and sent and request.url.host == urlsplit(endpoint).hostname:
                _auth._OIDC_TOKEN_CACHE = None  # the client believes in it until shortly before it ends
                if (fresh := get_token()) and f"Bearer {fresh}" != sent:
                    request.headers["authorization"] = f"Bearer {fresh}"
                    yield request

    return Renewing()


@contextmanager
def _no_proxy() -> Iterator[None]:
    """Keep requests to the loopback Hub away from a proxy that the environment may name."""
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    for name, value in before.items():
        os.environ[name] = ",".join(filter(None, [value, *LOOPBACK]))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def hub_errors(doing: str) -> Iterator[None]:
    """Turn errors of the client into a HubError that says what was being done."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OIDCError
    from huggingface_hub.utils import httpx

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(f"{doing}: HF_HUB_OFFLINE is set. Unset it, and run again.") from error
    except HfHubHTTPError as error:
        message = error.server_message or str(error).strip().splitlines()[0]
        status = error.response.status_code
        why = _of_publisher() if status in (400, 401, 403) else ""
        raise HubError(f"{doing}: the Hub answered {status}: {message}{why}") from error
    except OIDCError as error:
        raise HubError(f"{doing}: {error}") from error
    except (httpx.HTTPError, LocalEntryNotFoundError) as error:
        raise HubError(f"{doing}: the Hub cannot be reached ({type(error).__name__}). Run again later.") from error
    except (ValueError, RuntimeError, OSError) as error:  # the client's own errors: metadata, a failed upload
        raise HubError(f"{doing}: {error}") from error


def _of_publisher() -> str:
    """What to look at if the Hub refused a trusted publisher, which may do less than a user."""
    if not (resource := os.environ.get("HF_OIDC_RESOURCE")):
        return ""
    return (
        f" HF_OIDC_RESOURCE is {resource}: its settings on the Hub must name this CI repository, branch and workflow "
        "as a trusted publisher. The token is good for it alone, and neither creates it nor changes its visibility: do "
        "that once by hand, and run again."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars and warnings of the client and of transformers; the stage reports progress itself."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "transformers", "model_signing")]
    levels = [logger.level for logger in loggers]
    shown = not are_progress_bars_disabled()
    if shown:
        disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            enable_progress_bars()
