"""The tables of a card: which metrics, in which order and words, and how a number is printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.schema import Record
from model_card.config import CardInputs
from model_card.facts import MODELS, Evidence, Gate
from model_card.markdown import escape, table

METRICS = {  # what each one is, in the order of the results table
    "answer_probability": "mean over rows of exp(mean token log-probability of the true answer)",
    "probability_with_options": "probability of the true answer over that of it and the false ones (TOFU)",
    "rouge_l_recall": "share of the true answer's longest common subsequence of words in the greedy generation",
    "rouge_l_f1": "harmonic mean of that recall and its precision",
    "truth_ratio": "how a false answer of the same form compares with the true one, aggregated as TOFU does",
    "multiple_choice_accuracy": "true answer preferred over false ones of the same form that occur nowhere in training",
    "exact_memorization": "share of answer tokens that are the model's first choice",
    "extraction_strength": "share of the answer that follows by itself once its beginning is given",
    "fluency": "of generations: 0 where empty, else (1 - repeated n-grams) x (1 - unknown words)",
    "empty_generation": "share of generations without a word",
    "repeated_ngrams": "share of a generation's runs of three words that occurred in it before",
    "unknown_words": "share of a generation's words in neither a dictionary of its language nor any row of it",
    "generation_nll": "mean token NLL of the generation under base, in nats",
    "forget_quality": "p-value of the Kolmogorov-Smirnov test between truth ratios of this model and of gold",
    "forget_quality_ks": "the statistic of that test",
    "mia_min_k_auc": "membership inference by the least likely tokens, forget against holdout rows; 0.5 is chance",
    "mia_min_k_plus_plus_auc": "the same with each token's log-probability normalised over the vocabulary",
    "mia_loss_auc": "membership inference by the loss",
    "mia_zlib_auc": "membership inference by the loss for each byte of the compressed answer",
    "privacy_leak": "relative distance of the membership AUC to gold's, in percent; 0 is right",
    "forget_against_holdout": "p-value of such a test between this model's forget rows and rows that it never saw",
    "forget_against_holdout_ks": "the statistic of that test",
    "utility": "accuracy on general-knowledge multiple-choice questions",
    "model_utility": "harmonic mean, after TOFU, of probability, ROUGE-L recall and truth ratio on retain, and of the "
    "probability with options and truth ratio on general-knowledge questions, as far as they were measured",
}
_AUDIT = {
    "leak_coordinate": "place of the forget rows between gold (0) and base (1), with the variance between golds",
    "leak_coordinate_one_gold": "the same against one gold: the variance between two trainings of gold is not in it",
    "damage": "distance of the forget rows from the line between gold and base, in units of its length",
}
_ATTACKS = {  # endings of the names of readings under attack
    "untreated": "without an attack",
    "int8": "with weights rounded to 8 bits",
    "nf4": "with weights rounded to 4 bits (nf4)",
    "fp4": "with weights rounded to 4 bits (fp4)",
    "relearn_forget": "after a few steps of training on other forget rows",
    "relearn_retain": "after a few steps of training on retain rows",
    "paraphrase": "asked in other words",
    "first_words": "with the first words of the answer given",
    "other_language": "asked in another language",
}
_SPLITS = ("forget", "retain", "holdout", "general")
_BY_LANGUAGE = ("answer_probability", "rouge_l_recall")
NOT_MEASURED = "–"


def number(value: float) -> str:
    """``value`` with three decimals, or with two significant digits where that would show zero."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"


def interval(record: Record | None) -> str:
    """The value and its 95 % interval, or a dash where nothing was measured."""
    if record is None:
        return NOT_MEASURED
    return f"{number(record.value)} ({number(record.ci_low)} to {number(record.ci_high)})"


def verdict(passed: bool) -> str:
    """The word of a gate's verdict."""
    return "passed" if passed else "failed"


def order(metric: str, split: str) -> tuple[int, str, int, str]:
    """The sort key of a row: known metrics in the order of METRICS, then others by name."""
    known = list(METRICS)
    where = _SPLITS.index(split) if split in _SPLITS else len(_SPLITS)
    return (known.index(metric) if metric in known else len(known), metric, where, split)


def keys(evidence: Evidence) -> list[tuple[str, str]]:
    """Metric and split of every overall record of any of the models, in the order of the table."""
    found = {(r.metric, r.split) for records in evidence.records.values() for r in records if r.by is None}
    return sorted(found, key=lambda key: order(*key))


def metrics(evidence: Evidence) -> list[tuple[str, str]]:
    """Each metric in the results table, with its description."""
    found = {metric: describe(metric) for metric, _ in keys(evidence)}
    return [(metric, text) for metric, text in found.items() if text]


def describe(metric: str) -> str | None:
    """What a metric is, in one line; None for a name that nobody described."""
    if text := METRICS.get(metric) or _AUDIT.get(metric):
        return text
    if metric.endswith("_gap"):
        whole = describe(metric.removesuffix("_gap"))
        return f"mean over rows of this model's value minus gold's: {whole}" if whole else None
    if metric.startswith("leak_at_"):
        return f"probability that at least one of {metric.removeprefix('leak_at_')} sampled answers states the fact"
    attack = next((attack for attack in _ATTACKS if metric.endswith(f"_{attack}")), None)
    return f"{metric.removesuffix(f'_{attack}').replace('_', ' ')} {_ATTACKS[attack]}" if attack else None


