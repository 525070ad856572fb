"""`make faults` in short: its matrix over a few faults, its tampering and its canaries; and that it can find faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import publications, tampering
from benchmarks.canaries import PLACES, in_files
from benchmarks.faulty_hub import Event, Fault
from benchmarks.publications import Run, State, World
from pipeline.publish import tree
from pipeline.publish.config import PublishConfig
from tests.conftest import PATIENCE, ROOT
from tests.publishing import REPO

FAULTS = ("disk full, Hub", "client killed, after", "Hub killed, before")


def test_a_few_faults_break_nothing() -> None:
    argv = [sys.executable, "-m", "benchmarks.faults", "matrix", "--seeds", "1", "--first", "4", "--only", *FAULTS]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert [line[0].removeprefix("| ") for line in lines] == list(FAULTS)
    assert {line[3] for line in lines} == {"1 / 0"}  # the next run finishes


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Files instead of packages, since nothing is published here."""
    for name, content in (("package-v1.0.0", "old"), ("next", "new")):
        (tmp_path / name / "hub").mkdir(parents=True)
        (tmp_path / name / "hub" / "README.md").write_text(content)
    config = PublishConfig(repo=REPO, hub="local", tag="v1.1.0", visibility="private")
    return World("second", tmp_path, tmp_path / "next" / "hub", config)


FETCHED = Event(f"GET /{REPO}/resolve/{'a' * 40}/README.md", is_public=False, refs={"heads/main": "1"})
LANDED = Event("POST", is_public=False, refs={"heads/main": "2"})
PUBLIC = Event(f"GET /api/models/{REPO}", is_public=True, refs={"heads/main": "1"})
COMMIT = Event(f"POST /api/models/{REPO}/commit/main", is_public=True, refs={"heads/main": "2"})


@pytest.mark.parametrize(
    ("changes", "end", "found"),
    [
        ({}, "finished", []),
        ({"main": "old"}, "finished", ["it said that it finished, and did not"]),
        ({"main": "old", "tag": None}, "refused", []),
        ({"main": "partial"}, "refused", ["main is neither the old release nor the new one: missing: README.md"]),
        ({"tag": "old"}, "refused", ["the tag is not at the new release"]),
        ({"before": "new"}, "refused", ["the old tag is not at the old release"]),
        ({"is_public": True, "tag": None}, "refused", ["it is public without the complete release"]),
        ({"history": 2}, "refused", ["the release was committed 2 times"]),
        ({"is_public": True, "events": [LANDED, PUBLIC]}, "finished", []),  # the last answer still said private
        (
            {"is_public": True, "events": [PUBLIC, PUBLIC]},
            "finished",
            ["it finished, and the repository is not private"],
        ),
        ({"staging": True}, "finished", ["it finished, and left ['heads/staging-0']"]),
        ({"damaged": ["x"]}, "refused", ["damaged on the Hub: ['x']"]),
        ({}, "broken", ["the client ended with "]),
        ({"events": [LANDED]}, "refused", []),  # an earlier run did it
        ({"events": [FETCHED, LANDED]}, "refused", []),
        ({"events": [Event("GET", False, {"heads/main": "1"}), LANDED]}, "refused", ["main moved before these were"]),
        ({"events": [PUBLIC, PUBLIC, FETCHED, COMMIT]}, "refused", ["it went on in a repository that had become"]),
    ],
)
def test_what_must_hold_is_noticed_if_it_does_not(world: World, changes: dict, end: str, found: list[str]) -> None:
    contents = {
        name: {n: d.sha256 for n, d in tree.read_tree(world.package.parents[1] / folder / "hub").items()}
        for name, folder in (("old", "package-v1.0.0"), ("new", "next"))
    } | {"partial": {}}
    given = {"main": "new", "tag": "new", "before": "old"} | changes
    held = {"heads/main": given["main"], "tags/v1.1.0": given["tag"], "tags/v1.0.0": given["before"]}
    held |= {"heads/staging-0": "new"} if changes.get("staging") else {}
    trees = {ref: contents[what] for ref, what in held.items() if what}
    state = State(changes.get("is_public", False), dict.fromkeys(trees, "2"), trees)
    state.history = [("2", "Release v1.1.0")] * changes.get("history", 1)
    state.damaged = changes.get("damaged", [])
    noticed = list(publications._broken(world, None, Run(end, "", changes.get("events", []), state)))
    assert len(noticed) == len(found)
    assert all(what.startswith(start) for what, start in zip(noticed, found, strict=True))


def test_a_next_run_must_finish_or_say_what_to_decide(world: World) -> None:
    fault = Fault("commit", ".*", 1, 0)
    state = State()
    said = "x has this release as v1.1.0, but somebody else committed to main"
    assert list(publications._unfinished(world, fault, Run("finished", "", [], state))) != []
    refused = [Run("refused", text, [], state) for text in (said, "no")]
    assert [len(list(publications._unfinished(world, fault, run))) for run in refused] == [1, 2]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tampering.Released:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_RELEASE_STORE", "")
        patch.setattr("pipeline.publish.verify._generation", lambda _folder: "tested elsewhere")
        return tampering.Released(tmp_path_factory.mktemp("released"))


def test_changes_of_a_release_are_caught(released: tampering.Released, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.publish.verify._generation", lambda _folder: "tested elsewhere")
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    with released.hub:
        found = [tampering.tampered(released, seed) for seed in range(22)]
        assert not released.verify("main")
        assert {kind for kind, _, _ in found} == {*tampering.FILES, *tampering.PLACES}
        assert [(kind, said) for kind, how, said in found if how == "missed"] == []
        assert sum(how == "caught" for _, how, _ in found) >= 18
        # What is not looked at is missed: without the signature's check other bytes pass.
        monkeypatch.setattr("pipeline.publish.verify._signature", lambda *_: "not checked")
        monkeypatch.setattr("pipeline.publish.verify._contents", lambda *_: "not checked")
        assert "missed" in {tampering.tampered(released, seed)[1] for seed in range(6)}


def test_the_table_of_canaries_names_what_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.canaries.PLACES", {name: PLACES[name] for name in ("README.md", "LICENSE")})
    missed = [(place, canary) for place, canary, seen in in_files(tmp_path) if not seen]
    assert missed == [("LICENSE", "secret: password"), ("a plot's file name", "secret: password")]
