"""The YAML front matter of a card, which the Hub reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_card.claims import keys
from model_card.config import CardInputs
from model_card.facts import Evidence
from model_card.methods import METHODS

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData


def hub_source(inputs: CardInputs) -> dict[str, Any] | None:
    """``{"id", "revision"}`` of the data's Hub repository; None for a sample set and for a file."""
    source = inputs.data.get("source")
    return source.get("hub") if isinstance(source, dict) else None  # type: ignore[return-value]


def is_sample(inputs: CardInputs) -> bool:
    """Whether the data are this project's invented sample set."""
    source = inputs.data.get("source")
    return isinstance(source, dict) and source.get("sample") is not None


def model_name(inputs: CardInputs) -> str:
    """The repository's name without its owner."""
    return inputs.publish.repo.split("/")[1]


def card_data(inputs: CardInputs, evidence: Evidence) -> ModelCardData:
    """The metadata. Licence ids are the Hub's own; a dataset is named only where it is one on the Hub."""
    from huggingface_hub import ModelCardData

    source = hub_source(inputs)
    method = METHODS.get(str(inputs.unlearn.get("method")))
    return ModelCardData(
        base_model=inputs.model.name,
        base_model_relation="finetune",
        datasets=[source["id"]] if source else None,
        language=[language.lower() for language in evidence.languages()],
        library_name="transformers",
        license=inputs.model.license,
        pipeline_tag="text-generation",
        tags=["unlearning", "machine-unlearning", "fame", *([method.tag] if method else [])],
        model_name=model_name(inputs),
        eval_results=_results(inputs, evidence),
    )


# No `.eval_results/`: its entries must name a benchmark from the Hub's allow-list, and neither FAME nor this project's
# general-knowledge questions are on it. The values are in the model-index here and in results.json.
def _results(inputs: CardInputs, evidence: Evidence) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    source = hub_source(inputs)
    results = []
    for metric, split in keys(evidence):
        record = evidence.record("unlearned", metric, split)
        if record is None:
            continue
        general = split == "general"
        fame = "FAME-format sample set" if is_sample(inputs) else "FAME"
        on_hub = source is not None and not general
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=source["id"] if source and on_hub else "custom",
                dataset_name="General-knowledge questions" if general else fame,
                dataset_split=split,
                dataset_revision=source.get("revision") if source and on_hub else None,
                metric_type=metric,
                metric_name=f"{metric} ({split})",
                metric_value=record.value,
            )
        )
    return results
