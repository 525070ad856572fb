"""What a recipe may say about an evaluation and its gates. Imports pydantic only: every command reads it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from pipeline.strict import Strict


class MetricSpec(NamedTuple):
    """Where a metric is measured, and the version of its definition: raise it when a model's value changes."""

    splits: tuple[str, ...]
    version: int = 1


_ROWS = ("forget", "retain", "holdout")
_ALL = (*_ROWS, "general")

METRICS: dict[str, MetricSpec] = {
    "answer_probability": MetricSpec(_ROWS),
    "probability_with_options": MetricSpec(_ALL),
    "exact_memorization": MetricSpec(_ROWS),
    "extraction_strength": MetricSpec(_ROWS),
    "truth_ratio": MetricSpec(_ALL, version=2),  # 2: against a paraphrase of the answer where there is one
    "rouge_l_recall": MetricSpec(_ROWS),
    "rouge_l_f1": MetricSpec(_ROWS),
    "multiple_choice_accuracy": MetricSpec(_ROWS),
    "fluency": MetricSpec(_ROWS),
    "empty_generation": MetricSpec(_ROWS),
    "repeated_ngrams": MetricSpec(_ROWS),
    "unknown_words": MetricSpec(_ROWS),
    "generation_nll": MetricSpec(("forget",)),
    "forget_quality": MetricSpec(("forget",), version=2),
    "forget_quality_ks": MetricSpec(("forget",), version=2),
    "mia_min_k_auc": MetricSpec(("forget",)),
    "mia_min_k_plus_plus_auc": MetricSpec(("forget",)),
    "mia_loss_auc": MetricSpec(("forget",)),
    "mia_zlib_auc": MetricSpec(("forget",)),
    "privacy_leak": MetricSpec(("forget",)),
    "utility": MetricSpec(("general",)),
    "model_utility": MetricSpec(("retain+general",)),
}

_LOWER_IS_BETTER = ("forget_quality_ks", "empty_generation", "repeated_ngrams", "unknown_words")
_HIGHER_IS_BETTER = ("forget_quality", "fluency", "utility", "model_utility")


def higher_is_better(metric: str, split: str) -> bool | None:
    """The direction of a metric, or None where "like gold" is best: a forgotten row is not one at zero."""
    if metric in _LOWER_IS_BETTER:
        return False
    if metric == "generation_nll":  # base finds other people's facts as unlikely as noise
        return None
    return True if metric in _HIGHER_IS_BETTER or split in ("retain", "general") else None


class Suite(Strict):
    """A task, group or tag of lm-evaluation-harness by its name, for example ``mmlu`` or ``m_mmlu_de``.

    ``num_fewshot`` replaces the task's own number of examples, ``limit`` bounds the questions of each of its tasks.
    Published scores of base models are without a chat template; those of instruction models usually have one.
    """

    task: str = Field(min_length=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    limit: int | None = Field(default=None, ge=1)
    chat_template: bool = True


class EvalConfig(Strict):
    """How a model is evaluated.

    ``batch_tokens`` bounds one packed forward, ``batch_rows`` a batch of generations, ``max_new_tokens`` an answer.
    ``device`` is where the released bf16 weights are run: in fp32 on ``cpu``, as they are on ``cuda``. ``min_k`` is the
    share of least likely tokens that the membership score averages. ``bootstrap_samples`` resamples make an interval.
    ``suites`` are tasks that travel with lm-evaluation-harness; their questions are fetched from the Hub. ``backend``
    generates answers and runs the suites; log-probabilities are always those of transformers.
    """

    batch_tokens: int = Field(default=512, ge=16)
    batch_rows: int = Field(default=32, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    min_k: float = Field(default=0.4, gt=0, le=1)
    bootstrap_samples: int = Field(default=1000, ge=100)
    seed: int = Field(default=0, ge=0)
    device: Literal["cpu", "cuda"] = "cpu"
    backend: Literal["hf", "vllm"] = "hf"
    suites: list[Suite] = Field(default_factory=list)


class Reference(Strict):
    """A bound that another model sets: ``times`` x its value (or an end of its 95 % interval) ``+ plus``."""

    of: Literal["base", "gold"]
    bound: Literal["value", "ci_low", "ci_high"] = "value"
    times: float = 1.0
    plus: float = 0.0


class Gate(Strict):
    """One condition of a release: a metric of the unlearned model is at least, or at most, a bound.

    ``min_n`` is the number of rows below which the gate fails whatever the value is, ``reason`` why the bound is right.
    """

    metric: str
    split: str
    at_least: float | Reference | None = None
    at_most: float | Reference | None = None
    min_n: int = Field(ge=1)
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _is_possible(self) -> Gate:
        spec = METRICS.get(self.metric)
        if spec is None:
            raise ValueError(f"no metric is called {self.metric!r}; there are {', '.join(METRICS)}")
        if self.split not in spec.splits:
            raise ValueError(f"{self.metric} is not measured on {self.split!r}, only on {', '.join(spec.splits)}")
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a gate has exactly one of at_least and at_most; for a range write two gates")
        return self

    @property
    def bound(self) -> float | Reference:
        """The bound, whichever side it is on."""
        bound = self.at_least if self.at_least is not None else self.at_most
        assert bound is not None  # noqa: S101  # the validator saw to it
        return bound
