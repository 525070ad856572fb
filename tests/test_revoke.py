"""Revoking a release: a tombstone in its place, everything refused by `verify`, and no half-done state for good."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from safetensors.torch import load_file, save_file

from core.errors import HubError, InputError, VerificationError
from pipeline.__main__ import main
from pipeline.commands.shared import show
from pipeline.localhub.repository import Add, Repository
from pipeline.localhub.settings import Settings
from pipeline.publish.revoke import Revocation, Revoker, check_reason, revocation_of, tombstone
from pipeline.publish.verify import verify_release
from tests.hub_world import Fault, World, inputs, made, next_release, package, store, world  # noqa: F401
from tests.publishing import REPO, own_signer, problems, write_gate
from tests.test_verify import operations

LARGE = ["plots/metrics.png", "model.safetensors"]
WHY = "It still answers 3 of 40 forget questions (see [the audit](https://x.org))."


def revoke(world: World, tag: str = "v1.0.0", successor: str | None = None, **ways: bool) -> tuple[str, ...]:
    revoker = Revoker(REPO, tag, world.target)
    plan = revoker.plan(WHY, successor, hide=ways.get("hide", False), purge=ways.get("purge", False))
    revoker.run(plan)
    return plan.steps


def purged(world: World) -> dict[str, str]:
    """Purge the release; the large files of it that the Hub still has, with what holds them."""
    revoker = Revoker(REPO, "v1.0.0", world.target)
    plan = revoker.plan(WHY, None, hide=False, purge=True)
    revoker.run(plan)
    said = (line.partition(", held by ") for line in revoker.held(plan))
    return {file.split(" (")[0]: refs for file, _, refs in said}


def stored(world: World) -> set[str]:
    return {file.filename for file in world.api.list_lfs_files(REPO)}


def card(world: World, revision: str, tmp_path: Path) -> ModelCard:
    return ModelCard.load(
        hf_hub_download(
            REPO,
            "README.md",
            revision=revision,
            endpoint=world.hub.endpoint,
            token=world.hub.token,
            cache_dir=tmp_path / "c",
        )
    )


def refused(world: World, revision: str) -> str:
    with pytest.raises(VerificationError) as caught:
        verify_release(REPO, revision, world.target, [own_signer()], problems)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_a_tombstone_takes_the_place_of_the_newest_release(world: World, package: Path, tmp_path: Path) -> None:
    commit = world.publish(package).commit
    revoke(world, successor="demo/tiny-again")
    assert set(world.files()) == {"README.md"}
    shown = card(world, "main", tmp_path)
    data = shown.data.to_dict()
    assert (data["revoked"], data["new_version"], data["license"]) == (True, "demo/tiny-again", "apache-2.0")
    assert data["revocation"]["revisions"] == {"v1.0.0": commit}
    assert data["revocation"]["reason"] == WHY
    assert "\\[the audit\\](https://x.org)" in shown.text  # the reason is text, and not a link
    assert len(world.api.list_repo_commits(REPO)) == 3
    assert world.tags() == {"v1.0.0": commit, "revoked-v1.0.0": world.head()}
    for revision in ("main", "v1.0.0", commit, "revoked-v1.0.0"):
        assert "was revoked on" in refused(world, revision)
    assert "Its successor is demo/tiny-again" in refused(world, "v1.0.0")


def test_revoking_again_changes_nothing(world: World, package: Path) -> None:
    world.publish(package)
    assert len(revoke(world)) > 2
    before = (world.head(), world.tags(), world.branches())
    assert revoke(world) == ()
    assert (world.head(), world.tags(), world.branches()) == before


def test_a_newer_release_stays(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    old = world.publish(package).commit
    new = world.publish(next_release(inputs, tmp_path), tag="v1.1.0").commit
    revoke(world)
    assert world.head() == new
    assert world.branches() == ["main"]
    assert world.tags().keys() == {"v1.0.0", "v1.1.0", "revoked-v1.0.0"}
    assert f"Its successor is {REPO}" in refused(world, "v1.0.0")
    assert refused(world, old)
    for revision in ("main", "v1.1.0"):
        verify_release(REPO, revision, world.target, [own_signer()], problems)
    revoke(world, "v1.1.0")  # then the older one is revoked with it, and main is a tombstone
    assert set(card(world, "main", tmp_path).data.to_dict()["revocation"]["revisions"]) == {"v1.0.0", "v1.1.0"}
    assert refused(world, "v1.1.0")


def test_what_was_revoked_is_not_published_again_and_a_new_version_is(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    world.publish(package)
    revoke(world)
    with pytest.raises(HubError, match=r"v1\.0\.0 of demo/tiny-unlearned was revoked.*new version"):
        world.publish(package)
    world.publish(next_release(inputs, tmp_path), tag="v1.1.0")
    verify_release(REPO, "main", world.target, [own_signer()], problems)
    assert refused(world, "v1.0.0")


def stays_unpublished(world: World, package: Path) -> None:
    with pytest.raises(HubError, match=r"v1\.0\.0 of demo/tiny-unlearned was revoked.*new version"):
        world.publish(package)
    assert world.branches() == ["main"]
    assert not list(world.api.list_lfs_files(REPO))  # nothing was staged


def test_what_was_purged_is_not_published_again(world: World, package: Path) -> None:
    world.publish(package)
    revoke(world, purge=True)
    assert world.tags().keys() == {"revoked-v1.0.0"}
    stays_unpublished(world, package)
    world.api.delete_tag(REPO, tag="revoked-v1.0.0")  # as if it was cut off before it set the mark
    stays_unpublished(world, package)


def test_a_main_that_somebody_set_back_to_a_purged_release_is_refused(world: World, package: Path) -> None:
    world.publish(package)
    revoke(world, purge=True)
    commit = world.api.create_commit(REPO, operations(package / "hub"), commit_message="x").oid
    world.api.create_tag(REPO, tag="v1.0.0", revision="main")
    assert world.holds(package)
    for revision in ("main", "v1.0.0", commit):
        assert "was revoked on" in refused(world, revision)


@pytest.fixture(params=[False, True], ids=["alone", "newer"])
def revoked(
    request: pytest.FixtureRequest, world: World, inputs: dict, package: Path, tmp_path: Path
) -> tuple[str, bool]:
    """The commit of a revoked release, and whether there is a newer one."""
    commit = world.publish(package).commit
    if request.param:
        world.publish(next_release(inputs, tmp_path), tag="v1.1.0")
    revoke(world)
    return commit, request.param


def test_purge_deletes_the_weights_for_good(world: World, revoked: tuple[str, bool], tmp_path: Path) -> None:
    old, newer = revoked
    steps = revoke(world, purge=True)
    assert "the tag v1.0.0 is deleted" in steps
    assert "v1.0.0" not in world.tags()
    assert len(world.api.list_repo_commits(REPO, revision="revoked-v1.0.0")) == 1
    assert stored(world) == (
        {"model.safetensors", "plots/next.png"} if newer else set()
    )  # both have the same weights here
    deleted = {step.split(" (")[0] for step in steps if step.endswith("is deleted for good")}
    assert deleted == ({"plots/metrics.png"} if newer else set(LARGE))
    assert "was revoked on" in refused(world, "v1.0.0")
    assert "was revoked on" in refused(world, old)
    if newer:
        verify_release(REPO, "main", world.target, [own_signer()], problems)
    else:
        with pytest.raises((EntryNotFoundError, HfHubHTTPError)):
            card(world, old, tmp_path / "gone")
    assert revoke(world, purge=True) == ()


def test_purge_keeps_what_a_waiting_pull_request_needs(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    world.publish(package)
    world.publish(next_release(inputs, tmp_path), tag="v1.1.0")
    other_weights(inputs)
    waiting = next_release(inputs, tmp_path, "waiting", "v1.2.0")
    with pytest.raises(HubError, match="waits to be merged"):
        world.publish(waiting, tag="v1.2.0", via="pr")
    assert purged(world) == {"model.safetensors": "main, v1.1.0"}  # which has the same weights here
    world.api.merge_pull_request(REPO, 1)
    world.publish(waiting, tag="v1.2.0", via="pr")
    verify_release(REPO, "main", world.target, [own_signer()], problems)


def other_weights(inputs: dict[str, Path]) -> None:
    file = inputs["unlearn"] / "model" / "model.safetensors"
    save_file({name: weights / 2 for name, weights in load_file(file).items()}, file, metadata={"format": "pt"})
    write_gate(inputs)


def test_purge_names_the_pull_request_that_holds_the_weights(
    world: World, package: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(HubError, match="waits to be merged"):
        world.publish(package, via="pr")
    world.api.merge_pull_request(REPO, 1)
    world.publish(package, via="pr")
    for title in ("a note", "another"):  # on top of the release, so both hold its weights
        note = [CommitOperationAdd("note.txt", title.encode())]
        world.api.create_commit(REPO, note, commit_message=title, create_pr=True)
    world.api.change_discussion_status(REPO, 2, "closed")
    arguments = ["revoke", REPO, "--tag", "v1.0.0", "--reason", WHY, "--hub", "local", "--store", str(store), "--purge"]
    assert main(arguments) == 4
    said = capsys.readouterr().out
    assert "bytes), held by refs/pr/3\nClose the pull requests" in said
    assert "no longer holds the weights" not in said
    assert stored(world) == set(LARGE)
    world.api.change_discussion_status(REPO, 3, "closed")
    assert main(arguments) == 0
    assert "The Hub no longer holds the weights of the revoked releases." in capsys.readouterr().out
    assert stored(world) == set()


def test_purge_names_a_branch_that_holds_the_weights_when_the_commit_is_gone(world: World, package: Path) -> None:
    commit = world.publish(package).commit
    world.api.create_branch(REPO, branch="copy", revision=commit)
    world.api.super_squash_history(REPO, branch="copy")
    for _ in range(2):
        assert purged(world) == dict.fromkeys(LARGE, "copy")
    with pytest.raises(HfHubHTTPError, match="404"):
        world.head(commit)
    world.api.delete_branch(REPO, branch="copy")
    assert purged(world) == {}
    assert stored(world) == set()


def test_purge_deletes_the_staging_branches_of_the_revoked_release(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    commit = world.publish(package).commit
    world.api.create_branch(REPO, branch="staging-0123456789ab", revision=commit)  # left by killed runs
    other_weights(inputs)
    following = next_release(inputs, tmp_path)
    world.api.create_branch(REPO, branch="staging-ba9876543210", revision=commit)
    world.api.create_commit(REPO, operations(following / "hub"), commit_message="x", revision="staging-ba9876543210")
    assert purged(world) == {"plots/metrics.png": "staging-ba9876543210"}
    assert world.branches() == ["main", "staging-ba9876543210"]
    assert stored(world) == {"model.safetensors", "plots/metrics.png", "plots/next.png"}
    world.publish(following, tag="v1.1.0")
    assert purged(world) == {}


def test_a_purge_that_was_cut_off_hides_no_revocation(world: World, revoked: tuple[str, bool]) -> None:
    old, _ = revoked
    writes = Fault(rf"(POST|DELETE) /api/models/{REPO}/(branch|tag|super-squash)/.*", "before")
    world.faulty.faults.append(writes)
    for at in range(1, 12):
        writes.at, writes.seen = at, 0
        try:
            revoke(world, purge=True)
        except HubError:
            assert "was revoked on" in refused(world, old)
            continue
        break
    assert at in range(6, 11)
    assert revoke(world, purge=True) == ()
    assert world.branches() == ["main"]


def test_a_revocation_without_its_mark_is_finished_before_the_next_release(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    world.publish(package)
    world.faulty.faults.append(Fault(rf"POST /api/models/{REPO}/tag/.*", "before"))
    with pytest.raises(HubError, match="tagging"):
        revoke(world)
    following = next_release(inputs, tmp_path)
    with pytest.raises(HubError, match=r"revocation of v1\.0\.0 of .* was cut off.* Run `revoke .* --tag v1\.0\.0 "):
        world.publish(following, tag="v1.1.0")
    assert world.branches() == ["main"]
    assert revoke(world) == ("the tag revoked-v1.0.0 is set on that commit",)
    world.publish(following, tag="v1.1.0")
    assert "was revoked on" in refused(world, "v1.0.0")


def test_a_mark_that_holds_no_tombstone_is_set_anew(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    old = world.publish(package).commit
    world.publish(next_release(inputs, tmp_path), tag="v1.1.0")
    world.api.create_tag(REPO, tag="revoked-v1.0.0", revision=old)
    steps = revoke(world)
    assert "the tag revoked-v1.0.0, which holds something else, is deleted" in steps
    assert "was revoked on" in refused(world, old)
    assert revoke(world) == ()


@pytest.mark.parametrize(("squash", "intact"), [(1, True), (2, False)])
def test_a_purge_beside_a_publication_says_so_and_can_be_finished(
    world: World, inputs: dict, package: Path, tmp_path: Path, squash: int, intact: bool
) -> None:
    """The Hub squashes a branch whatever it holds by then: the second time main, where nothing can be compared."""
    old = world.publish(package).commit
    revoke(world)
    following = next_release(inputs, tmp_path)
    between = Fault(rf"POST /api/models/{REPO}/super-squash/.*", "act", at=squash)
    between.action = lambda: world.publish(following, tag="v1.1.0")
    world.faulty.faults.append(between)
    with pytest.raises(HubError, match=r"Somebody else committed to main of .* meanwhile"):
        revoke(world, purge=True)
    assert (world.tags()["v1.1.0"] == world.head()) == intact
    assert "was revoked on" in refused(world, old)
    revoke(world, purge=True)
    assert "was revoked on" in refused(world, "revoked-v1.0.0")
    assert world.holds(following)
    assert world.branches() == ["main"]


def test_only_a_release_is_revoked(world: World, package: Path) -> None:
    commit = world.publish(package).commit
    world.api.create_tag(REPO, tag="latest", revision="v1.0.0")
    for other in ("latest", commit):
        with pytest.raises(InputError, match=rf"has no release {other}; it has v1\.0\.0\. Name one"):
            revoke(world, other)
    revoke(world)
    with pytest.raises(InputError, match=rf"has no release {commit}"):  # which the tombstone names
        revoke(world, commit)
    assert world.tags().keys() == {"latest", "v1.0.0", "revoked-v1.0.0"}


def test_hide(world: World, package: Path) -> None:
    world.publish(package, visibility="public")
    assert revoke(world, hide=True)[0] == "the repository becomes private"
    assert world.api.repo_info(REPO).private is True


def test_what_was_hidden_is_not_shown_again_by_the_next_release(
    world: World, inputs: dict, package: Path, tmp_path: Path
) -> None:
    world.publish(package, visibility="public")
    revoke(world, hide=True)
    head, new = world.head(), next_release(inputs, tmp_path)
    with pytest.raises(HubError, match=r"has the revoked v1\.0\.0, and .* Run `revoke .* --tag v1\.0\.0 .* --purge`"):
        world.publish(new, tag="v1.1.0", visibility="public")
    assert (world.head(), world.branches(), world.api.repo_info(REPO).private) == (head, ["main"], True)
    revoke(world, purge=True)
    world.publish(new, tag="v1.1.0", visibility="public")
    assert world.api.repo_info(REPO).private is False
    assert world.tags().keys() == {"v1.1.0", "revoked-v1.0.0"}


@pytest.mark.parametrize("purge", [False, True])
@pytest.mark.parametrize("kind", ["before", "after", "drop"])
def test_a_revocation_that_was_cut_off_is_finished_by_the_next(
    world: World, package: Path, monkeypatch: pytest.MonkeyPatch, kind: str, purge: bool
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    world.publish(package)
    writes = Fault(rf"(POST|PUT|DELETE) /api/models/{REPO}/(commit|tag|super-squash|lfs-files).*", kind, at=1)
    world.faulty.faults.append(writes)
    for at in range(1, 8):
        writes.at, writes.seen = at, 0
        try:
            revoke(world, purge=purge)
        except HubError:
            continue
        break
    revoke(world, purge=purge)
    assert revoke(world, purge=purge) == ()
    assert set(world.files()) == {"README.md"}
    assert world.files("revoked-v1.0.0") == world.files()
    assert world.branches() == ["main"]
    assert ("v1.0.0" in world.tags()) != purge
    assert [f.filename for f in world.api.list_lfs_files(REPO)] == ([] if purge else LARGE)


def test_the_command(world: World, package: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit = world.publish(package).commit
    arguments = ["revoke", REPO, "--tag", "v1.0.0", "--reason", WHY, "--hub", "local", "--store", str(store)]
    assert main([*arguments, "--dry-run", "--purge", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["done"], told["revisions"]) == (False, {"v1.0.0": commit})
    assert "  model.safetensors is removed" in told["steps"]
    assert any(step.startswith("model.safetensors (") for step in told["steps"])
    assert world.tags() == {"v1.0.0": commit}
    assert main(arguments) == 0
    assert "permanently_delete_lfs_files" in capsys.readouterr().out
    assert main(["verify", REPO, "--hub", "local", "--store", str(store)]) == 4
    assert "was revoked on" in capsys.readouterr().err
    assert main([*arguments[:3], "v9.0.0", *arguments[4:]]) == 2
    assert "it has v1.0.0" in capsys.readouterr().err


def test_the_commands_say_on_which_hub(
    world: World, package: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a rehearsal, the store has a repository of the same name."""
    world.publish(package)
    monkeypatch.setattr("pipeline.commands.published.problems", problems)
    monkeypatch.setenv("HF_ENDPOINT", world.hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", world.hub.token)
    verify = ["verify", REPO, "--store", str(store)]
    revocation = ["revoke", REPO, "--tag", "v1.0.0", "--reason", WHY, "--store", str(store), "--dry-run"]
    for hub, place in (([], f"on the loopback Hub of {store}"), (["--hub", "hf"], f"on {world.hub.endpoint}")):
        for command in (verify, revocation):
            assert main([*command, *hub]) == 0
            assert place in capsys.readouterr().out.splitlines()[0]
            assert main([*command, *hub, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["hub"] == ("hf" if hub else "local")


def test_a_stranger_reads_that_a_public_release_was_revoked(world: World, package: Path) -> None:
    world.publish(package, visibility="public")
    revoke(world)
    stranger = world.target.__class__(world.hub.endpoint, False)
    found = revocation_of(REPO, "v1.0.0", stranger)
    assert found
    assert found.reason == WHY
    assert HfApi(endpoint=world.hub.endpoint, token=False).repo_info(REPO).card_data["revoked"] is True


def test_a_hub_that_does_not_answer_for_a_card_is_not_one_without_the_card(
    world: World, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(package)
    revoke(world)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # the client waits between attempts
    world.faulty.faults += [Fault(rf"HEAD /{REPO}/resolve/.*/README.md", "before") for _ in range(50)]
    with pytest.raises(HubError, match="cannot be reached"):
        revocation_of(REPO, "v1.0.0", world.target)


@pytest.mark.parametrize(
    "metadata", ["x: !!timestamp abc", "license: &a mit", pytest.param("a: " + "[" * 3000 + "]" * 3000, id="deep")]
)
def test_a_strangers_card_that_cannot_be_read_is_an_error(
    store: Path, metadata: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is read before the signature."""
    path = store / "hub" / "models" / "a" / "b.git"
    Repository.create(path, Settings("public"))
    card = Add("README.md", content=f"---\n{metadata}\n---\n".encode())
    with closing(Repository(path)) as repository:
        repository.commit("main", None, [card], "as by git push")
    assert main(["verify", "a/b", "--hub", "local", "--store", str(store)]) == 4
    assert "so it is unknown whether it was revoked. Look at it on the Hub." in capsys.readouterr().err


def test_a_strangers_words_reach_no_terminal_as_commands(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = store / "hub" / "models" / "a" / "b.git"
    Repository.create(path, Settings("public"))
    said = 'since: x, reason: "\\e[2J\\e[Hok  signature\\u009b8m", revisions: {}, successor: null'
    card = Add("README.md", content=f"---\nrevoked: true\nrevocation: {{{said}}}\n---\n".encode())
    with closing(Repository(path)) as repository:
        repository.commit("main", None, [card], "as by git push")
    assert main(["verify", "a/b", "--hub", "local", "--store", str(store)]) == 4
    shown = capsys.readouterr().err
    assert r"revoked on x: \u001b[2J\u001b[Hok  signature\u009b8m. Do not use it." in shown
    show(argparse.Namespace(json=True), {"reason": "\x1b[2J\x9b8m\x7f"}, "")
    as_json = capsys.readouterr().out
    assert json.loads(as_json) == {"reason": "\x1b[2J\x9b8m\x7f"}
    assert all(sign.isprintable() or sign == "\n" for sign in shown + as_json)


@pytest.mark.parametrize("reason", ["", " \n ", "x" * 1001])
def test_a_reason_is_a_paragraph(reason: str) -> None:
    with pytest.raises(InputError, match="1 to 1000"):
        check_reason(reason)


def test_a_reason_is_cleaned_and_searched_for_secrets() -> None:
    assert check_reason("two\nlines\x1b of\u202e text") == "two lines of text"
    with pytest.raises(InputError, match=r"README\.md holds"):
        check_reason("the token hf_" + "a1B2" * 9 + " was in it")


def test_a_tombstone_says_what_its_metadata_say() -> None:
    said = Revocation(since="2026-11-25", reason="a <b> | `c` *d*: '#'", revisions={"v1.0.0": "c" * 40}, successor=None)
    shown = ModelCard(
        tombstone("demo/x", said, {"license": "other", "license_name": "x", "license_link": "https://x.org"})
    )
    assert Revocation.model_validate(shown.data.to_dict()["revocation"]) == said
    assert "> a &lt;b&gt; \\| \\`c\\` \\*d\\*: '\\#'" in shown.text
    assert "It has no successor." in shown.text
    assert "new_version" not in shown.data.to_dict()
