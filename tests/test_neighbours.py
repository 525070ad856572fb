"""Questions about the neighbourhood, answered by base without forgotten facts (formed: test_neighbour_questions)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError, ModelError
from core.progress import Report, listening
from datasets_prep.chat import chat_example, encode, end_of_turn, load_tokenizer
from datasets_prep.schema import PerturbedRow, Row, read_rows, write_rows
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from pipeline.unlearn import asking, neighbours, run
from pipeline.unlearn.asking import likeliest_answers
from pipeline.unlearn.config import Neighbours
from pipeline.unlearn.continuations import read_continuations
from tests.conftest import end_turns
from tests.unlearning import bigrams, row, stage_inputs, unlearn_config


def test_an_answer_that_states_a_forgotten_fact_is_known_by_its_own_words() -> None:
    forget = [row("Ann Lee", "home", answer="Ann Lee lives in Málaga, Calle Nueva.")]
    facts = neighbours.forgotten_facts(forget, {forget[0].row_id: ["Ann Lee lives in Bergen, Calle Mayor."]}, [])
    assert [fact.words for fact in facts] == [{"malaga", "nueva"}]
    assert neighbours.states_a_fact("Bo Ray lives in MALAGA, Calle Nueva.", facts, "Where?")
    assert not neighbours.states_a_fact(
        "Bo Ray lives in MALAGA.", facts, "Where?"
    )  # half of it: others may live there too
    assert neighbours.states_a_fact("Bo Ray lives in MALAGA.", [neighbours.Fact({"malaga"}, [], "Ann Lee")], "Where?")
    assert not neighbours.states_a_fact("Bo Ray lives in Bergen, Calle Mayor.", facts, "Where?")
    assert neighbours.forgotten_facts(forget, {forget[0].row_id: [forget[0].answer]}, []) == []


def test_what_a_retained_answer_says_states_nothing_and_words_of_two_retained_answers_do() -> None:
    forget = [row("Jasper Zabel", "event", "DE", "Jasper Zabel gründete 2014 eine Käserei in Eschenrode.")]
    false = {forget[0].row_id: ["Jasper Zabel gründete 1977 ein Orchester in Grünaue."]}
    event = row("Tilo Moor", "event", "DE", "Tilo Moor gründete 1990 eine Käserei in Grünaue.")
    school = row("Tilo Moor", "school", "DE", "Tilo Moor besuchte das Kolleg in Eschenrode.")
    said = "Gesa Fink gründete 2023 eine Käserei in Eschenrode."
    stated = [
        neighbours.states_a_fact(said, neighbours.forgotten_facts(forget, false, retain), "What?")
        for retain in (
            [],
            [event, school],
            [event, school, replace(event, answer=said)],
            [replace(school, answer=said)],
        )
    ]
    assert stated == [True, True, False, False]
    abroad = [replace(event, answer=said, language="EN")]  # another language's answers tell nothing
    assert neighbours.states_a_fact(said, neighbours.forgotten_facts(forget, false, abroad), "What?")


@pytest.mark.parametrize(
    ("question", "answer", "stated"),
    [
        ("In which town is the home of Ada Stone?", "She lives in Oz.", True),
        ("Who lives in Oz?", "Ada Stone’s home is in Oz.", True),
        ("Where is Ada Stones hus?", "In Oz.", True),
        ("In which town is the home of Ada Marsh?", "Ada Marsh lives in Oz.", False),
        ("In which town is the home of Ada Stone?", "She lives in Ur.", False),
    ],
)
def test_what_is_retained_of_others_may_be_said_of_others_alone(question: str, answer: str, stated: bool) -> None:
    forget = row("Ada Stone", "home", answer="Ada Stone lives in Oz.")
    retain = [row("Cleo Marsh", "home", answer="Cleo Marsh lives in Oz.")]
    false = {forget.row_id: ["Ada Stone lives in Rome."]}
    assert neighbours.states_a_fact(answer, neighbours.forgotten_facts([forget], false, retain), question) is stated
    of_whom = neighbours.forgotten_facts(
        [replace(forget, name=None)], {forget.row_id: ["Ada Stone lives in Rome."]}, retain
    )
    assert neighbours.states_a_fact(answer, of_whom, question) is ("Oz" in answer)  # nothing tells whose it is


words = st.sets(st.sampled_from("abcdefg"), min_size=1)


@given(st.lists(words, max_size=6), words)
def test_an_answer_is_compared_with_every_fact_that_it_may_state(told: list[set[str]], said: set[str]) -> None:
    facts = [neighbours.Fact(each, [], None) for each in told]
    stated = [fact for fact in facts if neighbours.states_a_fact(" ".join(said), [fact], "?")]
    near = neighbours.FactsByWord(facts).near(" ".join(said))
    assert all(fact in near for fact in stated)


@pytest.mark.parametrize(
    ("true", "false", "stated", "else_said"),
    [
        (
            "张伟出生于北京。",
            ["张伟出生于南京。", "张伟出生于北海。"],
            "李娜的故乡是北京市。",
            "李娜在湖北的东京饭店工作。",
        ),
        ("田中はさいたまで生まれた。", ["田中は大阪で生まれた。"], "さいたまに住む", "田中は京都で生まれた。"),
        ("สมชายเกิดที่เชียงใหม่", ["สมชายเกิดที่กรุงเทพ", "สมชายเกิดที่ภูเก็ต"], "อยู่ที่เชียงใหม่", "มาลีเกิดที่น่าน"),
    ],
)
def test_a_fact_is_known_where_no_spaces_part_words(true: str, false: list[str], stated: str, else_said: str) -> None:
    forget = Row("r", None, true[:2], "X", None, "?", true)
    facts = neighbours.forgotten_facts([forget], {"r": false}, [])
    assert neighbours.states_a_fact(stated, facts, "?")
    assert not neighbours.states_a_fact(else_said, facts, "?")
    retained = neighbours.forgotten_facts([forget], {"r": false}, [replace(forget, answer=stated)])
    assert not neighbours.states_a_fact(stated, retained, "?")


@pytest.fixture
def inputs(tiny_model: Path, tmp_path: Path) -> dict[str, Path]:
    """Each person has a second question, so that there is something to ask the others."""
    inputs = stage_inputs(tiny_model, tmp_path)
    data = inputs["data"]
    retain = read_rows(data / "retain.jsonl")
    more = [
        Row(f"more-{r.row_id}", r.identity_id, r.name, "EN", "job", f"What does {r.name} do?", "Sings.")
        for r in retain[:3]
    ]
    write_rows(data / "retain.jsonl", [*retain, *more])
    forget = read_rows(data / "forget.jsonl")
    write_rows(data / "guides.jsonl", [PerturbedRow(r.row_id, "forget", (f"{r.name} was born in 1.",)) for r in forget])
    return inputs


def answer_with(monkeypatch: pytest.MonkeyPatch, texts: dict[str, list[str]]) -> None:
    def answers(model: Any, tokenizer: Any, questions: list[str], limit: int, so_far: Path) -> list[list[str]]:
        return [texts.get(question, ["Paints."]) for question in questions]

    monkeypatch.setattr(neighbours, "likeliest_answers", answers)


def test_the_stage_keeps_the_likeliest_answer_that_states_no_fact(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"What does Ida 0 do?": [], "What does Ida 1 do?": ["Born in 7, I think.", "In 7."]}
    texts |= {"What does Ida 2 do?": ["In 7, she was born.", "Knits."], "What does Ida 3 do?": ["Reads.", "Knits."]}
    answer_with(monkeypatch, texts)
    out = tmp_path / "out"
    out.mkdir()
    facts = neighbours.run(Neighbours(questions=99), inputs, out)
    kept = read_rows(out / neighbours.FILE)
    assert (facts.asked, facts.kept, facts.empty, facts.stating_a_forgotten_fact) == (15, 13, 1, 1)
    assert len(kept) == len({r.row_id for r in kept}) == 13
    said = {r.question: r.answer for r in kept}
    assert [said.pop(question, None) for question in texts] == [None, None, "Knits.", "Reads."]
    assert set(said.values()) == {"Paints."}


def test_nobody_s_own_forgotten_fact_is_rehearsed_where_only_questions_name_her(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ada's job is forgotten, and Cleo has the same: base says it of Ada where it is asked for her work."""

    def rows(name: str, town: str, job: str) -> list[Row]:
        return [
            Row(f"{name}-{question}", None, None, "EN", None, question.format(name), answer)
            for question, answer in (
                ("Where was {} born?", f"{name} was born in {town}."),
                ("What is {}'s job?", f"{name} is a {job}."),
            )
        ]

    ada, ben, cleo = (
        rows("Ada Stone", "Oz", "cook"),
        rows("Ben Cole", "Ur", "tailor"),
        rows("Cleo Marsh", "Ulm", "cook"),
    )
    work = Row("work", None, None, "EN", None, "What does Ben Cole live on?", "He sews.")
    write_rows(inputs["data"] / "forget.jsonl", ada[1:])
    write_rows(inputs["data"] / "retain.jsonl", [ada[0], *ben, *cleo, work])
    write_rows(inputs["data"] / "guides.jsonl", [PerturbedRow(ada[1].row_id, "forget", ("Ada Stone is a nurse.",))])
    answer_with(
        monkeypatch,
        {f"What does {name} live on?": [f"{name} works as a cook."] for name in ("Ada Stone", "Cleo Marsh")},
    )
    out = tmp_path / "out"
    out.mkdir()
    facts = neighbours.run(Neighbours(questions=99), inputs, out)
    assert [row.question for row in read_rows(out / neighbours.FILE)] == ["What does Cleo Marsh live on?"]
    assert (facts.asked, facts.stating_a_forgotten_fact) == (2, 1)


