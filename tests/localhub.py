"""What the tests of the loopback Hub share: a running Hub, and the unmodified client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import get_session, httpx

from pipeline.localhub.server import LocalHub

REPO = "demo/tiny-model"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def api(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    # Large files go the LFS way, as the publisher makes them go.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def repo(api: HfApi) -> Iterator[str]:
    api.create_repo(REPO, private=True)
    yield REPO
    api.delete_repo(REPO, missing_ok=True)


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def head(api: HfApi, revision: str = "main") -> str:
    sha = api.repo_info(REPO, revision=revision).sha
    assert sha
    return sha


def raw(api: HfApi, method: str, path: str, **kwargs: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {api.token}"} if api.token else {}
    return get_session().request(method, f"{api.endpoint}{path}", headers=headers, **kwargs)  # type: ignore[arg-type]


def post_commit(api: HfApi, *items: dict[str, object]) -> httpx.Response:
    lines = [{"key": "header", "value": {"summary": "x"}}, *items]
    return raw(api, "POST", f"/api/models/{REPO}/commit/main", content="\n".join(map(json.dumps, lines)).encode())


def as_user(hub: LocalHub, user: str, role: str = "write", **more: object) -> HfApi:
    """The client of somebody else, or of another token."""
    return HfApi(endpoint=hub.endpoint, token=hub.tokens.issue(user, role, **more))  # type: ignore[arg-type]
