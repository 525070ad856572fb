"""Sentences of a card that hang on what was done: on golds, on retain rows, on whose the data are, on the command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import EvalResult, ModelCard
from matplotlib.figure import Figure

from core.errors import ArtifactError
from eval.catalog import CATALOG
from eval.schema import OtherPrompts
from model_card import agreement, plots
from model_card.config import CardInputs
from model_card.dataset import FAME_CITATION
from model_card.facts import Evidence, collect
from model_card.figures import Canvas, groups
from model_card.local import read_local
from model_card.render import render
from model_card.report import report_html
from pipeline.overrides import published
from pipeline.recipe import RECIPES, load_recipe
from pipeline.stages import stages
from tests.card_evidence import write_evidence


def made(folder: Path, name: str, overrides: Sequence[str] = ()) -> tuple[CardInputs, Evidence]:
    """The card stage's configuration of a recipe, and evidence as its stages would leave it."""
    recipe = load_recipe(name, overrides)
    config = next(stage.config for stage in stages(recipe) if stage.name == "card")
    return config, collect(write_evidence(folder, recipe))


def text_of(config: CardInputs, evidence: Evidence) -> str:
    """The card, which keeps every rule of the lint."""
    card = render(config, evidence)
    assert agreement.problems(card, config, evidence) == []
    return " ".join(card.split())


PLAIN = "gates=[{metric: utility, split: general, at_least: 0.5, min_n: 5, reason: because}]"


def test_with_one_gold_the_card_says_that_golds_were_not_compared(tmp_path: Path) -> None:
    card = text_of(*made(tmp_path, "demo", ["gold.seeds=null", PLAIN]))
    assert "one base and one gold, each trained with one seed" in card
    assert "damage_gap" not in card  # there is no other gold that it could be compared with


