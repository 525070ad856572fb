"""Two checkpoints under the same suite: the difference of each metric, and whether it is small enough not to matter.

Metrics of single rows are compared row by row: the bootstrap draws rows, of each language as many as it has, and takes
the difference of both models on the same rows. Equivalence is shown by two one-sided tests (Schuirmann 1987): the
difference is above -margin and below +margin, each at 5 %. Not shown does not mean different.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets_prep.chat import chat_example, encode, load_tokenizer
from datasets_prep.schema import SPLITS, read_rows
from eval import metrics
from eval.metrics import Floats
from eval.power import ALPHA, smallest_margin, standard_error
from eval.schema import Record, find_record, read_records, read_samples
from eval.weights import checkpoint_folder
from pipeline.errors import ArtifactError, ModelError

Samples = dict[tuple[str, str], dict[str, Any]]
"""Measurements of rows by split and ``row_id``."""

RESAMPLES = 2000
ROWS = 30
"""Of fewer rows nothing is concluded."""
NO_DIFFERENCE = ("forget_quality", "forget_against_holdout")  # p-values: their difference means nothing
_SCORES = {  # what a row's membership score is, and the sign that makes a member's higher
    "mia_min_k_auc": ("min_k", 1.0),
    "mia_min_k_plus_plus_auc": ("min_k_plus_plus", 1.0),
    "mia_zlib_auc": ("zlib", 1.0),
    "mia_loss_auc": ("loss", -1.0),
}


class Config(NamedTuple):
    """Margins by metric, and the seed of the bootstrap."""

    margins: Mapping[str, float]
    seed: int


def run(config: Config, inputs: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Compare the evaluations ``ours`` and ``theirs`` and write ``compare.json``: one entry for each metric and split.

    Returns the facts ``equivalent`` and ``different`` (names). Raises ArtifactError where they measured other rows.
    """
    compared = compare(inputs["ours"], inputs["theirs"], config)
    (out / "compare.json").write_text(json.dumps(compared, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return {
        verdict: [f"{entry['metric']} on {entry['split']}" for entry in compared if entry["verdict"] == verdict]
        for verdict in ("equivalent", "different")
    }


def check_tokens(ours: Path, theirs: Path, data: Path) -> None:
    """Raise ModelError unless both checkpoints read every answer as the same tokens.

    Metrics of tokens are means over an answer's tokens: with another vocabulary they are means over other things.
    """
    tokenizers = [load_tokenizer(checkpoint_folder(folder)) for folder in (ours, theirs)]
    for split in SPLITS:
        for row in read_rows(data / f"{split}.jsonl"):
            answers = []
            for tokenizer in tokenizers:
                tokens = encode(tokenizer, chat_example(tokenizer, row.question, row.answer))
                answers.append(tokens.input_ids[tokens.completion_start :])
            if answers[0] != answers[1]:
                raise ModelError(
                    f"The other checkpoint reads the answer of row {row.row_id} as other tokens ({len(answers[1])}, "
                    f"here {len(answers[0])}): its vocabulary or its end of turn differs. Compare with a checkpoint of "
                    "the same tokenizer."
                )


def compare(ours: Path, theirs: Path, config: Config) -> list[dict[str, Any]]:
    """An entry for every metric and split that either evaluation has over all rows."""
    records = [read_records(folder / "results.json") for folder in (ours, theirs)]
    samples = [_by_row(folder) for folder in (ours, theirs)]
    if samples[0].keys() != samples[1].keys():
        raise ArtifactError(f"{ours} and {theirs} measured different rows. Evaluate both on the same data.")
    keys = dict.fromkeys((r.metric, r.split) for found in records for r in found if r.by is None)
    compared = []
    for metric, split in keys:
        pair = [find_record(found, metric, split) for found in records]
        margin = config.margins.get(metric)
        compared.append(_entry(metric, split, pair, _differences(metric, split, samples, config.seed), margin))
    return compared


def _by_row(folder: Path) -> Samples:
    return {(row["split"], row["row_id"]): row for row in read_samples(folder / "samples.jsonl")}


def _differences(metric: str, split: str, samples: Sequence[Samples], seed: int) -> Floats | None:
    """Resampled differences, ours minus theirs, on the same rows; None where the metric cannot be had row by row."""
    if metric in _SCORES:
        name, sign = _SCORES[metric]
        return _auc_differences([{k: sign * row[name] for k, row in found.items()} for found in samples], seed)
    rows = [key for key, row in samples[0].items() if key[0] == split and metric in row and metric in samples[1][key]]
    if not rows:  # not a metric of single rows
        return None
    values = [_values(metric, split, [found[key][metric] for key in rows]) for found in samples]
    return paired_means(values[0] - values[1], [str(samples[0][key]["language"]) for key in rows], seed)


def _values(metric: str, split: str, values: list[float]) -> Floats:
    if metric != "truth_ratio":
        return np.asarray(values, dtype=np.float64)
    return metrics.forget_truth_ratios(values) if split == "forget" else metrics.retain_truth_ratios(values)


def paired_means(differences: Floats, strata: Sequence[str], seed: int) -> Floats:
    """Means of resampled rows, (RESAMPLES,); each stratum is resampled by itself and keeps its share of the rows."""
    rng = np.random.default_rng(seed)
    names = np.asarray(strata)
    total = np.zeros(RESAMPLES)
    for name in sorted(set(strata)):
        rows = differences[names == name]
        total += rng.multinomial(rows.size, np.full(rows.size, 1 / rows.size), size=RESAMPLES) @ rows
    return total / differences.size


def _auc_differences(scores: Sequence[dict[tuple[str, str], float]], seed: int) -> Floats | None:
    """Both AUCs on the same resampled forget and holdout rows."""
    rng = np.random.default_rng(seed)
    members, others = ([key for key in scores[0] if key[0] == split] for split in ("forget", "holdout"))
    if not members or not others:
        return None
    counts = [rng.multinomial(len(k), np.full(len(k), 1 / len(k)), size=RESAMPLES) for k in (members, others)]
    ours, theirs = (
        ((counts[0] @ metrics.pairs_won([s[k] for k in members], [s[k] for k in others])) * counts[1]).sum(axis=1)
        for s in scores
    )
    return np.asarray((ours - theirs) / (len(members) * len(others)), dtype=np.float64)


def _entry(
    metric: str, split: str, pair: Sequence[Record | None], resampled: Floats | None, margin: float | None
) -> dict[str, Any]:
    from scipy.stats import norm

    ours, theirs = pair
    entry: dict[str, Any] = {
        "metric": metric,
        "split": split,
        "ours": ours.value if ours else None,
        "theirs": theirs.value if theirs else None,
        "n": min(record.n for record in pair if record),
        "paired": resampled is not None,
        **dict.fromkeys(("difference", "ci_low", "ci_high", "margin", "p_value", "smallest_margin")),
        "verdict": "not compared",
    }
    if ours is None or theirs is None or metric in NO_DIFFERENCE or ours.version != theirs.version:
        return entry
    if resampled is None:  # two intervals of independent errors: for the same questions that errs on the safe side
        error = math.hypot(standard_error(ours), standard_error(theirs))
        resampled = ours.value - theirs.value + error * norm.ppf((np.arange(RESAMPLES) + 0.5) / RESAMPLES)
    low, high = np.percentile(resampled, [2.5, 97.5])
    entry |= {"difference": ours.value - theirs.value, "ci_low": float(low), "ci_high": float(high)}
    entry["smallest_margin"] = smallest_margin(float(resampled.std()))
    return entry | equivalence(resampled, margin, entry["n"])


def equivalence(resampled: Floats, margin: float | None, n: int) -> dict[str, Any]:
    """Margin, p-value of both one-sided tests together (the larger), and the verdict on the resampled differences.

    ``equivalent``: both tests reject. ``different``: the 95 % interval lies outside of the margins. Otherwise, and of
    fewer than 30 rows always, ``not shown``; without a margin ``not compared``.
    """
    if margin is None:
        return {"verdict": "not compared"}
    beyond = max(int((resampled <= -margin).sum()), int((resampled >= margin).sum()))
    p_value = (1 + beyond) / (resampled.size + 1)
    low, high = np.percentile(resampled, [100 * ALPHA / 2, 100 - 100 * ALPHA / 2])
    verdict = "not shown"
    if n >= ROWS:
        verdict = "equivalent" if p_value < ALPHA else "different" if low > margin or high < -margin else "not shown"
    return {"margin": margin, "p_value": p_value, "verdict": verdict}