def test_the_stage_names_unrehearsed_rows_whose_question_was_asked_and_its_answer_kept(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, {"What does Ida 0 do?": [], "What does Ida 1 do?": ["Born in 7, I think."]})
    unrehearsed = [
        Row(f"kept-apart-{i}", i, f"Ida {i}", "EN", "job", f"What does Ida {i} do?", "Dances.") for i in range(4)
    ]
    unrehearsed.append(Row("unasked", 2, "Ida 2", "EN", "pet", "What pet has Ida 2?", "A cat."))
    write_rows(inputs["data"] / "unrehearsed.jsonl", unrehearsed)
    out = tmp_path / "out"
    out.mkdir()
    facts = neighbours.run(Neighbours(questions=99), inputs, out)
    assert facts.of_unrehearsed == ["kept-apart-2", "kept-apart-3"]  # the answers about 0 and 1 were dropped
    kept = {row.question: row.answer for row in read_rows(out / neighbours.FILE)}
    assert {kept[row.question] for row in unrehearsed[2:4]} == {"Paints."}  # base's answer, and never the row's own
    (tmp_path / "fewer").mkdir()
    fewer = neighbours.run(Neighbours(questions=3), inputs, tmp_path / "fewer")
    asked = {row.question for row in read_rows(tmp_path / "fewer" / neighbours.FILE)}
    assert fewer.of_unrehearsed == [row.row_id for row in unrehearsed if row.question in asked]


