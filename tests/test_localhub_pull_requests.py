"""Pull requests, discussions, squashed histories and large files removed for good, asked by the unmodified client."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import json

import pytest
from huggingface_hub import CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

from pipeline.localhub.server import LocalHub
from tests.localhub import REPO, add, api, as_user, head, hub, repo  # noqa: F401


def test_a_commit_opens_a_pull_request_and_its_merge_lands_on_main(api: HfApi, repo: str) -> None:
    before = head(api)
    files = [add("a", b"1"), add("m.safetensors", b"weights")]
    made = api.create_commit(repo, files, commit_message="Release", commit_description="why", create_pr=True)
    assert (made.pr_revision, made.pr_num, head(api)) == ("refs/pr/1", 1, before)
    assert head(api, "refs/pr/1") == made.oid
    assert api.list_repo_files(repo, revision="refs/pr/1") == [".gitattributes", "a", "m.safetensors"]

    opened = api.get_discussion_details(repo, 1)
    assert (opened.status, opened.is_pull_request, opened.target_branch) == ("open", True, "refs/heads/main")
    assert (opened.title, opened.author, opened.conflicting_files) == ("Release", "local", [])
    assert opened.diff
    assert "+++ b/a\n@@ -0,0 +1 @@\n+1" in opened.diff
    assert [e.type for e in opened.events] == ["comment", "commit"]

    api.merge_pull_request(repo, 1, comment="looks right")
    merged = api.get_discussion_details(repo, 1)
    assert (merged.status, merged.merge_commit_oid) == ("merged", head(api))
    assert [c.title for c in api.list_repo_commits(repo)] == ["Release (#1)", "initial commit"]
    assert api.list_repo_files(repo) == [".gitattributes", "a", "m.safetensors"]
    with pytest.raises(HfHubHTTPError, match="is merged"):
        api.merge_pull_request(repo, 1)
    with pytest.raises(HfHubHTTPError, match="is merged"):
        api.create_commit(repo, [add("b", b"1")], commit_message="late", revision="refs/pr/1")


def test_a_draft_takes_commits_and_is_opened_before_it_is_merged(api: HfApi, repo: str) -> None:
    number = api.create_pull_request(repo, "Draft", description="d").num
    assert head(api, f"refs/pr/{number}") == head(api)
    parent = head(api, f"refs/pr/{number}")
    api.create_commit(repo, [add("a", b"1")], commit_message="x", revision="refs/pr/1", parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(repo, [add("a", b"2")], commit_message="x", revision="refs/pr/1", parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="is a draft"):
        api.merge_pull_request(repo, number)
    api.change_discussion_status(repo, number, "open", comment="ready")
    api.merge_pull_request(repo, number)
    assert api.file_exists(repo, "a")
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [pr.ref for pr in refs.pull_requests or []] == ["refs/pr/1"]
    assert api.list_repo_refs(repo).pull_requests is None


def test_a_merge_keeps_what_main_got_since_and_names_conflicts(api: HfApi, repo: str) -> None:
    api.create_commit(repo, [add("both", b"0"), add("gone", b"0")], commit_message="x")
    operations = [add("theirs", b"1"), add("both", b"1"), CommitOperationDelete("gone")]
    api.create_commit(repo, operations, commit_message="PR", create_pr=True)
    api.create_commit(repo, [add("ours", b"2")], commit_message="meanwhile")
    assert api.get_discussion_details(repo, 1).conflicting_files == []
    api.create_commit(repo, [add("both", b"2")], commit_message="against it")
    assert api.get_discussion_details(repo, 1).conflicting_files == ["both"]
    landed = head(api)
    with pytest.raises(HfHubHTTPError, match=r"409[\s\S]*conflicts: both"):
        api.merge_pull_request(repo, 1)
    assert head(api) == landed
    api.create_commit(repo, [add("both", b"0")], commit_message="back")
    api.merge_pull_request(repo, 1)
    assert set(api.list_repo_files(repo)) == {".gitattributes", "both", "ours", "theirs"}


def test_a_pull_request_against_a_main_that_moved_is_412(api: HfApi, repo: str) -> None:
    parent = head(api)
    api.create_commit(repo, [add("a", b"1")], commit_message="x")
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(repo, [add("a", b"2")], commit_message="y", create_pr=True, parent_commit=parent)
    assert not list(api.get_repo_discussions(repo))


def test_discussions_are_listed_renamed_commented_and_closed(api: HfApi, repo: str) -> None:
    number = api.create_discussion(repo, "A <b>question</b>", description="text").num
    api.create_pull_request(repo, "A change")
    assert [d.num for d in api.get_repo_discussions(repo)] == [2, 1]
    assert [d.num for d in api.get_repo_discussions(repo, discussion_type="pull_request")] == [2]
    assert [d.num for d in api.get_repo_discussions(repo, author="nobody")] == []
    comment = api.comment_discussion(repo, number, "<script>")
    assert comment.rendered == "<p>&lt;script&gt;</p>"
    assert api.edit_discussion_comment(repo, number, comment.id, "better").content == "better"
    with pytest.warns(UserWarning, match="irreversible"):
        assert api.hide_discussion_comment(repo, number, comment.id).hidden
    assert api.rename_discussion(repo, number, "Title").new_title == "Title"
    assert api.change_discussion_status(repo, number, "closed").new_status == "closed"
    assert [d.num for d in api.get_repo_discussions(repo, discussion_status="closed")] == [1]
    assert api.get_discussion_details(repo, number).title == "Title"
    with pytest.raises(HfHubHTTPError, match="404"):
        api.get_discussion_details(repo, 99)
    with pytest.raises(HfHubHTTPError, match="no pull request"):
        api.merge_pull_request(repo, number)


def test_who_may_only_read_proposes_and_who_owns_decides(api: HfApi, hub: LocalHub, repo: str) -> None:
    api.update_repo_settings(repo, private=False)
    guest, reader = as_user(hub, "guest"), as_user(hub, "guest", "read")
    guest.create_commit(repo, [add("m.safetensors", b"g")], commit_message="mine", create_pr=True)
    guest.create_commit(repo, [add("b", b"1")], commit_message="more", revision="refs/pr/1")
    assert api.get_discussion_details(repo, 1).author == "guest"
    for refused in (
        lambda: guest.merge_pull_request(repo, 1),
        lambda: guest.create_commit(repo, [add("a", b"1")], commit_message="x"),
        lambda: reader.create_commit(repo, [add("a", b"1")], commit_message="x", create_pr=True),
        lambda: reader.comment_discussion(repo, 1, "hello"),
        lambda: as_user(hub, "other").create_commit(repo, [add("a", b"")], commit_message="x", revision="refs/pr/1"),
    ):
        with pytest.raises(HfHubHTTPError, match="403"):
            refused()
    api.merge_pull_request(repo, 1)
    assert api.file_exists(repo, "b")


def test_a_merge_that_was_cut_off_is_settled_by_where_main_is(api: HfApi, hub: LocalHub, repo: str) -> None:
    record = hub.folder / "models" / f"{repo}.git" / "discussions" / "1.json"
    api.create_commit(repo, [add("a", b"1")], commit_message="x", create_pr=True)
    opened = json.loads(record.read_text())
    record.write_text(json.dumps({**opened, "merging": "0" * 40}))  # killed before main moved
    assert api.get_discussion_details(repo, 1).status == "open"
    api.merge_pull_request(repo, 1)
    record.write_text(json.dumps({**opened, "merging": head(api)}))  # killed after main moved
    settled = api.get_discussion_details(repo, 1)
    assert (settled.status, settled.merge_commit_oid) == ("merged", head(api))


def test_a_squash_keeps_the_files_and_no_old_commit(api: HfApi, hub: LocalHub, repo: str) -> None:
    from dulwich import porcelain

    old = api.create_commit(repo, [add("a", b"1"), add("secret", b"2")], commit_message="x").oid
    kept = api.create_commit(repo, [add("a", b"2"), CommitOperationDelete("secret")], commit_message="y").oid
    api.create_tag(repo, tag="v1.0.0", revision=kept)
    api.super_squash_history(repo, commit_message="squashed")
    assert [c.title for c in api.list_repo_commits(repo)] == ["squashed"]
    assert api.list_repo_files(repo) == [".gitattributes", "a"]
    assert head(api, old) == old  # a tag holds it
    api.delete_tag(repo, tag="v1.0.0")
    api.super_squash_history(repo)
    for gone in (old, kept):
        with pytest.raises(RevisionNotFoundError):
            api.repo_info(repo, revision=gone)
    assert not list(porcelain.fsck(str(hub.folder / "models" / f"{REPO}.git")))
    with pytest.raises(RevisionNotFoundError):
        api.super_squash_history(repo, branch="never")


@pytest.mark.parametrize("rewrite", [True, False])
def test_large_files_are_removed_for_good(api: HfApi, hub: LocalHub, repo: str, rewrite: bool) -> None:
    weights = [add("m.safetensors", b"bad"), add("n.safetensors", b"good")]
    first = api.create_commit(repo, weights, commit_message="x").oid
    api.create_tag(repo, tag="v1.0.0", revision=first)
    api.create_commit(repo, [add("m.safetensors", b"better")], commit_message="y")
    listed = {f.filename: f for f in api.list_lfs_files(repo)}
    stored = {f.size for f in api.list_lfs_files(repo)}
    assert stored == {3, 4, 6}
    bad = [f for f in api.list_lfs_files(repo) if f.size == 3]
    assert bad[0].filename == "m.safetensors"
    api.permanently_delete_lfs_files(repo, bad, rewrite_history=rewrite)
    assert {f.size for f in api.list_lfs_files(repo)} == {4, 6}
    assert set(listed) == {"m.safetensors", "n.safetensors"}
    assert len(api.list_repo_commits(repo)) == 3
    names = set(api.list_repo_files(repo, revision="v1.0.0"))
    assert names == {".gitattributes", "n.safetensors"} | (set() if rewrite else {"m.safetensors"})
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(repo, "m.safetensors", revision="v1.0.0")
    assert api.file_exists(repo, "m.safetensors")
    if rewrite:
        with pytest.raises(RevisionNotFoundError):
            api.repo_info(repo, revision=first)
    with pytest.raises(HfHubHTTPError, match="404"):
        api.permanently_delete_lfs_files(repo, bad)
