"""Publishing to a Hub that breaks in every way: afterwards main is the old release, or the complete new one."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from dulwich.objects import ObjectID
from dulwich.refs import Ref
from dulwich.repo import Repo
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from core.errors import GateError, HubError, VerificationError
from pipeline.localhub.server import LocalHub
from pipeline.publish import push, tree, verify
from pipeline.publish.hub import Target, connect
from pipeline.publish.revoke import Revoker
from pipeline.publish.schema import PublishFacts, read_receipt
from pipeline.publish.verify import verify_release
from tests.hub_world import CONFIG, Fault, World, inputs, made, next_release, running, store, world  # noqa: F401
from tests.publishing import CARD, REPO, build, own_signer, problems, write_gate

SLEEP = time.sleep
GENERATION = verify._generation


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: SLEEP(min(seconds, 0.02)))  # the client waits between attempts


@pytest.fixture
def package(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "package", tmp_path / "package"))


def test_the_stage(
    inputs: dict[str, Path], package: Path, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_generation", GENERATION)
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
        found = verify_release(REPO, receipt.tag, target, [own_signer()], problems)
        assert [c.name for c in found.checks] == [c.name for c in receipt.verified]
        assert HfApi(endpoint=target.endpoint, token=target.token).repo_info(REPO, revision="v1.0.0").private is True
    again = tmp_path / "again"
    again.mkdir()
    push.run(CONFIG, {"package": package, "gate": inputs["gate"]}, again, problems)
    assert (again / "receipt.json").read_text() == (out / "receipt.json").read_text()


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


def test_the_same_release_of_another_signer_is_called_that(
    world: World, inputs: dict, package: Path, tmp_path: Path, store: Path
) -> None:
    world.publish(package)
    (store / "keys" / "release.pem").unlink()  # as on another machine, where the next run packages it anew
    with pytest.raises(HubError, match=r"a tag v1\.0\.0 with these files, signed by somebody else than the key"):
        world.publish(build(inputs, tmp_path / "again"))


def test_an_older_version_does_not_set_main_back(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    following = next_release(inputs, tmp_path)
    second = world.publish(following, tag="v1.1.0")
    uploads = Fault(r"(PUT|POST) .*(commit|preupload|lfs|branch).*", "before", at=10**9)
    world.faulty.faults.append(uploads)
    for _ in range(2):
        with pytest.raises(
            HubError, match=r"v1\.1\.0 of .* is newer than v1\.0\.0.*Set publish\.tag to a version above"
        ):
            world.publish(package)
        assert uploads.seen == 0
        assert (world.head(), world.tags(), world.branches()) == (second.commit, {"v1.1.0": second.commit}, ["main"])
        assert world.publish(following, tag="v1.1.0") == second
    # What was revoked and purged has no tag, and its version is not free for an older one either.
    revoker = Revoker(REPO, "v1.1.0", world.target)
    revoker.run(revoker.plan("a test", None, hide=False, purge=True))
    with pytest.raises(HubError, match=r"v1\.1\.0 of demo/tiny-unlearned is newer than v1\.0\.0"):
        world.publish(package)
    world.publish(next_release(inputs, tmp_path, "after", "v1.2.0"), tag="v1.2.0")
    verify_release(REPO, "main", world.target, [own_signer()], problems)


def test_a_newer_release_that_lands_meanwhile_stays(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    world.publish(package)
    older, newer = (next_release(inputs, tmp_path, tag, tag) for tag in ("v1.1.0", "v2.0.0"))
    between = Fault(rf"GET /api/models/{REPO}/revision/main", "act", action=lambda: world.publish(newer, tag="v2.0.0"))
    world.faulty.faults.append(between)
    with pytest.raises(HubError, match=r"v2\.0\.0 of .* is newer than v1\.1\.0|at \w{12}, no longer at"):
        world.publish(older, tag="v1.1.0")
    assert between.seen
    assert world.holds(newer)
    assert world.tags().keys() == {"v1.0.0", "v2.0.0"}


def test_a_newer_release_that_has_landed_and_no_tag_yet_stays(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    world.publish(package)
    older, newer = (next_release(inputs, tmp_path, tag, tag) for tag in ("v1.1.0", "v2.0.0"))
    world.faulty.faults.append(Fault(rf"POST /api/models/{REPO}/tag/.*", "before"))
    with pytest.raises(HubError, match="tagging"):
        world.publish(newer, tag="v2.0.0")
    with pytest.raises(HubError, match=r"v2\.0\.0 of .* is newer than v1\.1\.0"):
        world.publish(older, tag="v1.1.0")
    assert world.holds(newer)
    world.publish(newer, tag="v2.0.0")


@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        (rf"GET /{REPO}/resolve/.*/config.json", r"v2\.0\.0 of .* is newer than v1\.1\.0"),  # it does not land
        (rf"POST /api/models/{REPO}/tag/.*", "it is at .*, and the newest release at"),  # it has landed
    ],
)
def test_a_newer_release_that_is_tagged_while_an_older_one_is_published_is_told(
    world: World, inputs: dict, package: Path, tmp_path: Path, meanwhile: str, said: str
) -> None:
    first = world.publish(package)
    tag = partial(world.api.create_tag, REPO, tag="v2.0.0", revision=first.commit)
    world.faulty.faults.append(Fault(meanwhile, "act", action=tag))
    with pytest.raises(HubError, match=said):
        world.publish(next_release(inputs, tmp_path), tag="v1.1.0")
    assert (world.head() == first.commit) == meanwhile.startswith("GET")


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


def somebody(world: World) -> tuple[Callable[[], None], list[str]]:
    """A commit to main by somebody else, and the list that it is then noted in."""
    commits: list[str] = []

    def commit() -> None:
        operation = CommitOperationAdd("theirs.txt", b"x")
        commits.append(world.api.create_commit(REPO, [operation], commit_message="theirs").oid)

    return commit, commits


@pytest.mark.parametrize("where", [STAGING, MAIN])
def test_somebody_else_commits(world: World, inputs: dict, package: Path, tmp_path: Path, where: str) -> None:
    world.publish(package)
    commit, other = somebody(world)
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
        push.publish(CONFIG, package / "hub", Target("http://127.0.0.1:9", "hf_x"), own_signer(), problems)


def test_a_token_that_is_wrong(world: World, package: Path) -> None:
    with pytest.raises(HubError, match="401"):
        push.publish(CONFIG, package / "hub", Target(world.hub.endpoint, "hf_x"), own_signer(), problems)


def test_hf_needs_a_token_and_takes_the_endpoint(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="Set HF_TOKEN"), connect("hf"):
        pass
    monkeypatch.setenv("HF_ENDPOINT", world.hub.endpoint + "/")
    monkeypatch.setenv("HF_TOKEN", world.hub.token)
    with connect("hf") as target:
        assert target == Target(world.hub.endpoint, True)


def test_what_others_left_in_gitattributes_is_told_before_anything_is_uploaded(world: World, package: Path) -> None:
    large = "filter=lfs diff=lfs merge=lfs -text"
    world.api.create_repo(REPO, private=True)

    def write(*lines: str) -> str:
        text = "\n".join(f"{line} {large}" for line in lines).encode()
        return world.api.create_commit(REPO, [CommitOperationAdd(".gitattributes", text)], commit_message="x").oid

    head = write("*.safetensors", "paper/figure.pdf")  # as the Hub writes it for a file of ten megabytes
    with pytest.raises(HubError, match=r"refuses, since .*'paper/figure\.pdf filter.* Nothing was changed\. Remove it"):
        world.publish(package)
    assert (world.head(), world.branches()) == (head, ["main"])
    write("*.safetensors")
    assert world.publish(package).commit == world.tags()["v1.0.0"]


def test_a_proxy_does_not_stand_in_the_way(package: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    from huggingface_hub import close_session

    close_session()
    with connect("local") as target:
        push.publish(CONFIG, package / "hub", target, own_signer(), problems)
    close_session()


def test_a_release_that_does_not_load(
    world: World, inputs: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed and intact, but its config does not fit its weights: only loading it can tell."""
    monkeypatch.setattr(verify, "_generation", GENERATION)
    config = inputs["unlearn"] / "model" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    broken = build(inputs, tmp_path / "broken")
    with pytest.raises(VerificationError, match="does not fit its config"):
        world.publish(broken)
    assert world.files() == {}
    assert world.tags() == {}


