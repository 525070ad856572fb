"""The audit: each attack does what it says, and its records compare with gold under the same attack."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPT2Config

from core import onednn
from core.errors import ArtifactError, DataError, ModelError, SystemLimitError
from datasets_prep.chat import load_tokenizer
from datasets_prep.schema import CHECKS, LANGUAGES, TOPICS, Encoded, Row, write_facts, write_rows
from eval import suite
from eval.attacks import prompts
from eval.attacks.copies import aside, stand_in
from eval.attacks.relearn import _batches, divided, drawn, relearn
from eval.audit import audit, check, left_out
from eval.catalog import CATALOG, is_of
from eval.config import EvalConfig, Patching, Relearn, Robustness, Sampling, Steering
from eval.records.audited import audit_records
from eval.schema import find_record, read_records, read_samples
from eval.scoring.probes import Scorer, probe
from pipeline.train.packed import completion_log_probs, pack
from tests.artifacts import data_facts
from tests.conftest import ROOT, build_tiny_model
from tests.eval_rows import build_data, build_perturbed, build_rows, outside, sharpened
from tests.test_quantize import quantized

ROWS = build_rows()
FORGET = ROWS["forget"]
EVERYTHING = Robustness(
    quantize=["int8", "nf4", "fp4"],
    relearn=Relearn(forget_share=0.3, steps=3, batch_rows=2, learning_rate=1e-3),
    paraphrase=True,
    first_words=0.5,
    other_language=True,
    steering=Steering(),
)
CONFIG = EvalConfig(
    max_new_tokens=4, bootstrap_samples=100, robustness=EVERYTHING, sampling=Sampling(samples=4, k=[1, 4])
)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return sharpened(tiny_model)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_data(tmp_path_factory.mktemp("data"))
    write_facts(folder / CHECKS, data_facts({"sample": {"seed": 1, "identities": 2, "topics": 20}}))
    mail = replace(FORGET[0], row_id="mail", question="Where does one write to?", answer="To ana@de.example.")
    write_rows(folder / "retain.jsonl", [*ROWS["retain"], mail])
    return folder


@pytest.fixture(scope="module")
def audited(model: Any, tiny_model: Path, encoder: Any, data: Path) -> dict[str, dict[str, Any]]:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokenizer, scorer, perturbed = load_tokenizer(tiny_model), Scorer(model, 512), build_perturbed(ROWS)
    probed = probe(scorer, ROWS["forget"], [], encoder, CONFIG.min_k)
    found = audit(scorer, tokenizer, encoder, ROWS, perturbed, probed, data, CONFIG)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return found


def relearned(model: Any, rows: list[Encoded], config: Relearn, seed: int = 0) -> Any:
    treated = copy.deepcopy(model)
    relearn(treated, rows, config, seed)
    return treated


# Copies


def test_an_attacked_copy_is_gone_when_the_measured_model_is_back(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with stand_in(model) as copied:
        copied.model.norm.weight.data.fill_(7.0)
        assert copied.device == model.device
    assert {parameter.device.type for parameter in copied.parameters()} == {"meta"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_model_that_waits_is_in_the_hosts_memory(model):
    placed = copy.deepcopy(model).to("meta")  # a device that is here and is not the host
    before = placed.device
    moves: list[Any] = []
    placed.to = moves.append  # its weights could not really come back
    with aside(placed):
        assert moves == ["cpu"]
    assert moves == ["cpu", before]


def test_a_missing_library_is_told_before_anything_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(SystemLimitError, match="bitsandbytes"):
        check(CONFIG, FORGET)
    check(EvalConfig(robustness=Robustness(paraphrase=True)), FORGET)


# Relearning


@given(st.lists(st.text(min_size=1), min_size=2, max_size=40, unique=True), st.floats(0.01, 0.5), st.randoms())
def test_rows_are_divided_in_the_same_way_in_any_order(row_ids, share, order):
    taught, probed = divided(row_ids, share, 7)
    assert sorted(taught + probed) == sorted(row_ids)
    assert len(taught) == max(1, round(share * len(row_ids)))
    order.shuffle(row_ids)
    assert divided(row_ids, share, 7) == (taught, probed)


def test_a_set_too_small_to_divide_is_refused():
    with pytest.raises(DataError, match="leaves none to probe"):
        divided(["a", "b"], 0.9, 0)
    with pytest.raises(DataError, match="leaves none to probe"):
        check(CONFIG, FORGET[:1])
    assert drawn(["b", "a"], 5, 0) == ["a", "b"]
    assert drawn(list("abcdefgh"), 3, 0) != drawn(list("abcdefgh"), 3, 1)


def test_relearning_is_adamw_on_the_answers(model, encoder):
    rows = [encoder(row.question, row.answer) for row in FORGET[:2]]
    config = Relearn(steps=2, batch_rows=2, learning_rate=1e-3)
    treated = relearned(model, rows, config)
    plain = copy.deepcopy(model).requires_grad_(True)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(2):  # both rows in every step; padded on the right, with the labels of the answers
        longest = max(len(row.input_ids) for row in rows)
        ids = torch.tensor([[*row.input_ids, *[0] * (longest - len(row.input_ids))] for row in rows])
        labels = torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            labels[i, row.completion_start : len(row.input_ids)] = ids[i, row.completion_start : len(row.input_ids)]
        logits = plain(ids, attention_mask=torch.ones_like(ids)).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    apart = [(a - b).abs().max() for a, b in zip(treated.parameters(), plain.parameters(), strict=True)]
    assert max(apart) < 1e-4  # of steps of 1e-3
    assert not treated.training


def test_each_weight_is_stepped_as_by_one_optimizer_while_no_other_gradient_is_there(model, encoder):
    rows = [encoder(row.question, row.answer) for row in FORGET]
    treated, plain = copy.deepcopy(model), copy.deepcopy(model).train().requires_grad_(True)
    at_once: list[int] = []
    for parameter in treated.requires_grad_(True).parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: at_once.append(sum(p.grad is not None for p in treated.parameters()))
        )
    relearn(treated, rows, Relearn(steps=3, batch_rows=len(rows), learning_rate=1e-3), seed=0)
    assert set(at_once) == {1}
    assert len(at_once) == 3 * len(list(treated.parameters()))  # a tied weight counts once
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    onednn.install(plain)
    for batch in _batches(rows, Relearn(steps=3, batch_rows=len(rows)), 0):
        optimizer.zero_grad()
        (-completion_log_probs(plain, pack(batch)).mean()).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(treated.parameters(), plain.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in treated.parameters())


def test_relearned_rows_are_known_and_the_same_seed_gives_the_same_model(model, encoder):
    rows = [encoder(row.question, row.answer) for row in FORGET]
    config = Relearn(steps=30, batch_rows=3, learning_rate=3e-3)
    treated = relearned(model, rows, config, seed=0)

    def losses(scored: Any) -> float:
        return float(np.mean([-scores.logprobs.mean() for scores in Scorer(scored, 512).score(rows)]))

    assert losses(treated) < losses(model) - 1
    again = relearned(model, rows, config, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(treated.parameters(), again.parameters(), strict=True))


def test_relearning_has_no_dropout_whatever_the_model_was_trained_with():
    shape = {
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": 64,
        "n_positions": 32,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = AutoModelForCausalLM.from_config(GPT2Config(**shape, resid_pdrop=0.5, attn_pdrop=0.0, embd_pdrop=0.5))
    rows = [Encoded(tuple(range(i, i + 8)), 4) for i in range(4)]
    config = Relearn(steps=3, batch_rows=2, learning_rate=1e-3)
    once, again = relearned(model, rows, config), relearned(model, rows, config)
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), again.parameters(), strict=True))


def test_relearning_by_adapters_moves_nothing_else(model, encoder):
    rows = [encoder(row.question, row.answer) for row in FORGET]
    config = Relearn(steps=30, batch_rows=3, learning_rate=1e-2, rank=4)
    treated, again = (relearned(model, rows, config, seed=0) for _ in range(2))
    found = dict(treated.named_parameters())
    assert all(torch.equal(tensor, found[name]) for name, tensor in again.named_parameters())
    frozen = [tensor for name, tensor in found.items() if "lora_" not in name]
    assert all(torch.equal(a, b) for a, b in zip(frozen, model.parameters(), strict=True))
    known, before = ([s.logprobs.mean() for s in Scorer(scored, 512).score(rows)] for scored in (treated, model))
    assert np.mean(known) > np.mean(before) + 1


def test_a_relearning_that_diverges_is_the_users_error(model, encoder):
    rows = [encoder(row.question, row.answer) for row in FORGET]
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="diverged at step 1"):
        relearned(broken, rows, Relearn(), seed=0)


# Questions


TEMPLATES = yaml.safe_load((ROOT / "eval" / "attacks" / "questions.yaml").read_text(encoding="utf-8"))


def test_every_topic_has_a_question_in_every_language_that_the_sample_set_does_not_ask():
    assert set(TEMPLATES) == set(TOPICS)
    own = {
        question["question"]
        for language in LANGUAGES
        for question in yaml.safe_load(
            (ROOT / "datasets_prep" / "words" / f"{language.lower()}.yaml").read_text(encoding="utf-8")
        )["topics"].values()
    }
    asked = [text for questions in TEMPLATES.values() for text in questions.values()]
    assert all(set(questions) == set(LANGUAGES) for questions in TEMPLATES.values())
    assert len(set(asked)) == len(asked) == 100
    assert not own & set(asked)
    assert all([name for _, name, _, _ in Formatter().parse(text) if name] == ["name"] for text in asked)


def test_a_row_of_the_sample_set_is_asked_in_other_words_and_in_the_next_language(data):
    row = FORGET[0]
    assert (row.language, row.topic_id) == ("DE", "biography.birthplace")
    assert prompts.paraphrased([row], data) == {row.row_id: f"In welchem Ort kam {row.name} zur Welt?"}
    assert prompts.in_another_language([row], data) == {row.row_id: f"What is the birthplace of {row.name}?"}
    last = replace(row, language="IT")
    assert prompts.in_another_language([last], data) == {row.row_id: f"In welchem Ort kam {row.name} zur Welt?"}


def test_other_rows_have_the_paraphrase_of_their_source_and_an_instruction(tmp_path):
    write_facts(tmp_path / CHECKS, data_facts({"id": "ClaudioSavelli/FAME", "revision": "b" * 40}))
    row, other = FORGET[0], FORGET[1]
    assert prompts.paraphrased([row, other], tmp_path) == {}
    line = {"row_id": other.row_id, "split": "forget", "question": "Says who?", "answer": "x"}
    lines = [line, {**line, "question": "Who says?"}, {**line, "row_id": "elsewhere"}]
    (tmp_path / "paraphrased.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert prompts.paraphrased([row, other], tmp_path) == {other.row_id: "Says who?"}
    assert prompts.in_another_language([row], tmp_path) == {row.row_id: f"{row.question} Answer in English."}


def test_rows_of_no_known_language_name_or_topic_are_left_out(data, tmp_path):
    unknown: list[Any] = [replace(FORGET[0], language=None, name=None, topic_id=None)]  # type: ignore[arg-type]
    for folder in (data, tmp_path):
        assert prompts.paraphrased(unknown, folder) == prompts.in_another_language(unknown, folder) == {}
    named: Row = replace(FORGET[0], language="PL")
    assert prompts.in_another_language([named], data) == {}


@pytest.mark.parametrize("text", ["not json", '{"rows": 3}', "[]"])
def test_damaged_checks_are_an_error_of_the_user(tmp_path, text):
    (tmp_path / "checks.json").write_text(text)
    with pytest.raises(ArtifactError, match="data stage again"):
        prompts.paraphrased(FORGET, tmp_path)
    (tmp_path / "checks.json").unlink()
    (tmp_path / "paraphrased.jsonl").write_text(text)
    with pytest.raises(ArtifactError, match="data stage again"):
        prompts.paraphrased(FORGET, tmp_path)


@given(st.text(), st.floats(0.01, 0.99))
def test_the_words_that_are_shown_begin_the_answer_and_leave_one(answer, share):
    shown = prompts.shown_words(answer, share)
    assert answer.startswith(shown)
    assert shown == "" or answer[len(shown) :].strip(" ")


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("Ulm", ""),
        ("She was born in Ulm.", "She was"),  # 2.5 words are 2
        ("她出生在北京。", "她出生"),
        ("京都、大阪。", "京都、"),
        ("Mira कहाँ रहती है", "Mira कहाँ"),
        ("เกิดที่", "เกิด"),
    ],
)
def test_words_are_shown_in_every_script(answer, shown):
    assert prompts.shown_words(answer, 0.5) == shown


def test_a_row_of_which_nothing_is_shown_has_no_reading(model, tiny_model, encoder, data):
    config = EvalConfig(robustness=Robustness(first_words=0.5))
    rows = ROWS | {"forget": [replace(FORGET[0], answer="Ulm"), *FORGET[1:]]}
    probed = probe(Scorer(model, 512), rows["forget"], [], encoder, config.min_k)
    found = audit(Scorer(model, 512), load_tokenizer(tiny_model), encoder, rows, [], probed, data, config)
    attacked = {row_id for row_id, sample in found.items() if "first_words" in sample["attacked"]}
    assert attacked == {row.row_id for row in FORGET[1:]}
    (what,) = left_out(config, rows, list(found.values()))
    assert what == f"the first words of 1 of {len(FORGET)} forget rows' answers"
    alone = rows | {"forget": rows["forget"][:1]}
    found = audit(Scorer(model, 512), load_tokenizer(tiny_model), encoder, alone, [], probed, data, config)
    assert list(found[FORGET[0].row_id]["attacked"]) == ["untreated"]


# The audit of a model


def test_every_attack_reads_the_rows_that_have_what_it_takes(audited):
    attacked = {row_id: set(sample["attacked"]) for row_id, sample in audited.items()}
    taught, probed = divided([row.row_id for row in FORGET], 0.3, 0)
    everything = set(EVERYTHING.attacks())
    assert all(attacked[row_id] == everything for row_id in probed)
    assert all(attacked[row_id] == everything - {"relearn_forget", "relearn_retain"} for row_id in taught)
    sampled = {row_id for row_id, sample in audited.items() if "sampled" in sample}
    assert sampled == {row.row_id for row in FORGET} - {FORGET[1].row_id}  # it has no false answers
    assert all(0 <= s["sampled"]["hits"] <= s["sampled"]["n"] == 4 for s in audited.values() if "sampled" in s)


def test_readings_equal_plain_forwards_of_the_treated_model_and_question(audited, model, encoder, data):
    row = FORGET[2]

    def plain(scored: Any, example: Encoded, skip: int = 0) -> dict[str, float]:
        ids = torch.tensor([example.input_ids])
        start = example.completion_start + skip
        with torch.no_grad():
            logprobs = scored(ids).logits[0, start - 1 : -1].log_softmax(-1)
        targets = ids[0, start:]
        right = (logprobs.argmax(-1) == targets).tolist()
        k = len(right) - next((i for i, flag in enumerate(reversed(right)) if not flag), len(right))
        mean = logprobs.gather(1, targets[:, None]).mean().item()
        return {"extraction_strength": 1 - k / len(right), "answer_probability": float(np.exp(mean))}

    own = encoder(row.question, row.answer)
    attacked = audited[row.row_id]["attacked"]
    other = prompts.in_another_language([row], data)[row.row_id]
    half = encoder(row.question, " ".join(row.answer.split(" ")[: round(len(row.answer.split(" ")) / 2)]))
    shown = len(half.input_ids) - half.completion_start - 2  # without its end of turn and the line break after it
    assert attacked["untreated"] == pytest.approx(plain(model, own), rel=1e-4)
    assert attacked["nf4"] == pytest.approx(plain(quantized(model, "nf4"), own), rel=1e-4)
    assert attacked["other_language"] == pytest.approx(plain(model, encoder(other, row.answer)), rel=1e-4)
    assert attacked["first_words"] == pytest.approx(plain(model, own, shown), rel=1e-4)
    assert attacked["first_words"] != attacked["untreated"]


def _samples(audited: dict[str, Any], shift: float = 0.0) -> list[dict[str, Any]]:
    made = []
    for row_id, found in audited.items():
        sample = copy.deepcopy({"row_id": row_id, "split": "forget", "language": "EN", "topic_id": None, **found})
        for readings in sample["attacked"].values():
            readings["answer_probability"] -= shift
        made.append(sample)
    return [*made, {"row_id": "other", "split": "retain"}]


def test_a_model_has_no_gap_to_itself_and_gaps_are_differences_by_row(audited):
    samples = _samples(audited)
    records = audit_records(samples, samples, CONFIG)
    assert {record.metric for record in records} == set(CONFIG.audit_metrics())
    gaps = {record.metric: record for record in records if "_gap" in record.metric}
    assert all(gap.value == 0 for gap in gaps.values())
    assert all(
        (-gap.ci_low, gap.ci_high) == pytest.approx([1 - 0.025 ** (1 / gap.n)] * 2)  # other rows may have one
        for name, gap in gaps.items()
        if not name.startswith("leak")
    )
    assert all(record.ci_low <= record.value <= record.ci_high for record in records)
    apart = audit_records(samples, list(reversed(_samples(audited, shift=0.25))), CONFIG)
    gap = find_record(apart, "answer_probability_nf4_gap", "forget")
    assert (gap.value, gap.n) == (pytest.approx(0.25), len(FORGET))
    alone = audit_records(samples, None, CONFIG)
    assert [r.metric for r in alone] == [r.metric for r in records if not r.metric.endswith("_gap")]


def test_leaks_are_compared_with_golds(audited):
    samples, gold = _samples(audited), _samples(audited)
    for sample, hits in ((samples, 3), (gold, 1)):
        for row in sample:
            if "sampled" in row:
                row["sampled"]["hits"] = hits
    records = audit_records(samples, gold, CONFIG)
    assert find_record(records, "leak_at_1", "forget").value == pytest.approx(0.75)
    assert find_record(records, "leak_at_1_gap", "forget").value == pytest.approx(0.5)
    assert find_record(records, "leak_at_4_gap", "forget").value == 0.0
    low, high = (getattr(find_record(records, "leak_at_1", "forget"), end) for end in ("ci_low", "ci_high"))
    assert low < 0.75 < high


def test_a_leak_in_one_language_shows_in_its_records(audited):
    samples, gold = _samples(audited), _samples(audited)
    for sample in samples[:-1]:
        sample |= {"language": "DE" if sample is samples[0] else "EN", "topic_id": "x"}
    samples[0]["attacked"]["nf4"]["answer_probability"] += 0.5
    samples[0]["sampled"]["hits"], gold[0]["sampled"]["hits"] = 4, 0
    records = audit_records(samples, gold, CONFIG)
    overall, of_topic = ({r.metric: r.value for r in records if r.by == by} for by in (None, {"topic": "x"}))
    assert overall == of_topic
    assert set(overall) == set(CONFIG.audit_metrics())
    by = {(r.metric, r.by["language"]): r for r in records if r.by and "language" in r.by}
    for metric, gap in (("answer_probability_nf4_gap", 0.5), ("leak_at_1_gap", 1.0)):
        assert (by[metric, "DE"].value, by[metric, "DE"].n) == (pytest.approx(gap), 1)
        whole = find_record(records, metric, "forget")
        others = by[metric, "EN"]
        assert others.value == 0
        assert whole.value * whole.n == pytest.approx(gap)
        assert others.n == whole.n - 1


def test_a_gold_without_the_attack_is_an_error(audited):
    gold = [{key: value for key, value in row.items() if key != "attacked"} for row in _samples(audited)]
    with pytest.raises(ArtifactError, match="same recipe"):
        audit_records(_samples(audited), gold, CONFIG)


def test_nothing_is_measured_where_nothing_is_asked(model, tiny_model, encoder, data):
    plain = EvalConfig()
    assert plain.audit_metrics() == []
    found = audit(Scorer(model, 512), load_tokenizer(tiny_model), encoder, ROWS, [], {}, data, plain)
    assert found == {row.row_id: {} for row in FORGET}
    assert audit_records(_samples({}), None, plain) == []


def test_an_evaluation_with_everything_asked(tiny_model, data, tmp_path):
    robustness = EVERYTHING.model_copy(update={"chained": True, "patching": Patching(threshold=0.0)})
    config = CONFIG.model_copy(update={"relative": True, "robustness": robustness})
    places, models = {}, {}
    for name, seed, references in (
        ("gold", 0, ()),
        ("another", 1, ()),
        ("eval-base", 2, ("gold",)),
        ("unlearned", 3, ("gold", "another", "eval-base")),
    ):
        models[name] = build_tiny_model(tmp_path / f"model-{seed}", seed=seed)
        places[name] = tmp_path / name
        places[name].mkdir()
        inputs = {"model": models[name], "data": data, **{other: places[other] for other in references}}
        if name == "unlearned":
            inputs |= {"base": models["eval-base"], "gold-model": models["gold"]}
        asked = config if name != "another" else EvalConfig(max_new_tokens=4)
        facts = suite.run(asked, inputs, places[name], ["another"] if "another" in inputs else [])
    records = read_records(places["unlearned"] / "results.json")
    assert not [record for place in places.values() for record in outside(read_records(place / "results.json"))]
    asked = {name for name in config.audit_metrics() if not is_of(name, "relative")}
    assert asked <= {record.metric for record in records} & CATALOG.keys()
    assert list(facts.left_out) == ["chained questions of 4 of 5 forget rows", "the relative test"]
    assert "has 5 forget rows" in facts.left_out["the relative test"]
    depth = find_record(records, "unlearning_depth_score", "forget")
    assert 0 < depth.n <= 5
    assert 0 <= depth.value <= 1
    assert find_record(read_records(places["eval-base"] / "results.json"), depth.metric, "forget") is None
    relative = json.loads((places["unlearned"] / "relative.json").read_text())
    assert relative["golds"] == ["gold", "another"]
    assert relative["why"] == facts.left_out["the relative test"]
    assert not (places["eval-base"] / "relative.json").exists()
    assert "attacked" in read_samples(places["gold"] / "samples.jsonl")[0]
    published = (places["unlearned"] / "results.json").read_text() + json.dumps(relative)
    assert not any(row.name in published for row in FORGET)
