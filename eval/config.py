"""What a recipe may say about an evaluation and its gates. Imports pydantic only: every command reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from core.strict import Strict
from eval.catalog import CATALOG, Metric


class Relearn(Strict):
    """How an attacker brings knowledge back: plain fine-tuning (AdamW, constant rate).

    It is done twice: on a part of the forget rows, and on as many retain rows, drawn by the seed. Both times the forget
    rows that were not relearned are probed.
    """

    forget_share: float = Field(default=0.1, gt=0, lt=1, description="Share of the forget rows' facts to be relearned.")
    steps: int = Field(default=10, ge=1, description="Steps of the training.")
    batch_rows: int = Field(default=4, ge=1, description="Rows of a step.")
    learning_rate: float = Field(default=2e-5, gt=0, le=1, description="Learning rate.")
    # None, so that the keys of recipes from before it stay as they are.
    rank: int | None = Field(
        default=None,
        ge=1,
        description="Trains adapters (LoRA) of this rank in all linear layers, in place of all weights, which take 12 "
        "bytes a parameter. For a device that cannot hold these: it is the weaker attack.",
    )


def relearned(facts: int, share: float) -> int:
    """How many of the facts that the forget rows tell are relearned; the others are probed."""
    return max(1, round(share * facts))


class Steering(Strict):
    """A direction, the difference of two means of hidden states, is added to the output of one layer.

    It is done twice: with the direction from a row's language to the next of the data's languages, and with the one
    from holdout rows to retain rows. Each model has its own directions, from the same rows.
    """

    depth: float = Field(
        default=0.5, gt=0, le=1, description="Which layer: the share of the layers up to it, itself included."
    )


class Patching(Strict):
    """The unlearning depth score: the model's hidden states, layer by layer, in the place of base's.

    Only the unlearned model is measured: the score is 0 for base and 1 for gold.
    """

    threshold: float = Field(
        default=0.05,
        ge=0,
        description="A layer holds a fact if gold's states there lower the log-probability of its tokens by more than "
        "this, in nats per token.",
    )


class Robustness(Strict):
    """Attacks on a model, or on its questions, after which the forget rows are read again."""

    quantize: list[Literal["int8", "nf4", "fp4"]] = Field(
        default_factory=list,
        description="Formats that the weights are rounded to, those of bitsandbytes: `int8` has 8 bits, `nf4` and "
        "`fp4` have 4.",
    )
    relearn: Relearn | None = Field(default=None, description="Trains the model again on some rows.")
    paraphrase: bool = Field(default=False, description="Asks the questions in other words.")
    first_words: float | None = Field(
        default=None, gt=0, lt=1, description="Share of an answer's words that the prompt gives away."
    )
    other_language: bool = Field(default=False, description="Asks the questions in another language.")
    # An absent attack leaves the keys of recipes from before it as they are: hence None, and not False.
    chained: bool | None = Field(
        default=None,
        description="Asks the questions about a person who is not named: by the e-mail address or phone number that a "
        "retain row tells.",
    )
    steering: Steering | None = Field(default=None, description="Adds a direction to the output of a layer.")
    patching: Patching | None = Field(
        default=None, description="Reads the facts out of the layers, with base's help. It needs gold."
    )

    def attacks(self) -> list[str]:
        """The names of the requested attacks. ``untreated`` comes first: the others are compared with it."""
        requested = {
            "relearn_forget": self.relearn is not None,
            "relearn_retain": self.relearn is not None,
            "paraphrase": self.paraphrase,
            "first_words": self.first_words is not None,
            "other_language": self.other_language,
            "chained": bool(self.chained),
            "steer_language": self.steering is not None,
            "steer_known": self.steering is not None,
        }
        return ["untreated", *self.quantize, *(name for name, is_requested in requested.items() if is_requested)]


class Sampling(Strict):
    """Answers to the forget questions are drawn, and those that state the fact are counted."""

    samples: int = Field(ge=1, description="Answers to each question.")
    temperature: float = Field(default=1.0, gt=0, description="Temperature of the softmax.")
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Tokens are drawn from the likeliest ones that have this probability together.",
    )
    k: list[Literal[1, 2, 4, 8, 16, 32, 64, 128]] = Field(
        min_length=1, description="leak@k is measured for each: the probability that one of k answers states the fact."
    )

    @model_validator(mode="after")
    def _is_possible(self) -> Sampling:
        if max(self.k) > self.samples:
            raise ValueError(f"k is {max(self.k)} and there are {self.samples} samples; k is at most their number")
        return self


class Suite(Strict):
    """A task, group or tag of lm-evaluation-harness. Its questions are fetched from the Hub."""

    task: str = Field(min_length=1, description="Its name, for example `mmlu` or `m_mmlu_de`.")
    num_fewshot: int | None = Field(
        default=None, ge=0, description="Examples before each question, in place of the task's own number."
    )
    limit: int | None = Field(default=None, ge=1, description="Questions of each of its tasks, at most.")
    chat_template: bool = Field(
        default=True,
        description="Whether questions are asked as a chat. Published scores of base models are without a chat "
        "template, those of instruction models usually with one.",
    )


VLLM_SHARE = 0.5
"""Of a GPU's memory that vLLM takes for itself; the rest is for the model that is scored and attacked."""