def test_a_release_whose_main_somebody_else_changed_is_not_done(world: World, package: Path) -> None:
    first = world.publish(package)
    theirs = world.api.create_commit(REPO, [CommitOperationAdd("x.txt", b"x")], commit_message="theirs").oid
    with pytest.raises(HubError, match=rf"somebody else committed to main: it is at {theirs[:12]}"):
        world.publish(package)
    assert (world.head(), world.tags()) == (theirs, {"v1.0.0": first.commit})
    # Taken back by another commit, the content is the release's again, and main is still not at its commit.
    world.api.create_commit(REPO, [CommitOperationDelete("x.txt")], commit_message="theirs")
    assert world.holds(package)
    with pytest.raises(HubError, match="somebody else committed to main"):
        world.publish(package)


def test_a_release_whose_main_was_set_back_is_not_done(
    world: World, inputs: dict, package: Path, tmp_path: Path, store: Path
) -> None:
    first = world.publish(package)
    following = next_release(inputs, tmp_path)
    second = world.publish(following, tag="v1.1.0")
    with closing(Repo(str(store / "hub" / "models" / f"{REPO}.git"))) as git:
        git.refs[Ref(b"refs/heads/main")] = ObjectID(first.commit.encode())
    for again, changes in ((following, {"tag": "v1.1.0"}), (package, {})):
        with pytest.raises(HubError, match=f"and the newest release at {second.commit[:12]}"):
            world.publish(again, **changes)


