"""The loopback Hub, asked by the unmodified client."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import hashlib
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from core.errors import SystemLimitError
from pipeline.localhub.repository import STALE_PARENT
from pipeline.localhub.server import HOST, LocalHub, hub_token
from tests.localhub import REPO, add, api, head, hub, post_commit, raw, repo  # noqa: F401

BIG = os.urandom(1 << 20) * 11  # more than 10 MiB


def test_whoami_and_wrong_token(api: HfApi, hub: LocalHub) -> None:
    who = api.whoami()
    assert (who["name"], who["auth"]["accessToken"]["role"]) == ("local", "write")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=hub.endpoint, token="hf_wrong").whoami()


def test_token_is_made_once_and_is_private(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = set(pool.map(hub_token, [tmp_path] * 16))
    assert len(tokens) == 1
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


def test_create_repo_twice(api: HfApi, repo: str) -> None:
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(repo)
    url = api.create_repo(repo, exist_ok=True)
    assert (url.repo_id, url.endpoint) == (repo, api.endpoint)
    assert api.repo_info(repo).private is True
    with pytest.raises(HfHubHTTPError, match="no repositories of the type 'space'"):
        api.create_repo("demo/data", repo_type="space", space_sdk="static")
    for name in ("../../x", "x.git", "a--b", "é", ""):  # what the client would not even ask for
        answer = raw(api, "POST", "/api/repos/create", json={"name": name, "organization": "demo"})
        assert answer.status_code == 400, name


def test_commit_and_download(api: HfApi, repo: str, tmp_path: Path) -> None:
    card = b"---\nlicense: apache-2.0\ntags: [a]\n---\n# hello\n"
    files = {
        "README.md": card,
        "model.safetensors": BIG,
        "plots/a b.png": b"\x89PNG\0\0",
        "plots/deep/ü.txt": b"x",
        "empty": b"",
    }
    done = api.create_commit(repo, [add(p, c) for p, c in files.items()], commit_message="all", parent_commit=head(api))
    assert done.oid == head(api)
    folder = snapshot_download(repo, endpoint=api.endpoint, token=api.token, cache_dir=tmp_path)
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    assert found.pop(".gitattributes")
    assert found == files
    local = snapshot_download(repo, endpoint=api.endpoint, token=api.token, local_dir=tmp_path / "local")
    assert (Path(local) / "model.safetensors").read_bytes() == BIG

    info = api.repo_info(repo, files_metadata=True)
    assert (info.card_data or {})["license"] == "apache-2.0"
    blobs = {s.rfilename: s for s in info.siblings or []}
    lfs = blobs["model.safetensors"].lfs
    assert lfs
    assert (lfs.sha256, lfs.size) == (hashlib.sha256(BIG).hexdigest(), len(BIG))
    assert blobs["README.md"].size == len(card)
    git_sha = hashlib.sha1(b"blob %d\0" % len(card) + card).hexdigest()
    assert blobs["README.md"].blob_id == git_sha


def test_tree_and_paths_info(api: HfApi, repo: str) -> None:
    api.create_commit(repo, [add("a/b/c.txt", b"1"), add("a/d.safetensors", b"22"), add("e", b"3")], commit_message="x")
    flat = [(type(i).__name__, i.path) for i in api.list_repo_tree(repo)]
    assert sorted(flat) == [("RepoFile", ".gitattributes"), ("RepoFile", "e"), ("RepoFolder", "a")]
    below = {i.path for i in api.list_repo_tree(repo, "a", recursive=True)}
    assert below == {"a/b", "a/b/c.txt", "a/d.safetensors"}
    infos = api.get_paths_info(repo, ["a/d.safetensors", "a/b", "nothing"])
    assert {i.path for i in infos} == {"a/d.safetensors", "a/b"}
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "nothing"))
    assert api.file_exists(repo, "e")
    assert not api.file_exists(repo, "f")


def test_unchanged_files_make_no_commit(api: HfApi, repo: str) -> None:
    files = {"a.txt": b"1", "m.safetensors": b"22"}
    first = api.create_commit(repo, [add(p, c) for p, c in files.items()], commit_message="x")
    again = api.create_commit(repo, [add(p, c) for p, c in files.items()], commit_message="x")
    assert again.oid == first.oid
    assert len(api.list_repo_commits(repo)) == 2


def test_deletes(api: HfApi, repo: str) -> None:
    api.create_commit(repo, [add("a/1", b"1"), add("a/2", b"2"), add("b", b"3")], commit_message="x")
    operations = [CommitOperationDelete("a/", is_folder=True), CommitOperationDelete("b"), add("c", b"4")]
    api.create_commit(repo, operations, commit_message="y")
    assert set(api.list_repo_files(repo)) == {".gitattributes", "c"}
    with pytest.raises(HfHubHTTPError, match="404"):
        api.create_commit(repo, [CommitOperationDelete("nothing")], commit_message="z")


def test_stale_parent_is_412_and_changes_nothing(api: HfApi, repo: str) -> None:
    old = head(api)
    new = api.create_commit(repo, [add("a", b"1")], commit_message="x").oid
    with pytest.raises(HfHubHTTPError, match=re.escape(STALE_PARENT)) as error:
        api.create_commit(repo, [add("a", b"2")], commit_message="y", parent_commit=old)
    assert error.value.response.status_code == 412
    assert head(api) == new
    api.create_commit(repo, [add("a", b"3")], commit_message="short parent", parent_commit=new[:7])


def test_of_concurrent_commits_with_one_parent_one_wins(api: HfApi, repo: str) -> None:
    parent = head(api)

    def attempt(number: int) -> int:
        try:
            api.create_commit(repo, [add("a", b"%d" % number)], commit_message=str(number), parent_commit=parent)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(6) as pool:
        answers = sorted(pool.map(attempt, range(6)))
    assert answers == [200] + [412] * 5
    assert len(api.list_repo_commits(repo)) == 2


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"key": "lfsFile", "value": {"path": "m", "algo": "sha256", "oid": "0" * 64, "size": 1}}, "does not exist"),
        ({"key": "lfsFile", "value": {"path": "m", "algo": "sha256", "oid": "../../../x", "size": 1}}, "not a sha256"),
        ({"key": "file", "value": {"path": "../m", "content": "eA==", "encoding": "base64"}}, "Invalid file path"),
        ({"key": "file", "value": {"path": "a/.git/b", "content": "eA==", "encoding": "base64"}}, "Invalid file path"),
        ({"key": "file", "value": {"path": "m", "content": "***", "encoding": "base64"}}, "not base64"),
        ({"key": "file", "value": {"path": "m"}}, "content"),
        ({"key": "file", "value": {"path": ".gitattributes/x", "content": ""}}, "both a file and a folder"),
        ({"key": "file", "value": {"path": "m", "content": "t=hf_" + "aB3" * 12}}, "contains a Hugging Face token"),
        ({"key": "file", "value": {"path": "m", "content": "x" * (11 << 20)}}, "larger than 10 MiB"),
        ({"key": "file", "value": {"path": "README.md", "content": "---\na: [\n---\n"}}, "not YAML"),
        ({"key": "nonsense", "value": {"path": "m"}}, "Unknown operation"),
        ({"key": "file"}, "'value'"),
    ],
)
def test_bad_commits_are_400_and_change_nothing(api: HfApi, repo: str, item: dict[str, object], message: str) -> None:
    before = head(api)
    answer = post_commit(api, {"key": "file", "value": {"path": "good", "content": "x"}}, item)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert head(api) == before


def test_pointer_text_cannot_stand_for_a_blob_that_is_not_there(api: HfApi, repo: str) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5\n"
    with pytest.raises(BadRequestError, match="LFS pointer pointed to a file that does not exist"):
        api.create_commit(repo, [add("m", text.encode())], commit_message="x")


def test_large_file_upload_checks_digest_size_and_address(api: HfApi, repo: str) -> None:
    oid = hashlib.sha256(b"right").hexdigest()
    batch = {"operation": "upload", "hash_algo": "sha256", "objects": [{"oid": oid, "size": 5}]}
    answer = raw(api, "POST", f"/{repo}.git/info/lfs/objects/batch", json=batch).json()["objects"][0]
    href, verify = answer["actions"]["upload"]["href"], answer["actions"]["verify"]["href"]
    put = get_session().put  # no token: the address is the permission
    assert put(href, content=b"wrong").status_code == 400
    assert put(href, content=b"right and more").status_code == 400
    assert put(href.replace("size=5", "size=6"), content=b"right!").status_code == 403
    assert put(href.replace(oid, "1" * 64), content=b"right").status_code == 403
    assert raw(api, "POST", verify.removeprefix(api.endpoint), json={"oid": oid, "size": 5}).status_code == 404
    assert put(href, content=b"right").status_code == 200
    assert raw(api, "POST", verify.removeprefix(api.endpoint), json={"oid": oid, "size": 5}).status_code == 200
    again = raw(api, "POST", f"/{repo}.git/info/lfs/objects/batch", json=batch).json()["objects"][0]
    assert "actions" not in again


def test_files_of_equal_content_are_sent_once(api: HfApi, repo: str, tmp_path: Path) -> None:
    """The client has one open file for them, which two of its threads would read at once."""
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 40_000)
    batch = {"operation": "upload", "hash_algo": "sha256", "objects": [{"oid": "0" * 64, "size": 5}] * 2}
    assert len(raw(api, "POST", f"/{repo}.git/info/lfs/objects/batch", json=batch).json()["objects"]) == 1
    with (tmp_path / "weights").open("rb") as one, (tmp_path / "weights").open("rb") as two:
        both = [CommitOperationAdd("a.safetensors", one), CommitOperationAdd("b.safetensors", two)]
        api.create_commit(repo, both, commit_message="x")
    assert {file.rfilename for file in api.repo_info(repo).siblings} >= {"a.safetensors", "b.safetensors"}


def test_private_needs_the_token_and_public_does_not(api: HfApi, repo: str, tmp_path: Path) -> None:
    api.create_commit(repo, [add("a", b"1")], commit_message="x")
    stranger = HfApi(endpoint=api.endpoint, token=False)
    for call in (
        lambda: stranger.repo_info(repo),
        lambda: stranger.repo_info("demo/never-was"),
        lambda: stranger.list_repo_files(repo),
        lambda: hf_hub_download(repo, "a", endpoint=api.endpoint, token=False, cache_dir=tmp_path),
    ):
        with pytest.raises(RepositoryNotFoundError):
            call()
    api.update_repo_settings(repo, private=False)
    assert stranger.repo_info(repo).private is False
    path = hf_hub_download(repo, "a", endpoint=api.endpoint, token=False, cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"1"
    with pytest.raises(HfHubHTTPError, match="401"):
        stranger.create_commit(repo, [add("a", b"2")], commit_message="x")
    api.update_repo_settings(repo, visibility="private")
    with pytest.raises(RepositoryNotFoundError):
        stranger.repo_info(repo)


def test_what_is_not_there(api: HfApi, repo: str, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("demo/never-was")
    for revision in ("never-was", "0" * 40, "refs/heads/never", "a..b"):
        with pytest.raises(RevisionNotFoundError):
            api.repo_info(repo, revision=revision)
    with pytest.raises(RevisionNotFoundError):
        api.create_commit(repo, [add("a", b"1")], commit_message="x", revision="never-was")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repo, "nothing", endpoint=api.endpoint, token=api.token, cache_dir=tmp_path)
    assert list(tmp_path.rglob(".no_exist/*/nothing"))  # the client saw X-Repo-Commit and remembers


def test_head_and_ranges(api: HfApi, repo: str) -> None:
    small = b"0123456789"
    api.create_commit(repo, [add("small.txt", small), add("big.safetensors", BIG)], commit_message="x")
    for path, content in (("small.txt", small), ("big.safetensors", BIG)):
        url = f"{api.endpoint}/{repo}/resolve/main/{path}"
        headers = {"authorization": f"Bearer {api.token}", "accept-encoding": "identity"}
        top = get_session().head(url, headers=headers)
        assert (top.status_code, top.headers["content-length"]) == (200, str(len(content)))
        assert top.headers["x-repo-commit"] == head(api)
        assert top.headers["etag"]
        for asked, part in (("bytes=3-6", content[3:7]), ("bytes=4-", content[4:]), ("bytes=-2", content[-2:])):
            answer = get_session().get(url, headers={**headers, "range": asked})
            assert (answer.status_code, answer.content) == (206, part)
        beyond = get_session().get(url, headers={**headers, "range": f"bytes={len(content)}-"})
        assert beyond.status_code == 416
    meta = api.get_hf_file_metadata(url=f"{api.endpoint}/{repo}/resolve/main/big.safetensors")
    assert (meta.etag, meta.size) == (hashlib.sha256(BIG).hexdigest(), len(BIG))


def test_branches_and_tags(api: HfApi, repo: str) -> None:
    first = head(api)
    api.create_branch(repo, branch="staging/one")
    staged = api.create_commit(repo, [add("a", b"1")], commit_message="x", revision="staging/one").oid
    assert (head(api), head(api, "staging/one"), head(api, staged)) == (first, staged, staged)
    api.create_tag(repo, tag="v1.0.0", revision=staged)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(repo, tag="v1.0.0", revision=first)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(repo, branch="staging/one")
    with pytest.raises(HfHubHTTPError, match="Invalid reference name"):
        api.create_tag(repo, tag="bad..name")
    refs = api.list_repo_refs(repo)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": first, "staging/one": staged}
    assert {t.name: t.target_commit for t in refs.tags} == {"v1.0.0": staged}
    api.delete_branch(repo, branch="staging/one")
    assert head(api, "v1.0.0") == staged
    api.delete_tag(repo, tag="v1.0.0")
    assert not api.list_repo_refs(repo).tags
    with pytest.raises(HfHubHTTPError, match="cannot be deleted"):
        api.delete_branch(repo, branch="main")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(repo, tag="v1.0.0")


def test_card_validation(api: HfApi, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bases = ("base_model: /home/me/model", "base_model: a--b/c")
    for bad in ("license: [x]", *bases, "language: klingon language", "model-index: 1", "- a"):
        with pytest.raises(ValueError, match="Invalid metadata"):
            api.create_commit(repo, [add("README.md", f"---\n{bad}\n---\n".encode())], commit_message="x")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", api.endpoint)
    for base in ("a/b", "gpt2"):
        ModelCard(f"---\nlicense: apache-2.0\nbase_model: {base}\nlanguage: [en, de]\n---\n").validate()


def test_a_dataset_is_a_repository_beside_the_model_of_its_name(api: HfApi, repo: str) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info(repo, repo_type="dataset")
    api.create_repo(repo, repo_type="dataset")
    big = [add("rows.jsonl", b'{"question": "x"}'), add("big.parquet", BIG)]
    commit = api.create_commit(repo, big, commit_message="x", repo_type="dataset").oid
    assert set(api.list_repo_files(repo, repo_type="dataset")) == {".gitattributes", "rows.jsonl", "big.parquet"}
    assert set(api.list_repo_files(repo)) == {".gitattributes"}
    path = api.hf_hub_download(repo, "big.parquet", repo_type="dataset", revision=commit)
    assert Path(path).read_bytes() == BIG
    api.delete_repo(repo, repo_type="dataset")
    assert api.repo_exists(repo)


def test_repositories_are_git(api: HfApi, repo: str, hub: LocalHub) -> None:
    from dulwich import porcelain

    api.create_commit(repo, [add("a/b", b"1")], commit_message="x", commit_description="why")
    folder = hub.folder / "models" / f"{repo}.git"
    assert not list(porcelain.fsck(str(folder)))
    assert [c.message for c in api.list_repo_commits(repo)] == ["why", ""]


def test_delete_repo(api: HfApi, repo: str) -> None:
    api.delete_repo(repo)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info(repo)
    api.create_repo(repo, private=True)
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_one_folder_served_twice(api: HfApi, repo: str, hub: LocalHub) -> None:
    with LocalHub(hub.folder) as second:
        other = HfApi(endpoint=second.endpoint, token=second.token)
        sha = other.create_commit(repo, [add("a", b"1")], commit_message="x").oid
    assert head(api) == sha


def test_what_else_the_client_can_ask_for(api: HfApi, repo: str, tmp_path: Path) -> None:
    first = api.create_commit(repo, [add("a/b", b"1"), add("m.safetensors", b"22")], commit_message="one").oid
    second = api.create_commit(repo, [add("c", b"1")], commit_message="two").oid
    last = {i.path: i.last_commit for i in api.list_repo_tree(repo, recursive=True, expand=True)}
    assert {path: commit and (commit.oid, commit.title) for path, commit in last.items()} == {
        **dict.fromkeys(("a", "a/b", "m.safetensors"), (first, "one")),
        ".gitattributes": (api.list_repo_commits(repo)[-1].commit_id, "initial commit"),
        "c": (second, "two"),
    }
    assert [i.last_commit and i.last_commit.oid for i in api.get_paths_info(repo, ["c"], expand=True)] == [second]
    info = api.model_info(repo, expand=["gated", "lastModified"])
    assert (info.gated, info.private) == (False, None)
    assert api.model_info(repo, securityStatus=True).security_repo_status
    copies = [CommitOperationCopy("m.safetensors", "n.safetensors"), CommitOperationCopy("c", "d")]
    api.create_commit(repo, copies, commit_message="copies")
    assert Path(api.hf_hub_download(repo, "n.safetensors", cache_dir=tmp_path)).read_bytes() == b"22"
    (tmp_path / "up").mkdir()
    for number in range(30):
        (tmp_path / "up" / f"{number}.txt").write_text(str(number))
    api.upload_folder(repo_id=repo, folder_path=tmp_path / "up", path_in_repo="up", delete_patterns="*")
    assert len([path for path in api.list_repo_files(repo) if path.startswith("up/")]) == 30
    assert api.verify_repo_checksums(repo, cache_dir=tmp_path, revision="main").mismatches == []
    assert not list(api.list_datasets(author="demo"))


def test_lists_come_in_pages(api: HfApi, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.localhub.reading.PAGE", 2)
    operations = [add(f"ü {number}/x?", b"1") for number in range(5)]
    api.create_commit(repo, operations, commit_message="x")
    assert len([i for i in api.list_repo_tree(repo, recursive=True) if i.path.endswith("x?")]) == 5
    assert len(list(api.list_repo_tree(repo, "ü 1", revision="main"))) == 1
    for number in range(3):
        api.create_commit(repo, [add("n", b"%d" % number)], commit_message=str(number))
    assert [c.title for c in api.list_repo_commits(repo)] == ["2", "1", "0", "x", "initial commit"]


@pytest.mark.parametrize("port", [70000, -1])
def test_a_port_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path, port: int) -> None:
    with pytest.raises(SystemLimitError, match=rf"Port {port} of {HOST} cannot be used .* up to 65535"):
        LocalHub(tmp_path, port)
