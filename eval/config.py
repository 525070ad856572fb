"""What a recipe may say about an evaluation and its gates. Imports pydantic only: every command reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from core.strict import Strict
from eval.audit_config import ATTACKS, LEAK_K, Relative, Robustness, Sampling, audit_names


class MetricSpec(NamedTuple):
    """Where a metric is measured, and the version of its definition: raise it when a model's record changes."""

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
    "fluency": MetricSpec(_ROWS, version=2),  # 2: numbers of no row and repetitions in short texts count
    "empty_generation": MetricSpec(_ROWS),
    "repeated_ngrams": MetricSpec(_ROWS, version=2),
    "unknown_words": MetricSpec(_ROWS, version=2),
    "generation_nll": MetricSpec(("forget",)),
    "forget_quality": MetricSpec(("forget",), version=3),  # 3: the interval holds the value
    "forget_quality_ks": MetricSpec(("forget",), version=3),
    "mia_min_k_auc": MetricSpec(("forget",)),
    "mia_min_k_plus_plus_auc": MetricSpec(("forget",)),
    "mia_loss_auc": MetricSpec(("forget",)),
    "mia_zlib_auc": MetricSpec(("forget",)),
    "privacy_leak": MetricSpec(("forget",)),
    "forget_against_holdout": MetricSpec(("forget",), version=2),  # 2: as forget_quality 3
    "forget_against_holdout_ks": MetricSpec(("forget",), version=2),
    "utility": MetricSpec(("general",)),
    "model_utility": MetricSpec(("retain+general",)),
}

_LOWER_IS_BETTER = (
    "forget_quality_ks",
    "forget_against_holdout_ks",
    "empty_generation",
    "repeated_ngrams",
    "unknown_words",
)
_HIGHER_IS_BETTER = ("forget_quality", "forget_against_holdout", "fluency", "utility", "model_utility")


# Measured where a recipe asks for it (eval/audit_config.py has the names).
AUDIT_METRICS: dict[str, MetricSpec] = {name: MetricSpec(("forget",)) for name in audit_names(ATTACKS, LEAK_K, True)}
ALL_METRICS = {**METRICS, **AUDIT_METRICS}


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
    generates answers and runs the suites; log-probabilities are always those of transformers. ``processes`` share out
    batches and questions, each with the whole model (and a GPU of its own).
    ``robustness``, ``sampling`` and ``relative`` are the audit: expensive, and only where a recipe asks for it.
    """

    batch_tokens: int = Field(default=512, ge=16)
    batch_rows: int = Field(default=32, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    min_k: float = Field(default=0.4, gt=0, le=1)
    bootstrap_samples: int = Field(default=1000, ge=100)
    seed: int = Field(default=0, ge=0)
    device: Literal["cpu", "cuda"] = "cpu"
    backend: Literal["hf", "vllm"] = "hf"
    processes: int = Field(default=1, gt=0)
    suites: list[Suite] = Field(default_factory=list)
    robustness: Robustness | None = None
    sampling: Sampling | None = None
    relative: Relative | None = None

    @model_validator(mode="after")
    def _one_way_to_share(self) -> Self:
        if self.processes > 1 and self.backend == "vllm":
            raise ValueError(f"processes is {self.processes}, and vllm shares out its work by itself; set it to 1")
        return self

    def audit_metrics(self) -> list[str]:
        """The names of :data:`AUDIT_METRICS` that these sections measure."""
        attacks = self.robustness.attacks() if self.robustness else ()
        return audit_names(attacks, self.sampling.k if self.sampling else (), self.relative is not None)


EQUIVALENCE = dict.fromkeys(
    (
        "answer_probability",
        "exact_memorization",
        "extraction_strength",
        "truth_ratio",
        "rouge_l_recall",
        "rouge_l_f1",
        "multiple_choice_accuracy",
        "fluency",
        "mia_min_k_auc",
        "mia_loss_auc",
        "utility",
    ),
    0.05,
)
"""Differences between two checkpoints that do not matter, where the recipe says nothing else."""

NEEDS_GOLD = ("forget_quality", "forget_quality_ks", "privacy_leak")


class Reference(Strict):
    """A bound that was measured too: ``times`` x a value (or an end of its 95 % interval) ``+ plus``.

    ``of`` is base or gold with the same metric on the same rows, or ``holdout``: the model itself with the same metric
    on rows that it never saw, for releases that have no gold.
    """

    of: Literal["base", "gold", "holdout"]
    bound: Literal["value", "ci_low", "ci_high"] = "value"
    times: float = 1.0
    plus: float = 0.0


Bound = float | Reference


class Condition(Strict):
    """A measured value is at least a bound, at most a bound, or both: a range fails what is too high and too low.

    ``must_hold`` says what of the measurement must lie within: the ``point``, every value of its 95 % ``interval`` (it
    is shown), or some value of it (``overlap``: it is not refuted, which few rows make easy; so look at the power).
    ``min_n`` is the number of rows below which the condition fails whatever the value is, ``reason`` why the bound is
    right.
    """

    metric: str
    split: str
    at_least: Bound | None = None
    at_most: Bound | None = None
    must_hold: Literal["point", "interval", "overlap"] = "point"
    min_n: int = Field(ge=1)
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _has_bounds(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a gate has at_least, at_most, or both for a range; neither is given")
        numbers = [bound for bound in (self.at_least, self.at_most) if isinstance(bound, float)]
        if len(numbers) == 2 and numbers[0] > numbers[1]:
            raise ValueError(f"nothing is at least {numbers[0]:g} and at most {numbers[1]:g}; swap the two")
        return self

    @property
    def references(self) -> list[Reference]:
        """The bounds that were measured."""
        return [bound for bound in (self.at_least, self.at_most) if isinstance(bound, Reference)]


class Gate(Condition):
    """One condition of a release, on a metric of the unlearned model.

    ``split`` is one of ours, or a task that the recipe's suites run, and then ``metric`` is lm-eval's (``acc``).
    """

    @property
    def of_suite(self) -> bool:
        """Whether it is on a suite's task; which there are only the whole recipe says."""
        ours = {split for spec in METRICS.values() for split in spec.splits}
        return self.metric not in ALL_METRICS and self.split not in ours

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        spec = MetricSpec((self.split,)) if self.of_suite else ALL_METRICS.get(self.metric)
        if spec is None:
            raise ValueError(
                f"no metric is called {self.metric!r}; there are {', '.join(METRICS)}, and those of an audit "
                "(see eval/audit_config.py)"
            )
        if self.split not in spec.splits:
            raise ValueError(f"{self.metric} is not measured on {self.split!r}, only on {', '.join(spec.splits)}")
        of_holdout = any(reference.of == "holdout" for reference in self.references)
        # truth_ratio is aggregated in another way on every other split than forget (TOFU), so it is not comparable
        if of_holdout and (self.split == "holdout" or "holdout" not in spec.splits or self.metric == "truth_ratio"):
            raise ValueError(
                f"{self.metric} on {self.split} cannot be compared with holdout: take a metric of single rows on "
                "forget (for truth ratios there is forget_against_holdout)"
            )
        return self

    @property
    def needs_gold(self) -> bool:
        """Whether it compares with gold; the gaps of an audit are differences to gold."""
        gap = self.metric in AUDIT_METRICS and self.metric.endswith("_gap")
        return gap or self.metric in NEEDS_GOLD or any(reference.of == "gold" for reference in self.references)


class GateConfig(NamedTuple):
    """What the gate stage reads of a recipe: its gates, and how the rows were measured that confirm them once more."""

    gates: Sequence[Gate]
    eval: EvalConfig