def _better(record: Record) -> str:
    return {True: "higher", False: "lower", None: "like gold"}[record.higher_is_better]


def _row(records: Mapping[str, Record | None], start: list[str]) -> list[str]:
    ns = {record.n for record in records.values() if record is not None}
    return [*start, *(interval(records[model]) for model in MODELS), " / ".join(str(n) for n in sorted(ns))]


def results_table(evidence: Evidence) -> str:
    """Every overall metric of the three models, with intervals and numbers of rows."""
    rows = []
    for metric, split in keys(evidence):
        records = {model: evidence.record(model, metric, split) for model in MODELS}
        better = next(_better(record) for record in records.values() if record is not None)
        rows.append(_row(records, [f"`{metric}`", escape(split), better]))
    return table(["Metric", "Split", "Better", *MODELS, "n"], rows)


def language_rows(evidence: Evidence) -> list[tuple[str, str, str, dict[str, Record | None]]]:
    """Metric, split, language and records of every row of the table by language."""
    rows = []
    for metric in _BY_LANGUAGE:
        for split in ("forget", "retain"):
            for language in evidence.languages():
                group = {"language": language}
                found = {model: _grouped(evidence, model, metric, split, group) for model in MODELS}
                if any(found.values()):
                    rows.append((metric, split, language, found))
    return rows


def language_table(evidence: Evidence) -> str:
    """Answer probability and ROUGE-L recall in each language; the empty text where no language was told apart."""
    rows = [
        _row(found, [f"`{metric}`", split, escape(language)])
        for metric, split, language, found in language_rows(evidence)
    ]
    return table(["Metric", "Split", "Language", *MODELS, "n"], rows) if rows else ""


def _grouped(evidence: Evidence, model: str, metric: str, split: str, by: Mapping[str, str]) -> Record | None:
    records = evidence.records.get(model, [])
    return next((r for r in records if r.metric == metric and r.split == split and r.by == by), None)


def gates_table(evidence: Evidence) -> str:
    """Every gate: its rule, what was measured, the verdict, and the recipe's reason for the threshold."""
    rows = [
        [
            f"`{gate.metric}`",
            escape(gate.split),
            escape(gate.rule),
            NOT_MEASURED if gate.measured is None else number(gate.measured),
            bounds(gate),
            str(gate.n),
            NOT_MEASURED if gate.smallest_difference is None else number(gate.smallest_difference),
            verdict(gate.passed),
            escape(gate.reason),
        ]
        for gate in evidence.gates
    ]
    return table(["Metric", "Split", "Rule", "Measured", "Bound", "n", "Could see", "Verdict", "Reason"], rows)


def bounds(gate: Gate) -> str:
    """The number or the two that the gate's bounds come to."""
    numbers = [number(bound) for bound in (gate.at_least, gate.at_most) if bound is not None]
    return " to ".join(dict.fromkeys(numbers)) or NOT_MEASURED


def gate_notes(evidence: Evidence) -> list[str]:
    """What a reader of the verdicts must know: small cells, which rows chose the checkpoint, what no gold means."""
    small = dict.fromkeys(f"`{gate.metric}` on {escape(gate.split)}" for gate in evidence.gates if _is_small(gate))
    notes = []
    if small:
        notes.append(f"Not certifiable alone, with fewer than 100 facts: {', '.join(small)}.")
    if evidence.selection:
        notes.append(evidence.selection)
    said: dict[str, list[str]] = {}
    for gate in evidence.gates:
        for part in (gate.confirmed, gate.not_rehearsed):
            if part:
                said.setdefault(escape(part["says"]), []).append(f"`{gate.metric}` on {escape(gate.split)}")
    notes += [f"{', '.join(dict.fromkeys(names))}: {says}" for says, names in said.items()]
    return [*notes, *dict.fromkeys(gate.limits for gate in evidence.gates if gate.limits)]


def _is_small(gate: Gate) -> bool:
    return gate.n > 0 and not gate.certifiable_alone


def counts_table(evidence: Evidence) -> str:
    """Rows, people and topics of each split."""
    rows = [
        [
            split,
            str(counts.rows),
            str(counts.identities),
            str(counts.topics),
            *(str(counts.by_language.get(lang, 0)) for lang in evidence.languages()),
        ]
        for split, counts in evidence.counts.items()
    ]
    return table(["Split", "Rows", "People", "Topics", *(escape(language) for language in evidence.languages())], rows)


def settings_table(settings: Mapping[str, Any]) -> str:
    """A section of a recipe, one line for each value that is set."""
    return table(["Setting", "Value"], [[f"`{key}`", escape(str(value))] for key, value in flatten(settings).items()])


def reference_settings(config: CardInputs) -> dict[str, Any]:
    """How base and gold came to be: one set of settings where they share it, and two where they do not."""
    one_gold = {key: value for key, value in config.gold.items() if key != "seeds"}
    if config.base == one_gold or not one_gold:
        return flatten(config.base | {"gold": {"seeds": config.gold.get("seeds")}})
    return flatten({"base": config.base, "gold": config.gold})


def flatten(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys; what is not set is left out."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{above}{key}.")
        elif value is not None:
            flat[f"{above}{key}"] = value
    return flat
