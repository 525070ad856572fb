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


# The audit, measured where a recipe asks for it: a reading of the forget rows under an attack, for example
# `extraction_strength_nf4`, and with `_gap` its mean difference to gold under the same attack.
ATTACKS = (
    "untreated",
    "int8",
    "nf4",
    "fp4",
    "relearn_forget",
    "relearn_retain",
    "paraphrase",
    "first_words",
    "other_language",
)
READINGS = ("extraction_strength", "answer_probability")
LEAK_K = (1, 2, 4, 8, 16, 32, 64, 128)
_AUDITED = [f"{reading}_{attack}" for attack in ATTACKS for reading in READINGS] + [f"leak_at_{k}" for k in LEAK_K]
AUDIT_METRICS: dict[str, MetricSpec] = {
    **{name: MetricSpec(("forget",)) for metric in _AUDITED for name in (metric, f"{metric}_gap")},
    "leak_coordinate": MetricSpec(("forget",)),
    "leak_coordinate_one_gold": MetricSpec(("forget",)),  # without the variance between trainings of gold
    "damage": MetricSpec(("forget",)),
}
ALL_METRICS = {**METRICS, **AUDIT_METRICS}


def higher_is_better(metric: str, split: str) -> bool | None:
    """The direction of a metric, or None where "like gold" is best: a forgotten row is not one at zero."""
    if split in ("retain", "general") or metric == "forget_quality":
        return True
    return False if metric in ("forget_quality_ks", "damage") else None


class Relearn(Strict):
    """How an attacker brings knowledge back: ``steps`` of plain fine-tuning (AdamW, constant rate, all weights).

    A step takes ``batch_rows`` rows. ``forget_share`` of the forget rows are relearned, and only the others are probed;
    the attack with unrelated rows takes as many retain rows, drawn by the seed, and probes the same forget rows.
    """

    forget_share: float = Field(default=0.1, gt=0, lt=1)
    steps: int = Field(default=10, ge=1)
    batch_rows: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0, le=1)


class Robustness(Strict):
    """Attacks on a model, or on its questions, after which the forget rows are read again.

    ``quantize`` names formats of weights: 8 bits (``int8``) or 4 (``nf4``, ``fp4``), those of bitsandbytes.
    ``first_words`` is the share of an answer's words that the prompt gives away.
    """

    quantize: list[Literal["int8", "nf4", "fp4"]] = Field(default_factory=list)
    relearn: Relearn | None = None
    paraphrase: bool = False
    first_words: float | None = Field(default=None, gt=0, lt=1)
    other_language: bool = False

    def attacks(self) -> list[str]:
        """The names of the attacks that are asked for, ``untreated`` first: it tells what an attack adds."""
        asked = {
            "relearn_forget": self.relearn is not None,
            "relearn_retain": self.relearn is not None,
            "paraphrase": self.paraphrase,
            "first_words": self.first_words is not None,
            "other_language": self.other_language,
        }
        return ["untreated", *self.quantize, *(name for name, wanted in asked.items() if wanted)]


class Sampling(Strict):
    """``samples`` answers to each forget question at ``temperature`` and ``top_p``, and leak@k for each ``k``."""

    samples: int = Field(ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    k: list[Literal[1, 2, 4, 8, 16, 32, 64, 128]] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_possible(self) -> Sampling:
        if max(self.k) > self.samples:
            raise ValueError(f"k is {max(self.k)} and there are {self.samples} samples; k is at most their number")
        return self


class Relative(Strict):
    """The relative test: is the unlearned model's place between gold (0) and base (1) below ``leak_limit``, for sure?

    ``damage_margin`` is how much further from that line than a gold the model may be.
    """

    leak_limit: float = Field(default=0.25, gt=0, lt=1)
    damage_margin: float = Field(default=0.1, ge=0)


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
        names = [f"{r}_{a}" for a in (self.robustness.attacks() if self.robustness else ()) for r in READINGS]
        names += [f"leak_at_{k}" for k in (self.sampling.k if self.sampling else ())]
        names = [name for metric in names for name in (metric, f"{metric}_gap")]
        return names + (["leak_coordinate", "leak_coordinate_one_gold", "damage"] if self.relative else [])


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
                "(AUDIT_METRICS in eval/config.py)"
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
