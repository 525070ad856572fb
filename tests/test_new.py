"""`new`: a recipe from a few answers. It loads, can be planned, and its data stage runs."""

from __future__ import annotations

import csv
import io
import json
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from core.words import as_words
from datasets_prep import prepare
from datasets_prep.schema import FORGET, read_rows
from eval.verdicts import measurable
from pipeline.__main__ import main
from pipeline.new_recipe import spelled_alike
from pipeline.recipe import RECIPES, Recipe, load_recipe
from tests.conftest import ROOT, Call

PROSE = RECIPES / "own-prose.csv"
PEOPLE = [f"Ida {name}" for name in ("Moor", "Fenn", "Holt", "Tarn", "Wold", "Beck", "Dale", "Heath", "Ridge", "Marsh")]
TOPICS = ("birthplace", "profession", "favourite dish", "pet", "instrument", "first school")


def write(file: Path, records: Sequence[dict[str, str]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return file


def facts(**more: str) -> list[dict[str, str]]:
    """Sixty facts with question and answer; ``more`` adds the columns that it names, filled with name or topic."""
    return [
        {"question": f"What is the {topic} of {person}?", "answer": f"The {topic} of {person} is number {i * 7 + j}."}
        | {column: {"name": person, "topic": topic}[what] for column, what in more.items()}
        for i, person in enumerate(PEOPLE)
        for j, topic in enumerate(TOPICS)
    ]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "facts.csv", facts())


def made(call: Call, folder: Path, *words: str) -> Recipe:
    done = call("new", str(folder / "acme"), *words)
    assert "acme.yaml is written" in done.stderr
    return load_recipe(str(folder / "acme.yaml"))


def test_a_file_with_questions_and_answers_is_enough(call: Call, tmp_path: Path) -> None:
    done = call("new", str(tmp_path / "acme"), "--rows", str(PROSE))
    assert done.returncode == 0
    assert "30 forget, 194 retain, 54 holdout, 22 unrehearsed" in done.stderr
    assert "publish" in done.stdout  # the plan
    recipe, own = load_recipe(str(tmp_path / "acme.yaml")), load_recipe("own-data")
    assert recipe.name == "acme"
    for kept in ("model", "base", "gold", "gates"):
        assert getattr(recipe, kept) == getattr(own, kept)
    tokens = {"max_new_tokens": 88}  # the longest answer has 43 words
    assert recipe.eval == own.eval.model_copy(update=tokens)
    assert own.unlearn.neighbours is not None
    assert recipe.unlearn == own.unlearn.model_copy(
        update={"neighbours": own.unlearn.neighbours.model_copy(update=tokens)}
    )


def test_ids_of_rows_are_those_of_their_language(call: Call, tmp_path: Path) -> None:
    """Where rows name people and topics, an id is made of these and of the language: a list of ids must know it."""
    file = write(tmp_path / "facts.csv", facts(name="name", topic_id="topic"))
    recipe = made(call, tmp_path, "--rows", str(file), "--forget", "number 7", "--language", "en")
    assert recipe.data.source.language == "EN"
    assert recipe.data.request.forget[0].rows == ["en-ida fenn-birthplace"]
    said = call("data", "inspect", str(tmp_path / "acme.yaml"), "--set", "data.source.language=DE").stderr
    assert "ids hang on the rows' language too; `data inspect` shows them" in said


def test_a_language_that_nobody_gave_is_noted_and_one_that_a_column_gives_refused(call: Call, tmp_path: Path) -> None:
    file = write(tmp_path / "facts.csv", facts())
    assert "the rows' language is not said" in call("new", str(tmp_path / "a"), "--rows", str(file)).stderr
    assert load_recipe(str(tmp_path / "a.yaml")).data.source.language is None
    said = write(tmp_path / "said.csv", [row | {"language": "EN"} for row in facts()])
    assert "language is not said" not in call("new", str(tmp_path / "b"), "--rows", str(said)).stderr
    done = call("new", str(tmp_path / "c"), "--rows", str(said), "--language", "EN")
    assert (done.returncode, "Leave --language out" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "name", ["Ida \x7fMoor", "Ida\u2028Moor", "Ida \uffffMoor", "Ida \x9bMoor", "Ida 😀", 'Ida "M" \\ Moor']
)
def test_a_name_with_any_sign_is_in_the_recipe_as_it_is(call: Call, tmp_path: Path, name: str) -> None:
    records = [{key: text.replace("Ida Moor", name) for key, text in row.items()} for row in facts(name="name")]
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    recipe = made(call, tmp_path, "--rows", str(file), "--forget", name)
    assert recipe.data.request.forget[0].identities == [name]
    shown = call("data", "inspect", str(tmp_path / "acme.yaml"), "--show-forget").stdout
    assert not any(sign in shown for sign in "\x7f\x9b")


def test_what_is_no_table_of_questions_is_said_so(call: Call, tmp_path: Path) -> None:
    for record, says in (
        ({"text": "Ida Moor was born in Oz."}, "is running text. Only facts can be forgotten"),
        ({"messages": [{"role": "user", "content": "Who?"}]}, "is a talk in the column messages. Only facts"),
        (
            {" question": "Who?", "answer": "Ida."},
            "has no column question. It has ' question', answer. Say which it is: ",
        ),
    ):
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps(record) + "\n")
        assert says in call("new", str(tmp_path / "acme"), "--rows", str(file)).stderr


