"""The stages `eval-start`, `eval-base`, `eval-gold`, `eval-unlearned`: measure one checkpoint on a data artifact."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from core.digests import checkpoint_folder, weights_sha256
from core.errors import DataError, ModelError, SystemLimitError
from core.generation import end_at, keep_special_tokens_alone
from core.loading import load_model
from core.memory import limits
from core.progress import report
from core.ranks import is_first
from datasets_prep.chat import chat_example, encode, encode_rows, end_of_turn, load_tokenizer
from datasets_prep.schema import (
    FORGOTTEN,
    REAL_WORLD,
    SPLITS,
    Encoded,
    PerturbedRow,
    Row,
    read_forgotten,
    read_paraphrased,
    read_perturbed,
    read_real_world,
    read_rows,
)
from eval.attacks.copies import aside
from eval.audit import audit, check, left_out, unlearning_depths
from eval.catalog import DATA, is_headline
from eval.config import EvalConfig
from eval.records import tofu
from eval.records.audited import audit_records
from eval.records.facts import FACT, told_before
from eval.records.relative import compare_with_golds
from eval.records.rows import CUT, all_records
from eval.schema import (
    EvaluationFacts,
    OtherPrompts,
    Record,
    read_samples,
    write_measured,
    write_other_prompts,
    write_records,
    write_samples,
)
from eval.scoring import fluency
from eval.scoring.harness import ask, check_backend, language_model
from eval.scoring.probes import Scorer, probe
from eval.scoring.suites import load_suites, run_suites
from eval.tasks.fame_topics import general_knowledge
from pipeline.train.attention import attending_rows
from pipeline.train.packed import check_rows_apart


@dataclass(frozen=True)
class Measurements:
    """Measurements of every row and general question, records of the suites, and lm-eval's results by file name."""

    samples: list[dict[str, Any]]
    suites: list[Record]
    harness: dict[str, dict[str, Any]]


class Base(NamedTuple):
    """The base model: its checkpoint and its tokenizer."""

    checkpoint: Path
    tokenizer: PreTrainedTokenizerBase


def run(
    config: EvalConfig, inputs: Mapping[str, Path], out: Path, further_golds: Sequence[str] = ()
) -> EvaluationFacts:
    """Evaluate the checkpoint of ``inputs["model"]`` on the rows of ``inputs["data"]``.

    ``inputs["gold"]``, the evaluation of gold, is optional; with it the model is compared with gold. With
    ``inputs["base"]``, the base model, the vocabulary must be base's, and generations are scored under base.
    ``further_golds`` names the inputs that are evaluations of golds of other seeds. ``inputs["gold-model"]``, with base
    and gold's weights, gives the unlearning depth score, if the recipe asks for it.

    Writes ``results.json``, ``samples.jsonl`` (stays local), ``weights.json`` (the digest of the measured weights) and
    ``lm_eval/`` (the harness's own results) into ``out``, and ``prompts.json`` if its chat template is not base's. Of
    several processes only the first writes, and has ``values`` in its facts.

    Raises ModelError if the checkpoint cannot be loaded, has another vocabulary than base or logits that are not
    finite, DataError if forget or retain is empty, InputError if lm-eval has no such suite, ArtifactError if data or
    gold cannot be read, SystemLimitError if memory runs out.
    """
    with limits(partial(_memory_advice, config)):
        return _run(config, inputs, out, further_golds)


def _memory_advice(config: EvalConfig, has: str) -> str:
    levers = [
        f"eval.batch_tokens: {max(16, config.batch_tokens // 2)} (now {config.batch_tokens}; log-probabilities)",
        f"eval.batch_rows: {max(1, config.batch_rows // 2)} (now {config.batch_rows}; generations and suites)",
    ]
    if config.robustness and (relearn := config.robustness.relearn):
        if not relearn.rank:
            levers.append("eval.robustness.relearn.rank: 16 (adapters, instead of 12 bytes a parameter)")
        levers.append("eval.robustness.relearn: null")
    return (
        f"in an evaluation: {has}. What helps: {'; '.join(levers)}; a device with more memory. Finished stages are "
        "kept, and this evaluation starts again."
    )


