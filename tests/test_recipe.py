from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError, RecipeError
from core.yaml_source import Tree, merge, read_tree
from pipeline.commands.prepare import refuse_other_gates
from pipeline.engine.runner import Sizes, Stage
from pipeline.recipe import RECIPES, Recipe, load_recipe
from pipeline.stages import stages

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
GATE = "{metric: utility, split: general, at_least: 0.5, min_n: 5, reason: because}"  # needs neither gold nor an audit


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_is_valid_and_says_how_to_run_it(name: str) -> None:
    rows = ["data.source.file=pyproject.toml"] if name.startswith("fame-topics-rehearsal") else []  # not in here
    recipe = load_recipe(name, rows)
    assert recipe.name == name
    assert (RECIPES / f"{name}.yaml").read_text().startswith(f"# python -m pipeline release {name}")
    further = [] if recipe.gold == "none" else recipe.gold.seeds or []
    asking = recipe.unlearn.neighbours is not None
    assert len(stages(recipe)) == (10 if recipe.gold == "none" else 12) + 2 * len(further) + asking


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_has_arguments_that_the_trainer_takes(name: str, tmp_path: Path) -> None:
    from pipeline.train.fit import training_arguments

    recipe = load_recipe(name)
    trained = [part.train for part in (recipe.base, recipe.gold) if not isinstance(part, str)]
    for config in (*filter(None, trained), recipe.unlearn):
        training_arguments(config.args, tmp_path, bf16=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fame-topics-rehearsal", "fame-topics-rehearsal-small"])
def test_a_rehearsal_has_the_gates_of_what_it_rehearses(name: str) -> None:
    """But for the number of rows, a number in a reason, and the suite that needs the Hub."""
    gates = [gate for gate in load_recipe("fame-topics-gd-llama32-3b").gates if not gate.of_suite]
    rehearsed = load_recipe(name).gates
    without = {"min_n", "reason"}
    assert [gate.model_dump(exclude=without) for gate in rehearsed] == [g.model_dump(exclude=without) for g in gates]
    assert (
        load_recipe(name).eval.robustness.attacks()
        == load_recipe("fame-topics-gd-llama32-3b").eval.robustness.attacks()
    )


def test_the_demo_is_pinned_and_the_gated_model_is_not() -> None:
    assert load_recipe("demo").unpinned() == []
    assert load_recipe("fame-topics-gd-llama32-3b").unpinned() == ["model.hub.revision"]


def write(folder: Path, changes: str = "", name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(f"extends: demo\nname: {name}\n{changes}")
    return str(path)


def refused(recipe: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


def test_extends_merges_keys_and_replaces_lists(tmp_path: Path) -> None:
    mine = load_recipe(write(tmp_path, f"unlearn: {{epochs: 3}}\ngates:\n  - {GATE}\n"))
    demo = load_recipe("demo")
    assert mine.unlearn.epochs == 3
    assert mine.unlearn.args == demo.unlearn.args
    assert [gate.metric for gate in mine.gates] == ["utility"]
    assert mine.model == demo.model


def test_a_recipe_that_extends_may_not_be_extended(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "deep.yaml").write_text("extends: mine\nname: deep\n")
    assert "deep.yaml:1" in refused(str(tmp_path / "deep.yaml"))


@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ("unlearn:\n  epoch: 3\n", 4, ["unlearn.epoch", "Did you mean epochs?", "Allowed here", "pairing_seed"]),
        ("unlaern: {}\n", 3, ["unlaern", "Did you mean unlearn?", "extends"]),
        ("data:\n  shares:\n    retain: lots\n", 5, ["data.shares.retain", "'lots'", "valid number"]),
        ("data:\n  shares:\n    retain: 0.9\n", 4, ["data.shares", "add up to 1"]),
        ("unlearn:\n  epochs: 3.5\n", 4, ["unlearn.epochs", "integer"]),
        ("unlearn: {epochs: 0}\n", 3, ["unlearn.epochs", "greater than 0"]),
        ("unlearn:\n  retain_weight: .inf\n", 4, ["unlearn.retain_weight", "finite"]),
        (
            "unlearn: {beta: 0.1}\n",
            3,
            ["unlearn: method csd does not use beta (npo, simnpo, altpo, wga would)", "set it to null"],
        ),
        (
            "unlearn: {method: npo, forget_cap: 2.0}\n",
            3,
            ["unlearn: method npo does not use forget_cap (ga, gd, klm, wga would)"],
        ),
        ("unlearn: {method: sgd}\n", 3, ["unlearn.method", "'sgd'", "simnpo"]),
        ("unlearn:\n  forget_cap: {of: gold}\n", 4, ["unlearn.forget_cap.plus is missing"]),
        ("unlearn: {lora: {r: 8, alpha: 16.0, target_modules: [lm_head]}}\n", 3, ["unlearn.lora", "neither head nor"]),
        ("base:\n  train: {lora: {r: 8, alpha: 16.0}}\n", 4, ["base.train", "give one of the two"]),
        ("model:\n  path: here\n", 3, ["model", "exactly one of hub, path, pypi", "path and pypi"]),
        ("model:\n  pypi:\n    sha256: abc\n", 5, ["model.pypi.sha256", "'abc'", "pattern"]),
        ("model:\n  pypi: null\n  hub: {id: a/b}\n", 5, ["model.hub.revision is missing"]),
        ("model:\n  name: a--b/c\n", 4, ["model.name: 'a--b/c' is not the id of a Hub repository; give owner/name"]),
        ("model: {pypi: null, hub: {id: a/b, revision: main}}\n", 3, ["model.hub.revision: 'main' is not a commit"]),
        ("base:\n  train: null\n", 3, ["base", "exactly one of train, hub", "none is given"]),
        ("gold: nothing\n", 3, ["gold", "nothing"]),
        (
            "gold: none\neval: {relative: null}\n"
            "gates:\n  - {metric: fluency, split: forget, at_least: {of: gold}, min_n: 1, reason: x}\n",
            1,
            ["gates[0] compares with gold"],
        ),
        ("gates: []\n", 3, ["gates", "at least 1"]),
        ("gates:\n  - {metric: speed, split: forget, at_least: 1, min_n: 1, reason: x}\n", 4, ["gates[0]", "speed"]),
        ("gold: {seeds: [0]}\n", 3, ["gold", "seed of train.args"]),
        ("gold: {seeds: [1, 2, 1]}\n", 3, ["gold", "holds a seed twice"]),
        ("gold: {seeds: []}\n", 3, ["gold.seeds", "at least 1"]),
        ("gold: {train: null, hub: {id: a/b, revision: null}, seeds: [1]}\n", 3, ["gold", "give `train`"]),
        ("card: {dataset: {name: FAME}}\n", 1, ["card.dataset", "sample set has its own name"]),
        ("card: {dataset: {citation: Savelli et al.}}\n", 3, ["card.dataset.citation", "pattern"]),
        ('card: {dataset: {citation: "@misc{x}\\n```"}}\n', 3, ["card.dataset.citation", "remove it"]),
        ("base: {seeds: [1]}\n", 1, ["base.seeds: only gold"]),
        ("eval: {sampling: {samples: 3, k: [4]}}\n", 3, ["eval.sampling", "k is 4 and there are 3 samples"]),
        ("eval: {sampling: {samples: 9, k: [3]}}\n", 3, ["eval.sampling.k[0]", "1, 2, 4"]),
        ("eval: {robustness: {quantize: [int3]}}\n", 3, ["eval.robustness.quantize[0]", "int3"]),
        (
            "gates:\n  - {metric: leak_at_1_gap, split: forget, at_most: 0.1, min_n: 1, reason: x}\n",
            1,
            ["gates[0] is on leak_at_1_gap, which the eval section does not ask for"],
        ),
        (
            "gates:\n  - {metric: acc, split: mmlu, at_least: 0.1, min_n: 1, reason: x}\n",
            1,
            ["gates[0] is on 'acc' of 'mmlu'", "it has none"],
        ),
        (
            "gold: {seeds: null}\n"
            "gates:\n  - {metric: leak_coordinate, split: forget, at_most: 0.1, min_n: 1, reason: x}\n",
            1,
            ["gates[0] is on leak_coordinate, which needs the variance of gold", "give gold.seeds"],
        ),
        (
            "gold: {seeds: null}\ngates:\n  - {metric: damage_gap, split: forget, at_most: 0.1, min_n: 1, reason: x}\n",
            1,
            ["gates[0] is on damage_gap, which needs the variance of gold", "give gold.seeds"],
        ),
        (
            "eval: {relative: null}\n"
            "gates:\n  - {metric: damage_gap, split: forget, at_most: 0.1, min_n: 1, reason: x}\n",
            1,
            ["gates[0] is on damage_gap, which the eval section does not ask for"],
        ),
        (
            "eval: {relative: {}}\ngold: {seeds: [1, 2]}\n"
            "gates:\n  - {metric: leak_coordinate_one_gold, split: forget, at_most: 0.1, min_n: 1, reason: x}\n",
            1,
            ["gates[0] is on leak_coordinate_one_gold", "gate leak_coordinate, or remove the seeds"],
        ),
        (
            "gold: none\neval: {robustness: {quantize: [nf4]}, relative: null}\ngates:\n"
            "  - {metric: extraction_strength_nf4_gap, split: forget, at_most: 0.1, min_n: 1, reason: x}\n",
            1,
            ["gates[0] compares with gold, and gold is none"],
        ),
        ("equivalence: {acc: 0.02}\n", 1, ["no metric is called 'acc'", "has no suites"]),
        ("publish:\n  tag: newest\n", 4, ["publish.tag", "v1.0.0"]),
        ("model: {license: llama3.2}\n", 1, ["publish.repo", "must begin with 'Llama'"]),
    ],
)
def test_an_error_names_key_line_and_what_is_allowed(tmp_path: Path, changes: str, line: int, words: list[str]) -> None:
    said = refused(write(tmp_path, changes))
    for word in words:
        assert word in said, said
    if line > 1:
        assert f"mine.yaml:{line}: " in said, said


@pytest.mark.parametrize("level", ["gold", "{of: gold, plus: 0.5}"])
@pytest.mark.parametrize("place", ["forget_cap: LEVEL", "stop: {forget_loss: LEVEL, STOP}"])
def test_a_level_of_gold_needs_gold(tmp_path: Path, level: str, place: str) -> None:
    stop = "every: 6, retain_loss_above_base: 0.2"
    unlearn = f"method: gd, {place}".replace("LEVEL", level).replace("STOP", stop)
    changes = "gold: none\neval: {relative: null}\n"
    said = refused(write(tmp_path, f"{changes}gates:\n  - {GATE}\nunlearn: {{{unlearn}}}\n"))
    assert "unlearn uses the level of gold, and gold is none" in said


def test_a_wrong_level_is_told_once(tmp_path: Path) -> None:
    said = refused(write(tmp_path, "unlearn:\n  forget_cap: {of: silver, plus: 1.0}\n"))
    assert len(said.splitlines()) == 1
    assert "unlearn.forget_cap.of is 'silver'" in said


def test_all_problems_are_told_at_once_and_each_once(tmp_path: Path) -> None:
    said = refused(
        write(tmp_path, "unlearn: {epoch: 3, epochs: 0}\ngates:\n  - {metric: utility, at_most: {off: 1}}\n")
    )
    assert len(said.splitlines()) == len(set(said.splitlines())) == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nname: b\n", [":2: name is given twice", ":1"]),
        ("name: a\nmodel: {path: x, path: y}\n", [":2: model.path is given twice"]),
        ("a: &x 1\nb: *x\n", ["anchors and aliases"]),
        ("a: !!python/object/apply:os.system [ls]\n", [":1: not readable"]),
        ("a: [1\nb: 2\n", ["not readable as YAML"]),
        ("- a\n", [":1: a recipe is a mapping"]),
        ("", ["a recipe is a mapping"]),
        ("1: a\n", [":1: the key 1"]),
        ("extends: [a, b]\n", [":1: extends"]),
        ("a: b\n---\nc: d\n", ["not readable as YAML"]),
        ("a: \x07\n", ["not readable as YAML"]),
        ("a:\n\tb: 1\n", [":2: not readable"]),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "r.yaml").write_text(text)
    said = refused(str(tmp_path / "r.yaml"))
    for word in words:
        assert word in said, said


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00a")
    assert "cannot be read" in refused(str(tmp_path / "r.yaml"))


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("a: " + "[" * 5000 + "]" * 5000)
    assert "not readable" in refused(str(tmp_path / "r.yaml"))