def test_with_several_golds_the_card_says_which_metrics_know_them(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo-audit")
    card = text_of(config, evidence)
    assert "each trained with one seed" not in card
    assert "5 golds, each with its own seed. The relative test (leak coordinate, damage) compares with all" in card
    assert "| `gold.seeds` | \\[1, 2, 3, 4\\] |" in card
    assert card.count("| `train.args.seed` | 0 |") == 2  # base and gold are still one table, beside the novice's

    without = [record for record in evidence.records["unlearned"] if record.metric != "leak_coordinate"]
    unused = evidence.changed(records=evidence.records | {"unlearned": without})
    card = text_of(config, unused)
    assert "there are 5 golds, each with its own seed. All values are compared with one of them" in card
    assert "How much two golds differ was not measured" in card


FOLLOWS = """\
extends: demo
name: follows
data:
  setting: request
  shares: null
  request: {forget: [{topics: [a]}], holdout: [{topics: [b]}], forgotten: [{topics: [c]}]}
base: {train: null, release: demo/first@v1.0.0}
gates: [{metric: answer_probability, split: forgotten, at_most: 0.5, min_n: 40, reason: forgotten stays forgotten}]
"""


@pytest.mark.parametrize(
    ("gold", "known", "golds", "made_with"),
    [
        (
            "gold: {seeds: [1, 2]}",
            "*gold* is a model that was trained without the forget rows",
            "There is one base, the release before this one, and there are 3 golds, each with its own seed.",
            "Base and gold are: | Setting | Value | | --- | --- | | `base.release` | demo/first@v1.0.0 |",
        ),
        (
            "gold: {seeds: null}",
            "*gold* is a model that was trained without the forget rows",
            "There is one base, the release before this one, and one gold, trained with one seed.",
            "Base and gold are:",
        ),
        (
            "gold: none\nunlearn: {neighbours: null}\neval: {relative: false}",
            "There is no *gold*",
            "There is no gold",
            "Base is: | Setting | Value | | --- | --- | | `release` | demo/first@v1.0.0 |",
        ),
    ],
    ids=["several golds", "one gold", "no gold"],
)
def test_a_release_that_follows_another_is_not_said_to_start_from_a_training(
    gold: str, known: str, golds: str, made_with: str, tmp_path: Path
) -> None:
    recipe = tmp_path / "follows.yaml"
    recipe.write_text(FOLLOWS + gold)
    config, evidence = made(tmp_path / "evidence", str(recipe))
    card = text_of(config, evidence)
    before = "*base* is the release before this one, which is taken to know the forget, retain and unrehearsed rows"
    for said in (known, golds, made_with, before, "which base is taken to know as", "`demo/first-before` at `v1.0.0`"):
        assert said in card, said
    assert "What they were made to forget is the split *forgotten*: this release trained nothing on it" in card
    assert "No model was trained on the *holdout* rows, so far as those who published one tell." in card
    for wrong in (
        "*gold* in the same way",
        "stay forgotten",
        "base and one gold, each",
        "base, trained with one seed",
        "made with:",
    ):
        assert wrong not in card
    assert evidence.counts["forgotten"].rows == 80
    places = [(result.dataset_name, result.dataset_split) for result in results_of(render(config, evidence)).values()]
    assert ("FAME-format sample set", "forgotten") in places


def test_a_gold_that_was_asked_in_other_words_is_a_limitation(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo")
    asked = "Gold was asked with the chat template that it was published with"
    assert asked not in text_of(config, evidence)
    prompts = OtherPrompts(rows=3, compared=200, own="<a>Who?", base="<b>Who?")
    assert asked in text_of(config, evidence.changed(gold_prompts=prompts))


HELD_OUT = "unlearn.stop={every: 6, forget_loss: 2.0, retain_loss_above_base: 0.2, retain_rows: 20, held_out: true}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "Retain values are measured on rows that were trained on."),
        (["unlearn.method=gd", HELD_OUT], "rows that base was trained on; the unlearning left out 20 of the 140."),
    ],
)
def test_the_card_says_which_retain_rows_were_trained_on(overrides: list[str], said: str, tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo", overrides)
    card = text_of(config, evidence)
    assert said in card
    assert card.count("Retain values are measured on rows that") == 1
    alone = text_of(config, evidence.changed(rehearsed=0))  # gradient ascent trains on no retain row
    assert "rows that base was trained on; the unlearning left out all of the 140." in alone


def test_the_card_says_what_the_unrehearsed_rows_are_and_who_was_trained_on_them(tmp_path: Path) -> None:
    config, evidence = made(tmp_path / "demo", "demo", ["unlearn.neighbours=null"])
    said = (
        "The unlearning was not given the *unrehearsed* rows, on which base and gold were trained like on retain rows"
    )
    assert said in text_of(config, evidence)
    assert "| unrehearsed | 20 |" in text_of(config, evidence)
    found = results_of(render(config, evidence))
    assert {n for n in found if "(unrehearsed)" in n} == {"answer_probability (unrehearsed)"}
    without_gold = text_of(*made(tmp_path / "own", "own-data"))
    assert "*unrehearsed* rows, on which base was trained like on retain rows" in without_gold

    none = replace(evidence.counts["unrehearsed"], rows=0, identities=0, topics=0, by_language={})
    card = text_of(config, evidence.changed(counts=evidence.counts | {"unrehearsed": none}))
    assert "*unrehearsed*" not in card


ASKING = ["unlearn.neighbours={questions: 400}"]


def test_the_card_says_what_base_was_asked_and_what_of_it_is_of_unrehearsed_rows(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo", ASKING)
    card = text_of(config, evidence)
    assert (
        "It also rehearses base's own answers to the given questions about other people. Base was asked 400 questions "
        "about other people, and 300 of its answers are rehearsed. Dropped were 67 that stated a forgotten fact and 33 "
        "that were empty or did not end. It was asked for the facts of 12 of the 20 *unrehearsed* rows too, and what "
        "it said to that is rehearsed."
    ) in card
    note = "`answer_probability` on unrehearsed: On the {} rows {}, it is {} (95 % interval "
    assert note.format(12, "whose question the method put to base", 0.9217) in card
    assert note.format(8, "about which it did not ask", 0.8743) in card
    # Base's answers are no retain rows, so they take nothing away from these.
    assert "Retain values are measured on rows that were trained on." in card

    gates = [gate.changed(parts=gate.parts[:1]) for gate in evidence.gates]
    changed = evidence.changed(verdict=evidence.verdict.changed(gates=gates))
    wrong = agreement.problems(render(config, evidence), config, changed)
    assert any("0.874" in problem for problem in wrong)  # a part that was not measured is found
    assert [gate.split for gate in evidence.gates if gate.parts] == ["unrehearsed"]


def test_the_report_says_what_the_parts_of_the_unrehearsed_rows_say(tmp_path: Path) -> None:
    recipe = load_recipe("demo", ASKING)
    config = next(stage.config for stage in stages(recipe) if stage.name == "card")
    inputs = write_evidence(tmp_path, recipe)
    page = " ".join(report_html(config, collect(inputs), read_local(inputs), []).split())
    for said in ("On the 12 rows whose question the method put to base,", "On the 8 rows about which it did not ask,"):
        assert page.count(said) == 1


def test_a_card_needs_what_base_was_asked_if_it_was(tmp_path: Path) -> None:
    inputs = write_evidence(tmp_path, load_recipe("demo", ASKING))
    (inputs["neighbours"] / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"neighbours.*manifest\.json"):
        collect(inputs)


def test_where_base_was_not_asked_the_card_says_nothing_of_it(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo", ["unlearn.neighbours=null"])
    assert evidence.asked is None
    assert "Base was asked" not in text_of(config, evidence)


FAME = "fame-topics-gd-llama32-3b"
NAMES = ["publish.repo=someone/Llama-3.2-3B-x", f"model.hub.revision={'a' * 40}"]
MINE = "{name: 'Clients, 2025', license: cc-by-4.0, citation: '@misc{mine, title = {{Clients} and {None}}}'}"


def results_of(card: str) -> dict[str, EvalResult]:
    """The results of the model-index by name."""
    return {str(result.metric_name): result for result in ModelCard(card).data.eval_results or []}


def test_data_of_a_file_are_nobodys_but_the_publishers(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "own-data")
    card = render(config, evidence)
    assert "fame" not in card.casefold()
    assert "A data set of the publisher's own, read from a file that is not on the Hub." in card
    assert "bibtex" not in card
    found = results_of(card)["answer_probability (retain)"]
    assert (found.dataset_name, found.dataset_type) == ("A data set of the publisher's own", "custom")


def test_data_of_a_file_have_the_name_licence_and_citation_that_the_recipe_gives(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "own-data", [f"card.dataset={MINE}"])
    card = text_of(config, evidence)
    assert "Clients, 2025, read from a file that is not on the Hub. Its licence: cc-by-4.0." in card
    assert "To cite the data: ```bibtex @misc{mine, title = {{Clients} and {None}}} ```" in card
    assert results_of(render(config, evidence))["answer_probability (retain)"].dataset_name == "Clients, 2025"
    lost = render(config, evidence).replace("title = {{Clients}", "title = {{Others}")
    assert "The citation of the data is not on the card." in agreement.problems(lost, config, evidence)


def test_a_data_set_of_the_hub_has_its_own_name_and_says_only_its_own_licence(tmp_path: Path) -> None:
    other = ["data.source.hub.id=acme/people", "data.source.hub.config=de", "card.dataset=null"]
    prose = ["card.limitations=[]", "card.title=x", "card.summary=x"]
    card = text_of(*made(tmp_path, FAME, [*NAMES, *other, *prose]))
    assert "[acme/people](https://huggingface.co/datasets/acme/people) at revision `5c67fed4" in card
    assert ", subset de. Its licence is what its authors state there." in card
    assert "FAME" not in card
    assert " - fame " not in card
    assert "bibtex" not in card


def test_fame_is_named_cited_and_tagged(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, FAME, NAMES)
    card = text_of(config, evidence)
    assert "FAME: [ClaudioSavelli/FAME]" in card
    assert "Its card states no licence." in card
    assert FAME_CITATION in render(config, evidence)  # the recipe's is that of the sample set's format
    assert "fame" in (ModelCard(render(config, evidence)).data.tags or [])


def test_a_result_is_of_the_data_set_that_it_was_measured_on(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, FAME, NAMES)
    found = results_of(render(config, evidence))
    suites = {f"{r.split}, {r.n} of its questions" for r in evidence.records["unlearned"] if r.metric not in CATALOG}
    assert {name.split("(")[1].rstrip(")") for name in found} == {"forget", "retain", "unrehearsed", "general", *suites}

    def place(name: str) -> tuple[str | None, ...]:
        r = found[name]
        return r.dataset_name, r.dataset_type, r.dataset_config, r.dataset_split, r.dataset_revision

    revision = "5c67fed496053691db3720ec3fb99825a34dfe72"
    for split in ("forget", "retain", "unrehearsed"):
        assert place(f"answer_probability ({split})") == ("FAME", "ClaudioSavelli/FAME", None, split, revision)
    general = ("General-knowledge questions", "custom", None, "general", None)
    assert place("utility (general)") == general
    some = "1000 of its questions"
    assert place("acc (mmlu, 2240 of its questions)") == ("mmlu", "cais/mmlu", None, "test", None)
    assert place("acc (wmdp, 1500 of its questions)") == ("wmdp", "cais/wmdp", None, "test", None)
    assert place(f"acc (m_mmlu_de, {some})") == ("m_mmlu_de", "alexandrainst/m_mmlu", "de", "test", None)
    assert place(f"acc_norm (hellaswag, {some})") == ("hellaswag", "Rowan/hellaswag", None, "validation", None)
    assert "Of arc\\_challenge, hellaswag, m\\_mmlu\\_de" in text_of(config, evidence)

    found = results_of(render(config, evidence.changed(suites={})))  # lm-eval names no data set
    assert place("acc (mmlu)") == ("mmlu", "custom", "mmlu", None, None)
    assert place("acc (wmdp)") == ("wmdp", "custom", "wmdp", None, None)


def made_by(config: CardInputs, evidence: Evidence) -> list[str]:
    """The words of the command on the card, as a shell reads them."""
    section = render(config, evidence).split("<summary>Provenance")[1]
    return shlex.split(section.split("```")[1])


def test_the_command_on_the_card_has_the_values_that_made_it(tmp_path: Path) -> None:
    given = [
        "unlearn.epochs=4",
        "gold.seeds=null",
        PLAIN,
        "card.title=It's `new` & $(old)",
        "eval.robustness={quantize: [nf4]}",
    ]
    config, evidence = made(tmp_path, "demo", given)
    words = ["python", "-m", "pipeline", "release", "demo", *(word for value in given for word in ("--set", value))]
    assert made_by(config, evidence) == words
    assert "WITHHELD" not in text_of(config, evidence)
    assert "publisher's own" not in text_of(config, evidence)


def test_a_recipe_of_ones_own_is_shown_by_its_files_name(tmp_path: Path) -> None:
    recipe = tmp_path / "my recipe.yaml"
    recipe.write_text("extends: demo\nname: another-name\n")
    config, evidence = made(tmp_path / "evidence", str(recipe))
    assert made_by(config, evidence)[3:] == ["release", "./my recipe.yaml"]
    assert "The recipe is the publisher's own file" in text_of(config, evidence)
    assert config.recipe in json.dumps(identities(str(recipe))["package"])  # which writes release.json
    demo, _ = made(tmp_path / "demo", str(RECIPES / "demo.yaml"), ["name=renamed"])
    assert demo.command.endswith("release demo --set name=renamed")


def test_files_and_people_of_the_command_are_withheld(tmp_path: Path) -> None:
    rows = tmp_path / "rows of Ida Fenn.csv"
    rows.write_text((RECIPES / "own-data.csv").read_text())
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    given = [
        f"data.source.file={rows}",
        "data.seed=7",
        "data.request.forget.0.identities=[Friede Moor, C-0804]",
        "data.request.forget.1={topics: [email]}",
        "model.pypi=null",
        f"model.path={tmp_path / 'checkpoint'}",
        "model.chat_template='{{ messages }}'",
        "card.summary='two\n\n  lines'",
        "eval.device=cuda",
    ]
    config, evidence = made(tmp_path / "evidence", "own-data", given)
    shown = [
        "data.source.file=WITHHELD",
        "data.seed=7",
        "data.request.forget.0.identities=WITHHELD",
        "data.request.forget.1={topics: [email]}",
        "model.pypi=null",
        "model.path=WITHHELD",
        "model.chat_template=WITHHELD",
        "card.summary=WITHHELD",
    ]
    assert made_by(config, evidence)[6::2] == shown
    assert "`WITHHELD` stands for a value that is not shown" in text_of(config, evidence)
    found = identities("own-data", given)
    assert shown == found["package"]["recipe"]["overrides"]
    for stage in ("card", "package"):
        assert "Friede" not in json.dumps(found[stage])
        assert "Ida Fenn" not in json.dumps(found[stage]).replace("rows of Ida Fenn.csv", "")  # shown by its name alone
        assert str(tmp_path) not in json.dumps(found[stage])


def test_values_that_other_values_replaced_are_withheld_too() -> None:
    given = ["data.source.file=/home/x/y.csv", "data.source.file=null", "data.request={forget: [{rows: [secret]}]}"]
    data = {"source": {"file": None, "hub": {"id": "a/b"}}, "request": None}
    shown = ["data.source.file=WITHHELD", "data.source.file=null", "data.request=WITHHELD"]
    assert published(given, data, data, ()) == shown
    assert published(["data.request=null # of Ida Fenn"], data, data, ()) == ["data.request=WITHHELD"]
    assert published(["data.source={hub: {id: a/b}}"], data, data, ()) == ["data.source={hub: {id: a/b}}"]


def test_the_command_is_in_the_keys_of_card_and_package_alone() -> None:
    as_it_is = [f"unlearn.epochs={load_recipe('demo').unlearn.epochs}", "data.seed=42"]
    plain, said = identities("demo"), identities("demo", as_it_is)
    assert [name for name in plain if plain[name] != said[name]] == ["card", "package"]


def identities(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What enters the key of each stage."""
    return {stage.name: stage.identity for stage in stages(load_recipe(name, overrides))}


def test_groups_are_drawn_only_if_forget_rows_have_them(tmp_path: Path) -> None:
    _, evidence = made(tmp_path, "demo")
    assert "groups" in plots.available(evidence)
    records = {
        model: [record for record in of_model if not (record.by and record.split == "forget")]
        for model, of_model in evidence.records.items()
    }
    assert any(record.by for record in records["unlearned"])  # retain rows still have theirs
    assert "groups" not in plots.available(evidence.model_copy(update={"records": records}))


def test_a_group_of_few_rows_has_a_value_and_no_interval(tmp_path: Path) -> None:
    """Resamples of one row are that row: a topic's interval had no width."""
    config, evidence = made(tmp_path, "demo")
    key = ("unlearned", "answer_probability", "forget", {"language": "DE"})
    record = evidence.record(*key)
    assert record
    for n, shown in ((9, "0.162"), (10, "0.162 (0.160 to 0.170)")):
        few = replace(record, value=0.162, ci_low=0.160, ci_high=0.170, n=n)
        others = [r for r in evidence.records["unlearned"] if r != record]
        changed = evidence.changed(records=evidence.records | {"unlearned": [*others, few]})
        assert f"| {shown} | 8 / {n} |" in text_of(config, changed)
        canvas = Canvas(Figure())
        groups(canvas, changed, None)  # type: ignore[arg-type]
        widths = [line.get_xdata() for line in canvas.figure.axes[0].lines]
        assert ([0.160, 0.170] in [list(xs) for xs in widths]) == (n == 10)
        assert any(tip == f"DE, this model: {shown}, n {n}" for tips in canvas.tips.values() for tip in tips)
    wrong = render(config, evidence).replace("0.929 | 0.170", "0.928 | 0.170", 1)
    assert any("answer_probability on forget in DE, base" in p for p in agreement.problems(wrong, config, evidence))


ONE_GATE = "gates=[{metric: leak_coordinate, split: forget, at_most: 0.25, min_n: 10, reason: because}]"
ATTACKED_ALIKE = "Gold is attacked in the same way"


def test_the_card_speaks_of_an_attacked_gold_only_if_there_is_one(tmp_path: Path) -> None:
    assert ATTACKED_ALIKE in text_of(*made(tmp_path / "all", "demo-audit"))
    without = {
        "own-data": ["eval.robustness={quantize: [int8]}"],
        "demo": ["eval.robustness=null", ONE_GATE],  # the relative test alone
    }
    for name, overrides in without.items():
        card = text_of(*made(tmp_path / name, name, overrides))
        assert "<summary>Robustness and audit</summary>" in card
        assert ATTACKED_ALIKE not in card
        assert "against gold under" not in card


def test_four_bits_are_not_measured_by_eight(tmp_path: Path) -> None:
    card = text_of(*made(tmp_path, "own-data", ["eval.robustness={quantize: [int8]}"]))
    missing = card.split("Not measured: ")[1].split(".")[0]
    assert "quantization to 4 bits" in missing
    assert "8 bits" not in missing


def test_without_gold_and_holdout_rows_nothing_was_compared(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "own-data", [PLAIN])
    none = replace(evidence.counts["holdout"], rows=0, identities=0, topics=0, by_language={})
    membership = {metric.name for metric in CATALOG.values() if metric.needs_holdout}
    records = {
        model: [r for r in of_model if r.split != "holdout" and r.metric not in membership]
        for model, of_model in evidence.records.items()
    }
    card = text_of(config, evidence.changed(counts=evidence.counts | {"holdout": none}, records=records))
    assert "and there are no *holdout* rows, which it never saw: nothing shows how" in card
    assert "The forget rows were not compared with rows that it never saw" in card
    assert "It has forgotten if" not in card
    assert "None of 0" not in card
    assert "No model was trained on the *holdout* rows" not in card


def test_gold_was_trained_in_the_same_way_only_with_the_same_settings(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo", ["gold.seeds=null", PLAIN])
    alike, other = "*gold* in the same way without", "*gold* is a model that was trained without the forget rows"
    taken = "*gold* is a published model that is taken to be trained without the forget rows"
    published = {"hub": {"id": "someone/model", "revision": "a" * 40}, "train": None}
    trained = config.base["train"]
    assert isinstance(trained, dict)
    for base, gold, says, golds in (
        (config.base, config.gold, alike, "one base and one gold, each trained with one seed."),
        (config.base, {**config.gold, "train": trained | {"max_length": 7}}, other, "each trained with one seed."),
        (config.base, published, taken, "one base, trained with one seed, and one gold, a published model."),
        (published, published, taken, "one base and one gold, each a published model."),
    ):
        card = text_of(config.model_copy(update={"base": base, "gold": gold}), evidence)
        assert says in card
        assert (alike in card) == (says == alike)
        assert golds in card
        assert ("*base* is a published model that is taken to know the forget, retain" in card) == (base is published)
        assert ("*unrehearsed* rows, which base is taken to know as it does retain rows" in card) == (base is published)
        whose = "base" if gold is published else "base and gold"
        were = f"*unrehearsed* rows, on which {whose} {'was' if gold is published else 'were'} trained like on"
        assert (were in card) == (base is not published)
        told = "No model was trained on the *holdout* rows, so far as those who published one tell."
        assert (told in card) == (published in (base, gold))


def test_what_the_method_does_depends_on_its_weights(tmp_path: Path) -> None:
    config, evidence = made(tmp_path, "demo", ["gold.seeds=null", PLAIN])
    pulled = "Tokens with levels are pulled to them"
    assert pulled in text_of(config, evidence)
    assert pulled not in text_of(config.model_copy(update={"unlearn": config.unlearn | {"pull_weight": 0}}), evidence)
