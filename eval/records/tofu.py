"""TOFU's model utility (arXiv 2401.06121) of a model that was evaluated here, on data with TOFU's sets.

It has nine parts: probability, ROUGE-L recall and truth ratio on retain rows and on two sets of questions about the
real world, where the probability is that with options. Only the retain rows that have false answers count, as in TOFU.
ROUGE is TOFU's: the tokenizer of rouge_score, which keeps [a-z0-9], and Porter's stemmer. Forget quality needs nothing
of its own: where rows have TOFU's false answers and paraphrases, ``forget_quality`` is TOFU's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets_prep.schema import REAL_WORLD
from eval.catalog import CATALOG
from eval.config import EvalConfig
from eval.records.facts import strata_of
from eval.schema import Record
from eval.statistics import formulas, intervals
from eval.statistics.formulas import Floats

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

RETAIN = "retain"
RECALL = "tofu_rouge_l_recall"
"""Where a sample has TOFU's ROUGE-L recall."""


@cache
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def add_recalls(samples: Sequence[dict[str, Any]], answers: Mapping[str, str]) -> None:
    """Add TOFU's ROUGE-L recall to the samples that it is read of; ``answers`` are the true ones by ``row_id``."""
    for sample in samples:
        if sample["split"] in (RETAIN, REAL_WORLD) and "generation" in sample:
            score = _scorer().score(answers[sample["row_id"]], sample["generation"])["rougeL"]
            sample[RECALL] = float(score.recall)


def utility_records(samples: Sequence[Mapping[str, Any]], config: EvalConfig) -> list[Record]:
    """The record of ``tofu_model_utility``, whose note has the value of each part; none without real-world questions.

    ``n`` is the number of rows of the smallest set.
    """
    sets = {RETAIN: [s for s in samples if s["split"] == RETAIN and RECALL in s and "truth_ratio" in s]}
    for sample in samples:
        if sample["split"] == REAL_WORLD:
            sets.setdefault(str(sample["topic_id"]), []).append(sample)
    if len(sets) == 1 or not sets[RETAIN]:
        return []
    columns = {name: _columns(name, rows) for name, rows in sets.items()}
    means = {f"{part} {name}": float(c.mean()) for name, parts in columns.items() for part, c in parts.items()}
    of_sets = [(list(parts.values()), strata_of(sets[name])) for name, parts in columns.items()]
    interval = intervals.model_utility_interval(of_sets, config.bootstrap_samples, config.seed)
    note = "harmonic mean of " + ", ".join(f"{part} {value:.4f}" for part, value in means.items())
    n = min(map(len, sets.values()))
    value = formulas.model_utility(list(means.values()))
    return [Record.of(CATALOG["tofu_model_utility"], f"{RETAIN}+{REAL_WORLD}", value, interval, n, note=note)]


def _columns(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Floats]:
    """The three parts of a set, a value for each row."""
    probability = "answer_probability" if name == RETAIN else "probability_with_options"
    return {
        probability: np.array([row[probability] for row in rows], dtype=np.float64),
        "rouge_l_recall": np.array([row[RECALL] for row in rows], dtype=np.float64),
        "truth_ratio": formulas.retain_truth_ratios([row["truth_ratio"] for row in rows]),
    }