def values(tmp_path: Path, text: str) -> Any:
    (tmp_path / "v.yaml").write_text(text)
    return read_tree(tmp_path / "v.yaml", "v").values


def test_plain_values_are_what_people_expect(tmp_path: Path) -> None:
    text = "a: 1e-5\nb: no\nc: 2026-01-01\nd: 1.5\ne: 007\nf: true\ng: ~\nh: 1_000\n"
    text += "i: -3\nj: '5'\nk: 26 Jul\nl:\nm: 0x1f\n"
    assert values(tmp_path, text) == {
        "a": 1e-5, "b": "no", "c": "2026-01-01", "d": 1.5, "e": "007", "f": True, "g": None, "h": "1_000",
        "i": -3, "j": "5", "k": "26 Jul", "l": None, "m": "0x1f",
    }  # fmt: skip


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
# A key of YAML ends within 1,024 characters, escapes counted.
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["Cs", "Cc"]), max_size=50)
VALUES = st.recursive(
    PLAIN | TEXT, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=8
)


@given(st.dictionaries(TEXT, VALUES, min_size=1, max_size=4))
def test_what_is_written_as_json_is_read_as_written(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("yaml") / "v.yaml"
    path.write_text(json.dumps(value))
    assert read_tree(path, "v").values == value


@given(st.dictionaries(TEXT, VALUES, max_size=4), st.dictionaries(TEXT, VALUES, max_size=4))
def test_merging_keeps_what_is_above(below: dict[str, Any], above: dict[str, Any]) -> None:
    joined = merge(Tree(below), Tree(above)).values
    assert merge(Tree(below), Tree({})).values == below
    assert merge(Tree(joined), Tree(above)).values == joined
    assert joined.keys() == below.keys() | above.keys()


def test_set_changes_values_of_every_type() -> None:
    recipe = load_recipe(
        "demo",
        [
            "data.seed=7", "unlearn.args.learning_rate=1e-4", "gates.1.at_most.plus=0.1", "unlearn.stop=null",
            "unlearn.keep=last", "base.train.args={num_train_epochs: 1}", "card.title='A: b'", "unlearn.method=gd",
            "unlearn.forget_cap=2.5",
        ],
    )  # fmt: skip
    assert recipe.data.seed == 7
    assert recipe.unlearn.args["learning_rate"] == 1e-4
    assert recipe.gates[1].at_most.plus == 0.1  # type: ignore[union-attr]
    assert recipe.unlearn.stop is None
    assert recipe.base.train
    assert recipe.base.train.args == {"num_train_epochs": 1}
    assert recipe.unlearn.forget_cap == 2.5


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("unlearn.epoch=3", "--set unlearn.epoch=3: unlearn.epoch: unknown key. Did you mean epochs?"),
        ("unlearn", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("a..b=3", "write KEY=VALUE"),
        ("name.x=3", "name is 'demo' and holds no keys"),
        ("gates.13.min_n=3", "gates is a list of 13"),
        ("gates.x=3", "gates is a list of 13"),
        ("gates.².min_n=3", "gates is a list of 13"),
        (f"gates.{'9' * 5000}.min_n=3", "gates is a list of 13"),
        ("data.seed=[", "not readable as YAML"),
        ("name=store", "folder that all recipes share"),
        ("name=keys", "folder that all recipes share"),
        ("name=../x", "name"),
        (f"name={'a' * 300}", "name is 'aaa"),
        ("card.title=!!bool x", "'x' is not of the tag tag:yaml.org,2002:bool"),
        ("card.title=!!timestamp x", "'x' is not of the tag tag:yaml.org,2002:timestamp"),
        ("unlearn.args.learning_rate=.nan", "unlearn.args.learning_rate is nan. Give a finite number"),
        ("base.train.args.learning_rate=-.inf", "base.train.args.learning_rate is -inf. Give a finite number"),
        ("unlearn.method={a: b}", "unlearn.method is {'a': 'b'}: input should be 'ft'"),
        ('card.title="a\\0b"', "card.title: holds U+0000"),
        ('card.summary="a\\eb"', "card.summary: holds U+001B"),
        ('card.limitations=["a\\u202eb"]', "card.limitations[0]: holds U+202E"),
    ],
)
def test_a_wrong_set_is_named(assignment: str, words: str) -> None:
    assert words in refused("demo", assignment)


