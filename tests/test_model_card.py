from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from matplotlib.figure import Figure
from pydantic import ValidationError

from core.artifacts import Git, read_facts, read_manifest, write_file
from core.errors import ArtifactError, InputError
from core.unlearning import DualFacts, UnlearnFacts
from eval.catalog import CATALOG
from eval.schema import (
    JudgedGate,
    read_verdict,
)
from model_card import agreement
from model_card.config import CardConfig
from model_card.facts import Evidence, collect
from model_card.figures import Canvas, training, truth_ratios
from model_card.local import Step, read_local
from model_card.markdown import read
from model_card.render import render
from model_card.stage import run
from pipeline.unlearn.config import PARAMETERS, UnlearnConfig
from tests.artifacts import (
    Place,
    fields,
    renamed,
)
from tests.small_card import config, rows_of, write_evidence
from tests.test_card_markdown import MARKUP

GOLDENS = Path(__file__).parent / "goldens"
UPDATE = "UPDATE_GOLDENS"  # set this in the environment to write the golden again, and look at the difference


def with_gates(evidence: Evidence, *gates: JudgedGate, passed: bool = True) -> Evidence:
    """The evidence with another verdict."""
    return evidence.changed(verdict=evidence.verdict.changed(gates=list(gates), passed=passed))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_evidence(tmp_path_factory.mktemp("evidence"))


@pytest.fixture(scope="module")
def evidence(inputs: dict[str, Path]) -> Evidence:
    return collect(inputs)


@pytest.fixture(scope="module")
def card(evidence: Evidence) -> str:
    return render(config(), evidence)


def test_the_stage_writes_its_files_and_the_same_bytes_again(inputs: dict[str, Path], tmp_path: Path) -> None:
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        out.mkdir()
        facts = run(config(), inputs, out)
    files = [{p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} for out in outs]
    assert files[0] == files[1]
    assert set(files[0]) == {
        *("README.md", "card.json", "report.html", "results.json"),
        *(f"plots/{name}.png" for name in ("groups", "results", "training")),
    }
    assert facts.passed is True
    published = json.loads(files[0]["results.json"])["models"]
    assert {model: len(records) for model, records in published.items()} == {"base": 26, "gold": 25, "unlearned": 26}
    text = "".join(files[0][name].decode() for name in ("README.md", "results.json", "card.json"))
    assert not any(row.answer in text or row.question in text for row in rows_of("forget", 40))
    assert b"Software" not in files[0]["plots/results.png"]


def test_the_report_escapes_what_people_typed(inputs: dict[str, Path], tmp_path: Path) -> None:
    run(config(card={"title": "<script>alert(1)</script>"}), inputs, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<svg") == 3


def test_metadata_reads_back_as_the_hub_client_reads_it(card: str, tmp_path: Path, evidence: Evidence) -> None:
    from huggingface_hub import ModelCard

    path = tmp_path / "README.md"
    path.write_text(card, encoding="utf-8")
    data = ModelCard.load(path).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.base_model_relation == "finetune"  # type: ignore[attr-defined]
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "transformers", "text-generation")
    assert data.language == ["de", "en"]
    assert data.datasets is None  # an invented sample set is not on the Hub
    tags = {"unlearning", "machine-unlearning", "unlearning evaluation", "fame", "gradient-difference"}
    assert tags == set(data.tags or [])
    assert data.to_dict()["license_link"] == "https://www.apache.org/licenses/LICENSE-2.0"
    assert data.eval_results is not None
    shown = {(result.metric_type, result.dataset_split): result.metric_value for result in data.eval_results}
    assert shown == {("answer_probability", "forget"): 0.0567, ("utility", "general"): 0.61}  # those with a gate


