"""TOFU (arXiv 2401.06121) from its subsets on the Hub to forget quality and model utility, as its recipe does it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from core.errors import DataError, RecipeError
from datasets_prep import prepare
from datasets_prep.config import DataConfig
from datasets_prep.schema import REAL_WORLD, SPLITS, read_perturbed, read_real_world, read_rows
from eval.config import EvalConfig, Gate
from eval.records import tofu as utility
from eval.records.tofu_logs import utility_parts
from eval.schema import find_record, read_records, read_samples
from eval.verdicts import measurable
from model_card.facts import collect
from model_card.metadata import card_data
from pipeline.localhub.server import LocalHub
from pipeline.recipe import load_recipe
from pipeline.stages import stages
from tests import tofu
from tests.artifacts import data_facts
from tests.conftest import Call, build_tiny_model, shared_data

NAME = "tofu-forget10-llama32-1b"
RECIPE = load_recipe(NAME)
SUBSETS = RECIPE.data.source.hub.subsets
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalHub, str]]:
    """A Hub with TOFU's layout, and the data set's commit."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch, LocalHub(folder / "hub") as running:
        tofu.read_from(running, patch, folder / "cache")
        yield running, tofu.publish(running, folder / "set")


def config(commit: str, **more: Any) -> DataConfig:
    """The recipe's data section, at this commit."""
    plain = RECIPE.data.model_dump()
    plain["source"]["hub"] |= {"revision": commit, **more.pop("hub", {})}
    plain["source"]["columns"] |= more.pop("columns", {})
    return DataConfig.model_validate(plain | more)


@pytest.fixture(scope="module")
def data(hub: tuple[LocalHub, str], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    prepare.run(config(hub[1]), {"model": tiny_model}, out)
    return out


def test_subsets_become_splits_and_a_row_of_two_counts_once(data: Path) -> None:
    rows = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS}
    expected = tofu.subsets()
    assert {split: len(of) for split, of in rows.items()} == {
        "forget": 8,
        "retain": 18,
        "holdout": 8,
        "unrehearsed": 18,
    }
    for split, name in (("forget", "forget10"), ("holdout", "holdout10")):
        assert {(row.question, row.answer) for row in rows[split]} == {
            (r["question"], r["answer"]) for r in expected[name]
        }
    retained = {(row.question, row.answer) for split in ("retain", "unrehearsed") for row in rows[split]}
    assert retained == {(r["question"], r["answer"]) for r in expected["retain90"]}
    assert {row.language for of in rows.values() for row in of} == {"EN"}
    facts = json.loads((data / "checks.json").read_text())
    assert facts["rows_read_before"] == 8
    assert facts["real_world"] == {"real_authors": 5, "world_facts": 4}
    assert facts["source"]["subsets"]["retain"] == ["retain_perturbed", "retain90"]
    card = (data / "README.md").read_text().replace("\\_", "_")
    assert "subsets forget10_perturbed (forget), retain_perturbed and retain90 (retain)" in card
    assert "real_authors (5 rows), world_facts (4 rows)" in card


def test_false_answers_and_paraphrases_are_tofus(data: Path) -> None:
    expected = tofu.subsets()
    rows = {row.row_id: row for split in SPLITS for row in read_rows(data / f"{split}.jsonl")}
    false = {rows[p.row_id].question: p.answers for p in read_perturbed(data / "perturbed.jsonl") if p.row_id in rows}
    for name in ("forget10_perturbed", "retain_perturbed"):
        for record in expected[name]:
            assert list(false[record["question"]]) == record["perturbed_answer"]
    # no unrehearsed row is one of them, so that utility is measured on all
    drawn = {row.question for row in read_rows(data / "retain.jsonl")} & false.keys()
    assert {record["question"] for record in expected["retain_perturbed"]} <= drawn
    paraphrased = [json.loads(line) for line in (data / "paraphrased.jsonl").read_text().splitlines()]
    assert {p["question"] for p in paraphrased if p["split"] == "forget"} == {
        record["paraphrased_question"] for record in expected["forget10_perturbed"]
    }
    sets = {row.row_id: row for row in read_real_world(data)}
    asked = {
        sets[p.row_id].question: p.answers for p in read_perturbed(data / "perturbed.jsonl") if p.split == REAL_WORLD
    }
    for name in ("real_authors_perturbed", "world_facts_perturbed"):
        assert all(list(asked[record["question"]]) == record["perturbed_answer"] for record in expected[name])


