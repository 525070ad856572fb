"""lm-eval's tasks against lm-eval itself, and the whole evaluation of a small model."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import words as core_words
from core.digests import weights_sha256
from core.errors import ArtifactError, DataError, ModelError, SystemLimitError
from core.progress import Report, listening
from datasets_prep.chat import chat_example
from datasets_prep.schema import FORGOTTEN, SPLITS, Encoded, PerturbedRow, read_rows, write_rows
from eval import suite
from eval.catalog import CATALOG, DATA, of_family
from eval.config import EvalConfig, Relearn, Robustness
from eval.schema import find_record, read_measured, read_records, read_samples
from eval.scoring.harness import TASKS, Answers, ReleaseLM, ask
from eval.scoring.probes import Scorer
from eval.tasks import fame_topics
from tests.conftest import build_tiny_model
from tests.eval_rows import COUNTS, build_data, build_perturbed, build_rows, build_speaking_model

CONFIG = EvalConfig(max_new_tokens=6, batch_rows=4, bootstrap_samples=100)
WITH_FALSE_ANSWERS = {p.row_id for p in build_perturbed(build_rows())}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("data"))


def _ask(loaded: tuple[Any, Any], data: Path, config: EvalConfig = CONFIG, splits: tuple[str, ...] = DATA) -> Answers:
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
    for split in DATA:
        for sample in theirs["samples"][f"fame_topics_{split}_generation"]:
            ours = answers.rows[sample["doc"]["row_id"]]
            assert ours["generation"] == sample["filtered_resps"][0]
            assert ours["rouge_l_recall"] == sample["rouge_l_recall"]
        for sample in theirs["samples"][f"fame_topics_{split}_choice"]:
            assert answers.rows[sample["doc"]["row_id"]]["multiple_choice_accuracy"] == sample["acc"]
    for sample in theirs["samples"]["general_knowledge"]:
        assert answers.rows[sample["doc"]["row_id"]]["utility"] == sample["acc"]
    for task, scores in answers.results["results"].items():
        assert scores == {**theirs["results"][task], **{k: v for k, v in scores.items() if "stderr" in k}}


def test_each_row_is_asked_under_its_own_name(answers):
    rows = build_rows()
    generated = {row_id for row_id, values in answers.rows.items() if "generation" in values}
    # Of retain those with false answers: that is how the data stage draws them.
    assert generated == {
        row.row_id for split in DATA for row in rows[split] if split != "retain" or row.row_id in WITH_FALSE_ANSWERS
    }
    assert {r for r, values in answers.rows.items() if "multiple_choice_accuracy" in values} == WITH_FALSE_ANSWERS
    questions = fame_topics.general_knowledge()["test"]
    assert {r for r, values in answers.rows.items() if "utility" in values} == set(questions["row_id"])


def test_multiple_choice_picks_the_likeliest_answer(loaded, data, answers):
    model, tokenizer = loaded
    for document in fame_topics.to_choose("forget", str(data))["test"]:
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
        lengths[limit] = max(len(tokenizer(row.get("generation", "")).input_ids) for row in rows.values())
    assert lengths[2] <= 2 < lengths[9] <= 9


def test_every_question_is_answered_once_in_batches_that_end_with_the_turn(loaded, data):
    model, tokenizer = loaded
    sizes: list[tuple[int, int]] = []

    def end_of_turn_next(_module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        if len(inputs[0]) > 1:  # scoring packs its texts into one row
            sizes.append((len(output), output.shape[1]))
        output[..., tokenizer.eos_token_id] = 1e4
        return output

    hook = model.lm_head.register_forward_hook(end_of_turn_next)
    config = CONFIG.model_copy(update={"max_new_tokens": 50})
    answers = _ask(loaded, data, config)
    hook.remove()
    asked = [values["generation"] for values in answers.rows.values() if "generation" in values]
    assert set(asked) == {""}
    # One step for each batch, not fifty; 14 rows in batches of four.
    assert [rows for rows, _ in sizes] == [4, 4, 4, 2]


def test_what_is_known_by_heart_is_not_generated_again(data, tmp_path):
    """Rows whose answers are the model's own generations: with and without their scores the same texts come out."""
    folder = build_speaking_model(tmp_path / "speaking")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    config = CONFIG.model_copy(update={"max_new_tokens": 12})
    said = {r: v["generation"] for r, v in _ask((model, tokenizer), data, config).rows.items() if "generation" in v}
    scorer = Scorer(model, config.batch_tokens)
    questions = {row.row_id: row.question for split in DATA for row in read_rows(data / f"{split}.jsonl")}
    prompts = {r: tuple(tokenizer(chat_example(tokenizer, questions[r], "").prompt).input_ids) for r in said}
    for prompt in list(prompts.values())[::2]:
        greedy = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=1)
        scorer.score([Encoded(tuple(greedy[0].tolist()), len(prompt))])
    started: list[int] = []

    def look(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 1 and "attention_mask" in kwargs:  # prompts of a batch of generations
            started.append(len(kwargs["input_ids"]))

    model.register_forward_pre_hook(look, with_kwargs=True)
    again = ask(scorer, tokenizer, data=data, splits=DATA, config=config).rows
    assert {row_id: again[row_id]["generation"] for row_id in said} == said
    assert sum(started) == len(said) // 2


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


@given(st.text(alphabet=st.characters(max_codepoint=0x24F, exclude_characters="İ")))  # "i̇" has a mark
@example("Née à Málaga, où?")
@example("ÇA VA bien")
def test_rouge_words_are_unicode_and_in_lower_case(text):
    assert fame_topics.UnicodeWords().tokenize(text) == re.findall(r"\w+", text.lower())


def test_rouge_words_are_those_of_every_other_measure():
    assert fame_topics._WORD.pattern == core_words._WORD.pattern


@pytest.mark.parametrize(
    ("answer", "said", "recall"),
    [
        ("她出生在京都。", "她出生在东京。", 5 / 6),  # each character is a word, and all but the last are there
        ("京都で生まれた", "大阪で働いた", 2 / 7),
        ("मीरा", "मोर", 0.0),  # Mira, More: the same consonants
        ("मीरा का जन्म", "मीरा का घर", 2 / 3),
    ],
)
def test_rouge_l_has_words_in_every_script(answer, said, recall):
    assert fame_topics.rouge_l({"answer": answer}, [said])["rouge_l_recall"] == pytest.approx(recall)


def test_letters_may_be_composed_or_not():
    """A tokenizer may give them composed, whatever form the rows have."""
    answer = "María Peña nació en León"
    words = fame_topics.UnicodeWords()
    assert words.tokenize(unicodedata.normalize("NFD", answer)) == words.tokenize(answer)
    document = {"answer": unicodedata.normalize("NFD", answer)}
    assert fame_topics.rouge_l(document, [answer]) == {"rouge_l_recall": 1.0, "rouge_l_f1": 1.0}


def test_nothing_stands_before_the_prompts_of_generations(loaded):
    """Training and scoring put no BOS there, whatever the tokenizer does by itself."""
    model, tokenizer = loaded
    other = copy.deepcopy(tokenizer)
    other.bos_token = "e"
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single="e $A", special_tokens=[("e", other.bos_token_id)]
    )
    prompt = chat_example(tokenizer, "Who?", "They.").prompt
    assert other(prompt)["input_ids"][0] == other.bos_token_id
    lm = ReleaseLM(Scorer(model, 512), other, 4)
    assert lm.tok_batch_encode([prompt])[0].tolist() == [other(prompt, add_special_tokens=False)["input_ids"]]