def test_a_llama_card_keeps_the_licence_and_names_the_hub_dataset(evidence: Evidence) -> None:
    from huggingface_hub import ModelCard

    llama = config(
        model={
            "name": "meta-llama/Llama-3.2-3B-Instruct",
            "license": "llama3.2",
            "revision": "a" * 40,
            "own_template": "the date in it is pinned to 26 Jul 2024",
        },
        data={"source": {"hub": {"id": "ClaudioSavelli/FAME", "revision": "b" * 40}}},
        publish={"repo": "someone/Llama-3.2-3B-Instruct-FAME-topics-GD", "hub": "hf"},
    )
    text = render(llama, evidence)
    assert agreement.problems(text, llama, evidence) == []
    data = ModelCard(text).data
    assert (data.license, data.datasets) == ("llama3.2", ["ClaudioSavelli/FAME"])
    assert data.eval_results is not None
    assert {r.dataset_revision for r in data.eval_results if r.dataset_split == "forget"} == {"b" * 40}
    assert "people are invented" not in text
    assert "pinned to 26 Jul 2024" in text
    assert text.count("Built with Llama.") == 2
    assert "Llama 3.2 is licensed under the [Llama 3.2 Community License](https://www.llama.com/llama3_2/" in text
    assert "[use policy](https://www.llama.com/llama3_2/use-policy)" in text
    assert any("Built with Llama" in p for p in agreement.problems(text.replace("Built with", "From"), llama, evidence))
    renamed = llama.model_copy(update={"publish": llama.publish.model_copy(update={"repo": "someone/FAME-Llama"})})
    problems = agreement.problems(render(renamed, evidence), renamed, evidence)
    assert any("must begin with 'Llama'" in problem for problem in problems)


def test_the_name_of_a_variant_is_not_the_textbook_name(evidence: Evidence) -> None:
    plain = config(unlearn={"forget_cap": None})
    assert "Gradient Difference with a per-row forget cap" in render(config(), evidence)
    assert "cap" not in render(plain, evidence).split("<summary>Method")[1].split("<summary>Data")[0]


VARIANTS = [
    *({"method": method} for method in PARAMETERS),
    {"method": "gd", "retain_loss": "kl", "loss_normalization": "microbatch_mean", "lora": {"r": 8, "alpha": 16.0}},
    {"method": "gd", "forget_cap": {"of": "gold", "plus": 0.5}, "dual": {"rate": 0.5, "retain_loss_above_base": 0.1}},
    {"method": "po", "lora": {"r": 8, "alpha": 16.0}},
    {"method": "npo", "retain_weight": 0.0},
]


def method_sections(evidence: Evidence) -> str:
    """The section on the method of every variant, with the settings that it has where a recipe gives none."""
    found = []
    for variant in VARIANTS:
        # As `pipeline.stages` gives it to the card: without what decides no result.
        unlearn = UnlearnConfig.model_validate({"epochs": 5, **variant}).model_dump(exclude={"processes"})
        ascent = evidence.ascent.changed(
            forget_cap=3.25 if unlearn["forget_cap"] else None,
            dual=DualFacts(retain_bound=0.3123, last_weight=1.71) if unlearn["dual"] else None,
        )
        changed = evidence.changed(ascent=ascent)
        values = config().model_copy(update={"unlearn": unlearn})
        text = render(values, changed)
        assert agreement.problems(text, values, changed) == [], variant
        found.append(text[text.index("<summary>Method") : text.index("Base and gold were made with")])
    return "".join(found)


def test_every_method_is_named_with_its_parameters(evidence: Evidence) -> None:
    golden = GOLDENS / "methods.md"
    text = method_sections(evidence)
    if os.environ.get(UPDATE):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8"), f"run the test with {UPDATE}=1 and read the difference"


def test_losses_of_rows_that_a_method_does_not_train_on_are_not_drawn(tmp_path: Path) -> None:
    inputs = write_evidence(tmp_path)
    checks = [line for line in (inputs["unlearn"] / "log.jsonl").read_text().splitlines() if "probe" in line]
    log = [json.dumps({"step": i, "refusal_loss": 3.0 - i, "retain_loss": 0.1}) for i in (1, 2)]
    (inputs["unlearn"] / "log.jsonl").write_text("\n".join([*log, *checks]), encoding="utf-8")
    evidence = read_local(inputs)
    assert [(s.forget_loss, s.refusal_loss, s.retain_loss) for s in evidence.steps] == [
        (None, 2.0, 0.1),
        (None, 1.0, 0.1),
    ]
    assert len(evidence.checks) == len(checks)
    run(config(), inputs, tmp_path)
    assert (tmp_path / "plots" / "training.png").stat().st_size > 1000


