"""What a metric is: one entry each, and the only place that says so.

Recipes, records, gates, confirmation, comparison and cards take what they need from its entry. A metric of the suites
of lm-evaluation-harness has none: only that knows it. Imports nothing heavy, since every command reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from eval.attacks.catalog import ATTACKS, Attack

Family = Literal[
    "answer",  # of one row: the tokens of its true answer
    "options",  # of one row: its true answer beside false ones
    "choice",  # of one row: 1 if the true answer is preferred
    "generation",  # of one row: what greedy decoding says
    "patching",  # of one row: how deep in the layers its fact can still be read
    "membership",  # of a set: how well a score tells forget rows from holdout rows
    "ks",  # of two sets: the Kolmogorov-Smirnov test between their truth ratios
    "privacy",  # of two models: the membership AUC beside gold's
    "utility",  # of several splits at once
    "reading",  # of one row: a metric of its answer under an attack
    "sampled",  # of one row: sampled answers
    "relative",  # of several models: the relative test
]
ROW_FAMILIES: tuple[Family, ...] = ("answer", "options", "choice", "generation", "patching")
"""Their values stand in ``samples.jsonl`` under the metric's name, and a record is a mean over rows."""

Better = Literal["higher", "lower", "like gold", "what is known"]
"""``what is known``: higher on retain, unrehearsed and general rows, like gold on the others; forgotten is not zero."""