def _run(config: EvalConfig, inputs: Mapping[str, Path], out: Path, further_golds: Sequence[str]) -> EvaluationFacts:
    check_backend(config)
    checkpoint = checkpoint_folder(inputs["model"])
    digest = weights_sha256(checkpoint)
    rows = _rows(inputs["data"])
    check(config, rows["forget"])
    gold = read_samples(inputs["gold"] / "samples.jsonl") if "gold" in inputs else None
    tokenizer = load_tokenizer(checkpoint)
    base = prompts = None
    if "base" in inputs:
        base = Base(checkpoint_folder(inputs["base"]), load_tokenizer(checkpoint_folder(inputs["base"])))
        check_vocabulary(checkpoint, tokenizer, base)
        prompts = other_prompts(tokenizer, base.tokenizer, [row for split in SPLITS for row in rows[split]])
    suites = load_suites(config.suites, inputs["data"])
    report("loading the model")
    model = load(checkpoint, config.device)
    end_at(model, end_of_turn(tokenizer))
    measured = measure(
        model, tokenizer, rows, inputs["data"], config, suites=suites, base=base, gold=inputs.get("gold-model")
    )
    records: list[Record] = []
    unplaced: dict[str, str] = {}
    if is_first():  # of several processes; the others only share the work
        report("intervals")
        records = [*all_records(measured.samples, gold, config), *measured.suites]
        records += audit_records(measured.samples, gold, config)
        placed, unplaced = compare_with_golds(measured.samples, inputs, further_golds, config, out)
        records += placed
        write_records(out / "results.json", records)
        write_samples(out / "samples.jsonl", measured.samples)
        write_measured(out, digest)
        if prompts:
            write_other_prompts(out, prompts)
        _write_harness(out / "lm_eval", measured.harness)
    return EvaluationFacts(
        weights_sha256=digest,
        rows=sum(len(rows[split]) for split in SPLITS),
        truth_ratio_of=_truth_ratio_of(measured.samples),
        values=_headline(records),
        left_out={**_left_out(rows), **left_out(config, rows, measured.samples), **unplaced},
    )


def _left_out(rows: Mapping[str, list[Row]]) -> dict[str, str]:
    """What cannot be measured on these rows, and why; empty if everything can."""
    if rows["holdout"]:
        return {}
    why = "there are no holdout rows, and every other row was trained on; the data's checks.json says why"
    return {"membership inference, privacy leak": why}


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[str, list[Row]],
    data: Path,
    config: EvalConfig,
    *,
    suites: list[Any] | None = None,
    base: Base | None = None,
    gold: Path | None = None,
) -> Measurements:
    """Measure every row, in the order of the splits, rows forgotten before, real-world questions, and the suites.

    ``base`` and ``gold`` are the models that some measurements need beside the one that is measured.
    """
    questions, options = general_questions()
    asked = {split: rows[split] for split in SPLITS}
    asked |= {FORGOTTEN: read_forgotten(data), REAL_WORLD: read_real_world(data), "general": questions}
    everything = [row for of_split in asked.values() for row in of_split]
    perturbed = read_perturbed(data / "perturbed.jsonl")
    scorer = Scorer(model, config.batch_tokens)

    def encoder(question: str, answer: str) -> Encoded:
        return encode(tokenizer, chat_example(tokenizer, question, answer))

    # The first paraphrase of a row that has several: the dict keeps the last, so they come in reverse.
    reworded = {row.row_id: row.answer for row in reversed(read_paraphrased(data / "paraphrased.jsonl"))}
    probed = probe(scorer, everything, [*perturbed, *options], encoder, config.min_k, reworded)
    lm = None if config.backend == "hf" else language_model(scorer, tokenizer, config)
    splits = [split for split in (*DATA, REAL_WORLD) if asked[split]]
    answers = ask(scorer, tokenizer, data=data, splits=splits, config=config, lm=lm)
    audited = audit(scorer, tokenizer, encoder, rows, perturbed, probed, data, config)
    samples = _samples(asked, probed, answers.rows, audited)
    if asked[REAL_WORLD]:
        tofu.add_recalls(samples, {row.row_id: row.answer for row in everything})
    add_fluency(samples, everything, perturbed)
    _mark_cut(samples, {row.row_id: row.answer for row in everything}, tokenizer, config)
    if base is not None:
        _add_generation_losses(samples, everything, scorer, base, config)
        if gold is not None and config.patching:
            models = (_base_of(base.checkpoint, scorer, config), load(checkpoint_folder(gold), config.device), model)
            depths = unlearning_depths(*models, encoder, rows["forget"], perturbed, config)
            for sample in samples:
                if sample["row_id"] in depths:
                    sample["unlearning_depth_score"] = depths[sample["row_id"]]
            del models  # the suites need the memory
    records, results = run_suites(suites or [], scorer, tokenizer, config, lm)
    return Measurements(samples, records, {"fame_topics": answers.results, **results})