def test_losses_of_refusals_are_not_taken_for_those_of_the_answers(evidence: Evidence, inputs: dict[str, Path]) -> None:
    refusals, answers = Step(1, None, 0.1, refusal_loss=3.0), Step(8, 0.1, 0.1)
    for checks, named in (
        ([], ["refusals, not the answers"]),
        ([answers], ["true answers", "refusals, not the answers"]),
    ):
        canvas = Canvas(Figure())
        training(canvas, evidence, replace(read_local(inputs), steps=[refusals], checks=checks))
        legend = canvas.figure.axes[0].get_legend()
        assert legend
        assert [text.get_text() for text in legend.get_texts()] == named
    canvas = Canvas(Figure())
    training(canvas, evidence, read_local(inputs))
    assert canvas.figure.axes[0].get_legend() is None


def test_a_narrow_logarithmic_axis_has_numbers(evidence: Evidence, inputs: dict[str, Path]) -> None:
    """Below a decade matplotlib labels small ticks too, as formulas, which these plots do not read."""
    rows = [{"split": "forget", "truth_ratio": value} for value in (0.15, 0.3, 0.6)]
    local = replace(read_local(inputs), samples={"unlearned": rows})
    canvas = Canvas(Figure())
    truth_ratios(canvas, evidence, local)
    canvas.figure.draw_without_rendering()
    shown = [label.get_text() for label in canvas.figure.axes[0].get_xticklabels(which="both")]
    assert {"0.2", "0.3", "0.4"} <= set(shown)
    assert all(not text or float(text) for text in shown)


def test_settings_of_base_and_gold_are_told_apart_where_they_differ(evidence: Evidence) -> None:
    values = config(base={"train": None, "hub": {"id": "someone/base", "revision": "d" * 40}})
    text = render(values, evidence)
    assert f"| `base.hub.revision` | {'d' * 40} |" in text
    assert "| `gold.train.args.num_train_epochs` | 8 |" in text
    assert "base.train" not in text
    assert agreement.problems(text, values, evidence) == []


def test_a_failed_gate_without_evidence_is_shown_as_that(evidence: Evidence) -> None:
    failed = evidence.gates[0].changed(
        measured=None, at_most=None, smallest_difference=None, n=0, passed=False, why="Nothing was measured."
    )
    changed = with_gates(evidence, failed, passed=False)
    text = render(config(), changed)
    assert "must not be released" in text
    assert "| – | – | 0 | – | failed |" in text
    assert agreement.problems(text, config(), changed) == []
    assert agreement.problems(text.replace("| – | – |", "| 0.010 | – |"), config(), changed) != []


def test_without_gold_there_is_no_column_of_it(inputs: dict[str, Path]) -> None:
    evidence = collect({name: path for name, path in inputs.items() if name != "eval-gold"})
    without = config().model_copy(update={"gold": {}})
    text = render(without, evidence)
    assert agreement.problems(text, without, evidence) == []
    assert "There is no *gold*, a model trained without the forget rows." in text
    rows = next(section for section in read(text) if section.heading == "All metrics").tables[0]
    assert [*rows[0]] == ["Metric", "Split", "Better", "base", "this model", "n"]


