"""The YAML front matter of a card, which the Hub reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets_prep.schema import FORGOTTEN, SPLITS
from model_card.claims import keys
from model_card.config import CardInputs
from model_card.dataset import Dataset, dataset_of
from model_card.facts import Evidence
from model_card.methods import METHODS

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData


def model_name(inputs: CardInputs) -> str:
    """The repository's name without its owner."""
    return inputs.publish.repo.split("/")[1]


def card_data(inputs: CardInputs, evidence: Evidence) -> ModelCardData:
    """The metadata. Licence ids are the Hub's own; a data set is named only if it is on the Hub."""
    from huggingface_hub import ModelCardData

    dataset = dataset_of(inputs)
    method = METHODS.get(str(inputs.unlearn.get("method")))
    licence = inputs.model.metadata
    return ModelCardData(
        base_model=inputs.model.name,
        base_model_relation="finetune",
        datasets=[dataset.hub] if dataset.hub else None,
        language=[language.lower() for language in evidence.languages()] or None,
        library_name="transformers",
        license=licence["license"],
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
        pipeline_tag="text-generation",
        tags=[
            "unlearning",
            "machine-unlearning",
            *(["fame"] if dataset.is_fame else []),
            *([method.tag] if method else []),
        ],
        model_name=model_name(inputs),
        eval_results=_results(inputs, evidence),
    )


# No `.eval_results/`: its entries must name a benchmark from the Hub's allow-list, and neither the data of a recipe nor
# this project's general-knowledge questions are on it. The values are in the model-index here and in results.json.
def _results(inputs: CardInputs, evidence: Evidence) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    dataset = dataset_of(inputs)
    results = []
    for metric, split in keys(evidence):
        record = evidence.record("unlearned", metric, split)
        if record is not None:
            results.append(
                EvalResult(
                    task_type="text-generation",
                    metric_type=metric,
                    metric_name=result_name(metric, split),
                    metric_value=record.value,
                    **_measured_on(split, dataset, evidence),
                )
            )
    return results


def result_name(metric: str, split: str) -> str:
    """The name of a result in the model-index. It is unique; a split alone is not: a suite may have any split."""
    return f"{metric} ({split})"


GENERAL = "General-knowledge questions"  # this project's own


def _measured_on(split: str, dataset: Dataset, evidence: Evidence) -> dict[str, Any]:
    """The data set that a record was measured on: the recipe's, this project's own questions, or a suite's.

    The Hub's client merges results of the same type, subset, split and revision, so data that are not on the Hub get
    values that tell them apart.
    """
    if split in (*SPLITS, FORGOTTEN):
        name, hub = dataset.name, dataset.hub
        fields = {"dataset_config": dataset.subset, "dataset_split": split, "dataset_revision": dataset.revision}
    elif split in ("general", "retain+general"):
        name, hub = GENERAL if split == "general" else f"{dataset.name} and {GENERAL.lower()}", None
        fields = {"dataset_split": split}
    else:
        suite = evidence.suites.get(split)
        name, hub = split, suite.hub if suite else None
        fields = {"dataset_config": suite.subset, "dataset_split": suite.split} if suite and hub else {}
        fields = fields or {"dataset_config": split}
    return {"dataset_name": name, "dataset_type": hub or "custom", **fields}
