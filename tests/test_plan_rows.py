"""How many rows a plan counts on and how long it takes them to be: as counted, as the files have them, or assumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import SystemLimitError
from datasets_prep import prepare
from datasets_prep.config import Part
from datasets_prep.schema import SPLITS, TokenFacts, read_data_facts, read_rows, write_facts
from pipeline import preflight
from pipeline.cost import devices, work
from pipeline.cost.fits import refuse_what_does_not_fit
from pipeline.cost.rows import CHAT, FAME_TEXT, PER_BYTE, Lengths, Row, row_of
from pipeline.engine.plan import ASSUMED, planned, sizes
from pipeline.engine.rows import counts_of, lengths_of
from pipeline.engine.runner import Store
from pipeline.preflight import Preflight
from pipeline.recipe import Recipe, load_recipe
from pipeline.stages import stages
from pipeline.train.config import Shape
from tests.conftest import Call
from tests.data_rows import GOOD, config, write

MACHINE = devices.Device("CPU", 25_300_000_000, 3e11, 3e11, 2e10, is_gpu=False)
REQUEST = {"forget": [{"identities": ["0"]}], "holdout": [{"identities": ["1"]}]}


@pytest.fixture
def shape() -> Shape:
    found = load_recipe("own-data").model.shape
    assert found
    return found


def own(rows: Path, **more: str) -> Recipe:
    """own-data with other rows."""
    sets = {"data.source": f"{{file: {rows}}}", "data.request": json.dumps(REQUEST), **more}
    return load_recipe("own-data", [f"{key}={value}" for key, value in sets.items()])


def with_answers(folder: Path, answer: str, *, forgotten: str | None = None) -> Path:
    """Five facts of each of five people, whose answers are these; those about the first may be others."""
    records = [
        {**fact, "identity_id": str(fact["identity_id"])}
        | {"answer": f"{i}: {answer if forgotten is None or fact['identity_id'] else forgotten}"}
        for i, fact in enumerate(GOOD)
    ]
    return write(folder / f"{len(answer)}-{len(forgotten or '')}.jsonl", records)


def test_rows_of_local_files_are_counted_before_the_data_stage_and_are_as_many_after_it(
    tmp_path: Path, tiny_model: Path, shape: Shape
) -> None:
    recipe = own(with_answers(tmp_path, "short"), **{"data.unrehearsed": "0.2"})
    before = sizes(recipe, {}).rows
    (tmp_path / "data").mkdir()
    facts = prepare.run(recipe.data, {"model": tiny_model}, tmp_path / "data")
    assert before == facts.rows.model_dump() == counts_of(recipe.data, tmp_path / "data")
    assert before == {"forget": 5, "retain": 8, "holdout": 5, "unrehearsed": 7}
    assert lengths_of(recipe.data, None, shape, None).rows.keys() == set(SPLITS)


def test_tokens_of_a_byte_are_seen_if_a_tokenizer_is_there(tmp_path: Path, tiny_model: Path, shape: Shape) -> None:
    """Without it the vocabulary tells them. A sign of three bytes counts as three."""
    data = own(with_answers(tmp_path, "QX-ZK-VW-" * 4), **{"data.unrehearsed": "0"}).data  # a token for each letter
    told, seen = (lengths_of(data, None, shape, folder).rows["retain"] for folder in (None, tiny_model))
    (tmp_path / "data").mkdir()
    counted = prepare.run(data, {"model": tiny_model}, tmp_path / "data").tokens["retain"]
    assert seen.answer == pytest.approx(counted.mean_answer, abs=2)  # the chat format's end is a constant
    assert seen.answer > 2 * told.answer
    signs = own(with_answers(tmp_path, "東京" * 50)).data
    assert lengths_of(signs, None, shape, None).rows["retain"].answer == pytest.approx(300 * PER_BYTE[False], abs=3)
    (tmp_path / "tokenizer.json").write_text("none")
    assert lengths_of(data, None, shape, tmp_path).rows["retain"] == told


def test_tokens_that_the_data_stage_counted_are_taken(tmp_path: Path, tiny_model: Path, shape: Shape) -> None:
    data = own(with_answers(tmp_path, "Where was the actor born?")).data
    folder = tmp_path / "data"
    folder.mkdir()
    facts = prepare.run(data, {"model": tiny_model}, folder)
    tokens = facts.tokens | {"forget": TokenFacts(total=5000, mean=1000.0, longest=1300, mean_answer=800.0)}
    write_facts(folder / "checks.json", facts.changed(tokens=tokens))
    found = lengths_of(data, folder, shape, None)
    assert not found.assumed
    assert found.rows["forget"].answer == pytest.approx(800)
    assert found.rows["forget"].longest == 1100  # 200 tokens of prompt less
    forget = read_rows(folder / "forget.jsonl")
    per_byte = 799 * len(forget) / sum(len(row.answer.encode()) for row in forget)
    questions = sum(len(row.question.encode()) for row in forget) / len(forget)
    assert found.rows["forget"].prompt == pytest.approx(CHAT - 1 + per_byte * questions)
    retain = read_data_facts(folder).tokens["retain"]
    assert found.rows["retain"].answer == pytest.approx(retain.mean_answer)


def test_rows_that_are_nowhere_yet_are_assumed_to_be_as_long_as_fames(shape: Shape) -> None:
    elsewhere = {"hub": {"id": "some/rows", "revision": "0" * 40}}
    fame = {"hub": {"id": "ClaudioSavelli/FAME", "revision": "0" * 40}}
    sample = {"sample": {"seed": 1, "identities": 5, "topics": 10}}
    found = [lengths_of(config(source), None, shape, None) for source in (elsewhere, fame, sample)]
    assert [each.assumed for each in found] == [True, False, False]
    assert found[0].rows == found[1].rows == dict.fromkeys(SPLITS, row_of(FAME_TEXT, PER_BYTE[False]))


def test_of_a_part_no_more_rows_are_counted_than_it_has() -> None:
    demo, fame = load_recipe("demo").data, load_recipe("fame-topics-gd-llama32-3b").data
    whole = counts_of(demo, None)
    part = demo.model_copy(update={"part": Part(languages=["EN"])})
    prepared = prepare.prepare(part)
    assert counts_of(part, None) == prepare.describe(part, prepared, {}).rows.model_dump() != whole
    assert counts_of(fame, None)
    assert counts_of(fame.model_copy(update={"part": Part(languages=["EN"], identities=8)}), None) is None
    tofu = load_recipe("tofu-forget10-llama32-1b").data
    assert counts_of(tofu, None)
    assert counts_of(tofu.model_copy(update={"part": Part(identities=8)}), None) is None


def test_a_plan_says_what_it_assumes(call: Call, tmp_path: Path) -> None:
    words = ("--dry-run", "--device", "RTX 4090 24GB", "--store", str(tmp_path / "store"))
    assert ASSUMED in call("release", "tofu-forget10-llama32-1b", *words).stdout
    for recipe in ("demo", "own-data", "fame-topics-csd-llama32-3b"):
        assert ASSUMED not in call("release", recipe, "--dry-run", *words[3:]).stdout
    elsewhere = ("--set", f"data.source={{hub: {{id: some/rows, revision: '{'0' * 40}'}}}}")
    for more, said in ((elsewhere, True), ((), False)):
        assert (ASSUMED in call("collection", "demo-collection", *words, *more).stdout) is said


def test_doctor_says_it_with_the_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "here", lambda: devices.named("RTX 4090 24GB"))
    for name, end in (
        ("tofu-forget10-llama32-1b", "on RTX 4090 24GB, if rows are as long as FAME's"),
        ("own-data", "24GB"),
    ):
        recipe = load_recipe(name)
        said = preflight._memory(Preflight(recipe, stages(recipe), {}, Store(tmp_path, name)))
        assert said.endswith(end)


def test_the_mean_of_rows_of_several_splits_has_the_longest_of_them() -> None:
    lengths = Lengths({"forget": Row(10, 100, 300), "retain": Row(20, 40, 500)})
    assert lengths.mean({"forget": 3, "retain": 1, "holdout": 7}) == Row(12.5, 85, 500)
    assert lengths.mean({"forget": 2, "retain": 0}) == Row(10, 100, 300)
    mean, fullest = Row(10, 100, 300).batch(4), Row(10, 100, 300).fullest(4)
    assert (fullest.tokens - mean.tokens, fullest.answers - mean.answers) == (200, 200)


def costs(recipe: Recipe) -> dict[str, tuple[Any, work.Cost]]:
    known = planned(recipe, {}, MACHINE)
    return {stage.name: (stage.config, stage.costs(stage.config, known)) for stage in stages(recipe)}


def test_what_does_not_fit_with_long_answers_is_refused(tmp_path: Path) -> None:
    """Of about 800 tokens. The forget rows are half of what an unlearning runs, and a fourth of base's."""
    long = "word " * 460
    short, mixed, much = (
        costs(own(with_answers(tmp_path, answer, forgotten=forgotten)))
        for answer, forgotten in (("short", None), ("short", long), (long, None))
    )
    refuse_what_does_not_fit(short)
    with pytest.raises(SystemLimitError, match=r"unlearn: .* do not fit into the 25\.3 GB"):
        refuse_what_does_not_fit(much)
    assert much["base"][1].memory > 2 * short["base"][1].memory
    assert mixed["base"][1].memory < 0.6 * much["base"][1].memory
    assert mixed["unlearn"][1].memory > 0.5 * much["unlearn"][1].memory