PLANTED = {
    "a result": ("0.057 (0.044 to 0.068)", "0.047 (0.044 to 0.068)", "answer_probability on forget, unlearned"),
    "an interval": ("0.057 (0.044 to 0.068)", "0.057 (0.044 to 0.058)", "answer_probability on forget, unlearned"),
    "swapped columns": ("| 0.988 (0.975 to 0.999) | 0.042 (", "| 0.042 (0.975 to 0.999) | 0.988 (", "on forget, base"),
    "a gate's mark": ("| ✓ ≤ 0.103 |", "| ✓ ≤ 0.203 |", "gate is '✓ ≤ 0.203'"),
    "a name in the first table": ("| answer probability | 40 forget", "| recall | 40 forget", "its rows are"),
    "a count": ("| forget | 40 | 5", "| forget | 400 | 5", "Data: the card says"),
    "n": (" 0.057 (0.044 to 0.068) | 40 |", " 0.057 (0.044 to 0.068) | 4000 |", "n = 4000"),
    "a verdict": ("| 40 | 0.023 | passed |", "| 40 | 0.023 | failed |", "Verdict is 'failed'"),
    "a threshold": ("| 0.103 |", "| 0.203 |", "Bound is '0.203'"),
    "one of two thresholds": ("0.598 to 0.800", "0.598 to 0.900", "Bound is '0.598 to 0.900'"),
    "what n could see": ("| 0.023 | passed", "| 0.013 | passed", "Could see is '0.013'"),
    "a verdict in a sentence": (
        "All 2 gates passed",
        "**not all passed: this model must not be released**",
        "passed = True",
    ),
    "another model's weights": ("SHA-256 `ab", "SHA-256 `cd", "digest of the weights"),
    "a setting": ("| `forget_cap` | 5.0 |", "| `forget_cap` | 6.0 |", "settings are not those"),
    "a model-index value": ("value: 0.0567", "value: 0.0467", "model-index says 0.0467"),
    "a number in a sentence": ("These groups are small", "Retain is kept at 0.991. These groups", "number 0.991"),
    "a bound in a sentence": ("leaked, up to 7.2 %", "leaked, up to 0.7 %", "number 0.7"),
    "how the ascent ended": ("loss 3.200 reached", "loss 4.200 reached", "number 4.200"),
    "a placeholder": ("## Details\n", "## Details\n\n[More Information Needed]\n", "Placeholder"),
    "a to-do": ("These groups", "TODO: these groups", "Placeholder 'TODO'"),
    "an unset value": ("These groups", "None, these groups", "Placeholder 'None'"),
    "a value that is not a number": ("| 0.103 |", "| nan |", "Placeholder 'nan'"),
    "a template's tag": ("These groups", "{{ groups }}", "Placeholder '{{'"),
    "a local path": ("These groups", "See /home/somebody/runs: these groups", "Local path '/home/somebody'"),
    "a Windows path": ("These groups", "See C:\\Users\\me: these groups", "Local path"),
    "a local base model": ("base_model: HuggingFaceTB/", "base_model: ./models/", "base_model is"),
    "a licence": ("license: apache-2.0", "license: mit", "license is 'mit'"),
    "a lost section": ("## Licence", "## Notes", "Section 'Licence' occurs 0 times"),
    "a lost row": ("| `utility` | general | higher", "| `utilities` | general | higher", "All metrics: the rows are"),
    "a forgotten fact": (
        "These groups",
        "Person 3 has the  forget\nanswer 3. These groups",
        "answer of forget row en-3",
    ),
    "a forgotten question": (
        "These",
        "what is the forget question 8 about person 3? These",
        "question of forget row de-3",
    ),
    "broken front matter": ("library_name: transformers", "library_name: [transformers", "front matter"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_lint_finds(name: str, card: str, evidence: Evidence) -> None:
    right, wrong, message = PLANTED[name]
    assert right in card
    assert agreement.problems(card, config(), evidence) == []
    found = agreement.problems(card.replace(right, wrong), config(), evidence, rows_of("forget", 40))
    assert any(message in problem for problem in found), found


@pytest.mark.parametrize("text", ["Keeps 0.77 of it.", "See /srv/models/x.", "More information needed"])
def test_a_card_that_breaks_a_rule_is_not_written(text: str, inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="breaks 1 rule"):
        run(config(card={"summary": text}), inputs, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[("gate/gate.json", text) for text in (None, "", "[]", "{", "{}", '{"passed": true, "gates": [{}]}')],
        *[("unlearn/log.jsonl", text) for text in (None, "{", "3")],
        *[("unlearn/manifest.json", text) for text in (None, "[]", "{}")],
        *[("unlearn/pairing.jsonl", text) for text in (None, "{}", '{"retain": 3}')],
        ("eval-gold/results.json", None),
        ("data/forget.jsonl", None),
        ("data/perturbed.jsonl", None),
    ],
)
def test_damaged_evidence_is_an_error_that_names_the_file(name: str, text: str | None, tmp_path: Path) -> None:
    inputs = write_evidence(tmp_path / "evidence")
    path = tmp_path / "evidence" / name
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ArtifactError, match=re.escape(path.name)):
        run(config(), inputs, out)
    assert list(out.iterdir()) == []


