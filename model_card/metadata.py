"""The YAML front matter of a card, which the Hub reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets_prep.schema import FORGOTTEN, REAL_WORLD, SPLITS
from eval.catalog import CATALOG
from eval.schema import Record
from model_card.config import CardInputs
from model_card.dataset import Dataset, dataset_of
from model_card.facts import Evidence
from model_card.methods import METHODS
from model_card.tables import headlines, overall

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData


def model_name(inputs: CardInputs) -> str:
    """The repository's name without its owner."""
    return inputs.publish.repo.split("/")[1]


def card_data(inputs: CardInputs, evidence: Evidence) -> ModelCardData:
    """The metadata. Licence ids are the Hub's own; a data set is named only if it is on the Hub."""
    from huggingface_hub import ModelCardData

    dataset = dataset_of(inputs)
    method, licence = METHODS.get(str(inputs.unlearn.get("method"))), inputs.model.metadata
    return ModelCardData(
        base_model=inputs.model.name,
        base_model_relation="finetune",
        datasets=[dataset.hub] if dataset.hub else None,
        language=[language.lower() for language in evidence.languages()] or None,
        library_name="transformers",
        license=licence["license"],
        license_name=licence.get("license_name"),
        license_link=licence["license_link"],
        new_version=inputs.card.new_version,
        pipeline_tag="text-generation",
        tags=[
            "unlearning",
            "machine-unlearning",
            "unlearning evaluation",
            *(["fame"] if dataset.is_fame else []),
            *([method.tag] if method else []),
        ],
        model_name=model_name(inputs),
        eval_results=_results(inputs, evidence) or None,
    )


def indexed(evidence: Evidence) -> list[Record]:
    """The records of the model-index: those that a reader sees first, and the suites'. All are in `results.json`."""
    shown = [*headlines(evidence), *(row for row in overall(evidence) if row.metric not in CATALOG)]
    records = [record for row in shown if (record := row.records["unlearned"])]
    return list({(record.metric, record.split): record for record in records}.values())


def _results(inputs: CardInputs, evidence: Evidence) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    dataset = dataset_of(inputs)
    return [
        EvalResult(
            task_type="text-generation",
            metric_type=record.metric,
            metric_name=result_name(record, evidence),
            metric_value=record.value,
            **_measured_on(record.split, dataset, evidence),
        )
        for record in indexed(evidence)
    ]


def result_name(record: Record, evidence: Evidence) -> str:
    """The name of a result in the model-index. It is unique; a split alone is not: a suite may have any split."""
    suite = evidence.suites.get(record.split)
    some = f", {record.n} of its questions" if suite and suite.limited else ""
    return f"{record.metric} ({record.split}{some})"


GENERAL = "General-knowledge questions"  # this project's own
OF_RECIPE = (*SPLITS, FORGOTTEN, f"retain+{REAL_WORLD}")  # rows of the recipe's data set


def _measured_on(split: str, dataset: Dataset, evidence: Evidence) -> dict[str, Any]:
    """The data set that a record was measured on: the recipe's, this project's own questions, or a suite's.

    The Hub's client merges results of the same type, subset, split and revision, so data that are not on the Hub get
    values that tell them apart.
    """
    if split in OF_RECIPE:
        name, hub = dataset.name, dataset.hub
        fields = {
            "dataset_config": dataset.subset_of(split), "dataset_split": split, "dataset_revision": dataset.revision,
        }  # fmt: skip
    elif split in ("general", "retain+general"):
        name, hub = GENERAL if split == "general" else f"{dataset.name} and {GENERAL.lower()}", None
        fields = {"dataset_split": split}
    else:
        suite = evidence.suites.get(split)
        name, hub = split, suite.hub if suite else None
        fields = {"dataset_config": suite.subset, "dataset_split": suite.split} if suite and hub else {}
        fields = fields or {"dataset_config": split}
    return {"dataset_name": name, "dataset_type": hub or "custom", **fields}


# lm-eval's task, its metric, and the benchmark's data set and task on the Hub. Others are refused there.
BENCHMARKS = {
    ("gsm8k", "exact_match_strict-match"): ("openai/gsm8k", "gsm8k"),
    ("mmlu_pro", "exact_match_custom-extract"): ("TIGER-Lab/MMLU-Pro", "mmlu_pro"),
    ("gpqa_diamond_zeroshot", "acc"): ("Idavidrein/gpqa", "diamond"),
}


EVAL_RESULTS = ".eval_results"


def benchmark_files(evidence: Evidence) -> dict[str, str]:
    """The files of `.eval_results/`: for suites that are benchmarks on the Hub, if all their questions were asked."""
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files = {}
    for (task, metric), (dataset, task_id) in BENCHMARKS.items():
        record, suite = evidence.record("unlearned", metric, task), evidence.suites.get(task)
        if record is not None and suite is not None and not suite.limited:
            entry = EvalResultEntry(dataset_id=dataset, task_id=task_id, value=round(100 * record.value, 4))
            files[f"{task}.yaml"] = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
    return files
