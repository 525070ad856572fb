"""The tables of a card: their rows, their order, and how a number is printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.attacks.catalog import KINDS
from eval.catalog import CATALOG, ROWS
from eval.schema import JudgedGate, Record
from model_card.config import CardInputs
from model_card.facts import MODELS, Evidence
from model_card.markdown import escape, table

NOT_MEASURED = "–"


def number(value: float) -> str:
    """``value`` with three decimals, or with two significant digits if three decimals would show zero."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"


def interval(record: Record | None) -> str:
    """The value and its 95 % interval, or a dash if nothing was measured."""
    if record is None:
        return NOT_MEASURED
    return f"{number(record.value)} ({number(record.ci_low)} to {number(record.ci_high)})"


def verdict(passed: bool) -> str:
    """The word of a gate's verdict."""
    return "passed" if passed else "failed"


def order(metric: str, split: str) -> tuple[int, str, int, str]:
    """The sort key of a row: known metrics in the order of the catalogue, then others by name."""
    known = list(CATALOG)
    place = ROWS.index(split) if split in ROWS else len(ROWS)
    return (known.index(metric) if metric in known else len(known), metric, place, split)


def keys(evidence: Evidence) -> list[tuple[str, str]]:
    """Metric and split of every overall record of any of the models, in the order of the table."""
    overall = {(r.metric, r.split) for records in evidence.records.values() for r in records if r.by is None}
    return sorted(overall, key=lambda key: order(*key))


def metrics(evidence: Evidence) -> list[tuple[str, str]]:
    """Each metric of the catalogue in the results table, with what it means."""
    names = dict.fromkeys(metric for metric, _ in keys(evidence))
    return [(metric, CATALOG[metric].meaning) for metric in names if metric in CATALOG]


def not_measured(evidence: Evidence) -> list[str]:
    """The kinds of attack and audit of which no model has a record, in words."""
    measured = {CATALOG[metric].kind for metric, _ in keys(evidence) if metric in CATALOG}
    return [text for kind, text in KINDS.items() if kind not in measured]


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
    for metric in [entry.name for entry in CATALOG.values() if entry.by_language]:
        for split in ("forget", "retain"):
            for language in evidence.languages():
                group = {"language": language}
                records = {model: _grouped(evidence, model, metric, split, group) for model in MODELS}
                if any(records.values()):
                    rows.append((metric, split, language, records))
    return rows


def language_table(evidence: Evidence) -> str:
    """Answer probability and ROUGE-L recall in each language; empty if the data name no language."""
    rows = [
        _row(records, [f"`{metric}`", split, escape(language)])
        for metric, split, language, records in language_rows(evidence)
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


def bounds(gate: JudgedGate) -> str:
    """The gate's bounds as numbers: one, or two joined by "to"."""
    numbers = [number(bound) for bound in (gate.at_least, gate.at_most) if bound is not None]
    return " to ".join(dict.fromkeys(numbers)) or NOT_MEASURED


def gate_notes(evidence: Evidence) -> list[str]:
    """Notes below the table of gates: too few facts, which rows chose the checkpoint, what no gold means."""
    small = dict.fromkeys(f"`{gate.metric}` on {escape(gate.split)}" for gate in evidence.gates if _is_small(gate))
    notes = []
    if small:
        notes.append(f"These rest on fewer than 100 facts and cannot be certified alone: {', '.join(small)}.")
    if evidence.selection:
        notes.append(evidence.selection)
    gates_by_sentence: dict[str, list[str]] = {}
    for gate in evidence.gates:
        for part in (gate.confirmed, *gate.parts):
            if part:
                gates = gates_by_sentence.setdefault(escape(part.says), [])
                gates.append(f"`{gate.metric}` on {escape(gate.split)}")
    notes += [f"{', '.join(dict.fromkeys(gates))}: {sentence}" for sentence, gates in gates_by_sentence.items()]
    return [*notes, *dict.fromkeys(gate.limits for gate in evidence.gates if gate.limits)]


def _is_small(gate: JudgedGate) -> bool:
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
    """The settings of base and gold: one set if they share it, else two."""
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


def leak_bound(n: int) -> float:
    """Upper 95 % bound, in percent, of the share of leaking rows when none of ``n`` did: 1 − 0.05^(1/n)."""
    return 100 * (1 - 0.05 ** (1 / n))
