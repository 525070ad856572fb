"""Publishing to a Hub that breaks in every way: afterwards main is the old release, or the complete new one."""

from __future__ import annotations

import os
import re
import shutil
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RevisionNotFoundError

from core.artifacts import write_file
from core.errors import GateError, HubError, VerificationError
from pipeline import publish
from pipeline.commands import published
from pipeline.localhub.server import LocalHub
from pipeline.publish import push, sign, tree, verify
from pipeline.publish.config import PublishConfig
from pipeline.publish.hub import Target, connect
from pipeline.publish.schema import PublishFacts, Receipt, read_receipt
from pipeline.publish.verify import verify_release
from pipeline.recheck import problems
from tests.publishing import CARD, REPO, build, make_inputs, write_gate
from tests.publishing import CONFIG as PACKAGE

CONFIG = PublishConfig(repo=REPO, hub="local", visibility="private", tag="v1.0.0")
SLEEP = time.sleep
Send = Callable[[dict], Awaitable[None]]


@dataclass
class Fault:
    """What happens to the ``at``-th request whose method and path match ``pattern``; ``seen`` counts them."""

    pattern: str
    kind: str
    at: int = 1
    seen: int = 0
    action: Callable[[], object] | None = None


@dataclass
class Faulty:
    """A Hub's app with faults in front of it."""

    app: Callable
    faults: list[Fault] = field(default_factory=list)

    async def __call__(self, scope: dict, receive: Callable, send: Send) -> None:
        for fault in self.faults:
            if scope["type"] == "http" and re.fullmatch(fault.pattern, f"{scope['method']} {scope['path']}"):
                fault.seen += 1
                if fault.seen == fault.at or fault.kind == "corrupt":
                    await getattr(self, fault.kind)(fault, scope, receive, send)
                    return
        await self.app(scope, receive, send)

    async def before(self, _fault: Fault, _scope: dict, _receive: Callable, send: Send) -> None:
        await _answer(send, 500)

    async def after(self, _fault: Fault, scope: dict, receive: Callable, send: Send) -> None:
        await self.app(scope, receive, _swallow)
        await _answer(send, 500)

    async def drop(self, _fault: Fault, scope: dict, receive: Callable, send: Send) -> None:
        await self.app(scope, receive, _swallow)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        raise ConnectionError("the line is cut")

    async def drop_before(self, _fault: Fault, _scope: dict, _receive: Callable, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        raise ConnectionError("the line is cut")

    async def act(self, fault: Fault, scope: dict, receive: Callable, send: Send) -> None:
        """Something else happens first, from another thread, as another client would do it."""
        from starlette.concurrency import run_in_threadpool

        assert fault.action
        await run_in_threadpool(fault.action)
        await self.app(scope, receive, send)

    async def corrupt(self, _fault: Fault, scope: dict, receive: Callable, send: Send) -> None:
        async def flip(message: dict) -> None:
            if message.get("body"):
                message = {**message, "body": message["body"][:-1] + bytes([message["body"][-1] ^ 1])}
            await send(message)

        scope = {**scope, "extensions": {}}  # the file goes through the app, not past it
        await self.app(scope, receive, flip)


async def _answer(send: Send, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def _swallow(_message: dict) -> None:
    return None


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("time.sleep", lambda seconds: SLEEP(min(seconds, 0.02)))  # the client waits between attempts
    return tmp_path / "store"


@pytest.fixture
def inputs(tmp_path: Path, tiny_model: Path) -> dict[str, Path]:
    return make_inputs(tmp_path / "inputs", tiny_model)


@pytest.fixture
def package(inputs: dict[str, Path], tmp_path: Path) -> Path:
    return build(inputs, tmp_path / "package")


@dataclass
class World:
    """A running Hub, its faults, and a client to look at it."""

    hub: LocalHub
    faulty: Faulty
    api: HfApi
    target: Target

    def publish(self, package: Path, **changes: object) -> Receipt:
        return push.publish(
            CONFIG.model_copy(update=changes), package / "hub", self.target, sign.public_key(), problems
        )

    def head(self, revision: str = "main") -> str:
        return str(self.api.repo_info(REPO, revision=revision).sha)

    def files(self, revision: str = "main") -> dict[str, str]:
        listed = self.api.list_repo_tree(REPO, revision=revision, recursive=True)
        found = {f.path: f.lfs.sha256 if f.lfs else f.blob_id for f in listed if hasattr(f, "blob_id")}
        found.pop(".gitattributes")
        return found

    def holds(self, package: Path, revision: str = "main") -> bool:
        remote = self.files(revision)
        local = tree.read_tree(package / "hub")
        return remote == {n: d.sha256 if len(remote.get(n, "")) == 64 else d.git for n, d in local.items()}

    def branches(self) -> list[str]:
        return [b.name for b in self.api.list_repo_refs(REPO).branches]

    def tags(self) -> dict[str, str]:
        return {t.name: t.target_commit for t in self.api.list_repo_refs(REPO).tags}


@pytest.fixture
def world(store: Path) -> Iterator[World]:
    hub = LocalHub(store / "hub")
    hub.app = faulty = Faulty(hub.app)
    with hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        yield World(hub, faulty, api, Target(hub.endpoint, hub.token))


def next_release(inputs: dict[str, Path], tmp_path: Path, name: str = "next", tag: str = "v1.1.0") -> Path:
    """The package of a release with another card and one file less."""
    (inputs["card"] / "README.md").write_text(CARD + f"\n{name}\n")
    (inputs["card"] / "plots" / "metrics.png").unlink(missing_ok=True)
    (inputs["card"] / "plots" / f"{name}.png").write_bytes(b"\x89PNG\0")
    return build(inputs, tmp_path / name, PACKAGE.model_copy(update={"tag": tag}))


def test_the_stage(inputs: dict[str, Path], package: Path, tmp_path: Path, store: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    facts = push.run(CONFIG, {"package": package, "gate": inputs["gate"]}, out, problems)
    receipt = read_receipt(out)
    assert facts == PublishFacts(**{key: getattr(receipt, key) for key in PublishFacts.model_fields})
    assert receipt.files == {n: d.sha256 for n, d in tree.read_tree(package / "hub").items()}
    assert [c.name for c in receipt.verified] == [
        *("digests", "allowed files", "signature", "name", "contents", "gate", "licence", "safetensors", "generation")
    ]
    assert str(tmp_path) not in (out / "receipt.json").read_text()
    assert (store / receipt.url).is_dir()
    with connect("local") as target:
        found = verify_release(REPO, receipt.tag, target.endpoint, target.token, sign.public_key(), problems)
        assert [c.name for c in found.checks] == [c.name for c in receipt.verified]
        assert HfApi(endpoint=target.endpoint, token=target.token).repo_info(REPO, revision="v1.0.0").private is True
    again = tmp_path / "again"
    again.mkdir()
    push.run(CONFIG, {"package": package, "gate": inputs["gate"]}, again, problems)
    assert (again / "receipt.json").read_text() == (out / "receipt.json").read_text()


def test_one_function_verifies_for_the_command_and_for_the_stage(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = re.findall(r"``verify\.(\w+)``", str(publish.__doc__))
    assert named == [verify_release.__name__]
    own = [name for name, value in vars(verify).items() if getattr(value, "__module__", "") == verify.__name__]
    assert [name for name in own if name.islower() and not name.startswith("_")] == [*named, "read_release"]
    assert push.verify_release is published.verify_release is verify_release

    def called(*_given: object) -> None:
        raise VerificationError("called")

    monkeypatch.setattr(published, named[0], called)
    key = str(sign.public_key())
    with pytest.raises(VerificationError, match="called"):
        published.verify(Namespace(repo=REPO, revision="main", hub="local", key=key, store=str(store)))


def test_the_published_model_loads(world: World, package: Path, tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForCausalLM

    world.publish(package)
    folder = snapshot_download(
        REPO, revision="v1.0.0", endpoint=world.hub.endpoint, token=world.hub.token, cache_dir=tmp_path / "c"
    )
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (tiny_model, folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_second_run_changes_nothing(world: World, package: Path) -> None:
    first = world.publish(package)
    count = len(world.api.list_repo_commits(REPO))
    writes = Fault(r"(POST|PUT|DELETE) .*/(commit|branch|tag|settings|create).*", "before", at=10**9)
    world.faulty.faults.append(writes)
    assert world.publish(package) == first
    assert writes.seen == 0
    assert (world.branches(), world.tags()) == (["main"], {"v1.0.0": first.commit})
    assert len(world.api.list_repo_commits(REPO)) == count == 2


def test_a_package_made_again_is_the_same_release(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    first = world.publish(package)
    again = build(inputs, tmp_path / "again")
    shutil.rmtree(package)
    assert (again / "hub/model.sig").read_bytes()
    assert world.publish(again) == first


def test_the_next_release_replaces_all_files(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    first = world.publish(package)
    following = next_release(inputs, tmp_path)
    second = world.publish(following, tag="v1.1.0")
    assert world.holds(following)
    assert world.holds(package, "v1.0.0")
    assert world.tags() == {"v1.0.0": first.commit, "v1.1.0": second.commit}
    # Publishing the old one again must not roll main back.
    assert world.publish(package).commit == first.commit
    assert world.head() == second.commit


def test_a_tag_does_not_move(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    first = world.publish(package)
    with pytest.raises(HubError, match=r"a tag v1\.0\.0 with other content.*Nothing was changed"):
        world.publish(next_release(inputs, tmp_path, tag="v1.0.0"))
    assert (world.head(), world.tags(), world.branches()) == (first.commit, {"v1.0.0": first.commit}, ["main"])


def test_public(world: World, package: Path) -> None:
    stranger = HfApi(endpoint=world.hub.endpoint, token=False)
    seen: list[bool] = []
    look = Fault(
        rf"POST /api/models/{REPO}/commit/.*", "act", action=lambda: seen.append(world.api.repo_info(REPO).private)
    )
    world.faulty.faults.append(look)
    world.publish(package, visibility="public")
    assert seen == [True]  # while it was uploaded nobody could read it
    assert stranger.repo_info(REPO, revision="v1.0.0").private is False
    with pytest.raises(HubError, match=r"is public, and publish\.visibility is private"):
        world.publish(package)


def test_nothing_is_uploaded_to_a_repo_that_is_public_and_should_not_be(world: World, package: Path) -> None:
    world.api.create_repo(REPO, private=False)
    uploads = Fault(r"(PUT|POST) .*(commit|preupload|lfs|branch).*", "before", at=10**9)
    world.faulty.faults.append(uploads)
    with pytest.raises(HubError, match="Nothing was uploaded"):
        world.publish(package)
    assert uploads.seen == 0


def test_gate_is_checked_again(inputs: dict, package: Path, tmp_path: Path, store: Path) -> None:
    write_gate(inputs, weights_sha256="0" * 64)
    with pytest.raises(GateError):
        push.run(CONFIG, {"package": package, "gate": inputs["gate"]}, tmp_path, problems)
    write_gate(inputs)
    (package / "hub" / "README.md").write_text(CARD + "changed after it was signed")
    with pytest.raises(VerificationError, match=r"README\.md"):
        push.run(CONFIG, {"package": package, "gate": inputs["gate"]}, tmp_path, problems)
    assert not (store / "hub").exists()


STAGING, MAIN = rf"POST /api/models/{REPO}/commit/staging-.*", rf"POST /api/models/{REPO}/commit/main"
TAG = rf"POST /api/models/{REPO}/tag/.*"


UPLOAD = r"PUT .*/upload/.*"


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        *[(MAIN, kind) for kind in ("before", "after", "drop", "drop_before")],
        *[(STAGING, "before"), (STAGING, "drop"), (TAG, "before"), (TAG, "drop"), (UPLOAD, "drop")],
    ],
    ids=lambda value: value.split("/")[-2 if "/" in value else 0],
)
def test_unknown_outcomes(world: World, inputs: dict, package: Path, tmp_path: Path, where: str, kind: str) -> None:
    world.publish(package)
    following = next_release(inputs, tmp_path)
    fault = Fault(where, kind)
    world.faulty.faults.append(fault)
    if where == TAG and "before" in kind:  # nothing that is safe to repeat without being asked
        with pytest.raises(HubError, match="tagging"):
            world.publish(following, tag="v1.1.0")
        assert world.holds(following)
    receipt = world.publish(following, tag="v1.1.0")
    assert fault.seen >= 1
    assert world.holds(following)
    assert world.tags()["v1.1.0"] == world.head() == receipt.commit
    assert world.branches() == ["main"]
    assert len(world.api.list_repo_commits(REPO)) == 3  # none landed twice


def test_a_hub_that_never_takes_the_commit(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    first = world.publish(package)
    following = next_release(inputs, tmp_path)
    world.faulty.faults += [Fault(MAIN, "before", at=n) for n in (1, 1, 1)]
    with pytest.raises(HubError, match="3 attempts"):
        world.publish(following, tag="v1.1.0")
    assert (world.head(), world.tags()) == (first.commit, {"v1.0.0": first.commit})
    assert world.holds(package)
    world.publish(following, tag="v1.1.0")
    assert world.holds(following)


@pytest.mark.parametrize("where", [STAGING, MAIN])
def test_somebody_else_commits(world: World, inputs: dict, package: Path, tmp_path: Path, where: str) -> None:
    world.publish(package)
    other: list[str] = []

    def commit() -> None:
        operation = CommitOperationAdd("theirs.txt", b"x")
        other.append(world.api.create_commit(REPO, [operation], commit_message="theirs").oid)

    following = next_release(inputs, tmp_path)
    world.faulty.faults.append(Fault(where, "act", action=commit))
    with pytest.raises(HubError, match=r"Somebody else committed to main.*Run again"):
        world.publish(following, tag="v1.1.0")
    assert world.head() == other[0]
    assert "v1.1.0" not in world.tags()
    assert {"theirs.txt"} == world.files().keys() - world.files("v1.0.0").keys()
    world.publish(following, tag="v1.1.0")
    assert world.holds(following)


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "config.json"])
def test_a_corrupt_download(world: World, inputs: dict, package: Path, tmp_path: Path, name: str) -> None:
    first = world.publish(package)
    following = next_release(inputs, tmp_path)
    world.faulty.faults.append(Fault(rf"GET /{REPO}/resolve/.*/{re.escape(name)}", "corrupt"))
    with pytest.raises(VerificationError, match=rf"different: {re.escape(name)}"):
        world.publish(following, tag="v1.1.0")
    assert (world.head(), world.tags()) == (first.commit, {"v1.0.0": first.commit})
    world.faulty.faults.clear()
    world.publish(following, tag="v1.1.0")
    assert world.holds(following)
    assert world.branches() == ["main"]


def test_a_hub_that_is_not_there(package: Path) -> None:
    with pytest.raises(HubError, match="cannot be reached"):
        push.publish(CONFIG, package / "hub", Target("http://127.0.0.1:9", "hf_x"), sign.public_key(), problems)


def test_a_token_that_is_wrong(world: World, package: Path) -> None:
    with pytest.raises(HubError, match="401"):
        push.publish(CONFIG, package / "hub", Target(world.hub.endpoint, "hf_x"), sign.public_key(), problems)


def test_hf_needs_a_token_and_takes_the_endpoint(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="Set HF_TOKEN"), connect("hf"):
        pass
    monkeypatch.setenv("HF_ENDPOINT", world.hub.endpoint + "/")
    monkeypatch.setenv("HF_TOKEN", world.hub.token)
    with connect("hf") as target:
        assert target == world.target


def test_a_proxy_does_not_stand_in_the_way(package: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    from huggingface_hub import close_session

    close_session()
    with connect("local") as target:
        push.publish(CONFIG, package / "hub", target, sign.public_key(), problems)
    close_session()


@contextmanager
def changed(world: World, operations: list) -> Iterator[str]:
    """A commit on a branch of its own that is the release with something changed."""
    world.api.create_branch(REPO, branch="changed")
    yield world.api.create_commit(REPO, operations, commit_message="x", revision="changed").oid
    world.api.delete_branch(REPO, branch="changed")


def test_verify_names_what_is_wrong(world: World, package: Path) -> None:
    world.publish(package)
    weights = (package / "hub" / "model.safetensors").read_bytes()
    cases = [
        ("training_args.bin", b"x", "do not belong to a release: training_args.bin"),
        ("README.md", b"---\nlicense: mit\n---\n", r"Hash mismatch for 'README\.md'"),
        ("plots/more.png", b"x", r"Extra files.*plots/more\.png"),
        ("model.safetensors", weights[:-1] + b"\x01", r"model\.safetensors"),
        ("model.sig", b"{}", "signature is not valid"),
    ]
    for name, content, message in cases:
        import io

        with (
            changed(world, [CommitOperationAdd(name, io.BytesIO(content))]) as commit,
            pytest.raises(VerificationError, match=message),
        ):
            verified(world, commit)
    with pytest.raises(HubError, match="404"):
        verify_release(REPO, "never-was", world.target.endpoint, world.target.token, sign.public_key(), problems)
    with pytest.raises(RevisionNotFoundError):
        world.head("never-was")


def test_a_release_that_does_not_load(world: World, inputs: dict, tmp_path: Path) -> None:
    """Signed and intact, but its config does not fit its weights: only loading it can tell."""
    config = inputs["unlearn"] / "model" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    broken = build(inputs, tmp_path / "broken")
    with pytest.raises(VerificationError, match="does not fit its config"):
        world.publish(broken)
    assert world.files() == {}
    assert world.tags() == {}


def verified(world: World, revision: str = "main", repo: str = REPO) -> list[str]:
    found = verify_release(repo, revision, world.target.endpoint, world.target.token, sign.public_key(), problems)
    return [check.name for check in found.checks]


def operations(folder: Path) -> list[CommitOperationAdd]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [CommitOperationAdd(path.relative_to(folder).as_posix(), path.open("rb")) for path in files]


def test_main_set_back_to_an_older_release_is_noticed(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    world.publish(package)
    following = next_release(inputs, tmp_path)
    world.publish(following, tag="v1.1.0")
    assert verified(world)
    removed = [CommitOperationDelete(name) for name in world.files().keys() - world.files("v1.0.0").keys()]
    world.api.create_commit(REPO, [*removed, *operations(package / "hub")], commit_message="x")
    assert world.holds(package)
    with pytest.raises(VerificationError, match=r"main holds v1\.0\.0, and the newest release is v1\.1\.0"):
        verified(world)
    world.api.delete_tag(REPO, tag="v1.1.0")
    with pytest.raises(VerificationError, match=r"main is not at the commit of the tag v1\.0\.0"):
        verified(world)
    assert verified(world, "v1.0.0")


def test_a_tag_that_was_moved_is_noticed(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    first = world.publish(package)
    world.publish(next_release(inputs, tmp_path), tag="v1.1.0")
    world.api.delete_tag(REPO, tag="v1.1.0")
    world.api.create_tag(REPO, tag="v1.1.0", revision=first.commit)
    with pytest.raises(VerificationError, match=r"signed as v1\.0\.0, and the tag v1\.1\.0 was moved to it"):
        verified(world, "v1.1.0")


def test_a_copy_in_another_repository_is_noticed(world: World, package: Path) -> None:
    world.publish(package)
    world.api.create_repo("demo/copied", private=True)
    world.api.create_commit("demo/copied", operations(package / "hub"), commit_message="x")
    with pytest.raises(VerificationError, match=f"it was signed as a release of {REPO}, and is a copy here"):
        verified(world, repo="demo/copied")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passed": False}, r"no gate allows this release: The gate failed"),
        ({"weights_sha256": "0" * 64}, "no gate allows this release: The gate passed for the weights 000"),
        (None, r"no gate allows this release: .*gate\.json"),
    ],
)
def test_a_gate_that_allows_nothing_is_noticed_under_a_valid_signature(
    world: World, inputs: dict, package: Path, changes: dict | None, message: str
) -> None:
    write_gate(inputs, **(changes or {}))
    hub = package / "hub"
    gate = (inputs["gate"] / "gate.json").read_bytes() if changes else b"{}"
    (hub / "gate.json").write_bytes(gate)
    resign(hub)
    world.api.create_repo(REPO, private=True)
    commit = world.api.create_commit(REPO, operations(hub), commit_message="x").oid
    with pytest.raises(VerificationError, match=message):
        verified(world, commit)


def resign(hub: Path, **changes: object) -> None:
    """Sign a tree again after a change, with the digests of its files as they are now: what its publisher could do."""
    release = verify.read_release(hub)
    (hub / "model.sig").unlink()
    files = {n: d.sha256 for n, d in tree.read_tree(hub).items() if n != "release.json"}
    now = {"files": files, "gate_sha256": files["gate.json"]} | changes
    write_file(hub / "release.json", release.model_copy(update=now))
    sign.sign_tree(hub, sign.private_key())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {"README.md": "0" * 64}}, r"the files are not those of its release\.json"),
        ({"weights_sha256": "0" * 64}, r"the weights or gate\.json are not those"),
        ({"gate_sha256": "0" * 64}, r"the weights or gate\.json are not those"),
    ],
)
def test_what_release_json_says_of_the_files_is_compared(
    world: World, package: Path, changes: dict, message: str
) -> None:
    resign(package / "hub", **changes)
    world.api.create_repo(REPO, private=True)
    commit = world.api.create_commit(REPO, operations(package / "hub"), commit_message="x").oid
    with pytest.raises(VerificationError, match=message):
        verified(world, commit)


def test_gitattributes_say_only_which_files_are_large(world: World, package: Path) -> None:
    world.publish(package)
    line = CommitOperationAdd(".gitattributes", b"*.md filter=run diff=run\n")
    with (
        changed(world, [line]) as commit,
        pytest.raises(VerificationError, match=r"\.gitattributes, which no signature"),
    ):
        verified(world, commit)


def test_a_release_whose_main_somebody_else_changed_is_not_done(world: World, package: Path) -> None:
    first = world.publish(package)
    theirs = world.api.create_commit(REPO, [CommitOperationAdd("x.txt", b"x")], commit_message="theirs").oid
    with pytest.raises(HubError, match=rf"somebody else committed to main: it is at {theirs[:12]}"):
        world.publish(package)
    assert (world.head(), world.tags()) == (theirs, {"v1.0.0": first.commit})


def test_the_staging_branch_of_a_package_that_changed_since_goes(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    world.faulty.faults += [Fault(MAIN, "before", at=n) for n in (1, 1, 1)]
    with pytest.raises(HubError):
        world.publish(package, visibility="public")
    assert len(world.branches()) == 2
    seen: list[list[str]] = []
    world.faulty.faults = [
        Fault(rf"PUT /api/models/{REPO}/settings", "act", action=lambda: seen.append(world.branches()))
    ]
    world.publish(next_release(inputs, tmp_path, tag="v1.0.0"), visibility="public")
    assert seen == [["main"]]  # before anybody else could look


def test_a_package_for_another_place_is_not_published(world: World, package: Path) -> None:
    for changes in ({"tag": "v1.1.0"}, {"repo": "demo/other"}):
        with pytest.raises(VerificationError, match="Run the package stage again"):
            world.publish(package, **changes)


def test_what_killed_uploads_left_is_removed(tmp_path: Path) -> None:
    place = tmp_path / "hub" / "models" / "a" / "b.git" / "lfs"
    place.mkdir(parents=True)
    (place / "now.part").write_bytes(b"x")
    (place / "left.part").write_bytes(b"x")
    os.utime(place / "left.part", (0, 0))
    with LocalHub(tmp_path / "hub"):
        assert [path.name for path in place.iterdir()] == ["now.part"]