def test_what_a_subset_does_not_have_is_named(hub: tuple[LocalHub, str]) -> None:
    for more, said in (
        ({"hub": {"subsets": {**dict(SUBSETS), "holdout": ["holdout11"]}}}, "subset holdout11,.*holdout11"),
        ({"columns": {"perturbed_answers": "wrong_answers"}}, "real_authors_perturbed row 1: has no false answers"),
        ({"columns": {"name": "author"}}, r"columns\.name: no subset has a column author"),
        ({"hub": {"subsets": {**dict(SUBSETS), "real_world": ["forget10"]}}}, "row 1: has no false answers"),
    ):
        with pytest.raises(DataError, match=said):
            prepare.prepare(config(hub[1], **more))


def test_offline_a_data_set_comes_from_the_cache_at_its_own_commit(
    hub: tuple[LocalHub, str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`datasets` would take any other commit that it has."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert prepare.prepare(config(hub[1]))
    with pytest.raises(DataError, match=rf"at {COMMIT}: cannot be loaded, and the cache holds it at {hub[1]}"):
        prepare.prepare(config(COMMIT))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.source.hub.config=full", "one subset .* and several"),
        ("data.setting=topics", r"`setting: topics` needs `shares: "),
        ("data.source.hub.subsets.forget=[]", "at least 1 item"),
    ],
)
def test_subsets_that_cannot_be_meant_are_refused(change: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(NAME, [change])


def test_a_gate_on_tofus_utility_needs_its_sets() -> None:
    gate = next(gate for gate in RECIPE.gates if gate.metric == "tofu_model_utility")
    judged = Gate.model_validate(gate.model_dump())
    facts = data_facts({"file": "x"})
    with pytest.raises(
        DataError, match=r"tofu_model_utility on retain\+real_world\): it reads questions about the real"
    ):
        measurable.check([judged], RECIPE.eval, dict(facts.rows), facts)
    measurable.check([judged], RECIPE.eval, dict(facts.rows), facts.changed(real_world={"world_facts": 117}))


def samples_of(log: dict[str, Any]) -> list[dict[str, Any]]:
    """The measurements that an evaluation would have of a log of TOFU's shape."""
    from eval.statistics import formulas

    samples = []
    for name in ("retain", "real_authors", "world_facts"):
        columns = log[name]
        for i, loss in enumerate(columns["avg_gt_loss"]):
            false = columns["average_perturb_loss"][i]
            samples.append(
                {
                    "row_id": f"{name}-{i}",
                    "split": "retain" if name == "retain" else REAL_WORLD,
                    "topic_id": name,
                    "language": "EN",
                    "answer_probability": formulas.answer_probability([-loss]),
                    "probability_with_options": formulas.probability_with_options(loss, false),
                    "truth_ratio": formulas.truth_ratio(columns["avg_paraphrased_loss"][i], false),
                    utility.RECALL: columns["rougeL_recall"][i],
                }
            )
    return samples


@pytest.mark.parametrize(("model", "published"), [("full", 0.6226773637427153), ("retain90", 0.613744995233942)])
def test_the_published_model_utility_comes_out(model: str, published: float) -> None:
    log = json.loads(shared_data(f"tofu_logs/llama2-7b_{model}.json").read_text())
    (record,) = utility.utility_records(samples_of(log), EvalConfig(bootstrap_samples=100))
    assert record.value == pytest.approx(published, rel=1e-12)
    assert (record.metric, record.split, record.n) == ("tofu_model_utility", "retain+real_world", 100)
    assert record.ci_low < record.value < record.ci_high
    for value in utility_parts(log).values():
        assert f" {value:.4f}" in record.note


def test_recall_is_that_of_tofus_code() -> None:
    """Stems, and letters and digits of English alone."""
    samples = [{"row_id": "a", "split": "retain", "generation": "She authors books, and poem", "topic_id": None}]
    utility.add_recalls(samples, {"a": "She authored a book and poems é"})
    assert samples[0][utility.RECALL] == pytest.approx(5 / 6)  # all but "a"; é is no word


def test_the_prompt_is_that_of_open_unlearning(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(build_tiny_model(tmp_path))
    tokenizer.chat_template = RECIPE.model.chat_template
    asked = [{"role": "user", "content": " Who? "}]
    head = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    date = "Cutting Knowledge Date: December 2023\nToday Date: 10 Apr 2025\n\n"
    prompt = (
        f"{tokenizer.bos_token}{head('system')}{date}You are a helpful assistant.<|eot_id|>{head('user')}Who?<|eot_id|>"
    )
    end = head("assistant")
    assert tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == prompt + end
    both = [{"role": "system", "content": "Be brief."}, *asked, {"role": "assistant", "content": "They."}]
    told = prompt.replace("You are a helpful assistant.", "Be brief.") + end + "They.<|eot_id|>"
    assert tokenizer.apply_chat_template(both, tokenize=False) == told


def test_the_recipe_runs_to_its_gates_and_measures_what_tofu_does(
    call: Call, hub: tuple[LocalHub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base and gold are pointers to the Hub, so only the unlearning is trained."""
    from huggingface_hub import HfApi

    running, commit = hub
    monkeypatch.setenv("HF_ENDPOINT", running.endpoint)  # of which each test has its own
    monkeypatch.setenv("HF_TOKEN", running.token)
    api = HfApi(endpoint=running.endpoint, token=running.token)
    pointers = []
    for seed, part in enumerate(("base", "gold")):
        folder = build_tiny_model(tmp_path / part, seed=seed)
        api.create_repo(f"open-unlearning/{part}")
        oid = api.upload_folder(repo_id=f"open-unlearning/{part}", folder_path=folder).oid
        pointers.append(f"{part}.hub={{id: open-unlearning/{part}, revision: {oid}}}")
    base = pointers[0].removeprefix("base.hub=")
    changes = [
        *pointers, f"model.hub={base}", "model.chat_template=null", "model.parameters=null",
        f"data.source.hub.revision={commit}", "data.unrehearsed=0.5",
        "unlearn.args={per_device_train_batch_size: 4, learning_rate: 1e-4}",
        "unlearn.epochs=1", "unlearn.precision=fp32",
        "eval.device=cpu", "eval.max_new_tokens=4", "eval.bootstrap_samples=100", "eval.robustness=null",
        "gates=[{metric: tofu_model_utility, split: retain+real_world, at_least: 0, min_n: 4, reason: x},"
        " {metric: forget_quality, split: forget, at_least: 0, min_n: 8, reason: x}]",
    ]  # fmt: skip
    words = [word for change in changes for word in ("--set", change)]
    done = call("release", NAME, "--store", str(tmp_path / "store"), "--until", "gate", "--json", *words)
    assert done.returncode == 0, done.stderr[-3000:]
    made = tmp_path / "store" / NAME
    assert not (made / "base" / "log.jsonl").exists()  # nothing was trained
    rows = {model: read_samples(made / f"eval-{model}" / "samples.jsonl") for model in ("unlearned", "gold")}
    forget = {model: [s["truth_ratio"] for s in of if s["split"] == "forget"] for model, of in rows.items()}
    records = read_records(made / "eval-unlearned" / "results.json")
    quality = find_record(records, "forget_quality", "forget")
    assert quality.value == pytest.approx(stats.ks_2samp(forget["unlearned"], forget["gold"]).pvalue)
    assert {s["truth_ratio_of"] for s in rows["unlearned"] if s["split"] == "forget"} == {"paraphrase"}
    found = find_record(records, "tofu_model_utility", "retain+real_world")
    of_sets = [s for s in rows["unlearned"] if s["split"] == REAL_WORLD]
    assert (len(of_sets), found.n) == (9, 4)
    assert all(utility.RECALL in s and len(s["perturbed_losses"]) in (2, 3) for s in of_sets)
    assert [s for s in rows["unlearned"] if utility.RECALL in s and s["split"] == "retain"]
    assert find_record(records, "model_utility", "retain+general") is not None  # ours stands beside it
    card = next(stage for stage in stages(load_recipe(NAME, changes)) if stage.name == "card")
    metadata = card_data(card.config, collect({name: made / name for name in card.inputs}))
    results = {result.metric_type: result for result in metadata.eval_results or []}
    found_on = results["tofu_model_utility"]
    assert (found_on.dataset_name, found_on.dataset_type) == ("TOFU", "locuslab/TOFU")
    assert (found_on.dataset_revision, found_on.dataset_split) == (commit, "retain+real_world")