def test_the_download_lies_in_the_stages_folder(world: World, package: Path, tmp_path: Path) -> None:
    """Where the next run removes it if this one is killed; the system's folder for temporary files would keep it."""
    seen: list[list[Path]] = []
    look = Fault(
        rf"GET /{REPO}/resolve/.*/README.md", "act", action=lambda: seen.append(list(tmp_path.glob("verify-*")))
    )
    world.faulty.faults.append(look)
    push.publish(CONFIG, package / "hub", world.target, own_signer(), problems, tmp_path)
    assert [len(folders) for folders in seen] == [1]
    assert not list(tmp_path.glob("verify-*"))


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
    following = next_release(inputs, tmp_path, tag="v1.0.0")
    left = world.branches()
    world.faulty.faults.append(Fault(rf"GET /{REPO}/resolve/.*/config.json", "corrupt"))
    with pytest.raises(VerificationError):
        world.publish(following, visibility="public")
    assert len(world.branches()) == 2  # its own: the other is gone although this one failed too
    assert world.branches() != left
    world.faulty.faults.pop()
    world.publish(following, visibility="public")
    assert seen == [["main"]]  # before anybody else could look


def test_a_commit_on_top_of_the_release_does_not_make_it_land_twice(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    """Between the commit to main and the look whether it landed."""
    world.publish(package)
    commit, other = somebody(world)
    following = next_release(inputs, tmp_path)
    world.faulty.faults.append(Fault(rf"GET /api/models/{REPO}/revision/main", "act", at=2, action=commit))
    for _ in range(2):
        with pytest.raises(
            HubError, match=rf"somebody else committed to main: it is at {other[0][:12] if other else ''}"
        ):
            world.publish(following, tag="v1.1.0", visibility="public")
        landed = [commit.commit_id for commit in world.api.list_repo_commits(REPO) if commit.title == "Release v1.1.0"]
        assert [world.tags()["v1.1.0"]] == landed
        assert world.holds(following, "v1.1.0")
        assert (world.head(), world.branches()) == (other[0], ["main"])
        assert world.api.repo_info(REPO).private is True  # main is not what was verified


def test_a_repository_that_becomes_public_meanwhile_gets_nothing(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    first = world.publish(package)
    following = next_release(inputs, tmp_path)

    def show() -> None:
        world.api.update_repo_settings(REPO, private=False)

    world.faulty.faults.append(Fault(rf"GET /{REPO}/resolve/.*/config.json", "act", action=show))
    with pytest.raises(HubError, match=r"is public, and publish\.visibility is private\. Nothing was changed on main"):
        world.publish(following, tag="v1.1.0")
    assert (world.head(), world.tags()) == (first.commit, {"v1.0.0": first.commit})
    assert world.branches() == ["main"]  # nobody can read there what was not published


def test_a_public_repository_keeps_no_staging_branch_of_a_killed_run(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    world.publish(package)
    following = next_release(inputs, tmp_path)
    world.faulty.faults.append(Fault(rf"GET /{REPO}/resolve/.*/config.json", "corrupt"))
    with pytest.raises(VerificationError):
        world.publish(following, tag="v1.1.0")
    assert len(world.branches()) == 2
    world.api.update_repo_settings(REPO, private=False)
    with pytest.raises(HubError, match=r"is public, and publish\.visibility is private"):
        world.publish(following, tag="v1.1.0")
    assert world.branches() == ["main"]


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