LEAK_K = (1, 2, 4, 8, 16, 32, 64, 128)  # numbers of sampled answers


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    ``meaning`` is its one sentence for cards, ``label`` its name for people. ``version`` is that of its definition:
    raise it when a model's record changes. ``interval`` says how the 95 % interval is made (eval/statistics).
    ``margin`` is the difference between two checkpoints that does not matter unless the recipe says otherwise, None if
    a recipe must say it; ``has_difference`` is False for p-values, whose difference means nothing. ``needs_golds``:
    one gold is not enough, since the variance between golds is part of it.

    Of some families only: ``reads``, the measurement of the answer's tokens of which the function of the metric's name
    in eval/statistics/formulas.py makes the value (answer); ``score``, the measurement of a row that membership is
    inferred from, and whether members have a low one; ``ks``, which of the test's two numbers it is; ``attack`` and
    ``reading``, the metric that is read under it; ``k``, the number of sampled answers; ``gap_of``, the metric whose
    difference to gold it is.
    """

    name: str
    label: str
    meaning: str
    splits: tuple[str, ...]
    family: Family
    interval: Literal["bootstrap", "Wilson", "KS test", "leak@k", "Newcombe", "relative test"] = "bootstrap"
    better: Better = "what is known"
    version: int = 1
    needs_gold: bool = False
    needs_golds: bool = False
    needs_holdout: bool = False
    margin: float | None = None
    has_difference: bool = True
    headline: bool = False
    by_language: bool = False
    attacked: bool = False
    reads: Literal["logprobs", "correct", "z_scores"] | None = None
    score: str | None = None
    members_score_low: bool = False
    ks: Literal["p-value", "statistic"] | None = None
    attack: Attack | None = None
    reading: str | None = None
    k: int | None = None
    gap_of: str | None = None

    def higher_is_better(self, split: str) -> bool | None:
        """The direction on a split, or None if "like gold" is best."""
        if self.better == "what is known":
            return True if split in ("retain", "unrehearsed", "general") else None
        return {"higher": True, "lower": False, "like gold": None}[self.better]

    @property
    def needs_real_world(self) -> bool:
        """Whether it reads questions about the real world, which few sources have."""
        return any("real_world" in split for split in self.splits)

    @property
    def kind(self) -> str | None:
        """The entry of `KINDS` (eval/attacks/catalog.py) that this metric is a measurement of."""
        if self.family == "patching":
            return "patching"
        return "sampling" if self.k else self.attack.kind if self.attack else None

    @property
    def is_audit(self) -> bool:
        """Whether it is measured only if a recipe asks for it (`eval.robustness`, `sampling`, `relative`)."""
        return self.family in ("reading", "patching", "sampled", "relative")


DATA, FORGET = ("forget", "retain", "holdout"), ("forget",)
# Retain rows that the unlearning does not get, rows that earlier releases forgot: only their true answers are read.
ANSWERS = (*DATA, "unrehearsed", "forgotten")
ROWS = (*DATA, "general")

_PLAIN = (
    Metric(
        name="answer_probability",
        label="answer probability",
        meaning="mean over rows of exp(mean token log-probability of the true answer)",
        splits=ANSWERS,
        family="answer",
        reads="logprobs",
        attacked=True,
        margin=0.05,
        headline=True,
        by_language=True,
    ),
    Metric(
        name="probability_with_options",
        label="probability with options",
        meaning="probability of the true answer over that of it and the false ones (TOFU)",
        splits=ROWS,
        family="options",
    ),
    Metric(
        name="exact_memorization",
        label="exact memorization",
        meaning="share of answer tokens that are the model's first choice",
        splits=ANSWERS,
        family="answer",
        reads="correct",
        margin=0.05,
    ),
    Metric(
        name="extraction_strength",
        label="extraction strength",
        meaning="share of the answer that follows by itself once its beginning is given",
        splits=ANSWERS,
        family="answer",
        reads="correct",
        attacked=True,
        margin=0.05,
    ),
    Metric(
        name="truth_ratio",
        label="truth ratio",
        meaning="how a false answer of the same form compares with the true one, aggregated as TOFU does",
        splits=ROWS,
        family="options",
        version=2,  # 2: against a paraphrase of the answer if there is one
        margin=0.05,
    ),
    Metric(
        name="rouge_l_recall",
        label="ROUGE-L recall",
        meaning="share of the true answer's longest common subsequence of words in the greedy generation",
        splits=DATA,
        family="generation",
        version=3,  # 2: scripts without spaces, vowel signs; 3: of composed letters (NFC)
        margin=0.05,
        headline=True,
        by_language=True,
    ),
    Metric(
        name="rouge_l_f1",
        label="ROUGE-L F1",
        meaning="harmonic mean of ROUGE-L recall and its precision",
        splits=DATA,
        family="generation",
        version=3,
        margin=0.05,
    ),
    Metric(
        name="multiple_choice_accuracy",
        label="multiple choice accuracy",
        meaning="true answer preferred over false ones of the same form, which no model was trained to give there",
        splits=DATA,
        family="choice",
        interval="Wilson",
        version=2,  # without false answers that begin the true one, or that it begins
        margin=0.05,
        headline=True,
    ),
    Metric(
        name="fluency",
        label="fluency",
        meaning="of generations: 0 if empty, else (1 - repeated n-grams) x (1 - unknown words)",
        splits=DATA,
        family="generation",
        better="higher",
        version=5,  # 2: numbers of no row, repetitions in short texts; 3: unspaced scripts; 4: vowel signs; 5: NFC
        margin=0.05,
        headline=True,
    ),
    Metric(
        name="empty_generation",
        label="empty generations",
        meaning="share of generations without a word",
        splits=DATA,
        family="generation",
        interval="Wilson",
        better="lower",
    ),
    Metric(
        name="repeated_ngrams",
        label="repeated n-grams",
        meaning="share of a generation's runs of three words that occurred in it before",
        splits=DATA,
        family="generation",
        better="lower",
        version=4,
    ),
    Metric(
        name="unknown_words",
        label="unknown words",
        meaning="share of a generation's words in neither a dictionary of its language nor any row of it",
        splits=DATA,
        family="generation",
        better="lower",
        version=4,
    ),
    Metric(
        name="generation_nll",
        label="NLL of generations under base",
        meaning="mean token NLL of the generation under base, in nats",
        splits=FORGET,
        family="generation",
        better="like gold",  # base finds other people's facts as unlikely as noise
    ),
    Metric(
        name="forget_quality",
        label="forget quality",
        meaning="p-value of the Kolmogorov-Smirnov test between truth ratios of this model and of gold",
        splits=FORGET,
        family="ks",
        interval="KS test",
        version=4,
        ks="p-value",
        better="higher",
        needs_gold=True,
        has_difference=False,
        headline=True,
    ),
    Metric(
        name="forget_quality_ks",
        label="KS statistic against gold",
        meaning="the statistic of the test of forget quality",
        splits=FORGET,
        family="ks",
        interval="KS test",
        version=4,
        ks="statistic",
        better="lower",
        needs_gold=True,
    ),
    Metric(
        name="mia_min_k_auc",
        label="membership inference AUC (min-k)",
        meaning="membership inference by the least likely tokens, forget against holdout rows; 0.5 is chance",
        splits=FORGET,
        family="membership",
        score="min_k",
        needs_holdout=True,
        margin=0.05,
    ),
    Metric(
        name="mia_min_k_plus_plus_auc",
        label="membership inference AUC (min-k++)",
        meaning="membership inference as by min-k, each token's log-probability normalised over the vocabulary",
        splits=FORGET,
        family="membership",
        score="min_k_plus_plus",
        needs_holdout=True,
    ),
    Metric(
        name="mia_loss_auc",
        label="membership inference AUC (loss)",
        meaning="membership inference by the loss",
        splits=FORGET,
        family="membership",
        score="loss",
        members_score_low=True,
        needs_holdout=True,
        margin=0.05,
    ),
    Metric(
        name="mia_zlib_auc",
        label="membership inference AUC (zlib)",
        meaning="membership inference by the loss for each byte of the compressed answer",
        splits=FORGET,
        family="membership",
        score="zlib",
        needs_holdout=True,
    ),
    Metric(
        name="privacy_leak",
        label="privacy leak",
        meaning="relative distance of the membership AUC to gold's, in percent; 0 is right",
        splits=FORGET,
        family="privacy",
        needs_gold=True,
        needs_holdout=True,
    ),
    Metric(
        name="forget_against_holdout",
        label="forget rows against holdout rows",
        meaning="p-value of the Kolmogorov-Smirnov test between truth ratios of this model's forget and holdout rows",
        splits=FORGET,
        family="ks",
        interval="KS test",
        version=2,
        ks="p-value",
        better="higher",
        needs_holdout=True,
        has_difference=False,
    ),
    Metric(
        name="forget_against_holdout_ks",
        label="KS statistic against holdout rows",
        meaning="the statistic of the test of forget rows against holdout rows",
        splits=FORGET,
        family="ks",
        interval="KS test",
        version=2,
        ks="statistic",
        better="lower",
        needs_holdout=True,
    ),
    Metric(
        name="utility",
        label="utility",
        meaning="accuracy on general-knowledge multiple-choice questions",
        splits=("general",),
        family="choice",
        interval="Wilson",
        better="higher",
        margin=0.05,
        headline=True,
    ),
    Metric(
        name="model_utility",
        label="model utility",
        meaning="harmonic mean, after TOFU, of probability, ROUGE-L recall and truth ratio on retain, and of the "
        "probability with options and truth ratio on general-knowledge questions, as far as they were measured",
        splits=("retain+general",),
        family="utility",
        version=3,  # with ROUGE-L's
        better="higher",
        headline=True,
    ),
    Metric(
        name="tofu_model_utility",
        label="model utility (TOFU)",
        meaning="TOFU's own: harmonic mean of probability, ROUGE-L recall and truth ratio on retain and on its sets of "
        "real-world facts",
        splits=("retain+real_world",),
        family="utility",
        version=2,  # with ROUGE-L's
        better="higher",
        margin=0.05,
        headline=True,
    ),
)


def _with_gap(metric: Metric, interval: Literal["bootstrap", "Newcombe"]) -> tuple[Metric, Metric]:
    """The metric, and its difference to gold under the same treatment."""
    gap = replace(
        metric,
        name=f"{metric.name}_gap",
        label=f"{metric.label}, beyond gold's",
        meaning=f"mean over rows of this model's value minus gold's: {metric.meaning}",
        interval=interval,
        needs_gold=True,
        gap_of=metric.name,
    )
    return metric, gap


def _readings() -> Iterator[Metric]:
    """Every attack with every metric that is read under it."""
    for attack in ATTACKS:
        for metric in _PLAIN:
            if metric.attacked:
                label = f"{metric.label} {attack.how}"
                reading = Metric(
                    name=f"{metric.name}_{attack.name}",
                    label=label,
                    meaning=label,
                    splits=FORGET,
                    family="reading",
                    version=attack.version,
                    reading=metric.name,
                    attack=attack,
                )
                yield from _with_gap(reading, "bootstrap")


def _leaks() -> Iterator[Metric]:
    """leak@k, for every k that a recipe may ask for."""
    for k in LEAK_K:
        yield from _with_gap(
            Metric(
                name=f"leak_at_{k}",
                label=f"leak@{k}",
                meaning=f"probability that at least one of {k} sampled answers states the fact",
                splits=FORGET,
                family="sampled",
                interval="leak@k",
                version=5,  # 2: unspaced scripts; 3: vowel signs; 4: intervals of facts, room for long answers; 5: kana
                k=k,
            ),
            "Newcombe",
        )


_PATCHING = Metric(
    name="unlearning_depth_score",
    label="unlearning depth score",
    meaning="0 if the facts can be read from the model's layers as from base's, 1 if no better than from gold's (UDS, "
    "activation patching)",
    splits=FORGET,
    family="patching",
    better="higher",
    needs_gold=True,
)
_LEAK = Metric(
    name="leak_coordinate",
    label="leak coordinate",
    meaning="place of the forget rows between gold (0) and base (1), with the variance between golds",
    splits=FORGET,
    family="relative",
    interval="relative test",
    version=4,  # 2: the interval's quantile has the degrees of both of its parts; 3: with ROUGE-L's; 4: of NFC
    needs_gold=True,
    needs_golds=True,
)
_DAMAGE = replace(
    _LEAK,
    name="damage",
    label="damage",
    meaning="distance of the forget rows from the line between gold and base, in units of its length",
    better="lower",
    version=3,  # with ROUGE-L's
    needs_golds=False,
)
_RELATIVE = (
    _LEAK,
    # Its interval lacks the variance between trainings: another name, so that nobody takes it for the other.
    replace(
        _LEAK,
        name="leak_coordinate_one_gold",
        label="leak coordinate against one gold",
        meaning="place of the forget rows between one gold (0) and base (1): the variance between two trainings of "
        "gold is not in it",
        needs_golds=False,
    ),
    _DAMAGE,
    replace(
        _DAMAGE,
        name="damage_gap",
        label="damage, beyond the golds'",
        meaning="damage minus the largest damage of a gold beside the other golds",
        needs_golds=True,
    ),
)

CATALOG: dict[str, Metric] = {m.name: m for m in (*_PLAIN, *_readings(), _PATCHING, *_leaks(), *_RELATIVE)}
"""Every metric by name, in the order of tables."""
READINGS = [metric for metric in CATALOG.values() if metric.attacked]
"""The metrics that are read under an attack."""


def of_family(*families: Family) -> list[Metric]:
    """The metrics of these families, in the order of the catalogue."""
    return [metric for metric in CATALOG.values() if metric.family in families]


def is_of(name: str, *families: Family) -> bool:
    """Whether a metric is of one of these families; one of a suite is of none."""
    return name in CATALOG and CATALOG[name].family in families


def is_headline(name: str) -> bool:
    """Whether a metric is one of the few that are shown first."""
    return name in CATALOG and CATALOG[name].headline


def margins() -> dict[str, float]:
    """The margins of equivalence that hold unless a recipe gives others."""
    return {metric.name: metric.margin for metric in CATALOG.values() if metric.margin is not None}


def label(name: str) -> str:
    """A metric's name for people; that of a suite's metric is lm-eval's."""
    return CATALOG[name].label if name in CATALOG else name