class EvalConfig(Strict):
    """How base, gold and the unlearned model are evaluated.

    ``robustness``, ``sampling`` and ``relative`` are the audit: expensive, and only done if a recipe asks for it.
    """

    batch_tokens: int = Field(default=512, ge=16, description="Tokens of one packed forward, at most.")
    batch_rows: int = Field(
        default=32,
        ge=1,
        description="Rows of a batch of generations or of a suite's questions, at most: a batch has fewer if its keys "
        "and values, or its logits, would take more than 2 GiB.",
    )
    max_new_tokens: int = Field(
        default=64,
        ge=1,
        description="Tokens of a generated answer, at most; a sampled one may have as many as the true one.",
    )
    min_k: float = Field(
        default=0.4, gt=0, le=1, description="Share of the least likely tokens that the membership score averages."
    )
    bootstrap_samples: int = Field(default=1000, ge=100, description="Resamples that make an interval.")
    seed: int = Field(default=0, ge=0, description="Seed of resamples, drawn answers and attacks.")
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="Where the released bf16 weights are run: in fp32 on `cpu`, as they are on `cuda`."
    )
    backend: Literal["hf", "vllm"] = Field(
        default="hf",
        description="What generates answers and runs the suites. Log-probabilities are always those of transformers.",
    )
    processes: int = Field(
        default=1,
        gt=0,
        description="Processes that share out batches and questions, each with the whole model (and a GPU of its own).",
    )
    suites: list[Suite] = Field(default_factory=list, description="Tasks that travel with lm-evaluation-harness.")
    robustness: Robustness | None = Field(default=None, description="Attacks.")
    sampling: Sampling | None = Field(default=None, description="Drawn answers.")
    relative: bool = Field(
        default=False,
        description="The relative test: where the unlearned model stands on the line from gold (0) to base (1), and "
        "how far off it. It needs gold, and to carry a verdict golds of other seeds (`gold.seeds`).",
    )

    @model_validator(mode="after")
    def _one_way_to_share(self) -> Self:
        if self.processes > 1 and self.backend == "vllm":
            raise ValueError(f"processes is {self.processes}, and vllm shares out its work by itself; set it to 1")
        return self

    @field_validator("suites")
    @classmethod
    def _each_task_once(cls, suites: list[Suite]) -> list[Suite]:
        twice = [task for task, times in Counter(suite.task for suite in suites).items() if times > 1]
        if twice:
            raise ValueError(f"it names {' and '.join(twice)} more than once; each task is measured in one way")
        return suites

    def without_audit(self) -> EvalConfig:
        """The same evaluation without what is expensive."""
        return self.model_copy(update={"robustness": None, "sampling": None, "relative": False})

    @property
    def patching(self) -> Patching | None:
        """The settings of the unlearning depth score, if the recipe asks for it."""
        return self.robustness.patching if self.robustness else None

    def audit_metrics(self) -> list[str]:
        """The names of the metrics that ``robustness``, ``sampling`` and ``relative`` measure."""
        return [metric.name for metric in CATALOG.values() if metric.is_audit and self._asks_for(metric)]

    def _asks_for(self, metric: Metric) -> bool:
        if metric.attack:
            return self.robustness is not None and metric.attack.name in self.robustness.attacks()
        if metric.family == "patching":
            return self.patching is not None
        if metric.k:
            return self.sampling is not None and metric.k in self.sampling.k
        return self.relative