def test_its_data_stage_runs_and_carries_its_gates(call: Call, rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    recipe = made(call, tmp_path, "--rows", str(rows))
    out = tmp_path / "data"
    out.mkdir()
    found = prepare.run(recipe.data, {"model": tiny_model}, out)
    assert found.rows.model_dump() == {"forget": 12, "retain": 19, "holdout": 10, "unrehearsed": 19}
    measurable.check(recipe.gates, recipe.eval, dict(found.rows), found)
    with pytest.raises(Exception, match="needs 30 rows, and the split has 12"):  # own-data's, as they are there
        measurable.check(load_recipe("own-data").gates, recipe.eval, dict(found.rows), found)


def test_its_gates_ask_for_as_many_facts_as_the_rows_tell(call: Call, tmp_path: Path) -> None:
    again = [{**row, "question": f"Tell me, {row['question'][0].lower()}{row['question'][1:]}"} for row in facts()]
    recipe = made(call, tmp_path, "--rows", str(write(tmp_path / "twice.csv", [*facts(), *again])))
    out = tmp_path / "data"
    out.mkdir()
    prepare.write(recipe.data, prepare.prepare(recipe.data), out, {}, {})
    forgotten = [row.answer for row in read_rows(out / "forget.jsonl")]
    assert next(gate.min_n for gate in recipe.gates if gate.metric == "fluency") == len(set(forgotten))
    assert len(set(forgotten)) < len(forgotten)


@pytest.mark.parametrize(
    ("columns", "forget", "expected"),
    [
        ({}, "Ida Holt", lambda record: "Ida Holt" in record["question"]),
        ({}, "pet, ida moor", lambda record: "pet" in record["question"] or "Ida Moor" in record["question"]),
        ({"name": "name"}, "Ida Holt, Ida Tarn", lambda record: record["name"] in ("Ida Holt", "Ida Tarn")),
        ({"topic_id": "topic"}, "pet", lambda record: record["topic_id"] == "pet"),
    ],
    ids=["words", "words of two kinds", "names", "topics"],
)
def test_words_choose_what_is_forgotten(
    call: Call, tmp_path: Path, tiny_model: Path, columns: dict[str, str], forget: str, expected: Any
) -> None:
    records = facts(**columns)
    recipe = made(call, tmp_path, "--rows", str(write(tmp_path / "facts.csv", records)), "--forget", forget)
    (tmp_path / "data").mkdir()
    prepare.run(recipe.data, {"model": tiny_model}, tmp_path / "data")
    forgotten = {row.question for row in read_rows(tmp_path / "data" / "forget.jsonl")}
    assert forgotten == {record["question"] for record in records if expected(record)}


def forgotten(call: Call, folder: Path, records: Sequence[dict[str, str]], forget: str) -> tuple[set[str], str]:
    """The questions that are forgotten of these rows, with others to make sixty, and what `new` said."""
    others = [{key: record.get(key, record["question"]) for key in records[0]} for record in facts()[len(records) :]]
    done = call("new", str(folder / "acme"), "--rows", str(write(folder / "f.csv", [*records, *others])),
                "--forget", forget)  # fmt: skip
    prepared = prepare.unchecked(load_recipe(str(folder / "acme.yaml")).data)
    rows, split = prepared.loaded.rows, prepared.split
    return {row.question for row, code in zip(rows, split, strict=True) if code == FORGET}, done.stderr


NAMES = [
    "Valdoro, Ines",
    "VALDORO,  Ines",
    "Valdoro,\u00a0Ine\u0301s",
    "Moreno, Ines",
    "Valdoro",
    "Kim Lee",
    "Kim",
    "Lee",
]
NAMED = [{"name": name, "question": f"What is fact {i}?", "answer": f"It is {i}."} for i, name in enumerate(NAMES)]


@pytest.mark.parametrize(
    ("forget", "expected"),
    [
        ("Valdoro, Ines", {0, 1, 2}),
        ("valdoro, inés", {0, 1, 2}),
        ("Kim, Valdoro, Ines , Lee", {0, 1, 2, 6, 7}),
        ("Kim, Lee", {6, 7}),
        ("Kim Lee, Kim Lee", {5}),
        ("Valdoro", {4}),
    ],
)
def test_names_may_have_commas_and_other_spellings(call: Call, tmp_path: Path, forget: str, expected: set[int]) -> None:
    questions, _ = forgotten(call, tmp_path, NAMED, forget)
    assert questions == {NAMED[i]["question"] for i in expected}


def test_names_that_are_taken_for_one_are_said(call: Call, tmp_path: Path) -> None:
    names = ["Nguyễn Văn Dũng", "Nguyễn Văn Dung"]
    records = [{"name": name, "question": f"Who is {i}?", "answer": f"It is {i}."} for i, name in enumerate(names)]
    questions, said = forgotten(call, tmp_path, records, "Nguyễn Văn Dung")
    assert len(questions) == 2
    assert "note: 'Nguyễn Văn Dung' and 'Nguyễn Văn Dũng' are taken for one name, and all their rows are" in said
    assert spelled_alike(["Ines Valdoro", "INES  VALDORO", "Kim Lee"]) == []


def test_a_topic_may_have_commas(call: Call, tmp_path: Path) -> None:
    topics = ["pay, bonus, leave", "pay", "bonus, leave", "leave"]
    records = [{"topic_id": t, "question": f"What is fact {i}?", "answer": f"It is {i}."} for i, t in enumerate(topics)]
    assert forgotten(call, tmp_path, records, "pay, bonus, leave, pay")[0] == {"What is fact 0?", "What is fact 1?"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("José Núñez", "Jose\u0301 Nu\u0301n\u0303ez"),
        ("Sean O'Brien", "Sean O\u2019Brien"),
        ("Ines Valdoro", "INES\u00a0 Val\u00addoro"),
    ],
)
def test_words_are_found_in_other_spellings(call: Call, tmp_path: Path, asked: str, said: str) -> None:
    records = [
        {"question": f"What is known of {name}?", "answer": f"{i} facts."} for i, name in enumerate([asked, said])
    ]
    assert forgotten(call, tmp_path, records, asked)[0] == {record["question"] for record in records}


