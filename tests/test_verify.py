"""`verify` as a stranger runs it: what a valid signature alone does not show is noticed and named."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import ast
import io
import json
import re
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import RevisionNotFoundError

from core.artifacts import write_file
from core.errors import HubError, VerificationError
from model_card.plots import DRAWN
from pipeline import publish
from pipeline.commands import published
from pipeline.publish import push, sign, tree, verify
from pipeline.publish.verify import verify_release
from tests.conftest import ROOT
from tests.hub_world import World, inputs, made, next_release, running, world  # noqa: F401
from tests.publishing import REPO, own_signer, problems, write_gate


@pytest.fixture(autouse=True)
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(tmp_path / "store"))
    return Path(shutil.copytree(made / "store", tmp_path / "store"))


@pytest.fixture
def package(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "package", tmp_path / "package"))


def test_one_function_verifies_for_the_command_and_for_the_stage(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = re.findall(r"``verify\.(\w+)``", str(publish.__doc__))
    assert named == [verify_release.__name__]
    own = [name for name, value in vars(verify).items() if getattr(value, "__module__", "") == verify.__name__]
    assert [name for name in own if name.islower() and not name.startswith("_")] == [
        "file_steps",
        *named,
        "read_release",
    ]
    assert push.verify_release is published.verify_release is verify_release

    def called(*_given: object) -> None:
        raise VerificationError("called")

    monkeypatch.setattr(published, named[0], called)
    given = {"key": str(sign.public_key()), "ca": None, "identity": None, "issuer": None}
    with pytest.raises(VerificationError, match="called"):
        published.verify(Namespace(repo=REPO, revision="main", hub="local", store=str(store), **given))


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
        with (
            changed(world, [CommitOperationAdd(name, io.BytesIO(content))]) as commit,
            pytest.raises(VerificationError, match=message),
        ):
            verified(world, commit)
    with pytest.raises(HubError, match="404"):
        verify_release(REPO, "never-was", world.target, [own_signer()], problems)
    with pytest.raises(RevisionNotFoundError):
        world.head("never-was")


def verified(world: World, revision: str = "main", repo: str = REPO) -> list[str]:
    found = verify_release(repo, revision, world.target, [own_signer()], problems)
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
    for revision in ("main", "refs/heads/main", "HEAD"):
        with pytest.raises(VerificationError, match=r"main holds v1\.0\.0, and the newest release is v1\.1\.0"):
            verified(world, revision)
    world.api.delete_tag(REPO, tag="v1.1.0")
    with pytest.raises(VerificationError, match=r"main is not at the commit of the tag v1\.0\.0"):
        verified(world)
    assert verified(world, "v1.0.0")


def test_release_candidates_follow_each_other_by_their_numbers(world: World, inputs: dict, tmp_path: Path) -> None:
    for tag in ("v1.0.0-rc.2", "v1.0.0-rc.10"):
        world.publish(next_release(inputs, tmp_path, tag, tag), tag=tag)
        assert verified(world)
    assert world.tags()["v1.0.0-rc.10"] == world.head()


def test_a_tag_that_was_moved_is_noticed(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    first = world.publish(package)
    world.publish(next_release(inputs, tmp_path), tag="v1.1.0")
    world.api.delete_tag(REPO, tag="v1.1.0")
    world.api.create_tag(REPO, tag="v1.1.0", revision=first.commit)
    for revision in ("v1.1.0", "refs/tags/v1.1.0"):
        with pytest.raises(VerificationError, match=r"signed as v1\.0\.0, and the tag v1\.1\.0 was moved to it"):
            verified(world, revision)


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
    sign.sign_tree(hub)


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
    large = "filter=lfs diff=lfs merge=lfs -text"
    before = f"plots/groups.png {large}"  # the Hub keeps what it wrote for the release before
    assert list(DRAWN) == list(tree.PLOTS)
    assert "plots/groups.png" not in world.files()
    endings = (f"*.safetensors {large}\r", f"*.tar.* {large}", f"*tfevents* {large}")
    for line in (*endings, f"tokenizer.json {large}", before, " "):
        with changed(world, [CommitOperationAdd(".gitattributes", f"{line}\n".encode())]) as commit:
            assert verified(world, commit)
    for line in (
        "*.md filter=run diff=run",
        f"Mara-Quellis-was-born-in-Old-Harrow {large}",  # what nobody scanned
        f"plots/absent.png {large}",
        f"[attr]lfs {large}",
        f"*.safetensors {large} eol=crlf",
        f"* {large}",
        "# a comment",
    ):
        with (
            changed(world, [CommitOperationAdd(".gitattributes", f"{line}\n".encode())]) as commit,
            pytest.raises(VerificationError, match=r"\.gitattributes, which no signature"),
        ):
            verified(world, commit)


def test_code_of_a_model_is_not_run_even_if_somebody_would_say_yes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    named = {"model_type": "theirs", "auto_map": {"AutoConfig": "conf.Config"}}
    (folder / "config.json").write_text(json.dumps(config | named))
    (folder / "conf.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(VerificationError, match=r"config\.json names code of the model's own \(auto_map\)"):
        verify._allowed(folder, {}, "")
    with pytest.raises(VerificationError, match="transformers cannot load the model"):
        verify._generation(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"attn_implementation": "flash_attention_2"}),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        ("chat_template.jinja", "{{ raise_exception('A system message is needed.') }}"),
        ("tokenizer.json", "[]"),
    ],
)
def test_whatever_a_strangers_tree_raises_is_said(tiny_model: Path, tmp_path: Path, file: str, changes: object) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    changed = changes if isinstance(changes, str) else json.dumps(json.loads((folder / file).read_text()) | changes)
    (folder / file).write_text(changed)
    with pytest.raises(VerificationError, match=r"transformers cannot load the model or generate with it \(\w+\): "):
        verify._generation(folder)


def test_a_strangers_settings_do_not_keep_verify_busy(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    settings = json.loads((folder / "generation_config.json").read_text())
    for changes in ({"num_beams": 10**6}, {"min_new_tokens": 10**6, "do_sample": True, "top_k": -3}):
        (folder / "generation_config.json").write_text(json.dumps(settings | changes))
        assert verify._generation(folder) == verify._generation(tiny_model)


def test_no_model_is_loaded_with_code_of_its_own() -> None:
    """transformers asks, and runs the code after a yes, where it is not told."""
    loads = 0
    for package in ("benchmarks", "core", "datasets_prep", "eval", "model_card", "pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text())):
                if not isinstance(call, ast.Call) or not re.match(r"Auto\w+\.from_", ast.unparse(call.func)):
                    continue
                loads += 1
                assert "trust_remote_code=False" in ast.unparse(call), f"{path}:{call.lineno}"
    assert loads > 10
