"""Ways to publish: by pull request, gated, into a collection; the plan of it; and how much is sent."""

# ruff: noqa: F811  (fixtures are imported, and named by tests)

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from core.artifacts import write_file
from core.errors import HubError, InputError
from core.progress import Report, listening
from pipeline.__main__ import main
from pipeline.engine.live import _Pace
from pipeline.publish import collection
from pipeline.publish.plan import plan_publication, planned
from pipeline.publish.scan import Scanner
from pipeline.publish.schema import RECEIPT
from pipeline.publish.target import check_local, check_target
from pipeline.publish.upload import Upload
from pipeline.publish.verify import verify_release
from tests.hub_world import CONFIG, Fault, World, inputs, made, next_release, package, running, store, world  # noqa: F401
from tests.localhub import as_user
from tests.planted import SECRETS
from tests.publishing import ANSWER, REPO, own_signer, problems

WRITES = (
    r"(POST|PUT|DELETE) .*/(commit|branch|tag|settings|create|merge|status|comment|discussions|items|super-squash).*"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # the client waits between attempts


def watch_writes(world: World) -> Fault:
    writes = Fault(WRITES, "before", at=10**9)
    world.faulty.faults.append(writes)
    return writes


def requested(world: World, package: Path) -> int:
    """Publish by a pull request; its number."""
    with pytest.raises(HubError, match=r"Pull request \d+ of .* waits to be merged.*Run the same command again"):
        world.publish(package, via="pr")
    (asked,) = [p for p in world.api.get_repo_discussions(REPO) if p.status == "open"]
    return asked.num


def test_a_release_by_pull_request_is_verified_before_and_after_the_merge(world: World, package: Path) -> None:
    number = requested(world, package)
    before = world.head()
    verify_release(REPO, f"refs/pr/{number}", world.target, [own_signer()], problems)
    assert world.tags() == {}
    assert world.branches() == ["main"]
    writes = watch_writes(world)
    assert requested(world, package) == number  # running again before the merge changes nothing
    assert (writes.seen, world.head()) == (0, before)
    world.api.merge_pull_request(REPO, number)
    receipt = world.publish(package, via="pr")
    assert world.tags() == {"v1.0.0": receipt.commit}
    assert receipt.commit == world.head()
    assert world.holds(package)
    writes.seen = 0
    assert world.publish(package, via="pr") == receipt
    assert writes.seen == 0


def test_a_pull_request_for_an_older_main_is_made_anew(world: World, package: Path) -> None:
    first = requested(world, package)
    world.api.upload_file(path_or_fileobj=io.BytesIO(b"x"), path_in_repo="other.txt", repo_id=REPO)
    second = requested(world, package)
    assert second > first
    assert world.api.get_discussion_details(REPO, first).status == "closed"
    world.api.merge_pull_request(REPO, second)
    world.publish(package, via="pr")
    assert world.holds(package)


def test_a_pull_request_of_somebody_else_is_left_alone(world: World, package: Path) -> None:
    """Who opened it may commit to it, also after it was verified."""
    world.api.create_repo(REPO, private=False)
    theirs = as_user(world.hub, "mallory").create_pull_request(REPO, "Release v1.0.0").num
    with pytest.raises(HubError, match=r"Pull request 2 of .*, verified at commit \w{40}, and waits") as caught:
        world.publish(package, via="pr", visibility="public")
    assert world.head("refs/pr/2") in str(caught.value)
    assert world.api.get_discussion_details(REPO, theirs).status == "draft"
    assert world.head(f"refs/pr/{theirs}") == world.head()


def test_who_may_only_ask_for_a_merge_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.api.create_repo(REPO, private=False)
    monkeypatch.setenv("HF_ENDPOINT", world.hub.endpoint)
    config = CONFIG.model_copy(update={"hub": "hf", "via": "pr", "visibility": "public"})
    for token, said in (
        (world.hub.token, f"may write to {REPO}"),
        (world.hub.tokens.issue("dave"), f"dave may ask for a merge into {REPO}; tagging needs write access"),
    ):
        monkeypatch.setenv("HF_TOKEN", token)
        assert check_target(config).endswith(said)


def test_a_loopback_hub_that_cannot_be_asked_is_a_sentence(
    world: World, package: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish(package)
    for file in (store / "hub" / "models" / f"{REPO}.git" / "objects").rglob("*"):
        if file.is_file():
            file.chmod(0o600)
            file.write_bytes(b"x")
    with pytest.raises(HubError, match=f"looking up {REPO}: the Hub answered 500"):
        check_local(CONFIG, None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for folder in (store, store / "new"):
        monkeypatch.setenv("UNLEARN_RELEASE_STORE", str(folder))
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, and nothing can be published"):
            check_local(CONFIG, None)


@pytest.mark.parametrize("kind", ["before", "after", "drop"])
def test_a_pull_request_that_was_cut_off_is_continued(world: World, package: Path, kind: str) -> None:
    fault = Fault(rf"POST /api/models/{REPO}/(discussions|commit/refs%2Fpr).*", kind)
    world.faulty.faults.append(fault)
    for at in (1, 2):
        fault.at, fault.seen = at, 0
        with pytest.raises(HubError):
            world.publish(package, via="pr")
    requested(world, package)
    assert len([p for p in world.api.get_repo_discussions(REPO) if p.status in ("open", "draft")]) == 1


def test_a_gated_release_is_gated_before_anything_is_uploaded(world: World, package: Path) -> None:
    seen: list[object] = []
    look = Fault(
        rf"POST /api/models/{REPO}/commit/.*", "act", action=lambda: seen.append(world.api.repo_info(REPO).gated)
    )
    world.faulty.faults.append(look)
    world.publish(package, gated="manual")
    assert seen == ["manual"]
    writes = watch_writes(world)
    world.publish(package, gated="manual")
    assert writes.seen == 0
    world.publish(package)  # without the key it stays as it is
    assert world.api.repo_info(REPO).gated == "manual"


def test_what_is_refused_gates_nothing(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    following = next_release(inputs, tmp_path)
    world.publish(following, tag="v1.1.0", visibility="public")
    other = next_release(inputs, tmp_path, "other")
    writes = watch_writes(world)
    for refused, tag, said in ((package, "v1.0.0", r"is newer than v1\.0\.0"), (other, "v1.1.0", "with other content")):
        with pytest.raises(HubError, match=f"{said}.*Nothing was changed"):
            world.publish(refused, tag=tag, visibility="public", gated="manual")
    assert writes.seen == 0


def test_a_hub_that_does_not_gate_gets_nothing(world: World, package: Path) -> None:
    world.faulty.faults.append(Fault(rf"PUT /api/models/{REPO}/settings", "drop_before"))
    uploads = Fault(r"(PUT|POST) .*(commit|preupload|lfs|branch).*", "before", at=10**9)
    world.faulty.faults.append(uploads)
    with pytest.raises(HubError):
        world.publish(package, gated="auto")
    assert uploads.seen == 0


def test_a_collection_gets_the_release_once(world: World, package: Path) -> None:
    slug = world.api.create_collection("Unlearned models", namespace="demo").slug
    world.publish(package, collection=slug)
    assert [item.item_id for item in world.api.get_collection(slug).items] == [REPO]
    writes = watch_writes(world)
    world.publish(package, collection=slug)
    assert writes.seen == 0


def test_a_collection_that_is_not_there_is_noticed_before_the_upload(world: World, package: Path) -> None:
    with pytest.raises(HubError, match=r"publish\.collection: reading demo/none-"):
        world.publish(package, collection="demo/none-" + "0" * 24)
    assert world.tags() == {}


PRIVATE = collection.Listing(
    "T", "d", "demo/table", True, {REPO: "Gates: 13 of 13."}, {"README.md": b"---\nlicense: mit\n---\n"}
)


@pytest.mark.parametrize("is_public", ["dataset", "collection"])
def test_private_releases_are_not_compared_in_public(world: World, is_public: str) -> None:
    world.api.create_repo(REPO, private=True)
    world.api.create_repo("demo/table", repo_type="dataset", private=is_public != "dataset")
    slug = world.api.create_collection("T", namespace="demo", private=is_public != "collection").slug
    for _ in range(2):
        with pytest.raises(HubError, match=rf"The {is_public} \S+ is public.*Nothing was uploaded\. Make it private"):
            collection.publish(PRIVATE, "local", [])
        assert world.api.list_repo_files("demo/table", repo_type="dataset") == [".gitattributes"]
        assert world.api.get_collection(slug).items == []
    world.api.update_repo_settings("demo/table", repo_type="dataset", private=True)
    world.api.update_collection_metadata(slug, private=True)
    assert collection.publish(PRIVATE, "local", []) == slug
    assert {item.item_id for item in world.api.get_collection(slug).items} == {REPO, "demo/table"}


@pytest.mark.parametrize(
    "change",
    [
        {"title": f"T {SECRETS['Hugging Face']}"},
        {"description": ANSWER},
        {"models": {REPO: f"Forgot: {ANSWER}"}},
        {"files": {"README.md": f"# T\n\n{ANSWER}\n".encode()}},
    ],
)
def test_what_a_collection_says_is_searched_before_anything_is_there(world: World, change: dict) -> None:
    world.api.create_repo(REPO, private=True)
    with pytest.raises(InputError, match=r"must not be published: \S+ holds an? (answer of the|Hugging Face token)"):
        collection.publish(PRIVATE._replace(**change), "local", [Scanner(["another"]), Scanner([ANSWER])])
    assert not world.api.repo_exists("demo/table", repo_type="dataset")


def test_the_plan_is_what_publishing_does(world: World, inputs: dict, package: Path, tmp_path: Path) -> None:
    planned = plan_publication(CONFIG, package / "hub", None)
    assert (planned.exists, planned.tagged, planned.removed) == (False, False, [])
    world.publish(package)
    held = world.api.list_repo_tree(REPO, recursive=True)
    stored = {f.path: "lfs" if f.lfs else "regular" for f in held if hasattr(f, "lfs")}
    stored.pop(".gitattributes")
    assert {file.path: file.how for file in planned.files} == stored
    following = next_release(inputs, tmp_path)
    writes = watch_writes(world)
    changes = {"tag": "v1.1.0", "visibility": "public", "gated": "auto"}
    planned = plan_publication(CONFIG.model_copy(update=changes), following / "hub", world.target)
    assert writes.seen == 0
    assert planned.removed == ["plots/metrics.png"]
    how = {file.path: file.how for file in planned.files}
    assert (how["model.safetensors"], how["LICENSE"], how["README.md"]) == ("unchanged", "unchanged", "regular")
    assert planned.settings == ["it becomes public", "access to it becomes auto"]
    sent = sum(kind != "unchanged" for kind in how.values())
    assert any(line.startswith(f"  {sent} of {len(how)} files, ") for line in planned.lines())
    before = world.files()
    world.publish(following, **changes)
    after = world.files()
    assert {path for path in after if before.get(path) != after[path]} == {
        p for p, h in how.items() if h != "unchanged"
    }
    assert plan_publication(CONFIG.model_copy(update=changes), following / "hub", world.target).tagged


def test_progress_counts_the_bytes_that_are_sent(world: World, package: Path) -> None:
    reports: list[Report] = []
    with listening(reports.append):
        world.publish(package)
    sent = [report for report in reports if report.doing == "uploading" and report.in_bytes]
    size = sum(path.stat().st_size for path in (package / "hub").rglob("*") if path.is_file())
    assert {report.total for report in sent} == {size}
    done = [report.done for report in sent if report.done is not None]
    assert done == sorted(done)
    assert done[-1] == size


def test_a_file_that_is_sent_again_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    reports: list[Report] = []
    with listening(reports.append), Upload(tmp_path, ["a"]) as files:
        files["a"].read()
        assert reports == []
        files.started("uploading")
        for _ in range(2):
            files["a"].seek(0)
            files["a"].read(6)
    assert [report.done for report in reports] == [6, 6]


def test_bytes_are_shown_with_rate_and_time_left() -> None:
    pace = _Pace()
    pace.line(Report("uploading", 0, 40_000_000, in_bytes=True), 0.0)
    line = pace.line(Report("uploading", 10_000_000, 40_000_000, in_bytes=True), 2.0)
    assert line == "uploading · 10.0 MB/40.0 MB · 5.0 MB/s · 0:06 left"


def test_planning_makes_no_hub(package: Path, store: Path) -> None:
    assert planned(CONFIG, package / "hub").exists is False
    assert not (store / "hub").exists()
    with running(store) as world:
        world.publish(package)
    found = planned(CONFIG, package / "hub")
    assert (found.exists, found.tagged) == (True, True)
    assert list(found.lines())[-1].endswith("it is compared with the package and stays")


def test_a_reason_tells_nothing_that_the_release_was_to_forget(
    world: World, inputs: dict[str, Path], package: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_release, of_another, unreadable = (store / name for name in ("tiny", "another", "unreadable"))
    receipt = world.publish(package)
    for folder, repo in ((of_release, REPO), (of_another, "demo/another")):
        (folder / "publish").mkdir(parents=True)
        write_file(folder / "publish" / RECEIPT, receipt.model_copy(update={"repo": repo}))
        shutil.copytree(inputs["data"], folder / "data")
    (unreadable / "publish").mkdir(parents=True)
    (unreadable / "publish" / RECEIPT).write_text("{}")
    arguments = ["revoke", REPO, "--tag", "v1.0.0", "--hub", "local", "--store", str(store), "--dry-run", "--reason"]
    assert main([*arguments, "It still answers 3 of 40 forget questions."]) == 0
    assert main([*arguments, f"It still says that {ANSWER.lower()}"]) == 2
    said = capsys.readouterr().err
    assert "--reason would be public, and must not be" in said
    assert "an answer of the forget set" in said
    shutil.rmtree(of_release)
    assert main([*arguments, f"It still says that {ANSWER.lower()}"]) == 0  # this store does not know what that is
