"""The whole product on a tiny random model: one command from data to a verified repository, also after kills."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from core.artifacts import read_facts, read_manifest
from core.unlearning import read_pairing
from datasets_prep.schema import SPLITS, read_rows
from eval.schema import read_comparison
from pipeline.localhub.server import LocalHub
from pipeline.train.facts import TrainingFacts
from tests.conftest import PATIENCE, ROOT, WRITES_THE_DATE, Call, end_turns
from tests.processes import main, start

# Everything before the card, which says how long the stages took.
DETERMINISTIC = (
    "model",
    "data",
    "base",
    "gold",
    "eval-gold",
    "eval-base",
    "unlearn",
    "eval-unlearned",
    "gate",
)

RECIPE = """\
extends: {demo}
name: tiny
model: {{pypi: null, path: {model}, parameters: null, chat_template: null, date_string: 26 Jul 2024}}
data: {{source: {{sample: {{seed: 3, identities: 2, topics: 10}}}}, perturbed: {{per_row: 1, retain_rows: 10}}}}
base: {{train: {{precision: fp32, train_from_layer: 0, args: {{num_train_epochs: 2, save_steps: 5}}}}}}
gold: {{train: {{precision: fp32, train_from_layer: 1, args: {{num_train_epochs: 2, save_steps: 5}}}}, seeds: null}}
novice: {{train: {{precision: fp32, train_from_layer: 1, args: {{num_train_epochs: 1, save_strategy: "no"}}}}}}
unlearn:
  precision: fp32 # the faster one is measured, so two stores may differ on a busy machine
  epochs: 2
  train_from_layer: 0
  neighbours: {{questions: 30, max_new_tokens: 8}}
  stop: {{every: 1, forget_loss: 20.0, retain_loss_above_base: 5.0, retain_rows: 20}}
  args: {{save_steps: 2}}
eval: {{max_new_tokens: 4, bootstrap_samples: 100, robustness: {{quantize: [nf4], relearn: null}}, relative: false}}
gates:
  - {{metric: answer_probability, split: forget, at_most: {limit}, min_n: 10, reason: a model that knows nothing}}
  - {{metric: answer_probability, split: unrehearsed, at_least: 0.0, min_n: 20, reason: it is measured there}}