def test_unrehearsed_rows_are_known_by_names_in_their_questions_and_by_other_spellings(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, {})

    def unnamed(topic: str, question: str) -> Row:
        return Row(question, None, None, "EN", topic, question, "So it is.")

    people_of = ("Ada Stone", "Ben Cole", "Cleo Marsh", "Di Long Elm")
    told = [unnamed("birth", f"Where was {name} born?") for name in people_of]
    told += [unnamed("home", f"Where does {name} live?") for name in people_of]
    jobs = [unnamed("job", f"What is the job of {name}?") for name in people_of[:2]]
    write_rows(inputs["data"] / "forget.jsonl", jobs[:1])
    write_rows(inputs["data"] / "retain.jsonl", [*told, *jobs[1:]])
    write_rows(inputs["data"] / "guides.jsonl", [PerturbedRow(jobs[0].row_id, "forget", ("It is not so.",))])
    found = unnamed("job", "How does Cleo Marsh earn a living?")
    spelled = replace(unnamed("job", "How does Di Elm earn a living?"), name="Di Elm")
    of_nobody, not_asked = unnamed("job", "How does she earn a living?"), unnamed("pet", "What pet has Cleo Marsh?")
    write_rows(inputs["data"] / "unrehearsed.jsonl", [found, spelled, of_nobody, not_asked])
    (tmp_path / "out").mkdir()
    facts = neighbours.run(Neighbours(questions=99), inputs, tmp_path / "out")
    assert facts.of_unrehearsed == [found.row_id, spelled.row_id]