def _rename(path: Path, place: Place) -> None:
    path.write_text(json.dumps(renamed(json.loads(path.read_text(encoding="utf-8")), place)), encoding="utf-8")


def test_no_key_of_the_evidence_can_be_renamed_in_silence(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Whatever the gate and unlearn stages say is on the card, or there is no card."""
    files = {
        inputs["gate"] / "gate.json": [place for place, _ in fields(read_verdict(inputs["gate"]))],
        inputs["unlearn"] / "manifest.json": [
            *(("facts", *place) for place, _ in fields(read_facts(inputs["unlearn"], UnlearnFacts))),
            *(place for place, _ in fields(read_manifest(inputs["unlearn"]))),
        ],
    }
    assert all(len(places) > 10 for places in files.values())
    for path, place in ((path, place) for path, places in files.items() for place in places):
        before = path.read_bytes()
        _rename(path, place)
        with pytest.raises(ArtifactError, match=rf"{path.name}: .*({place[-1]}_? is|made by no version)"):
            run(config(), inputs, tmp_path)
        path.write_bytes(before)
    assert list(tmp_path.iterdir()) == []
    run(config(), inputs, tmp_path)


def test_a_card_names_what_each_stage_ran_with(tmp_path: Path) -> None:
    inputs = write_evidence(tmp_path)
    assert f"\nSource commit `{'c' * 40}`.\nThe unlearning ran with " in render(config(), collect(inputs))
    of_eval = read_manifest(inputs["eval-unlearned"])
    changes = {"git": Git(commit="d" * 40, dirty=True), "packages": of_eval.packages | {"torch": "2.14.0"}}
    write_file(inputs["eval-unlearned"] / "manifest.json", of_eval.changed(**changes))
    card = render(config(), collect(inputs))
    others = "data, eval-base, eval-gold, gate and unlearn"
    assert f"\nSource commit of {others}: `{'c' * 40}`.\n" in card
    assert f"\nSource commit of eval-unlearned: `{'d' * 40}`, with uncommitted changes.\n" in card
    assert "torch 2.13.0, transformers 5.23.0, trl 1.16.0.\nWith torch 2.14.0 instead ran eval-unlearned.\n" in card


def test_evidence_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    inputs = write_evidence(tmp_path / "evidence")
    gate = inputs["gate"] / "gate.json"
    older = json.loads(gate.read_text(encoding="utf-8"))
    del older["version"], older["gates"][0]["power"]
    gate.write_text(json.dumps(older), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"gate\.json: made by no version of Verdict, and only version 1 is read"):
        run(config(), inputs, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"name": "models/../local/copy"}},
        {"model": {"name": "./model"}},
        {"model": {"license": "gpl"}},
        {"model": {"revision": "main"}},
        {"publish": {"repo": "no-owner"}},
        {"publish": {"tag": 'v1"); import os'}},
        {"card": {"title": ""}},
        {"card": {"titel": "x"}},
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, dict[str, object]]) -> None:
    with pytest.raises(ValidationError):
        config(**changes)


@given(title=MARKUP, limitation=MARKUP, reason=MARKUP)
@settings(max_examples=50, deadline=None)
def test_no_text_breaks_the_card(title: str, limitation: str, reason: str, evidence: Evidence) -> None:
    from huggingface_hub import ModelCard

    changed = with_gates(evidence, *(gate.changed(reason=reason) for gate in evidence.gates))
    values = config(card={"title": title, "limitations": [limitation]})
    card = render(values, changed)
    assert ModelCard(card).data.license == "apache-2.0"
    allowed = (
        "Placeholder",
        "Local path",
        "The number",
    )  # text that the lint may refuse, but that changed nothing else
    assert [p for p in agreement.problems(card, values, changed) if not p.startswith(allowed)] == []


def test_text_config_has_no_default_prose() -> None:
    with pytest.raises(ValidationError):
        CardConfig.model_validate({})


def test_every_metric_of_an_audit_is_described() -> None:
    texts = [metric.meaning for metric in CATALOG.values()]
    assert all(texts)
    assert len(set(texts)) == len(texts)
    assert CATALOG["answer_probability_relearn_retain"].meaning == ("answer probability after training on retain rows")