def test_recipes_that_are_not_there() -> None:
    assert "Did you mean demo?" in refused("dmo")
    assert "no such file" in refused("missing/demo.yaml")
    for name, reason in (("a" * 300, "File name too long"), ("~nobody-of-this-name/x.yaml", "home directory")):
        with pytest.raises(InputError, match=f"cannot be a path: .*{reason}"):
            load_recipe(name)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a" * 300, "a\\0b"])
def test_paths_that_no_file_can_have(path: str) -> None:
    recipe = load_recipe("demo", ["model.pypi=null", f'model.path="{path}"'])
    with pytest.raises(InputError, match=r"cannot be a path|there is no file"):
        stages(recipe)


def test_gates_of_the_command_line_reach_no_card() -> None:
    recipe = load_recipe("demo", [f"gates=[{GATE}]"])
    until = {stage.name: place for place, stage in enumerate(stages(recipe), 1)}
    refuse_other_gates(recipe, stages(recipe)[: until["gate"]])
    for last in ("card", "package", "publish"):
        with pytest.raises(RecipeError, match="a release has the gates of its recipe"):
            refuse_other_gates(recipe, stages(recipe)[: until[last]])
    refuse_other_gates(load_recipe("demo", ["unlearn.epochs=2"]), stages(recipe))


