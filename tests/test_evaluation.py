"""The evaluation stage beyond plain rows: base beside the model, other vocabularies, rows that lack something."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.errors import ArtifactError, ModelError
from core.progress import Report, listening
from datasets_prep.chat import chat_example, encode, load_tokenizer
from datasets_prep.schema import REAL_WORLD, SPLITS, write_rows
from eval import suite
from eval.attacks.catalog import ATTACKS
from eval.catalog import CATALOG, DATA, READINGS, ROW_FAMILIES, of_family
from eval.config import EvalConfig, Sampling
from eval.records.audited import audit_records
from eval.records.rows import CUT, all_records, row_records, set_records
from eval.records.tofu import RECALL
from eval.schema import Record, find_record, read_other_prompts, read_records, read_samples
from eval.scoring.fluency import generation_losses
from eval.scoring.probes import Scorer
from eval.statistics.formulas import retain_truth_ratios
from tests.conftest import build_tiny_model, end_turns
from tests.eval_rows import build_data, build_perturbed, build_rows, build_speaking_model, outside

CONFIG = EvalConfig(max_new_tokens=6, batch_rows=8, bootstrap_samples=100)
ROW_METRICS = [metric.name for metric in of_family(*ROW_FAMILIES)]
MEMBERSHIP = [metric.name for metric in of_family("membership")]
ROWS = build_rows()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_speaking_model(tmp_path_factory.mktemp("base"), seed=1)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_speaking_model(tmp_path_factory.mktemp("speaking"))


@pytest.fixture(scope="module")
def evaluated(speaking: Path, base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a checkpoint with another chat template than base's."""
    out = tmp_path_factory.mktemp("eval")
    other = _with_another_template(speaking, tmp_path_factory.mktemp("other") / "model")
    suite.run(CONFIG, {"model": other, "data": data, "base": base}, out)
    return out


def _run(model: Path, data: Path, out: Path, **inputs: Path) -> list[Record]:
    out.mkdir(exist_ok=True)
    suite.run(CONFIG, {"model": model, "data": data, **inputs}, out)
    return read_records(out / "results.json")


def test_generations_are_scored_under_base_as_answers_to_its_own_prompts(evaluated, base):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    questions = {row.row_id: row.question for split in SPLITS for row in ROWS[split]}
    scored = [s for s in read_samples(evaluated / "samples.jsonl") if "generation_nll" in s]
    assert len(scored) == len(ROWS["forget"])
    for sample in scored:
        text = sample["generation"].replace("<|im_start|>", " ").replace("<|im_end|>", " ").strip()
        ids, start = encode(tokenizer, chat_example(tokenizer, questions[sample["row_id"]], text))
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
        nll = -logprobs.gather(1, torch.tensor(ids[start:])[:, None]).mean()
        assert sample["generation_nll"] == pytest.approx(float(nll), rel=1e-4)
    assert find_record(read_records(evaluated / "results.json"), "generation_nll", "forget").n > 0


