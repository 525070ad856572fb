"""What is true of the whole repository: it names no place outside, misses the data that tests need, checks all once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import NEEDS_SHARED_DATA, ROOT, shared_data

UPWARDS = re.compile(r"(?<![\w./])\.\./[\w./-]*\w")
ABSOLUTE = re.compile(r"(?<![\w./~:])/(?:home|media|mnt|opt|root|srv|tmp|Users|work)/[\w./-]+")
WRITTEN = [
    *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "Makefile",
    *(
        path
        for folder in ("benchmarks", "core", "datasets_prep", "eval", "model_card", "pipeline")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".md", ".py", ".yaml")
    ),
]  # fmt: skip


def places_outside(text: str, folder: Path) -> Iterator[str]:
    """Paths that lead out of the repository, or nowhere, from a file in ``folder``."""
    yield from ABSOLUTE.findall(text)
    for path in UPWARDS.findall(text):
        place = (folder / path).resolve()
        if not (place.is_relative_to(ROOT) and place.exists()):
            yield path


def test_no_file_names_a_place_outside_of_the_repository() -> None:
    named = {path: list(places_outside(path.read_text(encoding="utf-8"), path.parent)) for path in WRITTEN}
    assert {path: places for path, places in named.items() if places} == {}


def test_such_a_place_is_found() -> None:
    text = "run ../shared/data/x.json in /home/me/it, see [0015](../decisions/0015-a-header-once.md) and a/../../b"
    assert list(places_outside(text, ROOT / "docs" / "measurements")) == ["/home/me/it", "../shared/data/x.json"]
    assert list(places_outside("../core", ROOT / "docs")) == []
    assert list(places_outside("../x", ROOT)) == ["../x"]


def test_missing_data_skips_a_test_with_a_reason_and_fails_it_where_they_are_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.conftest.SHARED_DATA", tmp_path)
    for unset in ("", "0"):
        monkeypatch.setenv(NEEDS_SHARED_DATA, unset)
        with pytest.raises(pytest.skip.Exception, match=r"logs/a\.json is not in the folder shared/data"):
            shared_data("logs/a.json")
    monkeypatch.setenv(NEEDS_SHARED_DATA, "1")
    with pytest.raises(pytest.fail.Exception, match=rf"logs/a\.json is not .* {NEEDS_SHARED_DATA} says"):
        shared_data("logs/a.json")
    (tmp_path / "a.json").write_text("{}")
    assert shared_data("a.json") == tmp_path / "a.json"


def test_continuous_integration_runs_every_check_once() -> None:
    check = re.search(r"^check: ([a-z ]+?) *##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert check
    called = re.findall(r"^make (\w+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    parts = [part for target in called for part in (check[1].split() if target == "check" else [target])]
    assert sorted(parts) == ["lint", "release", "test"]