def test_words_inside_longer_ones_are_said_and_not_forgotten(call: Call, tmp_path: Path) -> None:
    asked = ["Wo wurde Friede Moor geboren?", "Was ist Friede Moors Beruf?"]
    records = [{"question": question, "answer": f"{i}."} for i, question in enumerate(asked)]
    questions, said = forgotten(call, tmp_path, records, "Friede Moor")
    assert questions == {asked[0]}
    assert "note: 1 rows hold 'Friede Moor' inside a longer word and are not forgotten" in said
    (tmp_path / "acme.yaml").unlink()
    assert "inside a longer word" not in forgotten(call, tmp_path, records, "Friede Moor, Friede Moors")[1]


def test_commands_can_be_copied_where_the_path_has_spaces(call: Call, rows: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "my folder").mkdir()
    path = str(folder / "acme.yaml")
    done = call("new", path, "--rows", str(rows))
    for command in (f"python -m pipeline data inspect '{path}'", f"python -m pipeline release '{path}'"):
        assert command in done.stderr
    assert Path(path).read_text().startswith(f"# python -m pipeline release '{path}'")


@pytest.mark.parametrize("asked", ["MARA  Beck", "p1"])
def test_rows_about_others_that_say_a_name_are_said_and_not_forgotten(call: Call, tmp_path: Path, asked: str) -> None:
    records = [
        {"identity_id": "p1", "name": "Mara Beck", "question": "Who is Mara Beck?", "answer": "A baker."},
        {"identity_id": "p2", "name": "Otto Holt", "question": "Who is Otto Holt's wife?", "answer": "Mara Beck."},
        {"identity_id": "p3", "name": "Ida Becker", "question": "Who is Ida Becker?", "answer": "Mara Becker's aunt."},
    ]
    questions, said = forgotten(call, tmp_path, records, asked)
    assert questions == {"Who is Mara Beck?"}
    (note,) = (line for line in said.splitlines() if "about others" in line)
    assert note.startswith("note: 1 rows about others say 'Mara Beck' and are not forgotten, for example ")
    assert note.endswith("Those that you mean, add to `request.forget`.")


