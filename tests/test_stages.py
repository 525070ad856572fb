"""What stages a recipe has, what is in their keys, and what a plan says of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from core.errors import InputError
from core.strict import Strict
from datasets_prep import prepare
from pipeline.engine.runner import Sizes, Stage
from pipeline.recipe import Recipe, load_recipe
from pipeline.stages import stages
from pipeline.train import start_model

GATE = "{metric: utility, split: general, at_least: 0.5, min_n: 5, reason: because}"  # needs neither gold nor an audit


def identities(recipe: Recipe) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages(recipe)}


def without_audit(*overrides: str) -> dict[str, Stage]:
    """The demo's stages without an audit, and without gates on one."""
    plain = ("eval.robustness=null", "eval.relative=false", f"gates=[{GATE}]")
    return identities(load_recipe("demo", [*plain, *overrides]))


def test_a_key_knows_contents_and_no_paths(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.csv").write_text("same")
    found = [
        identities(load_recipe("demo", ["data.source.sample=null", f"data.source.file={tmp_path / name / 'rows.csv'}"]))
        for name in ("one", "two")
    ]
    assert found[0]["data"].identity == found[1]["data"].identity
    for stage in found[0].values():
        assert str(tmp_path) not in str(stage.identity)
    (tmp_path / "two" / "rows.csv").write_text("other")
    changed = load_recipe("demo", ["data.source.sample=null", f"data.source.file={tmp_path / 'two' / 'rows.csv'}"])
    assert identities(changed)["data"].identity != found[0]["data"].identity


@pytest.mark.parametrize(
    ("name", "reader", "key", "sets"),
    [
        ("data", prepare, "data.source.file", "data.source={{sample: null, file: {}}}"),
        ("model", start_model, "model.path", "model={{path: {}, name: a/b, license: mit}}"),
    ],
)
def test_a_local_file_that_is_edited_while_a_command_runs_is_refused(
    name: str, reader: ModuleType, key: str, sets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content is in the key since the command began, and it is read later."""
    monkeypatch.setattr(reader, "run", lambda *_: Strict())
    file = tmp_path / "local"
    file.write_text("one")
    stage = identities(load_recipe("demo", [sets.format(file)]))[name]
    stage.run(stage.config, {}, tmp_path)
    file.write_text("two")
    with pytest.raises(InputError, match=f"{key}: a file was changed"):
        stage.run(stage.config, {}, tmp_path)


def test_what_says_where_to_run_is_in_no_key() -> None:
    demo = identities(load_recipe("demo"))
    moved = identities(load_recipe("demo", ["eval.device=cuda", "base.train.args.dataloader_num_workers=2"]))
    for name in ("eval-base", "base", "gate"):
        assert demo[name].identity == moved[name].identity
    assert moved["eval-base"].config.device == "cuda"


def test_what_is_published_on_one_hub_is_not_taken_to_be_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def published(hub: str, endpoint: str) -> Any:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        return identities(load_recipe("demo", [f"publish.hub={hub}"]))["publish"].identity

    real = published("hf", "")
    assert published("hf", "https://huggingface.co/") == real
    assert published("hf", "https://me:hunter2@hub.example") == real | {"endpoint": "hub.example"}
    assert published("local", "https://hub.example") == published("local", "")


@pytest.mark.parametrize(
    "given",
    [
        *("publish.visibility=public", "publish.via=pr", "publish.gated=auto", "resources.bucket=acme/store"),
        *("publish.collection=a/b-0123456789abcdef01234567", "resources={image: registry.acme.example/x, hours: 40}"),
    ],
)
def test_what_runs_a_release_or_shows_it_is_not_in_what_is_published(given: str) -> None:
    """Else the same release, made public or run elsewhere, would be other content under its tag."""
    demo, changed = identities(load_recipe("demo")), identities(load_recipe("demo", [given]))
    assert [name for name in demo if demo[name].identity != changed[name].identity] in ([], ["publish"])
    other = identities(load_recipe("demo", ["publish.tag=v2.0.0", given]))
    assert other["card"].identity["overrides"] == ["publish.tag=v2.0.0"]


def test_gates_are_judged_under_the_settings_of_the_evaluation() -> None:
    demo = identities(load_recipe("demo"))["gate"]
    changed = identities(load_recipe("demo", ["eval.seed=7", "eval.bootstrap_samples=150"]))["gate"]
    assert (changed.config.eval.seed, changed.config.eval.bootstrap_samples) == (7, 150)
    assert changed.config.gates == demo.config.gates
    assert changed.identity != demo.identity


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"model\.path: there is no file or folder /.*/nowhere"):
        stages(load_recipe("demo", ["model.pypi=null", "model.path=nowhere"]))


def test_without_gold_no_stage_reads_it() -> None:
    recipe = load_recipe("demo", [
        "gold=none", "eval.relative=false", f"gates=[{GATE}]",
    ])  # fmt: skip
    found = stages(recipe)
    assert "gold" not in {stage.name for stage in found}
    assert not {"gold", "eval-gold"} & {read for stage in found for read in stage.inputs.values()}


def test_margins_may_be_of_every_metric_that_a_gate_may_be_on() -> None:
    margins = {"answer_probability": 0.05, "leak_at_4_gap": 0.1, "acc": 0.02}
    said = json.dumps(margins)
    assert load_recipe("demo", ["eval.suites=[{task: mmlu}]", f"equivalence={said}"]).equivalence == margins


def test_the_audit_uses_the_demos_models_and_another_repository() -> None:
    demo, audit = identities(load_recipe("demo")), identities(load_recipe("demo-audit"))
    for name in ("model", "data", "base", "gold", "unlearn"):
        assert (audit[name].identity, audit[name].inputs) == (demo[name].identity, demo[name].inputs)
    assert audit["eval-base"].identity != demo["eval-base"].identity
    assert load_recipe("demo-audit").publish.repo != load_recipe("demo").publish.repo


def test_golds_of_other_seeds_differ_in_nothing_else_and_are_read_by_the_relative_test() -> None:
    recipe = load_recipe("demo-audit")
    found, plain = identities(recipe), without_audit()
    assert recipe.gold != "none"
    for seed in recipe.gold.seeds or []:
        trained = found[f"gold-seed-{seed}"].identity
        assert trained["train"]["args"].pop("seed") == seed
        own = found["gold"].identity
        assert {**own["train"]["args"]} == {**trained["train"]["args"], "seed": 0}
        assert found[f"eval-gold-seed-{seed}"].identity == plain["eval-gold"].identity
        assert found["eval-unlearned"].inputs[f"eval-gold-seed-{seed}"] == f"eval-gold-seed-{seed}"
    assert found["eval-unlearned"].inputs["eval-base"] == "eval-base"
    assert "eval-base" not in plain["eval-unlearned"].inputs


def test_a_stage_says_what_it_does_and_how_it_is_launched() -> None:
    found = identities(load_recipe("demo-audit", ["gold.seeds=[7]", "gold.train.processes=4", "eval.processes=2"]))
    known = Sizes(1_000_000_000, {"retain": 140, "forget": 40, "holdout": 50, "unrehearsed": 20})
    trained = "fine-tune on {} rows, 5 epochs, {} steps"
    audit, plain = "probes, lm-eval and the audit over 250 rows", "probes and lm-eval over 250 rows"
    for name, says, processes, shardable in (
        ("model", "HuggingFaceTB/SmolLM2-135M-Instruct: 1,000 M parameters", 1, False),
        ("data", "140 retain, 40 forget, 50 holdout, 20 unrehearsed (seed 42, setting topics)", 1, False),
        ("base", trained.format(200, 125), 1, True),
        ("gold", trained.format(160, 100), 4, True),
        ("gold-seed-7", trained.format(160, 100), 4, True),
        ("neighbours", "base answers up to 400 questions like the given ones", 1, False),
        ("unlearn", "csd, 20 epochs over 40 forget rows, at most 80 steps", 1, True),
        ("eval-gold", audit, 2, False),
        ("eval-gold-seed-7", plain, 2, False),
        ("eval-unlearned", audit, 2, False),
        ("gate", "13 gates", 1, False),
        ("card", "card, plots, report", 1, False),
        ("package", "the tree for the Hub", 1, False),
    ):
        stage = dataclasses.replace(found[name], name="named-otherwise")
        assert (stage.does(stage.config, known), stage.processes, stage.shardable) == (says, processes, shardable)
    assert (
        found["publish"]
        .does(found["publish"].config, known)
        .endswith("-audit on the loopback Hub, private, tag v1.0.0")
    )


def test_a_plan_says_what_is_not_known_yet() -> None:
    published = "{train: null, hub: {id: a/b, revision: null}}"
    found = identities(load_recipe("demo", [f"gold={published}", f"gates=[{GATE}]"]))
    for name, says in (
        ("model", "parameters unknown until it is fetched"),
        ("data", "rows unknown until they are read"),
        ("base", "fine-tune, rows unknown until data is done, 5 epochs"),
        ("gold", "a/b at a commit to be pinned"),
        ("unlearn", "csd, 20 epochs over ? forget rows"),
        ("eval-base", "over all rows"),
        ("package", "the tree for the Hub"),
    ):
        assert says in found[name].does(found[name].config, Sizes(None, None))


def test_sections_of_an_audit_enter_the_key_only_where_they_are_given() -> None:
    plain = without_audit()["eval-base"].identity
    assert not {"robustness", "sampling", "relative"} & plain.keys()
    asked = without_audit("eval.robustness={quantize: [nf4]}")["eval-base"].identity
    assert asked["robustness"]["quantize"] == ["nf4"]
    assert "extraction_strength_nf4_gap" in asked["metrics"]
    assert asked["metrics"].items() >= plain["metrics"].items()
    assert not {"chained", "steering", "patching"} & asked["robustness"].keys()  # which came later


def test_golds_weights_are_read_only_where_their_states_are_patched() -> None:
    asked = without_audit("eval.robustness={patching: {}}")
    assert "unlearning_depth_score" in asked["eval-unlearned"].identity["metrics"]
    assert {name for name, stage in asked.items() if "gold-model" in stage.inputs} == {"eval-unlearned"}
    assert asked["eval-unlearned"].inputs["gold-model"] == "gold"
    assert not any("gold-model" in stage.inputs for stage in identities(load_recipe("demo")).values())


def test_what_the_card_says_of_the_data_is_in_no_key_before_the_cards() -> None:
    plain = load_recipe("own-data")
    named = load_recipe("own-data", ["card.dataset={name: Ours, license: cc-by-4.0, citation: '@misc{ours}'}"])
    changed = [s.name for s, other in zip(stages(plain), stages(named), strict=True) if s.identity != other.identity]
    assert changed == ["card", "package"]  # the second for the command, which release.json has
