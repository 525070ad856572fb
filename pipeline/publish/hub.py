"""The Hub of a release: the loopback Hub in the store, or the Hub at HF_ENDPOINT."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from core.errors import HubError
from pipeline.localhub.server import LocalHub
from pipeline.publish.sign import store

LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Target:
    """Where to send requests, and with which token."""

    endpoint: str
    token: str | None

    @property
    def is_loopback(self) -> bool:
        """Whether the Hub is on this machine. Such a Hub has no xet storage, so large files are sent by LFS."""
        return urlsplit(self.endpoint).hostname in LOOPBACK


def hf_endpoint() -> str:
    """The address of the real Hub: HF_ENDPOINT, or huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@contextmanager
def connect(hub: Literal["local", "hf"]) -> Iterator[Target]:
    """The Hub of a recipe; ``local`` runs during the body only. Raises HubError if there is no token."""
    if hub == "local":
        with _no_proxy(), LocalHub(store() / "hub") as running:
            yield Target(running.endpoint, running.token)
        return
    from huggingface_hub import get_token

    _limit_waiting()
    endpoint = hf_endpoint()
    token = get_token()
    if token is None:
        raise HubError(f"There is no token for {endpoint}. Set HF_TOKEN, or run 'hf auth login'.")
    yield Target(endpoint, token)


@contextmanager
def reading(repo: str) -> Iterator[Target]:
    """The Hub to read a repository from: the store's loopback Hub if it holds it, else the real one.

    Public repositories of the real Hub need no token.
    """
    if (store() / "hub" / "models" / f"{repo}.git").is_dir():
        with connect("local") as target:
            yield target
        return
    from huggingface_hub import get_token

    yield Target(hf_endpoint(), get_token())


def _limit_waiting() -> None:
    # The client would wait forever for a lost answer. After a time-out the outcome is unknown, and we look it up.
    from huggingface_hub import get_session
    from huggingface_hub.utils import httpx

    get_session().timeout = httpx.Timeout(300, connect=30)


@contextmanager
def _no_proxy() -> Iterator[None]:
    """Keep requests to the loopback Hub away from a proxy that the environment may name."""
    from huggingface_hub import close_session

    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    for name, value in before.items():
        os.environ[name] = ",".join(filter(None, [value, *LOOPBACK]))
    close_session()  # the next session reads the environment again
    _limit_waiting()
    try:
        yield
    finally:
        close_session()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def hub_errors(doing: str) -> Iterator[None]:
    """Turn errors of the client into a HubError that says what was being done."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import httpx

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(f"{doing}: HF_HUB_OFFLINE is set. Unset it, and run again.") from error
    except HfHubHTTPError as error:
        message = error.server_message or str(error).strip().splitlines()[0]
        raise HubError(f"{doing}: the Hub answered {error.response.status_code}: {message}") from error
    except (httpx.HTTPError, LocalEntryNotFoundError) as error:
        raise HubError(f"{doing}: the Hub cannot be reached ({type(error).__name__}). Run again later.") from error
    except (ValueError, RuntimeError, OSError) as error:  # the client's own errors: metadata, a failed upload
        raise HubError(f"{doing}: {error}") from error


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