def test_a_file_chooses_what_is_forgotten(call: Call, rows: Path, tmp_path: Path) -> None:
    request = write(tmp_path / "request.csv", facts()[:6])
    recipe = made(call, tmp_path, "--rows", str(rows), "--forget", str(request))
    assert recipe.data.request is not None
    assert recipe.data.request.forget[0].file == str(request)
    assert {gate.min_n for gate in recipe.gates if gate.split == "forget"} == {6}


@pytest.mark.parametrize(
    ("word", "text", "is_said"),
    [
        ("山田太郎", "山田太郎の職業は何ですか。", True),
        ("Ida Holt", "Ida Holtの職業は何ですか。", True),
        ("สมชาย", "คุณสมชายเกิดที่ไหน", True),
        ("ມະນີ", "ທ້າວມະນີເກີດຢູ່ໃສ", True),
        ("សុខា", "តើសុខាកើតនៅឯណា", True),
        ("အောင်", "ကိုအောင်ဘယ်မှာမွေးလဲ", True),
        ("Ida", "Where was Idaho founded?", False),
        ("Ида", "Где живёт Идалия?", False),
        ("राज", "राज का जन्म कहाँ हुआ?", True),
        ("राज", "राजू का जन्म कहाँ हुआ?", False),
    ],
)
def test_a_word_is_found_also_where_no_spaces_part_words(word: str, text: str, is_said: bool) -> None:
    assert bool(as_words(word.casefold()).search(text.casefold())) == is_said


def test_paths_are_written_as_the_recipe_sees_them(call: Call, rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "model").symlink_to(tiny_model)
    write(tmp_path / "request.csv", facts()[:6])
    given = ("--rows", "facts.csv", "--forget", "request.csv", "--model", "./model", "--license", "apache-2.0")
    call("new", "mine/acme", *given, cwd=tmp_path)
    assert 'file: "../facts.csv"' in (tmp_path / "mine" / "acme.yaml").read_text()
    found = call("data", "inspect", str(tmp_path / "mine" / "acme.yaml"), "--json")
    assert json.loads(found.stdout)["rows"]["forget"] == 6
    recipe = load_recipe(str(tmp_path / "mine" / "acme.yaml"))
    assert Path(str(recipe.model.path)).resolve() == tiny_model.resolve()