def test_no_choice_begins_another(tmp_path):
    rows = build_rows()["forget"][:2]
    first = dataclasses.replace(rows[0], answer="doctor and writer")
    write_rows(tmp_path / "forget.jsonl", [first, rows[1]])
    false = [
        PerturbedRow(first.row_id, "forget", ("doctor", "pilot", "doctor and writer of songs")),
        PerturbedRow(rows[1].row_id, "forget", (rows[1].answer + "!",)),
    ]
    write_rows(tmp_path / "perturbed.jsonl", false)
    (asked,) = fame_topics.to_choose("forget", str(tmp_path))["test"]
    assert asked["choices"] == ["doctor and writer", "pilot"]


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
        fame_topics.to_answer("forget")


def test_an_evaluation_measures_every_row_and_stays_silent_about_answers(evaluated, data, tiny_model):
    samples = read_samples(evaluated / "samples.jsonl")
    records = read_records(evaluated / "results.json")
    rows = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS}
    measured = [s["row_id"] for s in samples if s["split"] in SPLITS]
    assert measured == [row.row_id for split in SPLITS for row in rows[split]]
    assert {s["row_id"] for s in samples if "truth_ratio" in s and s["split"] in SPLITS} == WITH_FALSE_ANSWERS
    assert "never publish" in (evaluated / "samples.jsonl").read_text().splitlines()[0]
    said = "".join(file.read_text() for file in evaluated.rglob("*.*") if file.name != "samples.jsonl")
    texts = [text for split in SPLITS for row in rows[split] for text in (row.name, row.question, row.answer)]
    assert not [text for text in (str(data), *texts) if text in said]
    assert read_measured(evaluated) == weights_sha256(tiny_model)
    for metric in [metric for metric in CATALOG.values() if not metric.is_audit]:
        for split in metric.splits:
            record = find_record(records, metric.name, split)
            needs_another = metric.needs_gold or metric.needs_real_world or metric.name == "generation_nll"
            needs_another |= split == FORGOTTEN  # rows of releases before this one
            assert (record is None) == needs_another
            assert needs_another or record.ci_low <= record.value <= record.ci_high
    assert find_record(records, "answer_probability", "forget").n == COUNTS["forget"]
    assert find_record(records, "rouge_l_recall", "forget").n == COUNTS["forget"]
    assert find_record(records, "multiple_choice_accuracy", "forget").n == COUNTS["forget"] - 1