def test_generations_are_scored_below_a_template_that_trims_answers(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    scorer = Scorer(AutoModelForCausalLM.from_pretrained(tiny_model).eval(), 512)
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | trim")
    said = {"a": "\nx ", "b": " Ana", "c": "Ana", "d": "<|im_start|><|im_end|>", "e": "<|im_end|>\nx\t", "f": " \n"}
    samples = [{"row_id": row_id, "generation": text} for row_id, text in said.items()]
    found = generation_losses(samples, dict.fromkeys(said, "Who?"), scorer, tokenizer)
    assert set(found) == {"a", "b", "c", "e"}
    assert found["a"] == found["e"] != found["b"] == found["c"]


def test_answers_do_not_depend_on_what_the_checkpoint_says_of_generation(base, data, tmp_path):
    """Qwen's checkpoints come with a repetition penalty, and then the likeliest answer is not what is generated."""
    penalized = shutil.copytree(base, tmp_path / "penalized")
    settings = json.loads((base / "generation_config.json").read_text())
    own = settings | {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1}
    (penalized / "generation_config.json").write_text(json.dumps(own))
    config = CONFIG.model_copy(update={"sampling": Sampling(samples=2, k=[1])})
    found = []
    for name, checkpoint in (("plain", base), ("other", penalized)):
        (tmp_path / name).mkdir()
        suite.run(config, {"model": checkpoint, "data": data}, tmp_path / name)
        found.append((tmp_path / name / "samples.jsonl").read_text())
    assert found[0] == found[1]
    ends = [suite.load(folder, "cpu").generation_config.eos_token_id for folder in (base, penalized)]
    assert ends == [settings["eos_token_id"]] * 2


def test_answers_end_with_the_turn_whatever_ends_a_text_of_the_checkpoint(tiny_model, data, tmp_path):
    """A base model's own end of text is not the token with which a chat template ends a turn."""
    plain = shutil.copytree(tiny_model, tmp_path / "plain")
    end_turns(plain)
    other = shutil.copytree(plain, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.eos_token = "<|im_start|>"
    tokenizer.save_pretrained(other)
    settings = json.loads((other / "generation_config.json").read_text())
    (other / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": tokenizer.eos_token_id}))
    said = []
    for folder in (plain, other):
        _run(folder, data, tmp_path / f"of-{folder.name}")
        samples = read_samples(tmp_path / f"of-{folder.name}" / "samples.jsonl")
        said.append([sample["generation"] for sample in samples if "generation" in sample])
    assert said[0] == said[1]
    assert all(len(text) < CONFIG.max_new_tokens for text in said[0])


def test_sampled_answers_have_room_for_the_true_one(base, data, tmp_path, monkeypatch):
    """An answer that was cut off never states its fact, whatever the model knows."""
    rooms: list[tuple[int, ...]] = []

    def asked(_model, _tokenizer, prompt, _config, *, max_new_tokens, **_options):
        rooms.append((len(prompt), max_new_tokens))
        return [""]

    monkeypatch.setattr("eval.audit.sample_answers", asked)
    config = CONFIG.model_copy(update={"sampling": Sampling(samples=1, k=[1]), "max_new_tokens": 2})
    suite.run(config, {"model": base, "data": data}, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoded = [encode(tokenizer, chat_example(tokenizer, row.question, row.answer)) for row in ROWS["forget"]]
    lengths = [(start, len(ids) - start) for ids, start in encoded]
    assert rooms
    assert set(rooms) <= set(lengths)


def test_base_itself_is_loaded_once(base, data, tmp_path):
    loads: list[Report] = []
    with listening(lambda report: loads.append(report) if "loading the model" in report.doing else None):
        found = _run(base, data, tmp_path / "out", base=base)
    assert len(loads) == 1
    assert find_record(found, "generation_nll", "forget")
    assert read_other_prompts(tmp_path / "out") is None


def _with_token(folder: Path, to: Path) -> Path:
    """The same checkpoint with one token more in the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(shutil.copytree(folder, to))
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(to)
    return to


def _with_another_template(folder: Path, to: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(shutil.copytree(folder, to))
    tokenizer.chat_template = "{{ '<|im_start|>system\\nHello<|im_end|>\\n' }}" + tokenizer.chat_template
    tokenizer.save_pretrained(to)
    return to


def _smaller(_folder: Path, to: Path) -> Path:
    return build_tiny_model(to, vocab=400)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_with_token, "tokenizer's vocabulary is not base's"),
        (_smaller, r"the vocabulary has \d+ tokens, base's has \d+"),
    ],
)
def test_a_model_with_another_vocabulary_than_base_is_refused(tiny_model, base, data, tmp_path, change, said):
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=said):
        suite.run(
            CONFIG, {"model": change(tiny_model, tmp_path / "other"), "data": data, "base": base}, tmp_path / "out"
        )
    assert not any((tmp_path / "out").iterdir())


def test_prompts_that_are_not_bases_are_reported(evaluated):
    found = read_other_prompts(evaluated)
    assert found.rows == found.compared == sum(len(ROWS[split]) for split in SPLITS)
    assert found.own == "<|im_start|>system\nHello<|im_end|>\n" + found.base


def test_what_is_measured_is_the_saved_file(tiny_model, data, tmp_path):
    """A release is in bf16: the numbers are those of the rounded weights, whatever was in memory before."""
    rounded = shutil.copytree(tiny_model, tmp_path / "bf16")
    weights = load_file(rounded / "model.safetensors")
    save_file({n: w.bfloat16() for n, w in weights.items()}, rounded / "model.safetensors", {"format": "pt"})
    _run(rounded, data, tmp_path / "rounded")
    as_float = shutil.copytree(tiny_model, tmp_path / "float")
    save_file({n: w.bfloat16().float() for n, w in weights.items()}, as_float / "model.safetensors", {"format": "pt"})
    _run(as_float, data, tmp_path / "as_float")
    _run(tiny_model, data, tmp_path / "full")
    losses = {
        name: [s["loss"] for s in read_samples(tmp_path / name / "samples.jsonl")]
        for name in ("rounded", "as_float", "full")
    }
    assert losses["rounded"] == losses["as_float"] != losses["full"]


def test_nan_in_the_weights_is_an_error_and_leaves_nothing(tiny_model, data, tmp_path):
    broken = shutil.copytree(tiny_model, tmp_path / "nan")
    weights = load_file(broken / "model.safetensors")
    save_file({n: w * float("nan") for n, w in weights.items()}, broken / "model.safetensors", {"format": "pt"})
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="not finite"):
        suite.run(CONFIG, {"model": broken, "data": data}, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_no_holdout_means_no_membership_and_everything_else(tiny_model, evaluated, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    write_rows(folder / "holdout.jsonl", [])
    write_rows(folder / "perturbed.jsonl", [row for row in build_perturbed(ROWS) if row.split != "holdout"])
    out = tmp_path / "out"
    out.mkdir()
    facts = suite.run(CONFIG, {"model": tiny_model, "data": folder, "gold": evaluated}, out)
    assert "no holdout rows" in facts.left_out["membership inference, privacy leak"]
    found = read_records(out / "results.json")
    metrics = {(record.metric, record.split) for record in found}
    assert not any(metric.startswith(("mia_", "privacy_leak")) or split == "holdout" for metric, split in metrics)
    assert {("forget_quality", "forget"), ("fluency", "forget"), ("model_utility", "retain+general")} <= metrics


def test_no_false_answers_means_no_ratios_and_all_rows_are_answered(tiny_model, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    write_rows(folder / "perturbed.jsonl", [])
    found = _run(tiny_model, folder, tmp_path / "out")
    assert not any(
        r.metric in ("truth_ratio", "multiple_choice_accuracy", "forget_quality") and r.split in SPLITS for r in found
    )
    for split in DATA:
        assert find_record(found, "rouge_l_recall", split).n == len(ROWS[split])
    assert "truth_ratio retain" not in find_record(found, "model_utility", "retain+general").note


def test_true_answers_that_no_generation_can_hold_are_counted(tiny_model, data, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    lengths = {row.row_id: len(tokenizer(row.answer, add_special_tokens=False)["input_ids"]) for row in ROWS["forget"]}
    most = sorted(lengths.values())[1]
    out = tmp_path / "out"
    out.mkdir()
    suite.run(CONFIG.model_copy(update={"max_new_tokens": most}), {"model": tiny_model, "data": data}, out)
    longer = {row_id for row_id, tokens in lengths.items() if tokens > most}
    assert longer
    assert {s["row_id"] for s in read_samples(out / "samples.jsonl") if s["split"] == "forget" and CUT in s} == longer
    said = f"{len(longer)} of {len(lengths)} true answers have more tokens than a generation may have"
    for metric in ("rouge_l_recall", "rouge_l_f1"):
        assert find_record(read_records(out / "results.json"), metric, "forget").note == said


def test_rows_may_lack_language_and_topic(tiny_model, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    for split in SPLITS:
        lacking: list[Any] = [replace(row, language=None, topic_id=None) for row in ROWS[split]]
        write_rows(folder / f"{split}.jsonl", lacking)
    found = _run(tiny_model, folder, tmp_path / "out")
    assert all(record.by is None for record in found)
    assert find_record(found, "unknown_words", "forget").n == len(ROWS["forget"])


def test_paraphrases_are_used_and_counted(tiny_model, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    row = ROWS["forget"][0]
    written = {"row_id": row.row_id, "split": "forget", "question": "Where?", "answer": "Málaga saw the birth."}
    (folder / "paraphrased.jsonl").write_text(json.dumps(written) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    facts = suite.run(CONFIG, {"model": tiny_model, "data": folder}, out)
    assert facts.truth_ratio_of["paraphrase"] == 1
    assert "in 1 row," in find_record(read_records(out / "results.json"), "truth_ratio", "forget").note
    (folder / "paraphrased.jsonl").write_text("{}\n")
    with pytest.raises(ArtifactError, match=r"paraphrased\.jsonl"):
        suite.run(CONFIG, {"model": tiny_model, "data": folder}, tmp_path)


def test_model_utility_is_the_harmonic_mean_of_the_parts_that_it_names(evaluated):
    found = read_records(evaluated / "results.json")
    record = find_record(found, "model_utility", "retain+general")
    assert record.n == len(ROWS["retain"]) - 1  # one retain row has no false answers, so no truth ratio
    named = [part.split() for part in record.note.removeprefix("harmonic mean of ").split(", ")]
    assert len(named) == 5
    values = [find_record(found, metric, split).value for metric, split in named]
    assert record.value == pytest.approx(stats.hmean(values) if min(values) > 0 else 0.0)


def test_records_of_known_samples() -> None:
    samples = [
        {
            "row_id": f"{split}{i}",
            "split": split,
            "language": "DE",
            "topic_id": "t",
            "loss": loss,
            "min_k": -loss,
            "min_k_plus_plus": -loss,
            "zlib": -loss / 10,
            "answer_probability": np.exp(-loss),
            "truth_ratio": loss,
            "truth_ratio_of": "answer",
            "rouge_l_recall": 0.5,
            "probability_with_options": 0.25,
        }
        for split, losses in {
            "forget": (0.1, 0.2, 0.9),
            "retain": (0.1, 0.5),
            "holdout": (0.5, 1.0),
            "general": (2.0, 0.4),
        }.items()
        for i, loss in enumerate(losses)
    ]
    found = all_records(samples, samples, CONFIG)
    for metric in MEMBERSHIP:  # of six pairs of a member and another row five are won
        assert find_record(found, metric, "forget").value == pytest.approx(5 / 6)
    assert find_record(found, "forget_quality", "forget").value == 1.0
    assert find_record(found, "privacy_leak", "forget").value == 0.0
    for metric in (*MEMBERSHIP, "privacy_leak"):  # three forget rows cannot make up for two of holdout
        assert find_record(found, metric, "forget").n == 2
    parts = [
        np.exp([-0.1, -0.5]).mean(),
        0.5,
        retain_truth_ratios([0.1, 0.5]).mean(),
        0.25,
        retain_truth_ratios([2.0, 0.4]).mean(),
    ]
    assert find_record(found, "model_utility", "retain+general").value == pytest.approx(stats.hmean(parts))
    by = [r for r in found if r.by == {"language": "DE"} and r.split == "retain"]
    assert {r.value for r in by} == {r.value for r in found if r.by == {"topic": "t"} and r.split == "retain"}
    assert not any(r.by for r in found if r.split == "general")
    whole = {r.metric: r.value for r in found if r.split == "forget" and r.by is None}
    assert whole == {r.metric: r.value for r in found if r.split == "forget" and r.by == {"topic": "t"}}
    assert asdict(find_record(found, "answer_probability", "retain"))["note"] is None


def test_a_leak_in_one_language_shows_in_the_metrics_of_sets() -> None:
    """Spanish rows are still known; a topic that only holdout rows have is left out."""
    rng = np.random.default_rng(0)
    samples = [
        {
            "row_id": f"{split}{i}",
            "split": split,
            "language": language,
            "topic_id": topic,
            **dict.fromkeys(("min_k", "min_k_plus_plus", "zlib"), level),
            "loss": -level,
            "truth_ratio": float(np.exp(-level)),
            "truth_ratio_of": "answer",
        }
        for split in ("forget", "holdout")
        for i in range(40)
        for language in [("DE", "ES")[i % 2]]
        for topic in [("other" if split == "holdout" and i < 4 else "t")]
        for level in [float(rng.normal(3.0 if (split, language) == ("forget", "ES") else 0.0))]
    ]
    gold = [row | {"min_k": float(rng.normal()), "truth_ratio": float(rng.lognormal())} for row in samples]
    found = set_records(samples, gold, CONFIG)
    assert {r.by["topic"] for r in found if r.by and "topic" in r.by} == {"t"}
    by = {(r.metric, r.by["language"]): r for r in found if r.by and "language" in r.by}
    assert {name for name, _ in by} == {r.metric for r in found if r.by is None}
    for metric in MEMBERSHIP:
        assert by[metric, "ES"].value > 0.9 > 0.7 > by[metric, "DE"].value
    for metric in ("forget_quality", "forget_against_holdout"):
        assert by[metric, "ES"].value < 1e-4 < 0.05 < by[metric, "DE"].value
    assert by["privacy_leak", "ES"].ci_high < -80 < -60 < by["privacy_leak", "DE"].value
    alone = set_records(*([row for row in rows if row["language"] == "ES"] for rows in (samples, gold)), config=CONFIG)
    for record in alone:
        if record.by is None:
            assert by[record.metric, "ES"] == replace(record, by={"language": "ES"})
            assert record.n == 20


def test_a_single_metric_has_the_record_that_it_has_among_all() -> None:
    samples = [
        {
            "row_id": f"{split}{i}",
            "split": split,
            "language": "DE",
            "topic_id": "t",
            **dict.fromkeys(("min_k", "min_k_plus_plus", "zlib", "loss", "answer_probability", "truth_ratio"), i / 9),
            "truth_ratio_of": "answer",
        }
        for split in ("forget", "holdout")
        for i in range(1, 9)
    ]
    for measure in (partial(set_records, samples, samples), partial(row_records, samples)):
        everything = [record for record in measure(CONFIG) if record.by is None]
        assert everything
        for record in everything:
            alone = measure(CONFIG, record.metric)
            assert record in alone
            assert all(found.by is None for found in alone)
            assert len(alone) <= 2


def _random_samples(rows: dict[str, int], decimals: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows with everything that is measured, at random; few decimals make ties, and proportions are 0 or 1."""
    samples = []
    for split, count in rows.items():
        for i in range(count):
            level = round(float(rng.normal(rng.choice([0.0, 3.0]))), decimals)
            row = {name: round(float(rng.random()), decimals) for name in ROW_METRICS if split in CATALOG[name].splits}
            row |= {name: float(rng.random() < 0.8) for name in PROPORTIONS if name in row}
            row |= {"row_id": f"{split}{i}", "split": split, "truth_ratio": float(np.exp(-level)), "loss": -level}
            row |= {"language": ("DE", "EN", "ES", "FR", None)[rng.integers(5)], "topic_id": f"t{rng.integers(3)}"}
            row |= {"truth_ratio_of": "answer", **dict.fromkeys(("min_k", "min_k_plus_plus", "zlib"), level)}
            row |= {RECALL: float(rng.random()), "probability_with_options": float(rng.random())}
            if split == "forget":
                row["attacked"] = {attack.name: {m.name: rng.random() for m in READINGS} for attack in ATTACKS}
                row["sampled"] = {"n": 4, "hits": int(rng.integers(5))}
            samples.append(row)
    return samples


PROPORTIONS = ("multiple_choice_accuracy", "empty_generation", "utility")


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 12)] * (len(SPLITS) + 2)), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_every_value_lies_in_its_own_interval(counts, decimals, seed):
    rng, config = np.random.default_rng(seed), EvalConfig(bootstrap_samples=100, sampling=Sampling(samples=4, k=[1, 4]))
    rows = dict(zip((*SPLITS, REAL_WORLD, "general"), counts, strict=True))
    ours, gold = _random_samples(rows, decimals, rng), _random_samples(rows, decimals, rng)
    found = [*all_records(ours, gold, config), *audit_records(ours, gold, config)]
    left_out = {"generation_nll"} if rows["forget"] == 1 else set()  # it has no end, and one row no interval then
    assert {r.metric for r in found} >= {metric.name for metric in CATALOG.values() if not metric.is_audit} - left_out
    assert outside(found) == []


def test_every_value_of_an_evaluation_lies_in_its_own_interval(evaluated, tiny_model, data, tmp_path):
    found = _run(tiny_model, data, tmp_path / "out", gold=evaluated)
    assert {record.metric for record in found} >= {"forget_quality", "forget_against_holdout_ks", "privacy_leak"}
    assert outside([*found, *read_records(evaluated / "results.json")]) == []
