"""The `eval-base`, `eval-gold` and `eval-unlearned` stages: measure one checkpoint on all rows of a data artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_prep.chat import chat_example, encode, load_tokenizer
from datasets_prep.schema import SPLITS, Encoded, Row, read_perturbed, read_rows
from eval.config import EvalConfig
from eval.schema import read_samples, write_records, write_samples
from eval.weights import checkpoint_folder, weights_sha256, write_measured
from pipeline.errors import DataError, ModelError, SystemLimitError
from pipeline.progress import report

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from eval.schema import Record

_HEADLINE = ("answer_probability", "multiple_choice_accuracy", "rouge_l_recall", "utility", "forget_quality")


def run(config: EvalConfig, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Evaluate the checkpoint of ``inputs["model"]`` on the rows of ``inputs["data"]``.

    With ``inputs["gold"]``, the evaluation of gold, it is also compared with gold. Writes ``results.json``,
    ``samples.jsonl`` (stays local) and ``weights.json`` (the digest of what was measured) into ``out``. Returns the
    facts ``weights_sha256``, ``rows`` and ``values``. Raises ModelError where the checkpoint cannot be loaded or its
    logits are not finite, DataError where a split is empty, ArtifactError where data or gold cannot be read.
    """
    from eval.audit import audit_records, check
    from eval.records import row_records, set_records, utility_record
    from eval.relative import compare_with_golds

    checkpoint = checkpoint_folder(inputs["model"])
    digest = weights_sha256(checkpoint)
    rows = _rows(inputs["data"])
    check(config, rows["forget"])
    gold = read_samples(inputs["gold"] / "samples.jsonl") if "gold" in inputs else None
    report("loading the model")
    model, tokenizer = load(checkpoint, config.device), load_tokenizer(checkpoint)
    samples, general = measure(model, tokenizer, rows, inputs["data"], config)
    report("intervals")
    records = [*row_records(samples, config), *set_records(samples, gold, config), utility_record(general, config)]
    records += audit_records(samples, gold, config)
    records += compare_with_golds(samples, inputs, config, out)
    write_records(out / "results.json", records)
    write_samples(out / "samples.jsonl", samples)
    write_measured(out, digest)
    return {"weights_sha256": digest, "rows": len(samples), "values": _headline(records)}


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[str, list[Row]],
    data: Path,
    config: EvalConfig,
) -> tuple[list[dict[str, Any]], list[float]]:
    """The measurements of every row, in the order of the splits, and 0 or 1 for each general-knowledge question."""
    from eval.audit import audit
    from eval.harness import ask
    from eval.probes import Scorer, probe

    perturbed = read_perturbed(data / "perturbed.jsonl")
    everything = [row for split in SPLITS for row in rows[split]]
    scorer = Scorer(model, config.batch_tokens)

    def encoder(question: str, answer: str) -> Encoded:
        return encode(tokenizer, chat_example(tokenizer, question, answer))

    probed = probe(scorer, everything, perturbed, encoder, config.min_k)
    asked = {row.row_id for row in perturbed}
    splits = [split for split in SPLITS if any(row.row_id in asked for row in rows[split])]
    answers = ask(scorer, tokenizer, data=data, splits=splits, config=config)
    audited = audit(scorer, tokenizer, encoder, rows, perturbed, data, config)
    samples = [
        {
            "row_id": row.row_id,
            "split": split,
            "language": row.language,
            "topic_id": row.topic_id,
            **probed[row.row_id],
            **answers.rows.get(row.row_id, {}),
            **audited.get(row.row_id, {}),
        }
        for split in SPLITS
        for row in rows[split]
    ]
    return samples, answers.general


def load(checkpoint: Path, device: str) -> PreTrainedModel:
    """The saved checkpoint, as it will be released: in fp32 on ``cpu``, in bf16 on ``cuda``.

    Raises ModelError where it cannot be loaded, SystemLimitError where there is no GPU.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemLimitError("The recipe evaluates on `cuda`, and torch sees no GPU here. Set `eval.device: cpu`.")
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True)
    except Exception as error:  # safetensors raises a class of its own, and damaged files raise nearly anything
        reason = " ".join(str(error).split())
        raise ModelError(f"{checkpoint}: cannot be loaded as a model ({reason:.200}). Make it again.") from error
    model.to(device)  # type: ignore[arg-type]
    return model.eval()


def _rows(data: Path) -> dict[str, list[Row]]:
    rows = {split: read_rows(data / f"{split}.jsonl") for split in SPLITS}
    empty = [split for split, found in rows.items() if not found]
    if empty:
        raise DataError(f"{data}: no rows in {', '.join(empty)}. An evaluation needs forget, retain and holdout rows.")
    return rows


def _headline(records: list[Record]) -> dict[str, float]:
    """A few overall values for people, for example ``answer_probability forget``."""
    return {f"{r.metric} {r.split}": round(r.value, 4) for r in records if r.metric in _HEADLINE and r.by is None}
