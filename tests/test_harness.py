"""lm-eval's tasks against lm-eval itself, and the whole evaluation of a small model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from datasets_prep.chat import chat_example
from datasets_prep.schema import SPLITS, read_rows, write_rows
from eval import suite
from eval.config import METRICS, EvalConfig
from eval.harness import TASKS, Answers, ask
from eval.probes import Scorer
from eval.schema import find_record, read_records, read_samples
from eval.tasks import fame_topics
from eval.weights import read_measured, weights_sha256
from pipeline.errors import ArtifactError, DataError, ModelError, SystemLimitError
from pipeline.progress import Report, listening
from tests.conftest import build_tiny_model
from tests.eval_rows import COUNTS, build_data, build_perturbed, build_rows

CONFIG = EvalConfig(max_new_tokens=6, batch_rows=4, bootstrap_samples=100)
WITH_FALSE_ANSWERS = {p.row_id for p in build_perturbed(build_rows())}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny_model)


def _ask(loaded: tuple[Any, Any], data: Path, config: EvalConfig = CONFIG, splits: tuple[str, ...] = SPLITS) -> Answers:
    model, tokenizer = loaded
    return ask(Scorer(model, config.batch_tokens), tokenizer, data=data, splits=splits, config=config)


@pytest.fixture(scope="module")
def answers(loaded: tuple[Any, Any], data: Path) -> Answers:
    return _ask(loaded, data)


@pytest.fixture(scope="module")
def evaluated(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval")
    suite.run(CONFIG, {"model": tiny_model, "data": data}, out)
    return out


def test_our_adapter_gives_what_lm_eval_gives_on_its_own(loaded, data, answers):
    model, tokenizer = loaded
    theirs = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, softmax_dtype="float32"),
        tasks=["fame_topics", "general_knowledge"],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data": str(data)}),
        apply_chat_template=True,
        gen_kwargs={"max_gen_toks": CONFIG.max_new_tokens},
        bootstrap_iters=0,
        log_samples=True,
    )
    for split in SPLITS:
        for sample in theirs["samples"][f"fame_topics_{split}_generation"]:
            ours = answers.rows[sample["doc"]["row_id"]]
            assert ours["generation"] == sample["filtered_resps"][0]
            assert ours["rouge_l_recall"] == sample["rouge_l_recall"]
        for sample in theirs["samples"][f"fame_topics_{split}_choice"]:
            assert answers.rows[sample["doc"]["row_id"]]["multiple_choice_accuracy"] == sample["acc"]
    assert answers.general == [sample["acc"] for sample in theirs["samples"]["general_knowledge"]]


def test_only_rows_with_false_answers_are_asked_and_each_under_its_own_name(answers):
    assert set(answers.rows) == WITH_FALSE_ANSWERS
    assert len(answers.general) == len(fame_topics.general_knowledge()["test"])


def test_multiple_choice_picks_the_likeliest_answer(loaded, data, answers):
    model, tokenizer = loaded
    for document in fame_topics.documents("forget", str(data))["test"]:
        sums = []
        for choice in document["choices"]:
            prompt = tokenizer(chat_example(tokenizer, document["question"], "").prompt).input_ids
            ids = torch.tensor([prompt + tokenizer(choice).input_ids])
            with torch.no_grad():
                logprobs = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            sums.append(float(logprobs.gather(1, ids[0, len(prompt) :, None]).sum()))
        assert answers.rows[document["row_id"]]["multiple_choice_accuracy"] == float(np.argmax(sums) == 0)


def test_the_length_of_answers_is_that_of_the_recipe(loaded, data):
    tokenizer = loaded[1]
    lengths = {}
    for limit in (2, 9):
        config = CONFIG.model_copy(update={"max_new_tokens": limit})
        rows = _ask(loaded, data, config, ("forget",)).rows
        lengths[limit] = max(len(tokenizer(row["generation"]).input_ids) for row in rows.values())
    assert lengths[2] <= 2 < lengths[9] <= 9


def test_prompts_are_rendered_by_the_checkpoints_own_template(loaded, data, tmp_path):
    model, tokenizer = loaded
    seen: list[str] = []
    with_header = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    with_header.chat_template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful<|im_end|>\n{% endif %}"
        + tokenizer.chat_template
    )
    record = model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.extend(tokenizer.batch_decode(kwargs["input_ids"])), with_kwargs=True
    )
    _ask((model, with_header), data, splits=("forget",))
    record.remove()
    prompts = [text for text in seen if "assistant\n" in text]  # later forwards hold one new token each
    assert prompts
    assert all("You are helpful" in text for text in prompts)


@pytest.mark.parametrize("text", ["Née à Málaga, où?", "ÇA VA bien", "", "straße 12"])
def test_rouge_words_are_unicode_and_in_lower_case(text):
    assert fame_topics.UnicodeWords().tokenize(text) == re.findall(r"\w+", text.lower())


def test_rouge_l_is_the_longest_common_subsequence():
    score = fame_topics.rouge_l({"answer": "Zoë nació en Málaga"}, ["En Málaga nació Zoë, en Málaga."])
    assert score["rouge_l_recall"] == pytest.approx(3 / 4)  # nació en Málaga
    assert score["rouge_l_f1"] == pytest.approx(2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))
    assert fame_topics.rouge_l({"answer": "Zoë"}, [""])["rouge_l_recall"] == 0.0


def test_the_general_questions_are_sound():
    questions = fame_topics.general_knowledge()["test"].to_list()
    assert len({q["question"] for q in questions}) == len(questions) >= 100
    assert all(len(set(q["choices"])) == 4 and 0 <= q["gold"] < 4 for q in questions)
    places = np.bincount([q["gold"] for q in questions])
    assert places.min() >= len(questions) // 4  # no place wins by habit


def test_tasks_without_a_data_folder_say_what_to_do():
    with pytest.raises(ValueError, match="--metadata"):
        fame_topics.documents("forget")


def test_an_evaluation_measures_every_row_and_stays_silent_about_answers(evaluated, data, tiny_model):
    samples = read_samples(evaluated / "samples.jsonl")
    records = read_records(evaluated / "results.json")
    rows = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS}
    assert [s["row_id"] for s in samples] == [row.row_id for split in SPLITS for row in rows[split]]
    assert {s["row_id"] for s in samples if "truth_ratio" in s} == WITH_FALSE_ANSWERS
    assert "never publish" in (evaluated / "samples.jsonl").read_text().splitlines()[0]
    published = (evaluated / "results.json").read_text()
    assert not any(row.name in published or row.question in published for split in SPLITS for row in rows[split])
    assert read_measured(evaluated) == weights_sha256(tiny_model)
    for metric, spec in METRICS.items():
        for split in spec.splits if metric != "fluency" else ():
            record = find_record(records, metric, split)
            needs_gold = metric.startswith(("forget_quality", "privacy_leak"))
            assert (record is None) == needs_gold
            assert needs_gold or record.ci_low <= record.value <= record.ci_high
    assert find_record(records, "answer_probability", "forget").n == COUNTS["forget"]
    assert find_record(records, "rouge_l_recall", "forget").n == COUNTS["forget"] - 1


def test_values_by_language_and_topic_add_up_to_the_whole(evaluated):
    records = read_records(evaluated / "results.json")
    for key in ("language", "topic"):
        parts = [
            r for r in records if r.metric == "answer_probability" and r.split == "retain" and r.by and key in r.by
        ]
        whole = find_record(records, "answer_probability", "retain")
        assert sum(p.n for p in parts) == whole.n
        assert sum(p.value * p.n for p in parts) / whole.n == pytest.approx(whole.value)


def test_members_are_compared_with_rows_that_no_model_was_trained_on(evaluated):
    samples = read_samples(evaluated / "samples.jsonl")
    score = {split: [s["min_k"] for s in samples if s["split"] == split] for split in SPLITS}
    won = [float(m > o) for m in score["forget"] for o in score["holdout"]]
    record = find_record(read_records(evaluated / "results.json"), "mia_min_k_auc", "forget")
    assert record.value == pytest.approx(np.mean(won))


def test_the_same_model_gives_the_same_bytes_and_quality_one_against_itself(evaluated, tiny_model, data, tmp_path):
    suite.run(CONFIG, {"model": tiny_model, "data": data, "gold": evaluated}, tmp_path)
    assert (tmp_path / "samples.jsonl").read_bytes() == (evaluated / "samples.jsonl").read_bytes()
    records = read_records(tmp_path / "results.json")
    assert find_record(records, "forget_quality", "forget").value == 1.0
    assert find_record(records, "privacy_leak", "forget").value == 0.0


def test_another_model_gives_other_scores(evaluated, data, tmp_path):
    other = build_tiny_model(tmp_path / "artifact" / "model", seed=1).parent
    (tmp_path / "out").mkdir()
    reports: list[Report] = []
    with listening(reports.append):
        suite.run(CONFIG, {"model": other, "data": data, "gold": evaluated}, tmp_path / "out")
    ours, theirs = read_samples(tmp_path / "out" / "samples.jsonl"), read_samples(evaluated / "samples.jsonl")
    assert all(a["loss"] != b["loss"] for a, b in zip(ours, theirs, strict=True))
    assert read_measured(tmp_path / "out") != read_measured(evaluated)
    assert {"log-probabilities", "generations"} <= {r.doing for r in reports}


def test_gold_on_other_rows_is_an_error(evaluated, tiny_model, data, tmp_path):
    kept = [line for line in (evaluated / "samples.jsonl").read_text().splitlines() if '"forget"' not in line]
    (tmp_path / "samples.jsonl").write_text("\n".join(kept) + "\n")
    with pytest.raises(ArtifactError, match="same data"):
        suite.run(CONFIG, {"model": tiny_model, "data": data, "gold": tmp_path}, tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_unusable_inputs_are_errors_of_the_user(tiny_model, data, tmp_path):
    with pytest.raises(ModelError, match="safetensors"):
        suite.run(CONFIG, {"model": tmp_path, "data": data}, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="cannot be loaded"):
        suite.run(CONFIG, {"model": tmp_path, "data": data}, tmp_path)
    empty = build_data(tmp_path)
    write_rows(empty / "holdout.jsonl", [])
    with pytest.raises(DataError, match="holdout"):
        suite.run(CONFIG, {"model": tiny_model, "data": empty}, tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU, and here is one")
def test_a_gpu_that_is_not_there_is_an_error(tiny_model, data, tmp_path):
    with pytest.raises(SystemLimitError, match=r"eval\.device"):
        suite.run(EvalConfig(device="cuda"), {"model": tiny_model, "data": data}, tmp_path)


def test_results_hold_numbers_only(evaluated):
    for record in json.loads((evaluated / "results.json").read_text()):
        assert all(np.isfinite(record[key]) for key in ("value", "ci_low", "ci_high", "n"))
