from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InputError, RecipeError
from core.yaml_source import LARGEST, Tree, merge, read_tree
from pipeline.commands.prepare import refuse_other_gates
from pipeline.recipe import RECIPES, load_recipe
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
    starts = any(gate.needs_start for gate in recipe.gates)
    learns = recipe.unlearn.method == "csd"  # from a novice
    assert len(stages(recipe)) == (10 if recipe.gold == "none" else 12) + 2 * len(further) + asking + starts + learns


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_recipe_has_arguments_that_the_trainer_takes(name: str, tmp_path: Path) -> None:
    from pipeline.train.arguments import training_arguments

    recipe = load_recipe(name)
    trained = [part.train for part in (recipe.base, recipe.gold, recipe.novice) if part and part != "none"]
    for config in (*filter(None, trained), recipe.unlearn):
        training_arguments(config.args, tmp_path, bf16=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fame-topics-rehearsal", "fame-topics-rehearsal-small"])
def test_a_rehearsal_has_the_gates_of_what_it_rehearses(name: str) -> None:
    """But for the number of rows, a number in a reason, and the suite that needs the Hub."""
    release, rehearsal = load_recipe("fame-topics-csd-llama32-3b"), load_recipe(name)
    gates = [gate for gate in release.gates if not gate.of_suite]
    without = {"min_n", "reason"}
    assert [g.model_dump(exclude=without) for g in rehearsal.gates] == [g.model_dump(exclude=without) for g in gates]
    assert rehearsal.eval.robustness.attacks() == release.eval.robustness.attacks()


@pytest.mark.parametrize("name", ["fame-topics-rehearsal", "fame-topics-rehearsal-small"])
def test_a_rehearsal_unlearns_as_what_it_rehearses(name: str) -> None:
    """But for what the machine asks for, and the passes and questions of few rows."""
    without = {"args", "precision", "train_from_layer"}
    without |= {"epochs", "neighbours"} if name.endswith("small") else set()
    unlearned = [load_recipe(which).unlearn for which in ("fame-topics-csd-llama32-3b", name)]
    assert unlearned[0].model_dump(exclude=without) == unlearned[1].model_dump(exclude=without)


def test_the_demo_is_pinned_and_the_gated_model_is_not() -> None:
    assert load_recipe("demo").unpinned() == []
    assert load_recipe("fame-topics-gd-llama32-3b").unpinned() == ["model.hub.revision"]
    published = ["novice={train: null, hub: {id: a/b, revision: null}}"]
    assert load_recipe("demo", published).unpinned() == ["novice.hub.revision"]
    assert load_recipe("demo-overforget", published).unpinned() == []  # Gradient Difference takes nothing from it


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


def test_a_problem_ends_with_one_full_stop() -> None:
    said = refused("demo", "unlearn.args.max_steps=x", "base.train.args.save_steps=x")
    assert "or -1 for all epochs." in said
    assert ".." not in said


def test_a_path_begins_at_the_folder_of_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    request = "forget: [{file: f.csv}], holdout: [{file: ~/h.csv}]"
    changes = "model: {pypi: null, path: ../model, license_file: /terms.txt}\n" + (
        f"data: {{setting: request, shares: null, request: {{{request}}}, source: {{sample: null, file: rows.csv}}}}\n"
    )
    mine = load_recipe(write(tmp_path / "mine", changes), ["data.request.forget.0.file=here.csv"])
    assert (mine.model.path, mine.model.license_file) == (f"{tmp_path}/mine/../model", "/terms.txt")
    assert list(mine.data.local_files().values()) == [f"{tmp_path}/mine/rows.csv", "here.csv", "~/h.csv"]
    (tmp_path / "other.yaml").write_text("extends: own-prose\nname: other\n")
    assert "itself extends" in refused(str(tmp_path / "other.yaml"))
    (tmp_path / "other.yaml").write_text("extends: own-data\nname: other\n")  # the path is the lower file's
    assert load_recipe(str(tmp_path / "other.yaml")).data.source.file == str(RECIPES / "own-data.csv")
    monkeypatch.chdir(tmp_path / "mine")
    (tmp_path / "mine" / "mine.yaml").write_text(
        "extends: demo\nname: mine\ndata: {setting: given, shares: null, source: {sample: null, "
        "files: {forget: a.csv, retain: b.csv}}}\n"
    )
    assert list(load_recipe("mine.yaml").data.local_files().values()) == [f"{tmp_path}/mine/{x}.csv" for x in "ab"]


def test_the_file_that_a_recipe_extends_is_named_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lower").mkdir()
    monkeypatch.chdir(tmp_path / "lower")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lower" / "below.yaml").write_text((RECIPES / "demo.yaml").read_text().replace("name: demo", "name: x"))
    (tmp_path / "lower" / "mine.yaml").write_text("extends: below.yaml\nname: one-below\n")
    for named in ("lower/below.yaml", "./lower/below.yaml", f"{tmp_path}/lower/below.yaml", "~/lower/below.yaml"):
        (tmp_path / "mine.yaml").write_text(f"extends: {named}\nname: mine\nunlearn: {{epochs: 3}}\n")
        assert load_recipe("../mine.yaml").unlearn.epochs == 3
    assert load_recipe("mine.yaml").name == "one-below"
    (tmp_path / "mine.yaml").write_text("name: mine\nextends: ./below.yaml\n")  # which is in the current folder
    assert refused("../mine.yaml").startswith("../mine.yaml:2: extends: ../below.yaml: no such file.")
    (tmp_path / "mine.yaml").write_text("extends: dmeo\n")
    assert "mine.yaml:1: extends: No recipe is called 'dmeo'. Did you mean demo?" in refused("../mine.yaml")


def test_what_a_recipe_extends_stands_in_its_file() -> None:
    assert "--set extends=demo: extends can only stand in a recipe's file" in refused("own-data", "extends=demo")


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
            "gold: none\neval: {relative: false}\n"
            "gates:\n  - {metric: fluency, split: forget, at_least: {of: gold}, min_n: 1, reason: x}\n",
            1,
            ["gates[0] compares with gold"],
        ),
        (
            "model: {pypi: null, hub: {id: a/b, revision: null}}\nbase: {train: null, hub: {id: a/b, revision: null}}\n"
            "unlearn: {method: gd, neighbours: null}\n"
            "gates:\n  - {metric: fluency, split: forget, at_least: {of: start}, min_n: 1, reason: x}\n",
            1,
            ["gates[0] compares with the start model, which is base itself"],
        ),
        (
            "model: {pypi: null, hub: {id: a/b, revision: null}}\n"
            "base: {train: null, hub: {id: a/b, revision: null}}\n",
            1,
            ["csd needs a start model that does not know the forget rows", "model.hub"],
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
        ("novice: {seeds: [1]}\n", 1, ["novice.seeds: only gold"]),
        ("novice: {train: null, release: demo/x@v1.0.0}\n", 1, ["novice.release: a release has seen"]),
        ("novice: null\n", 1, ["csd takes its levels from a novice", "give the section novice"]),
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
            "eval: {relative: false}\n"
            "gates:\n  - {metric: damage_gap, split: forget, at_most: 0.1, min_n: 1, reason: x}\n",
            1,
            ["gates[0] is on damage_gap, which the eval section does not ask for"],
        ),
        (
            "eval: {relative: true}\ngold: {seeds: [1, 2]}\n"
            "gates:\n  - {metric: leak_coordinate_one_gold, split: forget, at_most: 0.1, min_n: 1, reason: x}\n",
            1,
            ["gates[0] is on leak_coordinate_one_gold", "gate leak_coordinate, or remove the seeds"],
        ),
        (
            "gold: none\neval: {robustness: {quantize: [nf4]}, relative: false}\ngates:\n"
            "  - {metric: extraction_strength_nf4_gap, split: forget, at_most: 0.1, min_n: 1, reason: x}\n",
            1,
            ["gates[0] compares with gold, and gold is none"],
        ),
        ("eval: {suites: [{task: mmlu}, {task: mmlu, num_fewshot: 5}]}\n", 1, ["eval.suites", "mmlu more than once"]),
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
    changes = "gold: none\neval: {relative: false}\n"
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