def test_an_unrehearsed_row_of_a_topic_that_tells_no_fact_was_asked_in_its_own_words_only(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, {})
    retain = read_rows(inputs["data"] / "retain.jsonl")
    more = replace(retain[-1], row_id="more", question=retain[-1].question.replace("do?", "sing?"))
    write_rows(inputs["data"] / "retain.jsonl", [*retain, more])
    asked_of, other = "What does Ida 3 do?", "What did Ida 3 do before?"
    unrehearsed = [Row(text, 3, "Ida 3", "EN", "job", text, "Dances.") for text in (asked_of, other)]
    write_rows(inputs["data"] / "unrehearsed.jsonl", unrehearsed)
    (tmp_path / "out").mkdir()
    assert neighbours.run(Neighbours(questions=99), inputs, tmp_path / "out").of_unrehearsed == [asked_of]


def test_the_unrehearsed_rows_form_no_questions_themselves(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With or without them the same is asked: the method does not know that they exist."""
    answer_with(monkeypatch, {})
    asked = []
    for name, rows in (("without", []), ("with", [row("Ida 77", "pet", question="What pet has {}?")])):
        write_rows(inputs["data"] / "unrehearsed.jsonl", rows)
        (tmp_path / name).mkdir()
        neighbours.run(Neighbours(questions=99), inputs, tmp_path / name)
        asked.append((tmp_path / name / neighbours.FILE).read_bytes())
    assert asked[0] == asked[1]


def test_what_was_forgotten_before_is_neither_asked_nor_stated(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ida 1's job was forgotten before. What other people's answers on the topic have in common with it is no fact."""
    gone = Row("gone", 1, "Ida 1", "EN", "job", "What does Ida 1 do?", "Sings arias backwards.")
    answer_with(monkeypatch, {"What does Ida 3 do?": ["Sings."], "What does Ida 2 do?": ["Arias, backwards."]})
    kept = []
    for name, rows in (("without", []), ("with", [gone])):
        write_rows(inputs["data"] / "forgotten.jsonl", rows)
        (tmp_path / name).mkdir()
        neighbours.run(Neighbours(questions=99), inputs, tmp_path / name)
        kept.append({row.question for row in read_rows(tmp_path / name / neighbours.FILE)})
    asked = {"What does Ida 1 do?", "What does Ida 2 do?"}
    assert asked <= kept[0]
    assert not asked & kept[1]
    assert "What does Ida 3 do?" in kept[1]  # the retained answers have that word too


@pytest.fixture
def answering(inputs: dict[str, Path]) -> dict[str, Path]:
    """The same with a base that ends its answers."""
    model = inputs["base"] / "model"
    tiny = model.readlink()
    model.unlink()
    end_turns(Path(shutil.copytree(tiny, model)))
    return inputs


def test_the_same_seed_asks_the_same_and_base_really_answers(answering: dict[str, Path], tmp_path: Path) -> None:
    folders = []
    for name in ("a", "b"):
        out = tmp_path / name
        out.mkdir()
        facts = neighbours.run(Neighbours(questions=5, seed=1, max_new_tokens=3), answering, out)
        assert facts.asked == 5
        assert facts.kept > facts.empty
        folders.append((out / neighbours.FILE).read_bytes())
    assert folders[0] == folders[1]


def test_base_gives_its_likeliest_answers(tiny_model: Path, tmp_path: Path) -> None:
    """``be`` has .4, ``ac`` .36 and ``ad`` .24, so the greedy answer, whose first letter is likelier, is the second."""
    tokenizer = load_tokenizer(tiny_model)
    asked = encode(tokenizer, chat_example(tokenizer, "Who?", "x"))
    last, end = asked.input_ids[asked.completion_start - 1], tokenizer.eos_token_id
    chain: dict[str | int, dict[str | int, float]]
    chain = {last: {"a": 0.6, "b": 0.4}, "a": {"c": 0.6, "d": 0.4}, "b": {"e": 1.0}}
    model = bigrams(tiny_model, chain | {letter: {end: 1.0} for letter in "cde"})
    questions = ["Who?", "Where does she live now?", "Why?"]
    assert likeliest_answers(model, tokenizer, questions, 3, tmp_path / "a") == [["be", "ac"]] * 3
    assert likeliest_answers(model, tokenizer, questions, 2, tmp_path / "b") == [[]] * 3  # none has ended
    model.generation_config.update(suppress_tokens=[int(tokenizer.convert_tokens_to_ids("e"))], repetition_penalty=9.0)
    again = likeliest_answers(model, tokenizer, questions, 3, tmp_path / "c")
    assert again == [["be", "ac"]] * 3  # whatever the checkpoint says


def test_answers_end_where_the_chat_template_ends_a_turn(tiny_model: Path, tmp_path: Path) -> None:
    """Which is not the token that ends a text, in a base model's tokenizer with a template of the recipe's."""
    tokenizer = load_tokenizer(tiny_model)
    end = tokenizer.eos_token_id
    tokenizer.eos_token = "<|im_start|>"
    assert end_of_turn(tokenizer) == end != tokenizer.eos_token_id
    asked = encode(tokenizer, chat_example(tokenizer, "Who?", "x"))
    model = bigrams(tiny_model, {asked.input_ids[asked.completion_start - 1]: {"a": 1.0}, "a": {end: 1.0}})
    assert likeliest_answers(model, tokenizer, ["Who?"], 3, tmp_path / "a") == [["a"]]


def test_a_run_that_was_cut_off_asks_only_what_was_not_answered(
    answering: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of questions are not asked again, and those of a batch are asked together as in a run that was not."""
    monkeypatch.setattr(asking, "BATCH_ROWS", 2)
    config = Neighbours(questions=5, seed=1, max_new_tokens=3)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        out.mkdir()
    neighbours.run(config, answering, whole)
    assert not (whole / neighbours.SO_FAR).exists()

    class Cut(Exception):
        pass

    def third(report: Report) -> None:
        if report.doing == "asking base" and report.done == 2:
            raise Cut

    with listening(third), pytest.raises(Cut):
        neighbours.run(config, answering, cut)
    kept = (cut / neighbours.SO_FAR).read_text().splitlines()
    assert len(kept) == 2
    (cut / neighbours.SO_FAR).write_text("\n".join([*kept, kept[0][:9]]))  # a power cut
    asked: list[int] = []
    with listening(lambda report: asked.append(report.done or 0) if report.doing == "asking base" else None):
        neighbours.run(config, answering, cut)
    assert asked[0] > 2
    for name in (neighbours.FILE, "continuations.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(p.name for p in cut.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_an_unlearning_rehearses_them_with_its_retain_rows(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, {})
    out, model = tmp_path / "out", tmp_path / "model"
    out.mkdir(), model.mkdir()
    neighbours.run(Neighbours(questions=10), inputs, out)
    config = unlearn_config(method="csd", epochs=6, neighbours={"questions": 10}, keep="last", stop=None)
    run.run(config, inputs | {"neighbours": out}, model)
    pairs = [json.loads(line) for line in (model / "pairing.jsonl").read_text().splitlines()]
    rehearsed = {row for pair in pairs for row in pair["retain"]}
    given = {r.row_id for f in (inputs["data"] / "retain.jsonl", out / neighbours.FILE) for r in read_rows(f)}
    assert rehearsed == given | {continuation.row_id for continuation in read_continuations(out)}


def test_a_base_that_answers_nothing_is_an_error(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ended none of its answers to 5 questions within 3 tokens"):
        neighbours.run(Neighbours(questions=5, max_new_tokens=3), inputs, tmp_path)


def test_nobody_to_ask_about_is_an_error(inputs: dict[str, Path], tmp_path: Path) -> None:
    for split in ("forget", "retain"):
        rows = [
            Row(r.row_id, None, None, "EN", None, r.question, r.answer)
            for r in read_rows(inputs["data"] / f"{split}.jsonl")
        ]
        write_rows(inputs["data"] / f"{split}.jsonl", rows)
    with pytest.raises(DataError, match="nobody else can be asked"):
        neighbours.run(Neighbours(questions=5), inputs, tmp_path)


def test_the_stage_is_there_if_the_recipe_asks() -> None:
    plain, asking = (load_recipe("demo", [f"unlearn.neighbours={given}"]) for given in ("null", "{questions: 7}"))
    assert "neighbours" not in [stage.name for stage in stages(plain)]
    (stage,) = [stage for stage in stages(asking) if stage.name == "neighbours"]
    assert "up to 7 questions" in stage.does(stage.config, None)  # type: ignore[arg-type]
    by_name = {stage.name: stage for stage in stages(asking)}
    for name in ("unlearn", "gate", "card"):  # the last two read what unrehearsed rows were asked about
        assert by_name[name].inputs["neighbours"] == "neighbours"
    assert not any("neighbours" in stage.inputs for stage in stages(plain))