def _samples(
    asked: Mapping[str, list[Row]],
    probed: Mapping[str, dict[str, Any]],
    answered: Mapping[str, dict[str, Any]],
    audited: Mapping[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """The measurements of each row and question, joined by ``row_id``."""
    before = {row_id: first for split in (*SPLITS, FORGOTTEN) for row_id, first in told_before(asked[split]).items()}
    return [
        {
            "row_id": row.row_id,
            "split": split,
            "language": row.language,
            "topic_id": row.topic_id,
            **probed[row.row_id],
            **answered.get(row.row_id, {}),
            **audited.get(row.row_id, {}),
            **({FACT: before[row.row_id]} if row.row_id in before else {}),
        }
        for split, of_split in asked.items()
        for row in of_split
    ]


def general_questions() -> tuple[list[Row], list[PerturbedRow]]:
    """The general-knowledge questions as rows, and their wrong options as false answers."""
    rows, false = [], []
    for item in general_knowledge()["test"]:
        right, wrong = item["choices"][item["gold"]], [c for i, c in enumerate(item["choices"]) if i != item["gold"]]
        rows.append(Row(item["row_id"], 0, "", "EN", "general", item["question"], right))
        false.append(PerturbedRow(item["row_id"], "general", tuple(wrong)))
    return rows, false


def add_fluency(samples: list[dict[str, Any]], rows: list[Row], perturbed: list[PerturbedRow]) -> None:
    """Add to each sample with a ``generation`` how fluent that is, by the words of these rows and of dictionaries."""
    vocabulary = fluency.Vocabulary(rows, perturbed)
    for sample in samples:
        if "generation" in sample:
            sample |= fluency.measure(sample["generation"], sample["language"], vocabulary)


def _mark_cut(samples: list[dict[str, Any]], answers: Mapping[str, str], tokenizer: Any, config: EvalConfig) -> None:
    """Mark each sample whose true answer has more tokens than the generation that is compared with it may have."""
    for sample in samples:
        if "generation" in sample:
            tokens = tokenizer(answers[sample["row_id"]], add_special_tokens=False)["input_ids"]
            sample |= {CUT: True} if len(tokens) > config.max_new_tokens else {}


def _add_generation_losses(
    samples: list[dict[str, Any]], rows: list[Row], scorer: Scorer, base: Base, config: EvalConfig
) -> None:
    """Score the generations under base, as answers to base's own prompts."""
    report("generations under base")
    forget = [sample for sample in samples if sample["split"] == "forget"]
    questions = {row.row_id: row.question for row in rows}
    if _is_measured(base.checkpoint, scorer):
        losses = fluency.generation_losses(forget, questions, scorer, base.tokenizer)
    else:
        with aside(scorer.model):
            of_base = Scorer(load(base.checkpoint, config.device), config.batch_tokens)
            losses = fluency.generation_losses(forget, questions, of_base, base.tokenizer)
            del of_base  # before the measured model is back
    for sample in samples:
        if sample["row_id"] in losses:
            sample["generation_nll"] = losses[sample["row_id"]]


def _is_measured(base: Path, scorer: Scorer) -> bool:
    return weights_sha256(base) == weights_sha256(Path(str(scorer.model.name_or_path)))


def _base_of(base: Path, scorer: Scorer, config: EvalConfig) -> PreTrainedModel:
    return scorer.model if _is_measured(base, scorer) else load(base, config.device)


def load(checkpoint: Path, device: str) -> PreTrainedModel:
    """The saved checkpoint as it will be released, in fp32 on ``cpu`` and in bf16 on ``cuda``.

    But for its settings for generation: answers are greedy, or sampled as the recipe says. Raises ModelError if it
    cannot be loaded or cannot take packed rows, SystemLimitError if there is no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemLimitError("The recipe evaluates on `cuda`, but torch finds no GPU. Set `eval.device: cpu`.")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_model(checkpoint, dtype=dtype)
    keep_special_tokens_alone(model)
    model.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device)  # type: ignore[arg-type]
    with attending_rows(model):
        check_rows_apart(model)
    return model.eval()


def check_vocabulary(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, base: Base) -> None:
    """Raise ModelError if a checkpoint's tokens are not base's: their probabilities could not be compared.

    It compares the sizes of the heads and the vocabularies.
    """
    sizes = [
        AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config().vocab_size
        for folder in (checkpoint, base.checkpoint)
    ]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"{checkpoint}: the vocabulary has {sizes[0]} tokens, base's has {sizes[1]}. Compare models of one family."
        )
    if tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise ModelError(f"{checkpoint}: the tokenizer's vocabulary is not base's. Save base's tokenizer with it.")


def other_prompts(
    tokenizer: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase, rows: list[Row]
) -> OtherPrompts | None:
    """How a checkpoint's chats differ from base's, of up to 200 rows; None if they are the same."""
    compared = rows[:: len(rows) // 200 + 1]
    pairs = zip(encode_rows(tokenizer, compared), encode_rows(base, compared), strict=True)
    differ = sum(own != of_base for own, of_base in pairs)
    if not differ:
        return None
    own, of_base = (chat_example(each, "Who?", "They.").prompt for each in (tokenizer, base))
    return OtherPrompts(rows=differ, compared=len(compared), own=own, base=of_base)


def _rows(data: Path) -> dict[str, list[Row]]:
    """The rows of every split. Holdout may be empty; then nothing is compared with rows that were never trained on."""
    rows = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS}
    empty = [split for split in ("forget", "retain") if not rows[split]]
    if empty:
        raise DataError(f"{data}: no rows in {', '.join(empty)}. An evaluation needs forget and retain rows.")
    return rows


def _write_harness(folder: Path, results: Mapping[str, dict[str, Any]]) -> None:
    from lm_eval.utils import handle_non_serializable

    folder.mkdir()
    for name, result in results.items():
        text = json.dumps(result, indent=1, ensure_ascii=False, sort_keys=True, default=handle_non_serializable)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _truth_ratio_of(samples: list[dict[str, Any]]) -> dict[str, int]:
    """Number of truth ratios that are against a paraphrase of the true answer, and against the answer itself."""
    wordings = [sample["truth_ratio_of"] for sample in samples if "truth_ratio_of" in sample]
    return {wording: wordings.count(wording) for wording in ("paraphrase", "answer")}


def _headline(records: list[Record]) -> dict[str, float]:
    """A few overall values for people, for example ``answer_probability forget``."""
    return {f"{r.metric} {r.split}": round(r.value, 4) for r in records if is_headline(r.metric) and r.by is None}