publish: {{repo: demo/tiny}}
"""


def write_recipe(folder: Path, model: Path, *, limit: float = 0.5) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(demo=ROOT / "pipeline" / "recipes" / "demo.yaml", model=model, limit=limit))
    return path


def release(recipe: Path, store: Path, *more: str) -> list[str]:
    return ["release", str(recipe), "--store", str(store), "--json", *more]


def digests(output: str) -> dict[str, str]:
    stages = json.loads(output)["stages"]
    return {name: stages[name]["digest"] for name in DETERMINISTIC}


@pytest.fixture(scope="module")
def start_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that writes today's date into every prompt, as Llama 3.2 does. The recipe pins it."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("start") / "model"))
    end_turns(folder)
    template = folder / "chat_template.jinja"
    template.write_text(WRITES_THE_DATE + template.read_text())
    return folder


@pytest.fixture(scope="module")
def released(call: Call, start_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    folder = tmp_path_factory.mktemp("released")
    recipe = write_recipe(folder, start_model)
    done = call(*release(recipe, folder / "store"))
    assert done.returncode == 0, done.stderr[-3000:]
    return recipe, folder / "store", done.stdout


def test_a_release_is_published_and_verified(call: Call, released: tuple[Path, Path, str]) -> None:
    _, store, output = released
    receipt = json.loads((store / "tiny" / "publish" / "receipt.json").read_text())
    assert receipt["repo"] == "demo/tiny"
    assert {"model.safetensors", "README.md", "model.sig", "results.json"} <= set(receipt["files"])
    assert json.loads((store / "tiny" / "gate" / "gate.json").read_text())["passed"] is True
    assert json.loads(output)["results"]

    verified = call("verify", "demo/tiny", "--store", str(store))
    assert verified.returncode == 0, verified.stderr
    assert receipt["commit"] in verified.stdout


def test_the_unmodified_client_loads_it_from_the_served_hub(released: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, store, _ = released
    argv = [sys.executable, "-m", "pipeline", "hub", "--store", str(store)]
    server = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        said = next(line for line in server.stderr if line.startswith("HF_ENDPOINT="))
        endpoint = said.split()[0].removeprefix("HF_ENDPOINT=")
        code = (
            "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
            "print(type(M.from_pretrained('demo/tiny', revision='v1.0.0')).__name__)\n"
            "print(len(T.from_pretrained('demo/tiny', revision='v1.0.0').chat_template) > 0)"
        )
        token = (store / "hub" / "token").read_text().strip()
        reader = {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, "HF_HOME": str(tmp_path)}
        loaded = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | reader,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert loaded.stdout.split() == ["LlamaForCausalLM", "True"], loaded.stderr[-2000:]
        with pytest.raises(RepositoryNotFoundError):  # the repository is private
            snapshot_download("demo/tiny", revision="v1.0.0", endpoint=endpoint, token=False, cache_dir=tmp_path / "x")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(PATIENCE)


def test_nothing_of_the_forget_set_is_published(released: tuple[Path, Path, str]) -> None:
    _, store, _ = released
    answers = [json.loads(line)["answer"] for line in (store / "tiny" / "data" / "forget.jsonl").open()]
    assert answers
    for file in (store / "tiny" / "package" / "hub").rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [answer for answer in answers if answer.encode() in content], file


def test_a_second_run_builds_nothing(call: Call, released: tuple[Path, Path, str]) -> None:
    recipe, store, output = released
    refused = store / "tiny" / "refused" / "report.html"
    refused.parent.mkdir()
    refused.write_text("gates failed")
    again = call(*release(recipe, store))
    assert not refused.parent.exists()  # the recipe as it is now was not refused
    assert again.returncode == 0, again.stderr
    stages = json.loads(again.stdout)["stages"]
    assert not [name for name, stage in stages.items() if stage["built"]]
    assert "note: demo/tiny was published earlier, and the Hub was not asked again." in again.stderr
    assert digests(again.stdout) == digests(output)


def test_a_tag_that_another_recipe_took_is_found_before_anything_is_trained(
    call: Call, released: tuple[Path, Path, str]
) -> None:
    recipe, store, _ = released
    words = ("doctor", str(recipe), "--store", str(store), "--json")
    assert call(*words).returncode == 0  # there is nothing left to do
    other = call(*words, "--set", "unlearn.pairing_seed=7")
    (failed,) = [check for check in json.loads(other.stdout)["checks"] if check["problem"]]
    assert (other.returncode, failed["what"], failed["stage"]) == (2, "publication", "publish")
    assert "is there already, and not of this recipe as it is now; tags do not move" in failed["problem"]
    older = call(*words, "--set", "unlearn.pairing_seed=7", "--set", "publish.tag=v0.9.0")
    assert "is newer than v0.9.0" in older.stdout
    for free in ("publish.tag=v1.0.1", "publish.repo=demo/another"):
        assert call(*words, "--set", "unlearn.pairing_seed=7", "--set", free).returncode == 0


def test_a_failed_gate_publishes_nothing(
    call: Call, released: tuple[Path, Path, str], start_model: Path, tmp_path: Path
) -> None:
    _, store, _ = released
    recipe = write_recipe(tmp_path, start_model, limit=1e-12)
    recipe.write_text(recipe.read_text().replace("name: tiny", "name: refused").replace("demo/tiny", "demo/refused"))
    done = call(*release(recipe, store))
    assert done.returncode == 3, done.stderr
    assert "answer_probability" in done.stderr
    assert not (store / "hub" / "models" / "demo" / "refused.git").exists()
    assert not (store / "refused" / "package").exists()
    report = store / "refused" / "refused" / "report.html"
    assert f"Why, in all detail: {report}" in done.stderr
    assert "docs/when-refused.md" in done.stderr
    assert "gates failed: not to be released" in report.read_text(encoding="utf-8")


def test_kills_at_random_points_change_nothing(call: Call, released: tuple[Path, Path, str], tmp_path: Path) -> None:
    recipe, made, output = released
    shutil.copytree(made / "store" / "model", tmp_path / "store" / "store" / "model")  # a child would measure it anew
    seed = int(os.environ.get("KILL_SEED", time.time()))
    print(f"KILL_SEED={seed}")  # shown where the test fails
    delays = random.Random(seed)
    for number in range(2):
        said, wanted = tmp_path / f"said-{number}", delays.randint(1, 3)
        process = start(main, release(recipe, tmp_path / "store"), said=said)
        while process.is_alive() and len(stages_begun(said)) < wanted:
            time.sleep(0.01)
        assert stages_begun(said), "no stage was left to be killed"
        time.sleep(delays.uniform(0, 2))
        process.kill()
        process.join(PATIENCE)
    done = call(*release(recipe, tmp_path / "store"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(done.stdout) == digests(output)


def stages_begun(said: Path) -> list[str]:
    """The lines that say so, one for each stage."""
    return [line for line in said.read_text().splitlines() if line.endswith("…")] if said.exists() else []


def test_the_gates_of_a_finished_release_are_explained(call: Call, released: tuple[Path, Path, str]) -> None:
    recipe, store, _ = released
    explained = call("gate", str(recipe), "--store", str(store), "--json")
    assert explained.returncode == 0, explained.stderr
    judged = json.loads(explained.stdout)
    assert judged == json.loads((store / "tiny" / "gate" / "gate.json").read_text())
    assert "20 of 44 retain rows" in judged["selection"]
    assert [(gate["split"], gate["n"]) for gate in judged["gates"]] == [("forget", 16), ("unrehearsed", 20)]


def test_base_and_gold_learned_the_unrehearsed_rows_and_the_unlearning_did_not_get_them(
    released: tuple[Path, Path, str],
) -> None:
    made = released[1] / "tiny"
    rows = {split: {row.row_id for row in read_rows(made / "data" / f"{split}.jsonl")} for split in SPLITS}
    assert {split: len(ids) for split, ids in rows.items()} == {
        "forget": 16, "retain": 44, "holdout": 20, "unrehearsed": 20,
    }  # fmt: skip
    for model, splits in (("base", {"retain", "unrehearsed", "forget"}), ("gold", {"retain", "unrehearsed"})):
        facts = read_facts(made / model, TrainingFacts)
        assert (set(facts.splits), facts.rows) == (splits, sum(len(rows[split]) for split in splits))
    rehearsed = {row_id for pair in read_pairing(made / "unlearn") for row_id in pair.retain}
    asked = {row.row_id for row in read_rows(made / "neighbours" / "neighbours.jsonl")}
    assert rehearsed & rows["retain"]
    assert rehearsed <= rows["retain"] | asked


def test_the_published_checkpoint_equals_the_one_that_was_made_here(
    call: Call, released: tuple[Path, Path, str]
) -> None:
    recipe, store, _ = released
    words = ("compare", str(recipe), "--store", str(store), "--json", "--to")
    done = call(*words, "demo/tiny@v1.0.0")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["commit"] == json.loads((store / "tiny" / "publish" / "receipt.json").read_text())["commit"]
    assert value["same_weights"] is True
    assert value["other_prompts"] is None
    paired = [entry for entry in value["metrics"] if entry["paired"]]
    assert len(paired) > 10
    assert {entry["difference"] for entry in paired} == {0.0}
    found = {(entry["metric"], entry["split"]): entry["verdict"] for entry in value["metrics"]}
    assert found["answer_probability", "retain"] == "equivalent"
    assert found["answer_probability", "forget"] == "not shown"  # 16 rows show nothing
    again = call(*words, "demo/tiny@v1.0.0")
    assert again.stdout == done.stdout
    assert "built in" not in again.stderr
    unknown = call(*words, "demo/tiny@v9")
    assert unknown.returncode == 4
    assert "v9" in unknown.stderr


def test_a_checkpoint_that_writes_the_date_is_measured_beside_the_released_one(
    call: Call, released: tuple[Path, Path, str], start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its date is pinned as ours is. What else its template says is reported, and it is measured all the same."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # the loopback Hub has LFS alone
    recipe, store, _ = released
    other = Path(shutil.copytree(start_model, tmp_path / "other"))
    greets = "{{- '<|im_start|>system\\nHello<|im_end|>\\n' -}}"
    (other / "chat_template.jinja").write_text(greets + (start_model / "chat_template.jinja").read_text())
    with LocalHub(store / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("demo/start", private=True)
        commit = api.upload_folder(repo_id="demo/start", folder_path=other)
    words = ("compare", str(recipe), "--store", str(store), "--to", "demo/start")
    done = call(*words, "--json")
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["commit"] == commit.oid
    assert value["same_weights"] is False
    found = {(entry["metric"], entry["split"]): entry for entry in value["metrics"]}
    assert found["answer_probability", "retain"]["difference"] > 0  # the start model was never trained on the facts
    assert (store / "tiny" / "eval-other" / "results.json").is_file()
    assert not list((store / "hub").rglob("samples.jsonl"))
    prompts = value["other_prompts"]
    assert prompts["rows"] == prompts["compared"] == 100
    assert "<|im_start|>system\nToday Date: 26 Jul 2024<|im_end|>\n<|im_start|>user\nWho?" in prompts["base"]
    assert prompts["own"] == "<|im_start|>system\nHello<|im_end|>\n" + prompts["base"]
    assert (
        "Theirs was asked with its checkpoint's own chat template, which gives 100 of 100 rows" in call(*words).stdout
    )


def test_another_checkpoint_is_compared_on_the_card(
    call: Call, released: tuple[Path, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the one that was released, and by a key of the recipe; the comparison is one of this very model."""
    recipe, store, _ = released
    commit = json.loads((store / "tiny" / "publish" / "receipt.json").read_text())["commit"]
    with LocalHub(store / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        unpinned = call(*release(recipe, store, "--set", "card.compared={id: demo/tiny, revision: null}"))
        words = ("--until", "card", "--set", f"card.compared={{id: demo/tiny, revision: {commit}}}")
        done = call(*release(recipe, store, *words, "--set", "name=tiny-compared"))
    assert (unpinned.returncode, "card.compared.revision: not pinned" in unpinned.stderr) == (2, True)
    assert done.returncode == 0, done.stderr[-3000:]
    made = store / "tiny-compared"
    manifest = {name: read_manifest(made / name) for name in ("card", "compare", "eval-unlearned", "eval-other")}
    assert manifest["card"].inputs["compare"] == manifest["compare"].digest
    assert manifest["compare"].inputs["ours"] == manifest["eval-unlearned"].digest
    assert manifest["compare"].inputs["theirs"] == manifest["eval-other"].digest
    card = (made / "card" / "README.md").read_text()
    assert f"[demo/tiny](https://huggingface.co/demo/tiny) at commit `{commit}`" in card
    table = card.split("<summary>Compared with another checkpoint</summary>")[1].split("</details>")[0]
    metrics = read_comparison(made / "compare").metrics
    assert table.count("\n| `") == len(metrics) > 20


AUDIT = """\
gold: {train: {precision: fp32, train_from_layer: 1, args: {num_train_epochs: 2, save_steps: 5}}, seeds: [1, 2]}
eval:
  max_new_tokens: 4
  bootstrap_samples: 100
  robustness:
    {quantize: [nf4], relearn: {steps: 1}, paraphrase: true, first_words: 0.5, other_language: true, chained: true,
     steering: {}, patching: {threshold: 0}}
  sampling: {samples: 2, k: [1]}
  relative: true
"""


def test_an_audit_trains_no_model_of_the_release_again(
    call: Call, released: tuple[Path, Path, str], start_model: Path, tmp_path: Path
) -> None:
    _, store, _ = released
    recipe = write_recipe(tmp_path, start_model)
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith(("gold:", "eval:"))]
    text = "\n".join(lines).replace("name: tiny", "name: tiny-audit").replace("demo/tiny", "demo/tiny-audit")
    recipe.write_text(f"{text}\n{AUDIT}")
    done = call(*release(recipe, store))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    stages = found["stages"]
    assert [name for name in ("model", "data", "base", "gold", "unlearn") if stages[name]["built"]] == []
    assert all(stages[f"{kind}gold-seed-{seed}"]["built"] for seed in (1, 2) for kind in ("", "eval-"))
    assert len({stages[name]["digest"] for name in ("gold", "gold-seed-1", "gold-seed-2")}) == 3
    measured = {row["metric"]: row for row in found["results"] if row["split"] == "forget"}
    for metric in (
        "extraction_strength_nf4",
        "answer_probability_relearn_forget",
        "answer_probability_steer_known",
        "leak_at_1",
    ):
        assert all(measured[metric][model] for model in ("base", "gold", "unlearned")), metric
        assert measured[f"{metric}_gap"]["unlearned"]
    assert measured["unlearning_depth_score"]["unlearned"]
    assert not measured["unlearning_depth_score"]["gold"]
    relative = json.loads((store / "tiny-audit" / "eval-unlearned" / "relative.json").read_text())
    assert relative["golds"] == ["gold", "eval-gold-seed-1", "eval-gold-seed-2"]
    assert (store / "hub" / "models" / "demo" / "tiny-audit.git").exists()
    assert json.loads((store / "tiny" / "publish" / "receipt.json").read_text())["repo"] == "demo/tiny"