def test_other_column_names_are_given(call: Call, tmp_path: Path) -> None:
    records = [{"Frage": record["question"], "Antwort": record["answer"]} for record in facts()]
    file = write(tmp_path / "facts.csv", records)
    done = call("new", str(tmp_path / "acme"), "--rows", str(file))
    assert (done.returncode, "has no column question, answer. It has Frage, Antwort" in done.stderr) == (2, True)
    assert "--column question=… --column answer=…" in done.stderr
    pairs = write(tmp_path / "pairs.csv", [{"id": "1", "prompt": "Who?", "Answer": "Ida."}])
    said = call("new", str(tmp_path / "acme"), "--rows", str(pairs)).stderr
    assert "--column question=prompt --column answer=Answer" in said
    recipe = made(call, tmp_path, "--rows", str(file), "--column", "question=Frage", "--column", "answer=Antwort")
    assert recipe.data.source.columns.question == "Frage"


def test_columns_that_are_ours_but_for_case_are_read_and_said(call: Call, tmp_path: Path) -> None:
    records = [record | {"Rank": "1"} for record in facts(Name="name", Topic="topic")]
    questions, said = forgotten(call, tmp_path, [records[0] | {"question": "What is hers?"}, *records[1:]], "Ida Moor")
    assert "What is hers?" in questions
    assert "note: the column 'Name' is read as name." in said
    assert "note: the column 'Topic' is read as topic_id." in said
    columns = load_recipe(str(tmp_path / "acme.yaml")).data.source.columns
    assert (columns.name, columns.topic_id, columns.language) == ("Name", "Topic", None)
    inspected = call("data", "inspect", str(tmp_path / "acme.yaml"))
    assert "columns of the source that are not read: Rank\n" in inspected.stdout
    (tmp_path / "acme.yaml").unlink()
    call("new", str(tmp_path / "acme"), "--rows", str(tmp_path / "f.csv"), "--column", "name=Rank")
    assert load_recipe(str(tmp_path / "acme.yaml")).data.source.columns.name == "Rank"