PLAIN = (
    st.none() | st.booleans() | st.integers(1 - LARGEST, LARGEST - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
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
        (f"unlearn.epochs={'9' * 400}", "unlearn.epochs has more than 15 digits"),
        (f"data.seed=-{10**15}", "data.seed has more than 15 digits"),
        ("base.train.args.num_train_epochs=1e308", "give a number from 0 to 1,000,000"),
        ("unlearn.train_from_layer=30", "unlearn.train_from_layer is 30, but the model has the layers 0 to 29"),
        ("novice.train.train_from_layer=99", "novice.train.train_from_layer is 99, but the model has the layers"),
        ("unlearn.method={a: b}", "unlearn.method is {'a': 'b'}: input should be 'ft'"),
        ('card.title="a\\0b"', "card.title: holds U+0000"),
        ('card.summary="a\\eb"', "card.summary: holds U+001B"),
        ('card.limitations=["a\\u202eb"]', "card.limitations[0]: holds U+202E"),
    ],
)
def test_a_wrong_set_is_named(assignment: str, words: str) -> None:
    assert words in refused("demo", assignment)


def test_recipes_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Did you mean demo?" in refused("dmo")
    assert "no such file" in refused("missing/demo.yaml")
    assert f"{tmp_path}: is a folder. Give a recipe's name" in refused(str(tmp_path))
    write(tmp_path, name="t-qa")
    monkeypatch.chdir(tmp_path)
    assert "No recipe is called 't-qa'. Did you mean ./t-qa.yaml? There are: demo" in refused("t-qa")
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


def test_without_gold_there_is_no_way_to_measure_a_leak_on() -> None:
    said = refused("demo", "gold=none", "eval.relative=true", "gates=[{metric: utility, "
                   "split: general, at_least: 0.1, min_n: 5, reason: x}]")  # fmt: skip
    assert "eval.relative places the model between gold and base" in said
    said = refused("demo", "gold=none", "eval.relative=false", "eval.robustness={patching: {}}", "gates=[{metric: "
                   "utility, split: general, at_least: 0.1, min_n: 5, reason: x}]")  # fmt: skip
    assert "eval.robustness.patching puts gold's states into base" in said
