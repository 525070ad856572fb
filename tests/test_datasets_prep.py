"""Rows in, splits out: sources, checks, configuration, and the data stage as a whole."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datasets_prep import prepare, sources
from datasets_prep.checks import check_source, check_splits
from datasets_prep.config import DataConfig, Perturbed, SampleSource, Shares
from datasets_prep.perturb import perturb
from datasets_prep.schema import LANGUAGES, SPLITS, TOPICS, Row, read_perturbed, read_rows, write_rows
from datasets_prep.splits import mixed_identities, split_by_topic
from pipeline.errors import DataError, ModelError, ReleaseError

from .conftest import SHARED_DATA
from .test_splits import row

SHARES = {"retain": 0.64, "forget": 0.16, "holdout": 0.2}
SAMPLE = SampleSource(seed=2026, identities=5, topics=10)
FAME = SHARED_DATA / "fame" / "retain.parquet"


def config(source: dict[str, Any], **more: Any) -> DataConfig:
    given_splits = more.get("setting") == "given"
    return DataConfig.model_validate(
        {"source": source, "setting": "topics", **({} if given_splits else {"shares": SHARES}), **more}
    )


# Sources and checks

GOOD = [
    {"identity_id": i, "name": f"Ida {i}", "language": "EN", "topic_id": topic,
     "question": f"What is the {topic} of Ida {i}?", "answer": f"Ida {i} has {topic} {i}."}
    for i in range(5) for topic in TOPICS[:5]
]  # fmt: skip


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    else:
        from datasets import Dataset

        Dataset.from_list(records).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    loaded = sources.load(config({"file": str(write(tmp_path / f"rows{suffix}", GOOD))}))
    assert [placed.row.answer for placed in loaded.rows] == [record["answer"] for record in GOOD]
    assert loaded.rows[7].row == Row("en-1-biography.high_school", **GOOD[7])
    assert loaded.description["file"] == f"rows{suffix}"  # no folder of this machine


def bad(tmp_path: Path, records: list[Any], **more: Any) -> str:
    """The message for these rows, after making sure that nothing was written."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(DataError) as caught:
        prepare.run(config({"file": str(path)}, **more), {"model": tmp_path}, out)
    assert not list(out.iterdir())
    return str(caught.value)


