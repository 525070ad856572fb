"""What a recipe may say about an evaluation and its gates. Imports pydantic only: every command reads it."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from eval.audit_config import ATTACKS, LEAK_K, Relative, Robustness, Sampling, audit_names
from pipeline.strict import Strict


class MetricSpec(NamedTuple):
    """Where a metric is measured, and the version of its definition: raise it when a model's value changes."""

    splits: tuple[str, ...]
    version: int = 1


_ROWS = ("forget", "retain", "holdout")

METRICS: dict[str, MetricSpec] = {
    "answer_probability": MetricSpec(_ROWS),
    "exact_memorization": MetricSpec(_ROWS),
    "extraction_strength": MetricSpec(_ROWS),
    "truth_ratio": MetricSpec(_ROWS),
    "rouge_l_recall": MetricSpec(_ROWS),
    "rouge_l_f1": MetricSpec(_ROWS),
    "multiple_choice_accuracy": MetricSpec(_ROWS),
    "forget_quality": MetricSpec(("forget",)),
    "forget_quality_ks": MetricSpec(("forget",)),
    "mia_min_k_auc": MetricSpec(("forget",)),
    "mia_loss_auc": MetricSpec(("forget",)),
    "privacy_leak": MetricSpec(("forget",)),
    "utility": MetricSpec(("general",)),
}


# Measured where a recipe asks for it (eval/audit_config.py has the names).
AUDIT_METRICS: dict[str, MetricSpec] = {name: MetricSpec(("forget",)) for name in audit_names(ATTACKS, LEAK_K, True)}
ALL_METRICS = {**METRICS, **AUDIT_METRICS}


def higher_is_better(metric: str, split: str) -> bool | None:
    """The direction of a metric, or None where "like gold" is best: a forgotten row is not one at zero."""
    if split in ("retain", "general") or metric == "forget_quality":
        return True
    return False if metric == "forget_quality_ks" else None


class EvalConfig(Strict):
    """How a model is evaluated.

    ``batch_tokens`` bounds one packed forward, ``batch_rows`` a batch of generations, ``max_new_tokens`` an answer.
    ``device`` is where the released bf16 weights are run: in fp32 on ``cpu``, as they are on ``cuda``. ``min_k`` is the
    share of least likely tokens that the membership score averages. ``bootstrap_samples`` resamples make an interval.
    ``robustness``, ``sampling`` and ``relative`` are the audit: expensive, and only where a recipe asks for it.
    """

    batch_tokens: int = Field(default=512, ge=16)
    batch_rows: int = Field(default=32, ge=1)
    max_new_tokens: int = Field(default=64, ge=1)
    min_k: float = Field(default=0.4, gt=0, le=1)
    bootstrap_samples: int = Field(default=1000, ge=100)
    seed: int = Field(default=0, ge=0)
    device: Literal["cpu", "cuda"] = "cpu"
    robustness: Robustness | None = None
    sampling: Sampling | None = None
    relative: Relative | None = None

    def audit_metrics(self) -> list[str]:
        """The names of :data:`AUDIT_METRICS` that these sections measure."""
        attacks = self.robustness.attacks() if self.robustness else ()
        return audit_names(attacks, self.sampling.k if self.sampling else (), self.relative is not None)


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
        spec = ALL_METRICS.get(self.metric)
        if spec is None:
            raise ValueError(
                f"no metric is called {self.metric!r}; there are {', '.join(METRICS)}, and those of an audit "
                "(see eval/audit_config.py)"
            )
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