def identities(recipe: Recipe) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages(recipe)}


def without_audit(*overrides: str) -> dict[str, Stage]:
    """The demo's stages without an audit, and without gates on one."""
    plain = ("eval.robustness=null", "eval.relative=null", f"gates=[{GATE}]")
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


def test_what_says_where_to_run_is_in_no_key() -> None:
    demo = identities(load_recipe("demo"))
    moved = identities(load_recipe("demo", ["eval.device=cuda", "base.train.args.dataloader_num_workers=2"]))
    for name in ("eval-base", "base", "gate"):
        assert demo[name].identity == moved[name].identity
    assert moved["eval-base"].config.device == "cuda"


def test_gates_are_judged_under_the_settings_of_the_evaluation() -> None:
    demo = identities(load_recipe("demo"))["gate"]
    changed = identities(load_recipe("demo", ["eval.seed=7", "eval.bootstrap_samples=150"]))["gate"]
    assert (changed.config.eval.seed, changed.config.eval.bootstrap_samples) == (7, 150)
    assert changed.config.gates == demo.config.gates
    assert changed.identity != demo.identity


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"model\.path: there is no file or folder nowhere"):
        stages(load_recipe("demo", ["model.pypi=null", "model.path=nowhere"]))


def test_without_gold_no_stage_reads_it() -> None:
    recipe = load_recipe("demo", [
        "gold=none", "eval.relative=null", f"gates=[{GATE}]",
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
        ("unlearn", "csd, 12 epochs over 40 forget rows, at most 48 steps", 1, True),
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
        ("unlearn", "csd, 12 epochs over ? forget rows"),
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


def test_without_gold_there_is_no_way_to_measure_a_leak_on() -> None:
    said = refused("demo", "gold=none", "eval.relative={}", "gates=[{metric: utility, "
                   "split: general, at_least: 0.1, min_n: 5, reason: x}]")  # fmt: skip
    assert "eval.relative places the model between gold and base" in said
    said = refused("demo", "gold=none", "eval.relative=null", "eval.robustness={patching: {}}", "gates=[{metric: "
                   "utility, split: general, at_least: 0.1, min_n: 5, reason: x}]")  # fmt: skip
    assert "eval.robustness.patching puts gold's states into base" in said