def metrics_there_are() -> str:
    """The metrics that a gate or a margin may name, for error messages."""
    plain = [metric.name for metric in CATALOG.values() if not metric.is_audit]
    return f"there are {', '.join(plain)}, and those of an audit (eval/catalog.py)"


class Reference(Strict):
    """A bound that was measured too: ``times`` x the measurement ``+ plus``."""

    of: Literal["base", "gold", "start", "holdout"] = Field(
        description="Whose measurement: that of `base`, `gold` or `start` (the start model, before any training) with "
        "the same metric on the same rows, or `holdout`, the model itself with the same metric on rows that it never "
        "saw. The last two are for releases that have no gold."
    )
    bound: Literal["value", "ci_low", "ci_high"] = Field(
        default="value", description="Which part of it: the value, or an end of its 95 % interval."
    )
    times: float = Field(default=1.0, description="Factor.")
    plus: float = Field(default=0.0, description="What is added, in the metric's own unit.")


Bound = float | Reference


class Condition(Strict):
    """A measured value is at least a bound, at most a bound, or both."""

    metric: str = Field(description="The metric: one of `eval/catalog.py`, or lm-eval's (`acc`) on a suite's task.")
    split: str = Field(description="The split that it is measured on, or a task that the recipe's suites run.")
    at_least: Bound | None = Field(default=None, description="Lower bound, in the metric's own unit.")
    at_most: Bound | None = Field(
        default=None,
        description="Upper bound, in the metric's own unit. A gate has at least one of the two; with both it is a "
        "range, and fails what is too high and what is too low.",
    )
    must_hold: Literal["point", "interval", "overlap"] = Field(
        default="point",
        description="What of the measurement must lie within: the `point`, every value of its 95 % `interval` (it is "
        "shown), or some value of it (`overlap`: it is not refuted, which few rows make easy; so look at the power).",
    )
    min_n: int = Field(
        ge=1,
        description="Rows below which the gate fails whatever the value is. Rows that tell one fact in several "
        "wordings are one.",
    )
    reason: str = Field(min_length=1, description="Why the bound is right.")

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
        """The bounds that are measured too."""
        return [bound for bound in (self.at_least, self.at_most) if isinstance(bound, Reference)]


class Gate(Condition):
    """One condition of a release, on a metric of the unlearned model."""

    @property
    def of_suite(self) -> bool:
        """Whether the gate is on a suite's task. Only the whole recipe says which tasks there are."""
        own_splits = {split for metric in CATALOG.values() for split in metric.splits}
        return self.metric not in CATALOG and self.split not in own_splits

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.metric not in CATALOG and not self.of_suite:
            raise ValueError(f"no metric is called {self.metric!r}; {metrics_there_are()}")
        splits = CATALOG[self.metric].splits if self.metric in CATALOG else (self.split,)
        if self.split not in splits:
            raise ValueError(f"{self.metric} is not measured on {self.split!r}, only on {', '.join(splits)}")
        of_holdout = any(reference.of == "holdout" for reference in self.references)
        # truth_ratio is aggregated in another way on every other split than forget (TOFU), so it is not comparable
        if of_holdout and (self.split == "holdout" or "holdout" not in splits or self.metric == "truth_ratio"):
            raise ValueError(
                f"{self.metric} on {self.split} cannot be compared with holdout: take a metric of single rows on "
                "forget (for truth ratios there is forget_against_holdout)"
            )
        metric = CATALOG.get(self.metric)
        if self.needs_start and (metric is None or metric.is_audit or metric.needs_gold):
            raise ValueError(
                f"{self.metric} is not measured for the start model, which is evaluated without attacks, suites and "
                "gold; compare with a number, or with base"
            )
        return self

    @property
    def needs_start(self) -> bool:
        """Whether the gate compares with the start model."""
        return any(reference.of == "start" for reference in self.references)

    @property
    def needs_gold(self) -> bool:
        """Whether the gate compares with gold."""
        metric = CATALOG.get(self.metric)
        return bool(metric and metric.needs_gold) or any(reference.of == "gold" for reference in self.references)


class GateConfig(NamedTuple):
    """The gate stage's part of a recipe: its gates, and the evaluation settings with which they are confirmed."""

    gates: Sequence[Gate]
    eval: EvalConfig
