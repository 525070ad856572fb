"""Rows from files: every format, every wrong row named, and none lost."""

from __future__ import annotations

import json
import operator
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import DataError, ReleaseError
from datasets_prep import prepare, sources
from datasets_prep.files import read_file
from datasets_prep.rows import FIELDS
from datasets_prep.schema import LANGUAGES, TOPICS, Row, read_rows, write_rows

from .conftest import shared_data
from .data_rows import GOOD, config, row, write

FAME = "fame/retain.parquet"
SUFFIXES = [".jsonl", ".json", ".csv", ".parquet", ".arrow"]


def message(tmp_path: Path, records: list[Any], **more: Any) -> str:
    """What is said of these rows, after making sure that nothing was written."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    source = {"file": str(path), **more.pop("source", {})}
    with pytest.raises(DataError) as caught:
        prepare.run(config(source, **more), {"model": tmp_path}, out)
    assert not list(out.iterdir())
    return str(caught.value)


def changed(index: int, **fields: Any) -> list[dict[str, Any]]:
    return [{**record, **fields} if i == index else record for i, record in enumerate(GOOD)]


# Formats


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_file_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    loaded = sources.load(config({"file": str(write(tmp_path / f"rows{suffix}", GOOD))}))
    assert {r.answer for r in loaded.rows} == {record["answer"] for record in GOOD}
    assert Row("en-1-biography.high_school", **GOOD[7]) in list(loaded.rows)
    assert loaded.description.file == f"rows{suffix}"  # no folder of this machine
    assert loaded.reported["rows_in"] == len(GOOD) == len(loaded.rows)


def test_rows_come_in_one_order_whatever_the_source_has(tmp_path: Path) -> None:
    one = sources.load(config({"file": str(write(tmp_path / "one.jsonl", GOOD))})).rows
    two = sources.load(config({"file": str(write(tmp_path / "two.jsonl", GOOD[::-1]))})).rows
    assert list(one) == list(two)
    assert [one[i] for i in range(len(one))] == list(one)
    assert list(one[3:7]) == list(one)[3:7]
    assert one.place(0) == "rows.jsonl, line 1".replace("rows", "one")


def test_arrow_files_of_other_programs_are_read(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.Table.from_pylist(GOOD)
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert len(sources.load(config({"file": str(tmp_path / "rows.arrow")})).rows) == len(GOOD)


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for suffix in (".csv", ".json", ".jsonl"):
        path = write(tmp_path / f"rows{suffix}", GOOD)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert len(sources.load(config({"file": str(path)})).rows) == len(GOOD)


def test_text_that_is_not_utf_8_names_its_line(tmp_path: Path) -> None:
    for suffix, line in ((".csv", 3), (".jsonl", 2)):
        path = write(tmp_path / f"rows{suffix}", GOOD)
        lines = path.read_bytes().split(b"\n")
        lines[line - 1] = lines[line - 1].replace(b"Ida", "Idä".encode("latin-1"))
        path.write_bytes(b"\n".join(lines))
        with pytest.raises(DataError, match=rf"rows\{suffix}, line {line}: is not UTF-8 \(byte 0xe4"):
            sources.load(config({"file": str(path)}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("question,answer\na,b,c\n", "line 2: has more cells than the 2 columns"),
        ("question,answer\na\n", "line 2: has fewer cells than the 2 columns"),
        ("question,answer,answer\na,b,c\n", "column answer twice"),
        (
            'question,answer\nc,d\na,"b\n',
            "rows.csv, line 3: unexpected end of data. Look for a quote that is not closed",
        ),
        ('question,answer\n"a,"b"\n', "line 2: ',' expected after '\"'. Look for a quote"),
        (f"question,answer\na,{'b' * 200_000}\n", "line 2: field larger .* a cell may have 131,072 characters"),
        ("\nquestion,answer\na,b\n", "first line names the columns, and here it is empty. Remove that line"),
        ("sep=,\nquestion,answer\na,b\n", "and here it is 'sep=,'. Remove that line"),
        ("question,answer,,\na,b,,\n", "line 1: 2 of the 4 columns have no name. Name or remove them"),
        ("question,answer\ra,b\rc,d\r", "rows.csv, line 1: has a carriage return where no line ends. Save the file"),
        ("", "has no rows"),
        ("question,answer\n", "has no rows"),
    ],
)
def test_broken_csv_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "rows.csv").write_text(content, newline="")
    with pytest.raises(DataError, match=said):
        sources.load(config({"file": str(tmp_path / "rows.csv")}))


def test_a_column_that_is_there_twice_is_refused_in_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table([["Who?"], ["This."], ["That."]], names=["question", "answer", "answer"])
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    for name, writer in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        with writer(str(tmp_path / f"{name}.arrow"), table.schema) as out:
            out.write_table(table)
    record = '{"question": "Who?", "answer": "This.", "answer": "That."}'
    (tmp_path / "a.jsonl").write_text(record)
    (tmp_path / "a.json").write_text(f"[{record}]")
    for name in ("a.parquet", "stream.arrow", "file.arrow", "a.jsonl", "a.json"):
        with pytest.raises(DataError, match=rf"^{name}.*: has the column answer twice. Rename one."):
            list(read_file(str(tmp_path / name), "data.source.file"))


def test_a_column_that_is_not_read_may_be_of_any_type(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    months = pa.array([pa.MonthDayNano([1, 2, 3])])
    table = pa.table([["Who?"], ["This."], months], names=["question", "answer", "since"])
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as out:
        out.write_table(table)
    assert sources.load(config({"file": str(tmp_path / "a.arrow")})).not_read == ["since"]


def test_a_column_with_half_a_surrogate_pair_in_its_name_can_be_shown(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD[0] | {"\ud800x": 1}))
    (name,) = sources.load(config({"file": str(tmp_path / "a.jsonl")})).not_read
    assert name == "\\ud800x"


def test_quoted_csv_cells_may_hold_line_ends(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('question,answer\n"one\ntwo",b\nc,d\n')
    loaded = sources.load(config({"file": str(tmp_path / "rows.csv")}))
    assert {(r.question, r.answer) for r in loaded.rows} == {("one\ntwo", "b"), ("c", "d")}


def test_unreadable_files(tmp_path: Path) -> None:
    for name, content in (
        ("a.parquet", b"not parquet"), ("a.arrow", b"not arrow"), ("a.json", b"{}"), ("a.json", b"[" * 100_000),
        ("a.jsonl", b"{oops"), ("a.csv", b"\xff\xfe"), ("a.csv", b'name,"x' + b"y" * 200_000), ("a.txt", b"x"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            sources.load(config({"file": str(tmp_path / name)}))
    with pytest.raises(DataError, match=r"data\.source\.file missing\.jsonl: cannot be read"):
        sources.load(config({"file": str(tmp_path / "missing.jsonl")}))


# Columns


def test_a_tofu_shaped_file_needs_no_more_than_questions_and_answers(tmp_path: Path) -> None:
    records = [{"question": f"Who is author {i}?", "answer": f"Author {i} is Nobody {i}."} for i in range(40)]
    request = {"forget": [{"file": str(write(tmp_path / "forget.json", records[:4]))}]}
    source = {"file": str(write(tmp_path / "full.json", records)), "language": "en"}
    prepared = prepare.prepare(config(source, setting="request", request=request))
    rows = list(prepared.loaded.rows)
    assert {(r.identity_id, r.name, r.topic_id, r.language) for r in rows} == {(None, None, None, "EN")}
    assert len({r.row_id for r in rows}) == 40
    forgotten = {r.answer for r, code in zip(rows, prepared.split, strict=True) if code == 0}
    assert forgotten == {record["answer"] for record in records[:4]}


def test_columns_are_mapped_by_the_recipe(tmp_path: Path) -> None:
    records = [
        {"Frage": "Wo wohnt Ida?", "Antwort": "Ida wohnt in Bonn.", "Kunde": "K-7", "Thema": "Adresse", "Nr": "z1",
         "falsch": ["Ida wohnt in Ulm."], "anders": "Wo ist Ida zu Hause?"},
    ]  # fmt: skip
    columns = {"question": "Frage", "answer": "Antwort", "identity_id": "Kunde", "topic_id": "Thema", "row_id": "Nr",
               "perturbed_answers": "falsch", "paraphrased_question": "anders"}  # fmt: skip
    source = {"file": str(write(tmp_path / "rows.jsonl", records)), "columns": columns, "language": "DE"}
    loaded = sources.load(config(source, setting="request", request={"forget": [{"topics": ["Adresse"]}]}))
    assert list(loaded.rows) == [Row("z1", "K-7", None, "DE", "Adresse", "Wo wohnt Ida?", "Ida wohnt in Bonn.")]
    assert list(loaded.rows.columns("false_answers", "paraphrased_question", "paraphrased_answer")) == [
        (["Ida wohnt in Ulm."], "Wo ist Ida zu Hause?", None)
    ]


def test_a_cell_of_csv_lists_false_answers_as_json_or_is_empty(tmp_path: Path) -> None:
    cells = ['["Ulm", "Bonn, am Rhein"]', "", " "]
    records = [{**record, "perturbed_answers": cell} for record, cell in zip(GOOD, cells, strict=False)]
    loaded = sources.load(config({"file": str(write(tmp_path / "rows.csv", records))}))
    assert sorted(answers for (answers,) in loaded.rows.columns("false_answers")) == [[], [], ["Ulm", "Bonn, am Rhein"]]


def test_names_stand_for_identities_where_there_are_no_ids(tmp_path: Path) -> None:
    records = [{key: value for key, value in record.items() if key != "identity_id"} for record in GOOD]
    rows = list(sources.load(config({"file": str(write(tmp_path / "rows.jsonl", records))})).rows)
    assert {r.identity_id for r in rows} == {f"Ida {i}" for i in range(5)}
    assert rows[0].row_id == "en-ida 0-biography.birthplace"


@pytest.mark.parametrize(
    ("records", "more", "said"),
    [
        ([{"text": "Once upon a time."}], {}, "line 1: is running text. Only facts can be forgotten here"),
        ([{"prompt": "a", "response": "b"}], {}, "has no column question, answer. It has prompt, response. Name the"),
        (GOOD, {"columns": {"question": "Frage"}}, "has no column Frage, which data.source.columns.question names"),
        (GOOD, {"columns": {"topic_id": "Thema"}}, "has no column Thema, which data.source.columns.topic_id names"),
        ([GOOD[0], {**GOOD[1], "row_id": "x"}], {}, "line 2: has the column row_id, but the first row has not"),
        ([GOOD[0], {**GOOD[1], "perturbed_answers": ["x"]}], {}, "line 2: has the column perturbed_answers, but the"),
        ([GOOD[0], {**GOOD[1], "paraphrased_answer": "x"}], {}, "line 2: has the column paraphrased_answer, but the"),
        ([GOOD[0], {k: v for k, v in GOOD[1].items() if k != "name"}], {}, "line 2: has no column name, but the first"),
        (
            [GOOD[0], {**GOOD[1], "identity_id": "x"}],
            {},
            "line 2: identity_id is 'x', a str, and in earlier rows it is",
        ),
        ([{**GOOD[0], "row_id": "a"}, {**GOOD[1], "row_id": "a"}], {}, "line 2: row_id 'a' is that of an earlier row"),
        ([{**GOOD[0], "perturbed_answers": "no list"}], {}, "perturbed_answers is 'no list' and must be a list"),
        ([{**GOOD[0], "perturbed_answers": [""]}], {}, "perturbed_answers is empty"),
        ([{**GOOD[0], "perturbed_answers": '["a", 3]'}], {}, "perturbed_answers is 3 and must be text"),
        ([{**GOOD[0], "perturbed_answers": "7"}], {}, "perturbed_answers is '7' and must be a list"),
        ([[1, 2]], {}, "line 1: is a list and must be an object"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, records: list[Any], more: dict[str, Any], said: str) -> None:
    assert said in message(tmp_path, records, source=more)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answer": ""}, "answer is empty"),
        ({"question": " \n"}, "question is empty"),
        ({"name": None}, "name is empty"),
        ({"answer": 5}, "must be text"),
        ({"answer": ["a"]}, "must be text"),
        ({"language": "english"}, "language is 'ENGLISH' and must be a code of two letters"),
        ({"topic_id": 7}, "topic_id is 7 and must be text"),
        ({"identity_id": -1}, "identity_id is -1"),
        ({"identity_id": True}, "identity_id is True"),
        ({"identity_id": 1.5}, "identity_id is 1.5"),
        ({"identity_id": 10**18}, "identity_id is 1000"),
        ({"answer": "half \ud800"}, "surrogate"),
    ],
)
def test_a_bad_field_is_named_with_its_row(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    told = message(tmp_path, changed(3, **fields))
    assert told.startswith("rows.jsonl, line 4: ")
    assert said in told


# Ids


def test_row_ids_do_not_depend_on_the_order_and_are_never_shared(tmp_path: Path) -> None:
    more = [{**GOOD[0], "question": f"Number {i}?", "answer": f"Ida 0 says {i}."} for i in range(3)]
    more.append(dict(more[0]))  # the very same fact again
    ids = []
    for records in ([*GOOD, *more], [*more[::-1], *GOOD]):
        rows = sources.load(config({"file": str(write(tmp_path / "rows.jsonl", records))})).rows
        ids.append({r.row_id: r.answer for r in rows})
        assert len(ids[-1]) == len(records)
    assert ids[0] == ids[1]
    assert sum(row_id.startswith("en-0-biography.birthplace-") for row_id in ids[0]) == 5


# Nothing is lost, and nothing but our errors is raised

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["EN", "", "é"])
)
keys = st.sampled_from([*FIELDS, "split", "perturbed_answers", "paraphrased_question", "text"])
odd = st.lists(
    st.one_of(
        scalars,
        st.dictionaries(keys, scalars | st.lists(scalars, max_size=2)),
        st.sampled_from(GOOD),
        st.sampled_from(GOOD),
        st.builds(lambda r, k, v: {**r, k: v}, st.sampled_from(GOOD), keys, scalars),
    ),
    max_size=6,
)
records = st.builds(operator.add, st.sampled_from([[], GOOD]), odd)  # with none but odd ones no split has enough
options = st.sampled_from(
    [
        {},
        {"setting": "given"},
        {"setting": "entity"},
        {"setting": "request", "request": {"forget": [{"languages": ["EN"]}]}},
        {"setting": "request", "request": {"forget": [{"identities": ["Ida 1", 2]}], "holdout": 0.5}},
        {"source": {"columns": {"name": "topic_id", "row_id": "question"}}},
        {"source": {"language": "EN"}},
    ]
)


@given(records, options, st.sampled_from([".json", ".jsonl"]))
@settings(max_examples=200, deadline=None)
def test_rows_in_are_rows_out_or_a_release_error(
    tmp_path_factory: Any, rows: Any, more: dict[str, Any], suffix: str
) -> None:
    path = tmp_path_factory.mktemp("malformed") / f"rows{suffix}"
    path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    source = {"file": str(path), **more.get("source", {})}
    made = config(source, **{key: value for key, value in more.items() if key != "source"})
    try:
        loaded = sources.load(made)
    except ReleaseError as error:
        assert str(error)  # noqa: PT017
        return
    paraphrases = sum(map(len, loaded.paraphrases.values())) + loaded.reported.get("paraphrases_without_row", 0)
    assert len(loaded.rows) + paraphrases == loaded.reported["rows_in"] == len(rows)
    assert len({r.row_id for r in loaded.rows}) == len(loaded.rows)
    written = path.with_name("written.jsonl")
    write_rows(written, loaded.rows)
    assert read_rows(written) == list(loaded.rows)
    try:
        prepared = prepare.prepare(made)
    except ReleaseError as error:
        assert str(error)  # noqa: PT017
        return
    assert len(prepared.split) == len(rows) - paraphrases


@given(st.binary(max_size=300), st.sampled_from(SUFFIXES))
@settings(max_examples=150, deadline=None)
def test_any_bytes_only_ever_raise_release_errors(tmp_path_factory: Any, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"rows{suffix}"
    path.write_bytes(content)
    with pytest.raises(ReleaseError):
        sources.load(config({"file": str(path)}))


def test_rows_with_unicode_line_ends_come_back(tmp_path: Path) -> None:
    rows = [row(1, TOPICS[0], answer="one\u2028two\x85three")]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_paraphrase_has_the_id_of_its_row(tmp_path: Path) -> None:
    rows = [{**record, "row_id": f"row-{i}", "split": "retain"} for i, record in enumerate(GOOD[:5])]
    again = {**rows[1], "split": "paraphrased", "question": "Again?"}
    source = {"file": str(write(tmp_path / "rows.jsonl", [*rows, again, again]))}
    loaded = sources.load(config(source, setting="given"))
    assert loaded.paraphrases == {"row-1": (("Again?", again["answer"]),) * 2}
    assert "paraphrases_without_row" not in loaded.reported


def test_fame_itself() -> None:
    loaded = sources.load(config({"file": str(shared_data(FAME))}))
    assert Counter(language for (language,) in loaded.rows.columns("language")) == dict.fromkeys(LANGUAGES, 2560)
    assert loaded.reported["rows_in"] == 12800
    first = next(iter(loaded.rows))
    assert (first.language, first.topic_id) == ("DE", TOPICS[0])
    assert isinstance(first.identity_id, int)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv"):
        with pytest.raises(DataError, match=f"data.source.file {name}: is no file but a folder or a pipe"):
            list(read_file(str(tmp_path / name), "data.source.file"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "question;answer\na;b\n", "a.csv: is separated by semicolons, and only commas are read"),
        ("a.csv", '\ufeff"question";"answer"\n"a, b";"c"\n', "a.csv: is separated by semicolons"),
        ("a.csv", "question\tanswer\na\tb\n", "a.csv: is separated by tabs"),
        ("a.tsv", "question\tanswer\na\tb\n", "a.tsv: is separated by tabs.* Save it with commas, as .csv"),
    ],
)
def test_what_a_table_is_separated_by_is_said(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        list(read_file(str(tmp_path / name), "data.source.file"))


@pytest.mark.parametrize("column", ["row_id", "name", "topic_id", "identity_id"])
def test_labels_are_short(tmp_path: Path, column: str) -> None:
    record = GOOD[0] | {column: "x" * 100_000}
    with pytest.raises(DataError, match=rf"{column} has 100,000 characters, and may have 500") as caught:
        sources.load(config({"file": str(write(tmp_path / "rows.jsonl", [record]))}))
    assert len(str(caught.value)) < 300


def test_a_damaged_arrow_file_is_an_error_and_does_not_end_the_process(tmp_path: Path) -> None:
    """Without the validation of each batch, 3 % of such changes end the process: its offsets lead anywhere."""
    import pyarrow as pa

    table = pa.Table.from_pylist([{"question": f"Who is {i}?", "answer": f"Ann {i} of Old Harrow"} for i in range(40)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    offsets = (9).to_bytes(4, "little") + (18).to_bytes(4, "little")  # of the questions
    assert content.count(offsets) == 1
    (tmp_path / "a.arrow").write_bytes(content.replace(offsets, b"\xff\xff\xff\x7f" + offsets[4:]))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_file(str(tmp_path / "a.arrow"), "data.source.file"))


def test_many_columns_are_read_in_linear_time(tmp_path: Path) -> None:
    header = ",".join(f"c{i}" for i in range(50_000))
    (tmp_path / "a.csv").write_text(f"{header}\n{header}\n")
    began = time.process_time()
    assert len(list(read_file(str(tmp_path / "a.csv"), "data.source.file"))) == 1
    assert time.process_time() - began < 5  # comparing each with each takes over a minute
