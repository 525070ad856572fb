"""Rows from a data set of the Hub: which of its splits are read, and what their names mean."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from core.errors import DataError
from datasets_prep import prepare, sources
from datasets_prep.schema import FORGET, LANGUAGES
from pipeline.commands.data import _text as inspect_text

from .data_rows import GOOD, config


def fame_on_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """FAME's layout, read by the real ``datasets`` library: ClassLabel, test, paraphrased. Returns what was asked."""
    import datasets

    features = datasets.Features(
        {column: datasets.Value("string") for column in ("name", "topic_id", "question", "answer")}
        | {"identity_id": datasets.Value("int32"), "language": datasets.ClassLabel(names=list(LANGUAGES))}
    )
    parts = {"retain": GOOD[:5], "forget": GOOD[5:10], "test": GOOD[10:15], "validation": GOOD[15:18]}
    other = [{**record, "question": f"Again: {record['question']}"} for record in (GOOD[0], GOOD[6], GOOD[24])]
    folder.mkdir()
    for split, rows in {**parts, "paraphrased": other}.items():
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    real, asked = datasets.load_dataset, []

    def local(name: str, subset: str | None, revision: str) -> Any:
        asked.append((name, subset, revision))
        kinds = (*parts, "paraphrased")
        files = {kind: str(folder / f"{kind}-*.parquet") for kind in kinds}
        return real("parquet", data_files=files, cache_dir=str(folder.parent / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    return asked


HUB = {"id": "ClaudioSavelli/FAME", "revision": "5c67fed496053691db3720ec3fb99825a34dfe72"}


def test_hub_dataset_is_read_split_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fame_on_the_hub(tmp_path / "set", monkeypatch)
    made = config({"hub": HUB}, setting="given")
    prepared = prepare.prepare(made)
    assert asked == [("ClaudioSavelli/FAME", None, HUB["revision"])]
    assert Counter(prepared.split.tolist()) == {0: 5, 1: 5, 2: 5}
    loaded = prepared.loaded
    assert {r.language for r in loaded.rows} == {"EN"}
    assert loaded.reported == {"rows_in": 18, "splits_left_out": {"validation": 3}, "paraphrases_without_row": 1}
    shown = inspect_text(made, prepared, prepare.describe(made, prepared, prepared.findings), {})
    assert "split of the source that is not read: validation (3 rows)" in shown
    assert loaded.paraphrases["en-0-biography.birthplace"][0][0].startswith("Again: ")
    found = list(prepare._paraphrases(prepared))
    assert {(p.row_id, p.split) for p in found} == {
        ("en-0-biography.birthplace", "retain"),
        ("en-1-biography.birthdate", "forget"),
    }
    assert all(p.question.startswith("Again: ") for p in found)


@pytest.mark.parametrize("column", ["split", "part"])
def test_a_column_says_the_splits_of_a_hub_dataset_whose_own_say_nothing(
    monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    import datasets

    names = ["forget"] * 5 + ["retain"] * 15 + ["test"] * 5
    rows = datasets.Dataset.from_list([{**one, column: name} for one, name in zip(GOOD, names, strict=True)])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": rows})
    named = {"hub": {**HUB, "id": "me/rows"}, "columns": {"split": column}}
    prepared = prepare.prepare(config(named, setting="given"))
    assert Counter(prepared.split.tolist()) == {0: 5, 1: 15, 2: 5}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": rows.remove_columns(column)})
    with pytest.raises(DataError, match=r"me/rows: its splits are train, and `setting: given` knows forget, retain, "):
        sources.load(config({"hub": named["hub"]}, setting="given"))


@pytest.mark.parametrize("setting", ["request", "topics", "given"])
def test_every_split_of_a_hub_dataset_is_read_where_their_names_are_not_asked_for(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """A split called test would be all of it: in FAME it is holdout rows, in most sets what models are tested on."""
    import datasets

    names = iter(["retain"] * 15 + ["forget"] * 5 + ["holdout"] * 5)
    rows = [{**record, "part": next(names)} for record in GOOD]
    parts = {"train": datasets.Dataset.from_list(rows[:18]), "test": datasets.Dataset.from_list(rows[18:])}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: parts)
    columns = {"columns": {"split": "part"}} if setting == "given" else {}
    request = {"request": {"forget": [{"identities": ["Ida 1"]}]}} if setting == "request" else {}
    prepared = prepare.prepare(config({"hub": {**HUB, "id": "me/rows"}, **columns}, setting=setting, **request))
    assert prepared.loaded.reported == {"rows_in": 25}
    forgotten = [r.name for r, code in zip(prepared.loaded.rows, prepared.split, strict=True) if code == FORGET]
    assert forgotten == {"request": ["Ida 1"] * 5, "given": ["Ida 3"] * 5}.get(setting, forgotten)


def test_hub_that_cannot_be_reached_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # fails at once, without retries
    with pytest.raises(DataError, match="nobody/nothing at 0000"):
        sources.load(config({"hub": {"id": "nobody/nothing", "revision": "0" * 40}}))


def test_a_row_of_two_subsets_has_its_own_id_in_both(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{**record, "row_id": f"row-{i}"} for i, record in enumerate(GOOD)]
    subsets = {"some": rows[:2], "all": rows[:5], "kept": rows[5:], "again": [{**rows[6], "row_id": "row-1"}]}

    def load(_: str, subset: str, **__: str) -> Any:
        return {"train": datasets.Dataset.from_list(subsets[subset])}

    monkeypatch.setattr(datasets, "load_dataset", load)
    hub = {**HUB, "subsets": {"forget": ["some", "all"], "retain": ["kept"]}}
    loaded = sources.load(config({"hub": hub}, setting="given"))
    assert loaded.reported == {"rows_in": 27, "rows_read_before": 2}
    with pytest.raises(DataError, match="again row 1: row_id 'row-1' is that of an earlier row"):
        sources.load(config({"hub": hub | {"subsets": {"forget": ["all"], "retain": ["again"]}}}, setting="given"))
