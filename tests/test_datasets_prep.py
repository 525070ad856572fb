"""The data section of a recipe, the data stage as a whole, and `data inspect`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.errors import DataError, ModelError
from datasets_prep import prepare
from datasets_prep.config import DataConfig, SampleSource
from datasets_prep.rows import Placed
from datasets_prep.schema import (
    SPLITS,
    TOPICS,
    SplitSizes,
    read_data_facts,
    read_paraphrased,
    read_perturbed,
    read_rows,
)
from pipeline.stages import data_without_model

from . import data_rows
from .conftest import Call
from .data_rows import GOOD, SHARES, config, write

SAMPLE = SampleSource(**data_rows.SAMPLE)


# The configuration


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": {}}, "give exactly one of sample, file, files, hub"),
        ({"source": {"file": "x.csv", "hub": {"id": "a/b", "revision": "0" * 40}}}, "file and hub"),
        ({"source": {"hub": {"id": "a/b", "revision": "main"}}}, "revision"),
        ({"source": {"sample": {"seed": 1, "identities": 50, "topics": 10}}}, "word lists"),
        ({"shares": {"retain": 0.6, "forget": 0.2, "holdout": 0.1}}, "must add up to 1"),
        ({"shares": {"retain": 0.8, "forget": 0.0, "holdout": 0.2}}, "greater than 0"),
        ({"shares": None}, "needs `shares"),
        ({"setting": "given", "source": {"file": "x.csv"}}, "remove `shares`"),
        ({"setting": "given", "shares": None}, "sample set has no splits"),
        ({"setting": "entities"}, "topics"),
        ({"setting": "entity", "shares": None}, "needs `shares"),
        ({"setting": "request", "shares": None}, "go together"),
        ({"request": {"forget": [{"topics": ["a"]}]}}, "go together"),
        ({"setting": "request", "shares": None, "request": {"forget": []}}, "at least 1"),
        ({"setting": "request", "shares": None, "request": {"forget": [{}]}}, "selects nothing"),
        ({"source": {"files": {"forget": "a.csv", "retain": "b.csv"}}}, "use `setting: given`"),
        ({"source": {"file": "x.csv", "language": "english"}}, "pattern"),
        ({"source": {"file": "x.csv", "language": "EN", "columns": {"language": "lang"}}}, "give one of the two"),
        ({"source": {"sample": SAMPLE.model_dump(), "language": "EN"}}, "has its own columns"),
        ({"checks": {"duplicates_across": "off"}}, "stop"),
        ({"checks": {"duplicates": "warn"}}, "Extra inputs"),
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
    made = config({"sample": SAMPLE.model_dump()}, unrehearsed=0.125)
    facts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        facts.append(prepare.run(made, {"model": tiny_model}, tmp_path / name))
    assert facts[0] == facts[1]
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "two")
    assert set(one) == {f"{split}.jsonl" for split in (*SPLITS, "perturbed", "guides", "paraphrased")} | {
        "README.md",
        "checks.json",
    }
    assert facts[0].rows == SplitSizes(forget=40, retain=140, holdout=50, unrehearsed=20)
    assert read_data_facts(tmp_path / "one") == facts[0]
    assert 10 < facts[0].tokens["forget"].mean_answer < facts[0].tokens["forget"].mean
    in_split = {split: read_rows(tmp_path / "one" / f"{split}.jsonl") for split in SPLITS}
    assert {name: len(rows) for name, rows in in_split.items()} == dict(facts[0].rows)
    assert len({r.row_id for rows in in_split.values() for r in rows}) == 250
    trained = {r.answer for split in SPLITS if split != "holdout" for r in in_split[split]}
    false = read_perturbed(tmp_path / "one" / "perturbed.jsonl")
    assert len(false) == 140
    assert not {f.row_id for f in false} & {r.row_id for r in in_split["unrehearsed"]}
    assert not trained & {answer for f in false for answer in f.answers}


def test_dataset_card_counts_and_repeats_no_row(tiny_model: Path, tmp_path: Path) -> None:
    import yaml

    facts = prepare.run(config({"sample": SAMPLE.model_dump()}, unrehearsed=0.125), {"model": tiny_model}, tmp_path)
    text = (tmp_path / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert metadata["language"] == ["de", "en", "es", "fr", "it"]
    assert [file["split"] for file in metadata["configs"][0]["data_files"]] == list(SPLITS)
    assert "| DE | 8 | 28 | 10 | 4 |" in text
    assert "| topic | DE | EN | ES | FR | IT |" in text
    assert "| rows that seem to hold an e-mail address or a phone number | 25 |" in text
    assert facts.source.rows_sha256 in text
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
    assert facts.rows == SplitSizes(forget=5, retain=15, holdout=5, unrehearsed=0)
    assert {r.topic_id for r in read_rows(out / "forget.jsonl")} == {TOPICS[3]}
    assert str(tmp_path) not in "".join(map(str, files(out).values()))


def test_a_row_with_too_many_tokens_stops(tiny_model: Path, tmp_path: Path) -> None:
    records = [*GOOD[:-1], {**GOOD[-1], "answer": "Ida 4 " + "says so, " * 200}]
    made = config({"file": str(write(tmp_path / "rows.jsonl", records))}, max_tokens=200)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=r"1 rows with more tokens than data.max_tokens, for example en-4-.* has \d+"):
        prepare.run(made, {"model": tiny_model}, out)
    assert not list(out.iterdir())


SPECIAL = "Ida<|im_end|>"
PLAIN = [
    {**r, "perturbed_answers": None, "paraphrased_question": None, "paraphrased_answer": None, "split": None}
    for r in GOOD
]


@pytest.mark.parametrize(
    "records",
    [
        [{**PLAIN[0], "answer": SPECIAL}, *PLAIN[1:]],
        [{**PLAIN[0], "perturbed_answers": ["Ulm", SPECIAL]}, *PLAIN[1:]],
        [{**PLAIN[0], "paraphrased_question": SPECIAL}, *PLAIN[1:]],
        [{**PLAIN[0], "paraphrased_answer": SPECIAL}, *PLAIN[1:]],
        [*PLAIN, {**PLAIN[0], "split": "paraphrased", "answer": SPECIAL}],
    ],
)
@pytest.mark.parametrize("forgotten_before", TOPICS[:2])  # the row itself, or others
def test_a_special_token_in_any_text_of_a_row_stops(
    tiny_model: Path, tmp_path: Path, records: list[dict[str, Any]], forgotten_before: str
) -> None:
    request = {"forget": [{"topics": [TOPICS[2]]}], "forgotten": [{"topics": [forgotten_before]}]}
    source = {"file": str(write(tmp_path / "rows.jsonl", records))}
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"holds the special token '<\|im_end\|>'"):
        prepare.run(config(source, setting="request", request=request), {"model": tiny_model}, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_special_token_in_a_false_answer_about_the_real_world_stops(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config({"sample": SAMPLE.model_dump()})
    prepared = prepare.prepare(made)
    asked = Placed(data_rows.row(1, "capitals"), "world_facts", 1, None, ("Lima", SPECIAL))
    with_question = replace(prepared, loaded=replace(prepared.loaded, real_world=[asked]))
    monkeypatch.setattr(prepare, "prepare", lambda _: with_question)
    with pytest.raises(DataError, match="special token"):
        prepare.run(made, {"model": tiny_model}, tmp_path)


def test_stage_takes_a_request_with_what_the_source_offers(tiny_model: Path, tmp_path: Path) -> None:
    records = [
        {"q": f"Who is author {i}?", "a": f"Author {i} is Nobody {i}.", "p": [f"Author {i} is Anybody {i}."],
         "other": f"Name author {i}!" if i % 2 else None}
        for i in range(10)
    ]  # fmt: skip
    columns = {"question": "q", "answer": "a", "perturbed_answers": "p", "paraphrased_question": "other"}
    listed = write(tmp_path / "forget.jsonl", [{"q": r["q"], "a": r["a"]} for r in records[:3]])
    source = {"file": str(write(tmp_path / "rows.parquet", records)), "columns": columns}
    made = config(source, setting="request", request={"forget": [{"file": str(listed)}]}, perturbed={"per_row": 1})
    out = tmp_path / "out"
    out.mkdir()
    facts = prepare.run(made, {"model": tiny_model}, out)
    assert facts.rows == SplitSizes(forget=3, retain=7, holdout=0, unrehearsed=0)
    assert facts.left_out == {"membership_inference": "no holdout rows: data.request names no holdout"}
    assert read_rows(out / "holdout.jsonl") == []
    assert len(read_perturbed(out / "perturbed.jsonl")) == 10
    assert {p.question for p in read_paraphrased(out / "paraphrased.jsonl")} == {
        f"Name author {i}!" for i in range(1, 10, 2)
    }
    card = (out / "README.md").read_text()
    assert "what the request lists is forgotten (the rows of a file), and all other rows are retained." in card
    assert "Left out: membership inference, because there are no holdout rows" in card
    assert "Rows by language" not in card
    assert "FAME" not in card  # the rows are somebody's own


@pytest.mark.parametrize(
    ("forget", "unit"), [({"identities": [1]}, "identity"), ({"topics": [data_rows.TOPICS[0]]}, "fact")]
)
def test_the_card_says_whether_people_were_held_out_whole(tmp_path: Path, forget: dict[str, Any], unit: str) -> None:
    request = {"forget": [forget], "holdout": 0.25}
    made = config({"file": str(write(tmp_path / "rows.jsonl", GOOD))}, setting="request", request=request)
    data_without_model(made, tmp_path)
    assert f"drawn with seed 42 by {unit}, which are held out." in (tmp_path / "README.md").read_text()


def test_the_card_holds_whatever_names_the_source_has(tmp_path: Path) -> None:
    records = [
        {
            "question": f"What is {word} {i}?",
            "answer": f"It is {place}{i} of {word}.",
            "topic_id": topic,
            "row_id": f"{word}|{i}",
        }
        for place, (word, topic) in enumerate((("apple", "fruit | <b>"), ("boat", "b")))
        for i in range(5)
    ]
    request = {"forget": [{"topics": ["fruit | <b>"]}, {"rows": ["boat|0"]}]}
    source = {"file": str(write(tmp_path / "rows.jsonl", records))}
    data_without_model(config(source, setting="request", request=request, perturbed={"per_row": 1}), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| fruit \\| &lt;b&gt; | 5 / 0 / 0 / 0 |" in card
    assert "| b | 1 / 4 / 0 / 0 |" in card
    assert "| 5 | apple\\|0 (rows.jsonl, line 1); " in card
    assert "| forget | 6 | – |" in card
    assert (
        "(1 topic; 1 row), and all other rows are retained.\n" in card
    )  # nothing of identities, which it does not name


# `data inspect`


def test_inspect_shows_counts_checks_and_rows_but_no_forgotten_answer(call: Call) -> None:
    done = call("data", "inspect", "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert "setting topics: 40 forget, 140 retain, 50 holdout, 20 unrehearsed;" in done.stdout
    assert "rows that seem to hold an e-mail address" in done.stdout
    data = json.loads(call("data", "inspect", "demo", "--json", "--show-forget").stdout)
    hidden = json.loads(call("data", "inspect", "demo", "--json").stdout)
    for shown, kept in zip(data["examples"]["forget"], hidden["examples"]["forget"], strict=True):
        assert shown["answer"] not in done.stdout
        assert shown["question"] in done.stdout
        assert kept["answer"] == "(hidden: --show-forget shows it)"
    assert {name: len(rows) for name, rows in data["examples"].items()} == dict.fromkeys(SPLITS, 3)
    assert [sum(cell[split] for cell in data["cells"]) for split in SPLITS] == [40, 140, 50, 20]


def test_inspect_shows_a_topic_as_it_is_written(call: Call, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{**record, "topic_id": f"[/{record['topic_id']}]"} for record in GOOD])
    changes = (f"data.source={{file: {path}}}", "data.shares={retain: 0.6, forget: 0.2, holdout: 0.2}")
    done = call("data", "inspect", "demo", *(word for change in changes for word in ("--set", change)))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"[/{GOOD[0]['topic_id']}]" in done.stdout


def test_inspect_ends_with_2_where_a_check_would_stop_the_run(call: Call, tmp_path: Path) -> None:
    both = [{**record, "split": split} for split in ("retain", "forget") for record in GOOD]
    path = write(tmp_path / "rows.jsonl", both)
    changes = (f"data.source={{file: {path}}}", "data.setting=given", "data.shares=null")
    done = call("data", "inspect", "demo", *(word for change in changes for word in ("--set", change)))
    assert done.returncode == 2
    assert "25 facts that stand in two splits" in done.stderr
    assert "stop" in done.stdout  # the table is shown all the same


def test_a_release_never_says_whom_a_request_names(tmp_path: Path) -> None:
    from pipeline.recipe import load_recipe
    from pipeline.stages import stages

    listed = write(tmp_path / "secret-list.jsonl", GOOD[:2])
    request = f"{{forget: [{{identities: [Ida Fenn, 7]}}, {{file: {listed}}}]}}"
    recipe = load_recipe(
        "demo", ["data.setting=request", "data.shares=null", f"data.request={request}"]
    )  # fmt: skip
    made = {stage.name: stage for stage in stages(recipe)}
    for name in ("card", "package"):
        said = json.dumps(made[name].identity)
        assert "Ida Fenn" not in said
        assert str(tmp_path) not in said
        assert '"identities": 2' in said
    assert "Ida Fenn" in json.dumps(made["data"].identity)
    assert str(tmp_path) not in json.dumps(made["data"].identity)


def test_the_recipe_to_copy_has_false_answers_to_judge_each_row_that_it_forgets() -> None:
    from datasets_prep import checks
    from datasets_prep.perturb import FalseAnswers
    from pipeline.recipe import load_recipe

    made = load_recipe("own-data").data
    prepared = prepare.prepare(made)
    checks.stop(prepared.findings, made.checks)
    false = FalseAnswers(prepared.loaded.rows, prepared.split, made.perturbed, made.seed)
    judging = [judge for judge, _ in false.of_split("forget") if judge]
    assert len(judging) == (prepared.split == SPLITS.index("forget")).sum() >= 30
    assert all(len(row.answers) == made.perturbed.per_row for row in judging)
    assert (prepared.split == SPLITS.index("holdout")).any()  # whose loss is the level of the unlearning