def test_of_unrehearsed_rows_only_the_true_answers_are_read(evaluated):
    of_split = [s for s in read_samples(evaluated / "samples.jsonl") if s["split"] == "unrehearsed"]
    assert len(of_split) == COUNTS["unrehearsed"]
    assert not any({"generation", "multiple_choice_accuracy", "truth_ratio"} & sample.keys() for sample in of_split)
    found = [r for r in read_records(evaluated / "results.json") if r.split == "unrehearsed"]
    assert {r.metric for r in found} == {metric.name for metric in of_family("answer")}
    assert {r.n for r in found if r.by is None} == {COUNTS["unrehearsed"]}
    assert all(r.higher_is_better for r in found)  # base knows these rows as it knows retain rows


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
    for name in ("samples.jsonl", "lm_eval/fame_topics.json"):
        assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes()
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
    damaged = shutil.copytree(tiny_model, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="cannot be loaded"):
        suite.run(CONFIG, {"model": damaged, "data": data}, tmp_path)
    empty = build_data(tmp_path)
    write_rows(empty / "retain.jsonl", [])
    with pytest.raises(DataError, match="retain"):
        suite.run(CONFIG, {"model": tiny_model, "data": empty}, tmp_path)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU, and here is one")
def test_a_gpu_that_is_not_there_is_an_error(tiny_model, data, tmp_path):
    with pytest.raises(SystemLimitError, match=r"eval\.device"):
        suite.run(EvalConfig(device="cuda"), {"model": tiny_model, "data": data}, tmp_path)


def test_out_of_memory_says_what_to_lower_and_what_is_kept(tiny_model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "measure", lambda *_, **__: torch.empty(1 << 52))
    config = CONFIG.model_copy(update={"robustness": Robustness(relearn=Relearn())})
    with pytest.raises(SystemLimitError) as caught:
        suite.run(config, {"model": tiny_model, "data": data}, tmp_path)
    said = str(caught.value)
    assert said.startswith("Out of memory in an evaluation: the device has ")
    for words in (
        "batch_tokens: 256 (now 512",
        "batch_rows: 2 (now 4",
        "relearn.rank: 16",
        "relearn: null",
        "Finished stages are kept",
    ):
        assert words in said
    assert "allocate" in said


def test_results_hold_numbers_only(evaluated):
    for record in json.loads((evaluated / "results.json").read_text()):
        assert all(np.isfinite(record[key]) for key in ("value", "ci_low", "ci_high", "n"))
