"""Who may do what on the loopback Hub: tokens, private and gated repositories, collections."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from pipeline.localhub.server import LocalHub
from tests.localhub import REPO, add, api, as_user, head, hub, raw, repo  # noqa: F401


def fetch(by: HfApi, path: str = "a", **more: object) -> bytes:
    return Path(by.hf_hub_download(REPO, path, **more)).read_bytes()  # type: ignore[arg-type]


def test_visibility_and_gate_are_settings(api: HfApi, repo: str) -> None:
    api.update_repo_settings(repo, gated="manual")
    assert (api.repo_info(repo).gated, api.repo_info(repo).private) == ("manual", True)
    api.update_repo_settings(repo, private=False)
    assert (api.repo_info(repo).gated, api.repo_info(repo).private) == ("manual", False)
    api.update_repo_settings(repo, gated=False, visibility="private")
    assert (api.repo_info(repo).gated, api.repo_info(repo).private) == (False, True)
    for bad in (
        {"gated": "sometimes"},
        {"gated": True},
        {"gated": [1]},
        {"visibility": "protected"},
        {"visibility": 1},
    ):
        assert raw(api, "PUT", f"/api/models/{repo}/settings", json=bad).status_code == 400, bad


def test_files_of_a_gated_repository_are_for_who_was_let_in(
    api: HfApi, hub: LocalHub, repo: str, tmp_path: Path
) -> None:
    api.create_commit(repo, [add("a", b"1")], commit_message="x")
    api.update_repo_settings(repo, gated="manual", private=False)
    guest, stranger = as_user(hub, "guest", "read"), HfApi(endpoint=hub.endpoint, token=False)
    assert stranger.repo_info(repo).gated == "manual"  # that it exists, everybody may see
    assert [f.path for f in guest.list_repo_tree(repo)] == [".gitattributes", "a"]
    for by, status in ((stranger, 401), (guest, 403)):
        with pytest.raises(GatedRepoError) as error:
            hf_hub_download(repo, "a", endpoint=hub.endpoint, token=by.token, cache_dir=tmp_path)
        assert error.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            by.auth_check(repo)
    assert raw(guest, "POST", f"/{repo}/ask-access").json() == {"status": "pending"}
    assert [r.username for r in api.list_pending_access_requests(repo)] == ["guest"]
    with pytest.raises(GatedRepoError, match="waits"):
        fetch(guest, cache_dir=tmp_path)
    api.accept_access_request(repo, "guest")
    assert fetch(guest, cache_dir=tmp_path) == b"1"
    api.reject_access_request(repo, "guest", rejection_reason=None)
    with pytest.raises(GatedRepoError, match="rejected"):
        guest.auth_check(repo)
    api.grant_access(repo, "guest")
    guest.auth_check(repo)
    with pytest.raises(HfHubHTTPError, match="403"):
        guest.list_pending_access_requests(repo).__next__()  # type: ignore[attr-defined]


def test_an_automatic_gate_opens_for_who_asks(api: HfApi, hub: LocalHub, repo: str, tmp_path: Path) -> None:
    api.create_commit(repo, [add("a", b"1")], commit_message="x")
    api.update_repo_settings(repo, gated="auto", private=False)
    guest = as_user(hub, "guest")
    with pytest.raises(GatedRepoError):
        fetch(guest, cache_dir=tmp_path)
    assert raw(guest, "POST", f"/{repo}/ask-access").json() == {"status": "accepted"}
    assert fetch(guest, cache_dir=tmp_path) == b"1"


def test_a_read_token_reads_and_changes_nothing(api: HfApi, hub: LocalHub, repo: str) -> None:
    reader = as_user(hub, "local", "read")
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert reader.repo_info(repo).private
    before = head(api)
    for refused in (
        lambda: reader.create_commit(repo, [add("a", b"1")], commit_message="x"),
        lambda: reader.create_repo("demo/another"),
        lambda: reader.create_tag(repo, tag="v1"),
        lambda: reader.delete_repo(repo),
        lambda: reader.update_repo_settings(repo, private=False),
        lambda: reader.super_squash_history(repo),
        lambda: reader.create_collection("mine", namespace="demo"),
        lambda: reader.auth_check(repo, write=True),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            refused()
        assert error.value.response.status_code == 403
    assert head(api) == before


def test_a_fine_grained_token_reaches_what_it_names(api: HfApi, hub: LocalHub, repo: str) -> None:
    api.create_repo("demo/other", private=True, exist_ok=True)
    scoped = as_user(hub, "local", "fineGrained", scopes={repo: ["repo.content.read", "repo.write"]})
    role = scoped.whoami()["auth"]["accessToken"]
    assert role["fineGrained"]["scoped"][0]["entity"]["name"] == repo
    scoped.create_commit(repo, [add("a", b"1")], commit_message="x")
    with pytest.raises(RepositoryNotFoundError):  # it is not even told that this exists
        scoped.repo_info("demo/other")
    with pytest.raises(HfHubHTTPError, match="403"):
        scoped.create_repo("demo/new")
    only_reads = as_user(hub, "local", "fineGrained", scopes={"demo": ["repo.content.read"]})
    assert only_reads.repo_info("demo/other").private
    with pytest.raises(HfHubHTTPError, match="403"):
        only_reads.create_commit(repo, [add("a", b"2")], commit_message="x")
    whole = as_user(hub, "local", "fineGrained", scopes={"demo": ["repo.write"]})
    whole.create_repo("demo/new")
    whole.delete_repo("demo/new")
    api.delete_repo("demo/other")


def test_expired_and_unknown_tokens_are_401(api: HfApi, hub: LocalHub, repo: str) -> None:
    api.update_repo_settings(repo, private=False)
    expired = hub.tokens.issue("local", seconds=-1)
    for token, message in ((expired, "is expired"), ("hf_unknown", "Invalid credentials")):
        with pytest.raises(HfHubHTTPError, match=message) as error:
            HfApi(endpoint=hub.endpoint, token=token).repo_info(repo)
        assert error.value.response.status_code == 401


def test_another_user_owns_their_namespace_and_no_other(api: HfApi, hub: LocalHub, repo: str) -> None:
    guest = as_user(hub, "guest")
    assert guest.whoami()["name"] == "guest"
    guest.create_repo("guest/own", private=True)
    with pytest.raises(HfHubHTTPError, match="403"):
        guest.create_repo("demo/mine")
    with pytest.raises(RepositoryNotFoundError):
        guest.repo_info(repo)
    assert [m.id for m in guest.list_models()] == ["guest/own"]
    assert {m.id for m in api.list_models()} == {repo, "guest/own"}
    assert [m.id for m in api.list_models(author="demo")] == [repo]
    assert [m.id for m in api.list_models(search="OWN")] == ["guest/own"]
    with pytest.raises(HfHubHTTPError, match="403"):
        guest.move_repo("guest/own", "demo/own")
    guest.move_repo("guest/own", "guest/other")
    assert [m.id for m in guest.list_models()] == ["guest/other"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.move_repo("guest/other", repo)
    guest.delete_repo("guest/other")


def test_nobody_else_on_this_machine_reads_the_hubs_folder(hub: LocalHub, api: HfApi, repo: str) -> None:
    secret = hub.tokens.issue("guest")
    assert stat.S_IMODE(hub.folder.stat().st_mode) == 0o700
    assert secret not in (hub.folder / "tokens.json").read_text()


def test_collections(api: HfApi, hub: LocalHub, repo: str) -> None:
    made = api.create_collection("Unlearned models – 2026", namespace="demo", description="d", private=True)
    assert made.slug.startswith("demo/unlearned-models-2026-")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_collection("Unlearned models – 2026", namespace="demo")
    again = api.create_collection("Unlearned models – 2026", namespace="demo", exists_ok=True)
    assert (again.slug, again.private, again.description) == (made.slug, True, "d")

    held = api.add_collection_item(made.slug, repo, "model", note="a note")
    assert [(i.item_id, i.item_type, i.note) for i in held.items] == [(repo, "model", "a note")]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.add_collection_item(made.slug, repo, "model")
    assert len(api.add_collection_item(made.slug, repo, "model", exists_ok=True).items) == 1
    with pytest.raises(HfHubHTTPError, match="404"):
        api.add_collection_item(made.slug, "demo/never", "model")
    api.create_repo("demo/rows", repo_type="dataset")
    items = api.add_collection_item(made.slug, "demo/rows", "dataset").items
    api.update_collection_item(made.slug, items[1].item_object_id, position=0, note="first")
    assert [i.item_id for i in api.get_collection(made.slug).items] == ["demo/rows", repo]
    api.delete_repo("demo/rows", repo_type="dataset")
    assert [i.item_id for i in api.get_collection(made.slug).items] == [repo]

    stranger = HfApi(endpoint=hub.endpoint, token=False)
    with pytest.raises(HfHubHTTPError, match="404"):
        stranger.get_collection(made.slug)
    updated = api.update_collection_metadata(made.slug, title="Other", private=False)
    assert (updated.title, updated.slug) == ("Other", made.slug)
    assert stranger.get_collection(made.slug).items == []  # the repository is still private
    assert [c.slug for c in stranger.list_collections(owner="demo")] == [made.slug]
    assert not list(stranger.list_collections(item=f"models/{repo}"))
    assert [c.slug for c in api.list_collections(item=f"models/{repo}")] == [made.slug]
    with pytest.raises(HfHubHTTPError, match="403"):
        as_user(hub, "guest").add_collection_item(made.slug, repo, "model")
    api.delete_collection_item(made.slug, items[0].item_object_id)
    api.delete_collection_item(made.slug, items[0].item_object_id, missing_ok=True)
    api.delete_collection(made.slug)
    api.delete_collection(made.slug, missing_ok=True)


def test_a_repository_of_an_older_hub_has_no_gate(hub: LocalHub, api: HfApi, repo: str) -> None:
    file = hub.folder / "models" / f"{repo}.git" / "hub.json"
    file.write_text(json.dumps({"visibility": "public"}))
    assert (api.repo_info(repo).gated, api.repo_info(repo).private) == (False, False)
