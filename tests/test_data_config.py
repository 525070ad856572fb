"""What the data part of a recipe says about its files: what enters a key, and what a release may show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.digests import digest_of
from core.errors import InputError
from datasets_prep.config import Columns, DataConfig
from pipeline.recipe import load_recipe

SAMPLE = "7a908ee1625d023d5b8967846e94a510339dfd03c867a4fc00b6106e79122250"


@pytest.mark.parametrize(
    ("recipe", "digest"),
    [
        ("demo", SAMPLE),
        ("demo-audit", SAMPLE),
        ("demo-no-gold", SAMPLE),
        ("demo-overforget", SAMPLE),
        ("fame-topics-gd-llama32-3b", "628c055d8069be2ded51452786e99f03c0a3250827c5b2d53c151d9a0c8ac5e3"),
        ("own-data", "bb7408ab81127bbfa0558158bc1a7ef65cbbeb152078ff54859cfd6fb18a1c35"),
    ],
)
def test_the_identity_of_a_shipped_recipe_is_what_it_was(
    recipe: str, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another digest the data, and all that depends on them, are made again in every store."""
    monkeypatch.chdir(tmp_path)  # a recipe's files are found from every folder
    assert digest_of(load_recipe(recipe).data.identity()) == digest


def test_question_and_answer_are_two_columns() -> None:
    with pytest.raises(ValidationError, match="question and answer are both the column answer"):
        Columns(question="answer")


def given(folder: Path) -> DataConfig:
    files = {split: str(folder / f"{split}.csv") for split in ("forget", "retain")}
    return DataConfig.model_validate({"source": {"files": files}, "setting": "given"})


def requested(folder: Path, **holdout: Any) -> DataConfig:
    forget = [
        {"identities": ["Ida Moor", 7], "topics": ["address"]},
        {"rows": ["r-1", "r-2", "r-3"], "file": str(folder / "forget.csv")},
    ]
    return DataConfig.model_validate(
        {"source": {"file": str(folder / "rows.csv")}, "setting": "request", "request": {"forget": forget, **holdout}}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("forget", "retain", "rows", "holdout"):
        (tmp_path / f"{name}.csv").write_text(name)
    return tmp_path


def test_the_identity_of_files_is_their_content(folder: Path) -> None:
    """Both digests are those of the code before the data part answered for itself, and less what came later."""
    request = requested(folder, holdout=[{"file": str(folder / "holdout.csv")}, {"languages": ["de"]}])
    for config, digest in (
        (given(folder), "a5b08b4103eddca9f93d0cce715ba134ff02e27b4b9577d42a4dcf1f4750c0a4"),
        (request, "9bb1fb57d6d5d29bedda4791be5a80dd93ac4aa28133f52033b7ef89ab838fd4"),
    ):
        identity = config.identity()
        assert identity.pop("unrehearsed") == 0.1
        for later in ("topics_not_retained", "holdout_answers_in_trained"):
            assert identity["checks"].pop(later) == "warn"
        assert digest_of(identity) == digest
        assert str(folder) not in json.dumps(config.identity())
        assert len(config.local_files()) == json.dumps(config.identity()).count("sha256:")


@pytest.mark.parametrize(
    ("gone", "key"),
    [
        ("rows", r"data\.source\.file"),
        ("forget", r"data\.request\.forget\[1\]\.file"),
        ("holdout", r"data\.request\.holdout\[0\]\.file"),
    ],
)
def test_a_file_that_is_gone_is_named_by_its_key(folder: Path, gone: str, key: str) -> None:
    config = requested(folder, holdout=[{"file": str(folder / "holdout.csv")}])
    (folder / f"{gone}.csv").unlink()
    with pytest.raises(InputError, match=rf"^{key}: there is no file or folder .*{gone}\.csv"):
        config.identity()


def test_each_file_of_a_split_is_named_by_its_key(folder: Path) -> None:
    (folder / "retain.csv").unlink()
    with pytest.raises(InputError, match=r"^data\.source\.files\.retain: "):
        given(folder).identity()


def test_what_is_published_names_no_folder_and_no_person(folder: Path) -> None:
    shown = requested(folder, holdout=0.25).published()
    assert shown["source"]["file"] == "rows.csv"
    assert shown["request"]["holdout"] == 0.25
    first, second = shown["request"]["forget"]
    assert (first["identities"], first["topics"], first["rows"]) == (2, ["address"], None)
    assert (second["rows"], second["file"]) == (3, "forget.csv")
    for private in (str(folder), "Ida", "r-1"):
        assert private not in json.dumps(shown)
    assert given(folder).published()["source"]["files"] == {
        "forget": "forget.csv",
        "retain": "retain.csv",
        "holdout": None,
    }
