"""The Hub's token: asked for when it is needed, renewed, explained if there is none, and hidden from trainings."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from core.errors import HubError, SystemLimitError
from core.strict import Strict
from pipeline.engine.credentials import PUBLISHER, TOKENS
from pipeline.engine.launch import Children, launch_config
from pipeline.engine.runner import Stage, Store
from pipeline.publish import push
from pipeline.publish.hub import connect, has_token
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from tests.conftest import Call
from tests.hub_world import CONFIG, Fault, Send, World, running
from tests.publishing import REPO, build, make_inputs, own_signer, problems
from tests.walk import make

SLEEP = time.sleep


class Publishers:
    """In front of a Hub: what a CI job asks for an id token, and gives trusted publishers tokens of the Hub.

    As the Hub does, it lets them write to their repository, and neither create it nor change its settings.
    """

    def __init__(self, app: Callable, token: str) -> None:
        self.app, self.token = app, token
        self.given: list[str] = []
        self.revoked: set[str] = set()
        self.seconds = 3600
        self.answer: tuple[int, dict[str, Any]] | None = None

    async def __call__(self, scope: dict, receive: Callable, send: Send) -> None:
        headers = dict(scope["headers"])
        token = headers.get(b"authorization", b"").decode().removeprefix("Bearer ")
        if scope["path"] == "/id-token":
            await _json(send, 200, {"value": "an id token"})
        elif scope["path"] == "/oauth/token":
            asked = json.loads((await receive())["body"])
            assert (asked["resource"], asked["subject_token"]) == (REPO, "an id token")
            await _json(send, *(self.answer or (200, self._give())))
        elif token in self.revoked:
            await _json(send, 401, {"error": "Invalid credentials in Authorization header"})
        elif token in self.given and scope["path"] in ("/api/repos/create", f"/api/models/{REPO}/settings"):
            await _json(send, 403, {"error": "This token may not do that"})
        else:
            if token in self.given:
                headers[b"authorization"] = f"Bearer {self.token}".encode()
            await self.app({**scope, "headers": list(headers.items())}, receive, send)

    def _give(self) -> dict[str, Any]:
        self.given.append(f"hf_jwt_{len(self.given)}")
        return {"access_token": self.given[-1], "expires_in": self.seconds, "token_type": "bearer"}


async def _json(send: Send, status: int, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("time.sleep", lambda seconds: SLEEP(min(seconds, 0.02)))
    with running(tmp_path / "store") as world:
        monkeypatch.setenv("HF_ENDPOINT", world.hub.endpoint)
        address = f"{world.hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in (("ENDPOINT", world.hub.endpoint), ("HUGGINGFACE_CO_URL_TEMPLATE", address)):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)  # what it read at import
        yield world


@pytest.fixture
def publishers(world: World, monkeypatch: pytest.MonkeyPatch) -> Publishers:
    """What a CI job sees whose Hub trusts it."""
    monkeypatch.setattr("huggingface_hub.utils._auth._OIDC_TOKEN_CACHE", None)
    monkeypatch.setenv("HF_OIDC_RESOURCE", REPO)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{world.hub.endpoint}/id-token")
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "of the job")
    world.faulty.app = made = Publishers(world.faulty.app, world.hub.token)
    return made


@pytest.fixture
def package(tmp_path: Path, tiny_model: Path) -> Path:
    return build(make_inputs(tmp_path / "inputs", tiny_model), tmp_path / "package")


def publish(package: Path, visibility: str = "private") -> None:
    with connect("hf") as target:
        config = CONFIG.model_copy(update={"hub": "hf", "visibility": visibility})
        push.publish(config, package / "hub", target, own_signer(), problems)


def test_a_trusted_publishers_token_is_asked_for_once_after_a_401(
    world: World, publishers: Publishers, package: Path
) -> None:
    world.api.create_repo(REPO, private=True)
    commit = Fault(rf"POST /api/models/{REPO}/commit/main", "act")
    commit.action = lambda: publishers.revoked.update(publishers.given)
    world.faulty.faults.append(commit)
    publish(package)
    assert world.holds(package)
    assert (publishers.given, commit.seen) == (["hf_jwt_0", "hf_jwt_1"], 2)


def test_a_token_is_renewed_before_it_ends(world: World, publishers: Publishers) -> None:
    world.api.create_repo(REPO, private=True)
    publishers.seconds = 300  # within five minutes of its end the client asks for the next one
    with connect("hf") as target:
        for _ in range(3):
            assert HfApi(endpoint=target.endpoint, token=target.token).repo_info(REPO).private
    assert len(publishers.given) == 4


def test_a_token_that_stays_refused_is_not_sent_again(
    world: World, publishers: Publishers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_OIDC_RESOURCE")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    asked = Fault("GET /api/whoami-v2", "before", at=10**9)
    world.faulty.faults.append(asked)
    with connect("hf") as target, pytest.raises(HfHubHTTPError):
        HfApi(endpoint=target.endpoint, token=target.token).whoami()
    assert asked.seen == 1


def test_a_token_goes_to_its_hub_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_first")
    elsewhere = Fault("GET /api/whoami-v2", "act", action=lambda: monkeypatch.setenv("HF_TOKEN", "hf_second"))
    world.faulty.faults.append(elsewhere)
    with connect("hf"), pytest.raises(HfHubHTTPError):
        HfApi(endpoint=world.hub.endpoint.replace("127.0.0.1", "localhost"), token=True).whoami()
    assert elsewhere.seen == 1


def test_what_a_trusted_publisher_may_not_do_is_said(world: World, publishers: Publishers, package: Path) -> None:
    by_hand = rf"403.*HF_OIDC_RESOURCE is {REPO}.*neither creates it nor changes its visibility: do that once by hand"
    with pytest.raises(HubError, match=f"preparing .*{by_hand}"):
        publish(package)
    world.api.create_repo(REPO, private=True)
    with pytest.raises(HubError, match=f"finishing .*{by_hand}"):
        publish(package, visibility="public")
    assert world.holds(package)
    assert list(world.tags()) == ["v1.0.0"]
    world.api.update_repo_settings(REPO, private=False)
    publish(package, visibility="public")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((403, {"error": "no trusted publisher matches"}), "403: no trusted publisher matches HF_OIDC_RESOURCE is"),
        ((200, {}), "the answer has another form .*HF_OIDC_RESOURCE is"),
        (None, "permissions: id-token: write"),
    ],
)
def test_a_publisher_that_gets_no_token_is_told_why(
    publishers: Publishers, call: Call, monkeypatch: pytest.MonkeyPatch, answer: Any, message: str
) -> None:
    publishers.answer = answer
    if answer is None:
        monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_URL")
    with pytest.raises(HubError, match=f"asking for a token: .*{message}"), connect("hf"):
        pass
    for words in (("verify", REPO, "--hub", "hf"), ("compare", "demo", "--to", REPO, "--hub", "hf")):
        done = call(*words, "--store", os.environ["UNLEARN_RELEASE_STORE"])
        assert done.returncode in (2, 4)
        assert "Traceback" not in done.stderr
    assert call("env").returncode == 0


def _proxied(app: Callable) -> Callable:
    """An app that is asked as a proxy is, by whole addresses."""

    async def answer(scope: dict, receive: Callable, send: Send) -> None:
        await app({**scope, "raw_path": scope["raw_path"].removeprefix(b"http://hub.example")}, receive, send)

    return answer


def test_the_clients_own_settings_hold(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Path
) -> None:
    """HF_TOKEN_PATH, HF_ENDPOINT and HTTP_PROXY; a stranger needs no token for what is public."""
    (tmp_path / "token").write_text(f"{world.hub.token}\n")
    assert not has_token()
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))  # read at import
    assert has_token()
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")  # a name that only the proxy knows
    monkeypatch.setenv("HTTP_PROXY", world.hub.endpoint)
    world.faulty.app = _proxied(world.faulty.app)
    with connect("hf") as target:
        assert target.endpoint == "http://hub.example"
        assert HfApi(endpoint=target.endpoint, token=target.token).whoami()["name"] == "local"
    (tmp_path / "token").unlink()
    with pytest.raises(HubError, match=r"There is no token for http://hub\.example"), connect("hf"):
        pass
    with connect("hf", anonymous=True) as target:
        assert target.token is False


class Seen(Strict):
    """What a stage of a test found in its environment."""

    names: list[str]


def environment(**options: Any) -> Stage:
    """A stage that asks a process that it starts what is in its environment."""

    def run(config: Any, inputs: Any, out: Path) -> Seen:
        (out / "x").touch()
        found = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
        return Seen(names=[name for name in (*TOKENS, *PUBLISHER) if f"\n{name}=" in f"\n{found}"])

    return Stage("a", "1", run, None, None, **options)


@pytest.mark.parametrize(
    ("options", "resource", "seen"),
    [
        ({}, REPO, ()),
        ({}, "someone", ()),
        ({"fetches": True}, REPO, TOKENS),
        ({"fetches": True}, "someone", (*TOKENS, *PUBLISHER)),
        ({"publishes": True}, REPO, (*TOKENS, *PUBLISHER)),
    ],
)
def test_a_stage_sees_the_rights_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool], resource: str, seen: tuple[str, ...]
) -> None:
    for name in (*TOKENS, *PUBLISHER):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("HF_OIDC_RESOURCE", resource)
    made = make([environment(**options)], Store(tmp_path, "demo"))
    assert made["a"].facts["names"] == list(seen)
    assert os.environ["HF_TOKEN"] == "x"


def test_a_launched_training_sees_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "x")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nenv >{tmp_path / 'seen'}\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    options = argparse.Namespace(recipe="demo", set=[], debug=False)
    with pytest.raises(SystemLimitError):
        Children().launch(launch_config("local"), environment(processes=2), options, Store(tmp_path, "demo"))
    assert "UNLEARN_RELEASE_ERROR_FILE=" in (tmp_path / "seen").read_text()
    assert "HF_TOKEN" not in (tmp_path / "seen").read_text()


@pytest.mark.parametrize(("recipe", "pointers"), [("demo", set()), ("tofu-forget10-llama32-1b", {"base", "gold"})])
def test_only_stages_that_talk_to_the_hub_see_a_token(recipe: str, pointers: set[str]) -> None:
    of_recipe = stages(load_recipe(recipe, []))
    assert {stage.name for stage in of_recipe if stage.fetches} == {"model", "data"} | pointers
    assert {stage.name for stage in of_recipe if stage.publishes} == {"package", "publish"}
