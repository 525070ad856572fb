"""One test for each defect that was seen in existing code (the list is in the issue of the evaluation), by its number.

Some of these are also held, in more depth, by the tests of the part they belong to; here they can be found.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Cache

from datasets_prep.chat import chat_example, encode, encode_rows
from datasets_prep.schema import SPLITS, read_rows
from eval import suite
from eval.catalog import DATA
from eval.config import EvalConfig
from eval.schema import find_record, read_measured, read_records, read_samples
from eval.scoring.harness import ask
from eval.scoring.probes import Scorer, probe
from eval.statistics import formulas
from pipeline.train.attention import ROWS_SDPA
from pipeline.train.packed import completion_log_probs, negative_log_likelihood, pack
from pipeline.unlearn.pairing import pair_rows
from tests.conftest import ROOT, build_tiny_model
from tests.eval_rows import build_data, build_perturbed, build_rows, build_speaking_model

CONFIG = EvalConfig(max_new_tokens=5, batch_rows=3, bootstrap_samples=100)
ROWS = build_rows()
ALL_ROWS = [row for split in SPLITS for row in ROWS[split]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def evaluated(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("eval")
    suite.run(CONFIG, {"model": tiny_model, "data": data}, out)
    return out


def test_defect_01_arguments_in_yaml_reach_lm_eval(loaded, data):
    """Batch size, length of answers and chat template; few-shot examples and limits are in tests/test_suites.py."""
    model, tokenizer = loaded
    prompts: list[torch.Tensor] = []

    def look(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 1 and any(isinstance(value, Cache) for value in kwargs.values()):
            prompts.append(kwargs["input_ids"])

    model.register_forward_pre_hook(look, with_kwargs=True)
    answers = ask(Scorer(model, 512), tokenizer, data=data, splits=DATA, config=CONFIG)
    assert max(len(batch) for batch in prompts) == CONFIG.batch_rows
    assert all("<|im_start|>user" in text for batch in prompts for text in tokenizer.batch_decode(batch))
    lengths = [len(tokenizer(row["generation"]).input_ids) for row in answers.rows.values() if "generation" in row]
    assert max(lengths) <= CONFIG.max_new_tokens
    shown = answers.results["configs"]["fame_topics_forget_generation"]["generation_kwargs"]
    assert shown["max_gen_toks"] == CONFIG.max_new_tokens


def test_defect_02_extraction_strength_is_zero_when_nothing_is_predicted():
    assert formulas.extraction_strength([False] * 5) == 0.0


def test_defect_03_the_end_of_turn_is_not_taken_for_padding(loaded):
    """Pad is the end of turn here, and it is scored like any other token."""
    model, tokenizer = loaded
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    example = encode(tokenizer, chat_example(tokenizer, "Who?", "Ana."))
    assert tokenizer.eos_token_id in example.input_ids[: example.completion_start]  # and it stands in every prompt
    (scores,) = Scorer(model, 512).score([example])
    assert len(scores.logprobs) == len(example.input_ids) - example.completion_start
    with torch.no_grad():
        whole = model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
    at = max(i for i, token in enumerate(example.input_ids) if token == tokenizer.eos_token_id)
    expected = whole[at - 1, tokenizer.eos_token_id]
    assert scores.logprobs[at - example.completion_start] == pytest.approx(float(expected), abs=1e-4)


def test_defect_03_generation_in_a_padded_batch_is_generation_alone(data, tmp_path):
    folder = build_speaking_model(tmp_path / "speaking")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answers(batch_rows: int) -> dict[str, str]:
        config = CONFIG.model_copy(update={"batch_rows": batch_rows})
        rows = ask(Scorer(model, 512), tokenizer, data=data, splits=DATA, config=config).rows
        return {row_id: values["generation"] for row_id, values in rows.items() if "generation" in values}

    alone = answers(1)
    assert len(set(alone.values())) > 5
    assert alone == answers(8)


def test_defect_04_nothing_heavy_is_imported_before_it_is_used():
    heavy = {"torch", "lm_eval", "deepspeed", "transformers", "vllm", "bitsandbytes"}
    may = {  # in the order in which one process imports them: what one has imported, the next may have too
        "eval.config": set(),
        "eval.statistics.formulas": set(),
        "eval.records.rows": set(),
        "eval.records.audited": set(),
        "eval.verdicts.gates": set(),
        "eval.scoring.probes": {"torch", "transformers"},
        "eval.suite": {"torch", "transformers", "lm_eval"},  # imported when an evaluation runs
    }
    code = f"import importlib, sys\nfor name in {list(may)}:\n    importlib.import_module(name)\n"
    code += f"    print(name, *sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name: set(imported) for name, *imported in map(str.split, done.stdout.splitlines())}
    assert found.keys() == may.keys()
    for name, imported in found.items():
        assert imported <= may[name], name


def test_defect_05_a_machine_without_a_gpu_divides_by_nothing(tiny_model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    suite.run(CONFIG, {"model": tiny_model, "data": data}, tmp_path)
    assert (tmp_path / "results.json").is_file()


def test_defect_06_membership_scores_are_the_same_at_any_batch_size(loaded):
    model, tokenizer = loaded
    found = [
        probe(Scorer(model, tokens), ALL_ROWS, [], lambda q, a: encode(tokenizer, chat_example(tokenizer, q, a)), 0.4)
        for tokens in (1, 4096)
    ]
    for row in ALL_ROWS:
        for score in ("loss", "zlib", "min_k", "min_k_plus_plus"):
            assert found[0][row.row_id][score] == pytest.approx(found[1][row.row_id][score], rel=1e-3, abs=1e-4)


def test_defect_07_a_row_without_a_value_shifts_no_other(loaded, evaluated):
    """The second row of each split has no false answers: the rows after it keep the ratios of their own answers."""
    model, tokenizer = loaded
    false = {row.row_id: row.answers for row in build_perturbed(ROWS)}
    samples = {s["row_id"]: s for s in read_samples(evaluated / "samples.jsonl")}
    for row in ALL_ROWS:
        assert ("truth_ratio" in samples[row.row_id]) == (row.row_id in false)
        if row.row_id in false:
            alone = encode(tokenizer, chat_example(tokenizer, row.question, false[row.row_id][-1]))
            (scores,) = Scorer(model, 1).score([alone])
            assert samples[row.row_id]["perturbed_losses"][-1] == pytest.approx(-scores.logprobs.mean(), abs=1e-4)


def test_defect_08_pairs_are_one_recorded_schedule_and_not_drawn_by_each_rank():
    """Every rank takes its part of the same list, so no two ranks draw the same retain rows. Ranks do not enter it."""
    assert not {"rank", "process_index", "world_size"} & set(inspect.signature(pair_rows).parameters)
    pairs = pair_rows(8, 16, epochs=1, retain_per_forget=1, seed=0)
    ranks = [{row for pair in pairs[rank::2] for row in pair.retain} for rank in range(2)]
    assert not ranks[0] & ranks[1]


def test_defect_09_the_retain_loss_is_over_answer_tokens_from_one_forward(loaded, tiny_model):
    packed = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation=ROWS_SDPA)
    rows = encode_rows(loaded[1], ALL_ROWS[:4])
    forwards: list[int] = []
    packed.register_forward_hook(lambda *_: forwards.append(1))
    batch = pack(rows)
    log_probs = completion_log_probs(packed.eval(), batch).detach()
    retain = batch["row"] >= 2
    loss = negative_log_likelihood(log_probs[retain], retain.sum())
    assert len(forwards) == 1
    assert len(log_probs) == sum(len(row.input_ids) - row.completion_start for row in rows)
    answers = [scores.logprobs for scores in Scorer(loaded[0], 1).score(rows[2:])]
    assert float(loss) == pytest.approx(-np.concatenate(answers).mean(), abs=1e-4)


def test_defect_10_members_are_compared_with_rows_that_nobody_trained_on(evaluated, data):
    trained = {row.row_id for split in ("forget", "retain") for row in read_rows(data / f"{split}.jsonl")}
    samples = read_samples(evaluated / "samples.jsonl")
    others = [s for s in samples if s["split"] == "holdout"]
    assert others
    assert not trained & {s["row_id"] for s in others}
    members = [s for s in samples if s["split"] == "forget"]
    record = find_record(read_records(evaluated / "results.json"), "mia_loss_auc", "forget")
    assert record.value == pytest.approx(np.mean([[m["loss"] < o["loss"] for o in others] for m in members]))


def test_defect_11_results_do_not_republish_the_forget_set(evaluated):
    """Only samples.jsonl holds answers, and its first line says that it stays here."""
    assert "never publish" in json.loads((evaluated / "samples.jsonl").read_text().splitlines()[0])["note"]
    for file in evaluated.rglob("*"):
        if file.is_file() and file.name != "samples.jsonl":
            text = file.read_text()
            assert not any(row.answer in text or row.question in text for row in ALL_ROWS), file


def test_defect_12_no_score_of_one_model_serves_another(evaluated, data, tmp_path):
    other = build_tiny_model(tmp_path / "model", seed=5)
    (tmp_path / "out").mkdir()
    suite.run(CONFIG, {"model": other, "data": data}, tmp_path / "out")
    assert read_measured(tmp_path / "out") != read_measured(evaluated)
    ours, theirs = read_samples(tmp_path / "out" / "samples.jsonl"), read_samples(evaluated / "samples.jsonl")
    assert all(a["loss"] != b["loss"] for a, b in zip(ours, theirs, strict=True))
