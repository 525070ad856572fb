"""Collections: the matrix, the graph of shared stages, and all of it on a tiny model."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, HfApi

from core.errors import RecipeError
from model_card.comparison import Compared
from pipeline.collection import COLLECTIONS, load, load_collection
from pipeline.commands import collection
from pipeline.commands.collection_comparison import _group, write
from pipeline.engine.graph import Member, graph
from pipeline.engine.runner import Store
from pipeline.localhub.server import LocalHub
from pipeline.stages import stages
from tests import walk
from tests.collections import write_collection
from tests.conftest import Call
from tests.small_card import records_of
from tests.test_runner import toy

NAMES = sorted(path.stem for path in COLLECTIONS.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_collection_is_read_and_says_how_to_run_it(name: str) -> None:
    found = load_collection(name)
    assert found.config.name == name
    assert (COLLECTIONS / f"{name}.yaml").read_text().startswith(f"# python -m pipeline collection {name}")
    assert len({recipe.name for recipe in found.members.values()}) == len(found.members)
    for member, recipe in found.members.items():
        assert recipe.origin.recipe == f"{name}:{member}"
        assert load(f"{name}:{member}") == recipe


def test_the_published_collection_is_28_models_whose_shared_stages_are_planned_once() -> None:
    members = load_collection("fame-topics").members
    nodes = graph({name: Member(r, stages(r), Store(Path("x"), r.name)) for name, r in members.items()})
    counts = Counter(node.stage.name for node in nodes.values())
    assert counts["model"] == 2
    assert counts["data"] == counts["base"] == counts["gold"] == counts["eval-base"] == counts["eval-gold"] == 4
    assert counts["unlearn"] == counts["eval-unlearned"] == counts["publish"] == 20
    assert counts["base"] + counts["gold"] + counts["unlearn"] == 28
    seen: set[str] = set()
    for key, node in nodes.items():  # in an order in which they can be run
        assert set(node.inputs.values()) <= seen
        seen.add(key)


CHANGED = """\
collection:
  name: mine
  title: Mine
  description: A test.
  repo: demo/comparison
  recipe: demo
  matrix: {method: {one: {}, two: {unlearn: {epochs: 3}}}}
  each: {publish: {repo: "demo/m-{method}"}}
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("demo/m-{method}", "demo/m", r"two: publish\.repo is demo/m, as for one"),
        ("unlearn: {epochs: 3}", "publish: {hub: hf}", r"two: publish\.hub is hf, and local for one\."),
        ("epochs: 3", "epochs: none", r"two: .*mine\.yaml:7: unlearn\.epochs"),
        ("epochs: 3", "gold: 3", r"two: .*mine\.yaml:7: unlearn\.gold: unknown key"),
        ("two: {unlearn: {epochs: 3}}", "Two: {}", r"mine\.yaml:7: .*'Two' names a member's folder"),
        ("matrix: {", "matrix: {setting: {}, ", r"mine\.yaml:7: .*setting has no values"),
        ("  each:", "  leave_out: [{method: three}]\n  each:", r"there is no method: three; there are one, two"),
        ("  each:", "  leave_out: [{method: one}, {method: two}]\n  each:", "leave_out leaves no member"),
        ("title: Mine", "titel: Mine", r"mine\.yaml:3: collection\.titel: unknown key\. Did you mean title"),
        ("recipe: demo", "recipe: ./demo.yaml", r"mine\.yaml:6: collection\.recipe: /.*/demo\.yaml: no such file"),
        (
            "recipe: demo",
            "recipe: dmeo",
            r"mine\.yaml:6: collection\.recipe: No recipe is called 'dmeo'. Did you mean demo",
        ),
        ("collection:", "colection:", "has no key `collection`"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_its_member(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(CHANGED.replace(old, new))
    with pytest.raises(RecipeError, match=said):
        load_collection(str(path))


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    matrix = "matrix: {method: {gd: {}, gd-a: {}}, data: {a-b: {}, b: {}}}"
    text = CHANGED.replace("matrix: {method: {one: {}, two: {unlearn: {epochs: 3}}}}", matrix)
    path.write_text(text.replace("m-{method}", "m-{method}-{data}"))
    said = r"method: gd, data: a-b and method: gd-a, data: b would both be the member gd-a-b, .* rename"
    for read in (lambda: load_collection(str(path)), lambda: load(f"{path}:gd-a-b")):
        with pytest.raises(RecipeError, match=said):
            read()
    path.write_text(path.read_text().replace("  each:", "  leave_out: [{method: gd-a, data: b}]\n  each:"))
    assert list(load_collection(str(path)).members) == ["gd-a-b", "gd-b", "gd-a-a-b"]


@pytest.mark.parametrize(
    ("matrix", "groups"),
    [
        ("seed: {first: {label: One}, second: {}}", {"first": "One", "second": "second"}),
        ("seed: {a: {}}", {"a": "all"}),
        ("seed: {a: {}, b: {}}, method: {x: {}, y: {}}", {"a-x a-y": "a", "b-x b-y": "b"}),
        ("kind: {a: {}, b: {}, c: {}, d: {}}", {"a b": "a, b", "c d": "c, d"}),
        ("kind: {a: {}, b: {}}", {"a b": "all"}),
    ],
)
def test_no_two_groups_of_a_comparison_are_called_alike(tmp_path: Path, matrix: str, groups: dict[str, str]) -> None:
    path = tmp_path / "mine.yaml"
    text = CHANGED.replace("method: {one: {}, two: {unlearn: {epochs: 3}}}", matrix)
    axes = "-".join(f"{{{axis}}}" for axis in ("seed", "kind", "method") if f"{axis}:" in matrix)
    path.write_text(text.replace("m-{method}", f"m-{axes}"))
    found = load_collection(str(path))
    assert {members: _group(found, members.split()) for members in groups} == groups


@pytest.mark.parametrize(
    ("licences", "said"),
    [
        (("qwen", "qwen"), {"license": "other", "license_name": "qwen"}),
        (("qwen", "mit"), {"license": None}),
    ],
)
def test_the_page_is_what_the_hub_takes_and_shows(
    tmp_path: Path, licences: tuple[str, str], said: dict[str, str | None]
) -> None:
    """The Hub has no id for Qwen's licence, and refuses a card with an id that it does not have."""
    text = CHANGED.replace("one: {}", f"one: {{model: {{license: {licences[0]}}}}}")
    text = text.replace("{unlearn: {epochs: 3}}", f"{{model: {{license: {licences[1]}}}}}")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("title: Mine", "title: GD* and CSD*").replace("A test.", "<b>Of a_b_c"))
    models = [Compared("base", "all", "base", records_of("base"), None, {}, None, 0.0)]
    listing = write(load_collection(str(path)), models, {}, {}, tmp_path / "page")
    page = DatasetCard(listing.files["README.md"].decode())
    assert {key: page.data.to_dict().get(key) for key in said} == said
    assert "# GD\\* and CSD\\*\n\n&lt;b&gt;Of a\\_b\\_c\n" in page.text
    assert (listing.title, listing.description) == ("GD* and CSD*", "<b>Of a_b_c")  # on the Hub they are plain text


def test_the_page_speaks_of_gold_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(CHANGED)
    base, gold = (Compared(kind, "all", kind, records_of(kind), None, {}, None, 0.0) for kind in ("base", "gold"))
    found = load_collection(str(tmp_path / "mine.yaml"))
    for models, has_gold in (([base, gold], True), ([base], False)):
        write(found, models, {}, {}, tmp_path / "page")
        page = " ".join((tmp_path / "page" / "comparison.html").read_text(encoding="utf-8").split())
        assert ("forgotten if it is where gold is. A hollow" in page) == has_gold
        assert ("minus gold's (forget rows) or base's" in page.replace("&#39;", "'")) == has_gold
        assert ("There is no gold, a model that was trained without them" in page) != has_gold


def test_a_path_begins_at_the_folder_of_the_collection(tmp_path: Path) -> None:
    text = CHANGED.replace("one: {}", "one: {model: {license_file: one.txt}}")
    (tmp_path / "mine.yaml").write_text(text.replace("each: {", "each: {model: {license_file: ../all.txt}, ", 1))
    for member in ("one", "two"):
        recipe = load(f"{tmp_path}/mine.yaml:{member}")
        assert recipe.model.license_file == f"{tmp_path}/../all.txt"  # `each` is over all
    (tmp_path / "mine.yaml").write_text(text.replace("recipe: demo", "recipe: ./below.yaml"))
    (tmp_path / "below.yaml").write_text("extends: demo\nname: below\n")
    assert load(f"{tmp_path}/mine.yaml:one").model.license_file == f"{tmp_path}/one.txt"


def test_a_member_that_there_is_not_is_named(call: Call) -> None:
    done = call("status", "demo-collection:topics-cds")
    assert done.returncode == 2
    assert "Did you mean topics-csd?" in done.stderr


@pytest.fixture(scope="module")
def made(
    call: Call, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("collection")
    path = write_collection(folder, tiny_model)
    return path, folder / "store", call("collection", str(path), "--store", str(folder / "store"), "--json")


def test_a_failed_gate_stops_its_member_and_no_other(made: tuple[Path, Path, subprocess.CompletedProcess[str]]) -> None:
    _, store, done = made
    assert done.returncode == 3, done.stderr[-3000:]
    rows = {row["member"]: row for row in json.loads(done.stdout)["members"]}
    assert {name: row["state"] for name, row in rows.items()} == {"topics-gd": "done", "topics-ga": "failed"}
    assert rows["topics-ga"]["stage"] == "gate"
    assert "answer_probability" in rows["topics-ga"]["error"]
    models = {path.stem for path in (store / "hub" / "models" / "demo").iterdir() if path.suffix == ".git"}
    assert models == {"tiny-Topics-GD"}
    built = Counter(path.parent.parent.name for path in (store / "store").glob("*/*/manifest.json"))
    assert built["model"] == built["base"] == built["gold"] == built["eval-base"] == built["data"] == 1
    assert built["unlearn"] == built["gate"] == 2
    assert built["publish"] == 1


def test_the_comparison_shows_every_model_with_interval_gates_equivalence_and_time(
    made: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    _, store, _ = made
    found = json.loads((store / "tinies" / "comparison.json").read_text())
    assert [(model["name"], model["group"]) for model in found] == [
        ("base", "Topics"), ("gold", "Topics"), ("topics-gd", "Topics"), ("topics-ga", "Topics"),
    ]  # fmt: skip
    measured = json.loads((store / "tinies-topics-gd" / "eval-unlearned" / "results.json").read_text())
    known = next(row for row in measured if (row["metric"], row["split"]) == ("answer_probability", "forget"))
    assert known in found[2]["records"]
    assert [model["verdict"] for model in found[2:4]] == [True, False]
    likeness = {(entry["metric"], entry["split"]) for entry in found[2]["like"]["base"]}
    assert ("answer_probability", "retain") in likeness
    assert all(split != "forget" for _, split in likeness)
    page = (store / "tinies" / "comparison.html").read_text()
    assert f"{known['value']:.3f} ({known['ci_low']:.3f} to {known['ci_high']:.3f})" in page
    assert "nobody passes it" not in page  # what failed is said by the verdict
    assert page.count("0 of 1 passed") == 1
    table = (store / "tinies" / "comparison.md").read_text()
    assert "| topics-gd | Topics |" in table
    assert "huggingface.co" not in table  # they are on the loopback Hub


def test_the_hub_has_the_collection_and_each_card_names_it(
    made: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    _, store, done = made
    with LocalHub(store / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        found = api.get_collection(json.loads(done.stdout)["slug"])
        assert {(item.item_id, item.item_type) for item in found.items} == {
            ("demo/comparison", "dataset"), ("demo/tiny-Topics-GD", "model"),
        }  # fmt: skip
        assert (found.title, found.private) == ("Tiny models", True)
        names = api.list_repo_files("demo/comparison", repo_type="dataset")
        assert {"README.md", "comparison.png"} <= set(names)
        page = DatasetCard.load(api.hf_hub_download("demo/comparison", "README.md", repo_type="dataset"))
        assert (page.data.license, page.data.tags) == ("apache-2.0", ["machine-unlearning"])
    assert "the dataset `demo/comparison` compares all" in (store / "tinies-topics-gd/card/README.md").read_text()


def test_a_second_run_builds_nothing_and_keeps_the_collection(
    call: Call, made: tuple[Path, Path, subprocess.CompletedProcess[str]]
) -> None:
    path, store, done = made
    with LocalHub(store / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        before = api.repo_info("demo/comparison", repo_type="dataset").sha
    again = call("collection", str(path), "--store", str(store), "--json")
    assert again.returncode == 3
    assert "built in" not in again.stderr
    assert json.loads(again.stdout)["slug"] == json.loads(done.stdout)["slug"]
    with LocalHub(store / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert api.repo_info("demo/comparison", repo_type="dataset").sha == before
        assert len(api.get_collection(json.loads(done.stdout)["slug"]).items) == 2
    plan = json.loads(call("collection", str(path), "--store", str(store), "--json", "--dry-run").stdout)
    assert {row["stage"] for row in plan["stages"] if row["to_run"]} == {"card", "package", "publish"}
    assert plan["needs"]["stages"] < plan["needs"]["stages_without_sharing"]


def test_a_collection_that_says_what_is_to_be_forgotten_is_not_published(
    call: Call, made: tuple[Path, Path, subprocess.CompletedProcess[str]]
) -> None:
    path, store, done = made
    row = json.loads((store / "tinies-topics-gd" / "data" / "forget.jsonl").read_text().splitlines()[0])
    path.write_text(path.read_text().replace("For a test.", json.dumps(f"For a test: {row['answer']}")))
    refused = call("collection", str(path), "--store", str(store), "--json")
    assert refused.returncode == 2
    assert "README.md holds an answer of the forget set" in refused.stderr
    assert json.loads(refused.stdout)["slug"] is None
    with LocalHub(store / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        assert api.get_collection(json.loads(done.stdout)["slug"]).description == "For a test."


def test_what_was_changed_is_not_compared_nor_what_reads_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs", "demo")
    read = [toy("data"), toy("eval-base", inputs={"x": "data"}), toy("eval-unlearned", inputs={"x": "data"})]
    nodes = graph({"": walk.member([*read, toy("gate", inputs={"x": "eval-unlearned"})], store)})
    names = {key: node.stage.name for key, node in nodes.items()}
    made = walk.make([node.stage for node in nodes.values()], store)
    assert {names[key]: artifact for key, artifact in collection._measured(nodes)[0].items()} == made
    (made["eval-unlearned"].path / "text").write_text("better")
    found, lost = collection._measured(nodes)
    assert {names[key] for key in found} == {"data", "eval-base"}
    assert {names[key] for key in lost} == {"eval-unlearned", "gate"}