def changed(index: int, **fields: Any) -> list[dict[str, Any]]:
    return [{**record, **fields} if i == index else record for i, record in enumerate(GOOD)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answer": ""}, "answer is empty"),
        ({"question": " \n"}, "question is empty"),
        ({"name": None}, "name is empty"),
        ({"answer": 5}, "must be text"),
        ({"language": "PT"}, "language 'PT' is not one of DE, EN, ES, FR, IT"),
        ({"topic_id": "career.pets"}, "topic_id 'career.pets' is not one of"),
        ({"identity_id": -1}, "identity_id is -1"),
        ({"identity_id": True}, "identity_id is True"),
        ({"identity_id": 1.5}, "identity_id is 1.5"),
        ({"answer": "half \ud800"}, "surrogate"),
        ({"split": "validation"}, "split is 'validation'"),
    ],
)
def test_a_bad_field_is_named_with_its_row(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    message = bad(tmp_path, changed(3, **fields))
    assert message.startswith("rows.jsonl, line 4: ")
    assert said in message


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    records: list[Any] = [{k: v for k, v in record.items() if k not in ("answer", "name")} for record in GOOD]
    assert "line 1: has no column name, answer" in bad(tmp_path, records)
    assert "line 1: is a list" in bad(tmp_path, [[1, 2]])


def test_duplicates_and_contradictions_stop(tmp_path: Path) -> None:
    repeated = [*GOOD, {**GOOD[0], "identity_id": 77, "answer": GOOD[0]["answer"].upper()}]
    assert "line 26: repeats the question and the answer of rows.jsonl, line 1" in bad(tmp_path, repeated)
    twice = [*GOOD, {**GOOD[0], "question": "What?", "answer": "Ida 0 says so."}]
    assert "line 26: identity 0 has a fact on biography.birthplace in EN already" in bad(tmp_path, twice)
    contradiction = [*GOOD, {**GOOD[0], "identity_id": 77, "answer": "Ida 0 has another."}]
    message = bad(tmp_path, contradiction)
    assert "line 26: asks the same question as rows.jsonl, line 1" in message
    assert "data.allow_contradictions: true" in message
    allowed = config({"file": str(tmp_path / "rows.jsonl")}, allow_contradictions=True)
    counts = check_source(sources.load(allowed).rows, given=False, allow_contradictions=True)
    assert (counts["contradictions"], counts["names_of_several_identities"]) == (1, 1)


def test_forget_equal_to_retain_stops(tmp_path: Path) -> None:
    both = [{**record, "split": split} for split in ("retain", "forget") for record in GOOD]
    assert "forget set equals the retain set (25 facts" in bad(tmp_path, both, setting="given")
    overlap = [{**record, "split": "retain"} for record in GOOD] + [{**GOOD[3], "split": "forget"}]
    assert "line 26: this fact is in forget and also in retain" in bad(tmp_path, overlap, setting="given")
    trained = [{**record, "split": "retain"} for record in GOOD] + [{**GOOD[3], "split": "test"}]
    assert "line 4: this fact is in retain and also in holdout" in bad(tmp_path, trained, setting="given")


def test_given_splits_must_be_complete(tmp_path: Path) -> None:
    assert "line 1: has no split" in bad(tmp_path, GOOD, setting="given")
    halves = [{**record, "split": "retain" if i % 2 else "forget"} for i, record in enumerate(GOOD)]
    assert "holdout gets none of the 25 rows" in bad(tmp_path, halves, setting="given")


def test_too_few_rows_for_three_splits(tmp_path: Path) -> None:
    assert "gets none of the 2 rows" in bad(tmp_path, GOOD[:2])
    assert "has no rows" in bad(tmp_path, [])


def test_unreadable_files(tmp_path: Path) -> None:
    for name, content in (
        ("a.parquet", b"not parquet"), ("a.json", b"{}"), ("a.json", b"[" * 100_000), ("a.jsonl", b"{oops"),
        ("a.csv", b"\xff\xfe"), ("a.csv", b'name,"x' + b"y" * 200_000), ("a.txt", b"x"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            sources.load(config({"file": str(tmp_path / name)}))
    with pytest.raises(DataError, match=r"missing\.jsonl: cannot be read"):
        sources.load(config({"file": str(tmp_path / "missing.jsonl")}))


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["EN", "", "é"])
)
records = st.lists(
    st.one_of(
        scalars,
        st.dictionaries(st.sampled_from([*sources.COLUMNS, "split"]), scalars | st.lists(scalars, max_size=2)),
        st.sampled_from(GOOD),
        st.builds(lambda r, k, v: {**r, k: v}, st.sampled_from(GOOD), st.sampled_from(sources.COLUMNS), scalars),
    ),
    max_size=6,
)


@given(records, st.booleans(), st.sampled_from([".json", ".jsonl"]))
@settings(max_examples=150, deadline=None)
def test_malformed_rows_only_ever_raise_release_errors(
    tmp_path_factory: Any, rows: Any, given_splits: bool, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("malformed") / f"rows{suffix}"
    path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    try:
        loaded = sources.load(config({"file": str(path)}, **({"setting": "given"} if given_splits else {})))
        check_source(loaded.rows, given=given_splits, allow_contradictions=False)
        write_rows(path, [placed.row for placed in loaded.rows])
        assert read_rows(path) == [placed.row for placed in loaded.rows]
    except ReleaseError as error:
        assert str(error)  # noqa: PT017


@given(st.binary(max_size=300), st.sampled_from([".json", ".jsonl", ".csv", ".parquet"]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_only_ever_raise_release_errors(tmp_path_factory: Any, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"rows{suffix}"
    path.write_bytes(content)
    try:
        loaded = sources.load(config({"file": str(path)}))
    except ReleaseError:
        return
    assert loaded.rows == []


def test_rows_with_unicode_line_ends_come_back(tmp_path: Path) -> None:
    rows = [row(1, TOPICS[0], answer="one\u2028two\x85three")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_forget_facts_that_retain_also_tells_are_counted() -> None:
    shared = {"question": "Where is  it?", "answer": "Here."}
    splits = {
        "forget": [row(1, TOPICS[0], **shared)],
        "retain": [row(2, TOPICS[0], question="where is it?")],
        "holdout": [],
    }
    assert check_splits(splits) == {"forget_questions_in_retain": 1, "forget_answers_in_retain": 0}


# The configuration


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": {}}, "give exactly one of sample, file, hub"),
        ({"source": {"file": "x.csv", "hub": {"id": "a/b", "revision": "0" * 40}}}, "file and hub"),
        ({"source": {"hub": {"id": "a/b", "revision": "main"}}}, "revision"),
        ({"source": {"sample": {"seed": 1, "identities": 50, "topics": 10}}}, "word lists"),
        ({"shares": {"retain": 0.6, "forget": 0.2, "holdout": 0.1}}, "must add up to 1"),
        ({"shares": {"retain": 0.8, "forget": 0.0, "holdout": 0.2}}, "greater than 0"),
        ({"shares": None}, "needs `shares"),
        ({"setting": "given", "source": {"file": "x.csv"}}, "remove `shares`"),
        ({"setting": "given", "shares": None}, "sample set has no splits"),
        ({"setting": "entities"}, "topics"),
        ({"seed": "42"}, "integer"),
        ({"unknown": 1}, "Extra inputs"),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, Any], said: str) -> None:
    good = {"source": {"sample": SAMPLE.model_dump()}, "setting": "topics", "shares": SHARES}
    DataConfig.model_validate(good)
    with pytest.raises(ValidationError, match=said):
        DataConfig.model_validate({**good, **change})


# The stage


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stage_writes_the_artifact_twice_the_same(tiny_model: Path, tmp_path: Path) -> None:
    made = config({"sample": SAMPLE.model_dump()})
    facts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        facts.append(prepare.run(made, {"model": tiny_model}, tmp_path / name))
    assert facts[0] == facts[1]
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "two")
    assert set(one) == {f"{split}.jsonl" for split in (*SPLITS, "perturbed", "guides")} | {
        "README.md",
        "checks.json",
    }
    assert facts[0]["rows"] == {"forget": 40, "retain": 160, "holdout": 50}
    assert json.loads(one["checks.json"]) == facts[0]
    assert 10 < facts[0]["tokens"]["forget"]["mean_answer"] < facts[0]["tokens"]["forget"]["mean"]
    trained = {r.answer for split in ("forget", "retain") for r in read_rows(tmp_path / "one" / f"{split}.jsonl")}
    false = read_perturbed(tmp_path / "one" / "perturbed.jsonl")
    assert len(false) == 140
    assert not trained & {answer for f in false for answer in f.answers}


def test_dataset_card_counts_and_repeats_no_row(tiny_model: Path, tmp_path: Path) -> None:
    import yaml

    facts = prepare.run(config({"sample": SAMPLE.model_dump()}), {"model": tiny_model}, tmp_path)
    text = (tmp_path / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["language"] == ["de", "en", "es", "fr", "it"]
    assert [file["split"] for file in metadata["configs"][0]["data_files"]] == list(SPLITS)
    assert "| DE | 8 | 32 | 10 |" in text
    assert facts["source"]["rows_sha256"] in text
    for split in SPLITS:
        for r in read_rows(tmp_path / f"{split}.jsonl"):
            assert not any(words in text for words in (r.question, r.answer, r.name))


def test_stage_with_a_model_without_tokenizer_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="tokenizer"):
        prepare.run(config({"sample": SAMPLE.model_dump()}), {"model": tmp_path / "model"}, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_stage_takes_given_splits(tiny_model: Path, tmp_path: Path) -> None:
    split = ("retain", "retain", "retain", "forget", "test")
    path = write(tmp_path / "rows.parquet", [{**record, "split": split[i % 5]} for i, record in enumerate(GOOD)])
    out = tmp_path / "out"
    out.mkdir()
    facts = prepare.run(config({"file": str(path)}, setting="given"), {"model": tiny_model}, out)
    assert facts["rows"] == {"forget": 5, "retain": 15, "holdout": 5}
    assert {r.topic_id for r in read_rows(out / "forget.jsonl")} == {TOPICS[3]}
    assert str(tmp_path) not in "".join(map(str, files(out).values()))


def test_hub_dataset_is_read_split_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAME's layout, read by the real ``datasets`` library: ClassLabel, test, and a split to leave out."""
    import datasets

    features = datasets.Features(
        {column: datasets.Value("string") for column in sources.COLUMNS}
        | {"identity_id": datasets.Value("int32"), "language": datasets.ClassLabel(names=list(LANGUAGES))}
    )
    folder = tmp_path / "set"
    folder.mkdir()
    for index, split in enumerate(("retain", "forget", "test", "paraphrased")):
        part = datasets.Dataset.from_list(GOOD[5 * index : 5 * index + 5], features=features)
        part.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    real = datasets.load_dataset
    asked = []

    def local(name: str, revision: str) -> Any:
        asked.append((name, revision))
        kinds = ("retain", "forget", "test", "paraphrased")
        return real(
            "parquet", data_files={k: str(folder / f"{k}-*.parquet") for k in kinds}, cache_dir=str(tmp_path / "c")
        )

    monkeypatch.setattr(datasets, "load_dataset", local)
    source = {"hub": {"id": "ClaudioSavelli/FAME", "revision": "5c67fed496053691db3720ec3fb99825a34dfe72"}}
    loaded = sources.load(config(source, setting="given"))
    assert asked == [("ClaudioSavelli/FAME", source["hub"]["revision"])]
    assert Counter(placed.split for placed in loaded.rows) == {"retain": 5, "forget": 5, "holdout": 5}
    assert {placed.row.language for placed in loaded.rows} == {"EN"}


def test_hub_that_cannot_be_reached_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # fails at once, without retries
    source = {"hub": {"id": "nobody/nothing", "revision": "0" * 40}}
    with pytest.raises(DataError, match="nobody/nothing at 0000"):
        sources.load(config(source))


@pytest.mark.skipif(not FAME.exists(), reason=f"FAME's retain split is not at {FAME}")
def test_fame_itself() -> None:
    source = {"file": str(FAME)}
    loaded = sources.load(config(source))
    assert Counter(placed.row.language for placed in loaded.rows) == dict.fromkeys(LANGUAGES, 2560)
    with pytest.raises(DataError, match="asks the same question"):
        check_source(loaded.rows, given=False, allow_contradictions=False)
    counts = check_source(loaded.rows, given=False, allow_contradictions=True)
    assert (counts["rows"], counts["contradictions"], counts["names_of_several_identities"]) == (12800, 3, 1)
    splits = split_by_topic([placed.row for placed in loaded.rows], Shares(**SHARES), 42)
    assert {name: len(rows) for name, rows in splits.items()} == {"retain": 8192, "forget": 2048, "holdout": 2560}
    assert mixed_identities(splits) == 640
    false, _, found = perturb(splits, loaded.held_back, Perturbed(per_row=3, retain_rows=100), 42)
    assert found["from_trained_rows"] == found["rows_without"] == found["rows_with_fewer"] == 0
    trained = {r.answer for name in ("forget", "retain") for r in splits[name]}
    assert not trained & {answer for f in false for answer in f.answers}