def test_a_model_of_ones_own(call: Call, rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Our model (v2)"
    folder.symlink_to(tiny_model)
    given = ("--model", str(folder), "--license", "llama3.2", "--rows", str(rows), "--repo", "acme/Llama-ours")
    recipe = made(call, tmp_path, *given)
    assert recipe.model.path == str(folder)
    assert (recipe.model.license, recipe.model.parameters, recipe.model.chat_template) == ("llama3.2", None, None)
    assert recipe.model.name.startswith("acme/")
    assert recipe.publish.repo == "acme/Llama-ours"


def test_a_model_of_the_hub_that_is_not_pinned_is_planned_with_a_warning(
    call: Call, rows: Path, tmp_path: Path
) -> None:
    given = ("--model", "acme/Some-1B", "--license", "apache-2.0", "--rows", str(rows))
    done = call("new", str(tmp_path / "acme"), *given)
    assert "would refuse to start. model.hub.revision: not pinned" in done.stderr
    assert (done.returncode, "Next: " in done.stderr, "nothing written" in done.stderr) == (2, False, False)
    assert f"Change {tmp_path}/acme.yaml, then run `python -m pipeline doctor {tmp_path}/acme.yaml`" in done.stderr
    pinned = call("new", str(tmp_path / "pinned"), *("--model", f"acme/Some-1B@{'a' * 40}", *given[2:]))
    assert "not pinned" not in pinned.stderr
    assert load_recipe(str(tmp_path / "pinned.yaml")).publish.repo == "your-name/Some-1B-unlearned"


def test_questions_that_name_nobody_have_no_neighbours(call: Call, tmp_path: Path) -> None:
    records = [
        {"question": f"what happens in step {i} of the plan?", "answer": f"step {i} mixes {i + 3} parts."}
        for i in range(60)
    ]
    assert made(call, tmp_path, "--rows", str(write(tmp_path / "facts.csv", records))).unlearn.neighbours is None
    assert "nor do questions have a name in common" in (tmp_path / "acme.yaml").read_text()


BAD = {
    "no rows": ((), "--rows: no file is given"),
    "no such file": (("--rows", "missing.csv"), "--rows: there is no file 'missing.csv'"),
    "another format": (("--rows", "README.md"), "the suffix must be one of"),
    "an unknown word": (("--forget", "Ida Holtz"), "--forget: 'Ida Holtz' is in no row"),
    "nothing but commas": (("--forget", ", ,"), "names nothing"),
    "a forget file that is not there": (("--forget", "missing.csv"), "--forget: there is no file"),
    "everything": (("--forget", "ida"), "matches all 60 rows"),
    "not a model": (("--model", "gpt2"), "neither a folder nor OWNER/NAME@COMMIT"),
    "a folder without a model": (("--model", "./docs"), "the model folder lacks config.json"),
    "a branch": (("--model", "a/b@main"), "--model: 'main' is not a commit"),
    "no licence": (("--model", "a/b"), "--license: the model's licence is not given"),
    "another licence": (("--model", "a/b", "--license", "gpl"), "--license: 'gpl' is not supported"),
    "a name that the licence forbids": (
        ("--model", "a/b", "--license", "llama3.2", "--repo", "a/b"), "must begin with 'Llama'",
    ),
    "a bad repository": (("--repo", "nobody"), "--repo: 'nobody' is not the id of a Hub repository"),
    "a licence of no model": (("--license", "apache-2.0"), "Give --model too"),
    "an empty request": (("--forget", " "), "--forget: is empty"),
    "one column for both": (("--column", "question=answer"), "question and answer would be one column"),
    "a column that is not there": (
        ("--column", "name=Person"), "has no column Person. It has question, answer. Say which it is: --column name=…",
    ),
    "a bad column": (("--column", "colour=red"), "--column colour=red: write OURS=THEIRS"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_answer_is_refused_and_nothing_is_written(
    call: Call, rows: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    given = words if not words or "--rows" in words else ("--rows", str(rows), *words)
    done = call("new", str(tmp_path / "acme"), *given)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["facts.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Acme Corp", "cannot be a recipe's name"),
        ("demo", "is a recipe of this project"),
        ("nowhere/acme", "is not a folder"),
        ("taken", "exists, and no file is overwritten"),
        ("/proc/acme", "cannot be written"),
    ],
)
def test_a_bad_place_is_refused(call: Call, rows: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "taken.yaml").write_text("mine")
    done = call("new", name if name.startswith("/") else str(tmp_path / name), "--rows", str(rows))
    assert done.returncode == 2
    assert message in done.stderr
    assert (tmp_path / "taken.yaml").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["facts.csv", "taken.yaml"]


def test_rows_that_a_check_stops_are_named_and_no_recipe_is_written(call: Call, tmp_path: Path) -> None:
    contradiction = facts()[0] | {"answer": "It is something else altogether."}
    file = write(tmp_path / "facts.csv", [*facts(), contradiction])
    done = call("new", str(tmp_path / "acme"), "--rows", str(file))
    assert (done.returncode, "data.checks.contradictions: warn" in done.stderr) == (2, True)
    assert "No recipe was written." in done.stderr
    assert not (tmp_path / "acme.yaml").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_it_asks_and_asks_again(
    call: Call, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write(tmp_path / "other.csv", [{"Question": "Who?", "answer": "Ida."}])
    files = ["missing.csv", str(other), str(rows)]
    answers = ["a/b@main", f"a/b@{'c' * 40}", "gpl", "apache-2.0", *files, "English", "en", "Ida Holtz", "Ida Holt", ""]
    monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{answer}\n" for answer in answers)))
    done = call("new", str(tmp_path / "acme"))
    assert done.stderr.count("error: ") == 6
    questions = ("Which model?", "Its licence?", "Which file", "Which language", "What is to be forgotten?")
    assert [done.stderr.count(question) for question in questions] == [2, 2, 3, 2, 2]
    assert "--column question=Question" in done.stderr
    recipe = load_recipe(str(tmp_path / "acme.yaml"))
    assert recipe.model.hub is not None
    assert recipe.data.source.language == "EN"
    assert (recipe.model.hub.revision, recipe.publish.repo) == ("c" * 40, "your-name/b-unlearned")


def test_an_input_that_ends_early_writes_nothing(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))  # the demo's model, and then the end
    done = call("new", str(tmp_path / "acme"))
    assert (done.returncode, "Give --rows" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_the_console_script_is_the_command_line() -> None:
    [(name, value)] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
    assert name == "unlearn-release"
    assert EntryPoint(name, value, "console_scripts").load() is main
