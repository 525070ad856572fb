"""What the measurements of a release do not show, in sentences that follow from the numbers; the finest test first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import NamedTuple

from core.markdown import counted, listed
from datasets_prep.schema import SPLITS
from eval.attacks.catalog import KINDS
from eval.catalog import CATALOG, Metric
from eval.schema import Z_95, Record
from model_card.claims import ALIKE, short, short_interval
from model_card.config import CardInputs
from model_card.facts import OF_EVERY_ROW, Evidence, facts_told

ROW_BY_ROW = ("answer", "options", "choice", "membership")  # families of which models have values to compare
DIFFERENTLY_AGGREGATED = ("truth_ratio",)  # on forget rows than on others, as TOFU does


def limits(config: CardInputs, evidence: Evidence) -> list[str]:
    """The three to five sentences that a reader must see."""
    n = evidence.counts["forget"].rows
    share = f"up to {evidence.leak_bound:.2g} % of facts like these could (95 % bound)"
    told = facts_told(evidence.records["unlearned"], "forget")
    rows = f"{n} forget rows" if told is None else f"{n} forget rows, which tell {counted(told, 'fact')},"
    none = f"none of the {rows} leaked" if n > 1 else "the one forget row did not leak"
    bound = f"Even if {none}, {share}."
    first = filter(None, [finest(evidence), never_known(evidence), passed_by_base(evidence)])
    return [*first, bound, _of_golds(config, evidence)]


def _of_golds(config: CardInputs, evidence: Evidence) -> str:
    """How many golds there are, and in which metrics the difference between golds was measured."""
    if not evidence.has_gold:
        return "There is no gold, so it is not known how a model that never saw the forget rows would answer."
    seeds = config.gold.get("seeds")
    base, gold = (
        "trained with one seed" if of.get("train") else "a published model" for of in (config.base, config.gold)
    )
    base = "the release before this one" if evidence.lineage else base
    if not isinstance(seeds, list):
        both = f"base and one gold, each {gold}" if base == gold else f"base, {base}, and one gold, {gold}"
        return f"There is one {both}. How much two golds differ was not measured."
    golds = f"There is one base, {base}, and there are {1 + len(seeds)} golds, each with its own seed."
    if evidence.record("unlearned", "leak_coordinate", "forget") is None:
        return f"{golds} All values are compared with one of them. How much two golds differ was not measured."
    return (
        f"{golds} The relative test (leak coordinate, damage) compares with all of them, and everything else with one: "
        "how much two golds differ there was not measured."
    )


def further(evidence: Evidence) -> Iterator[str]:
    """What else the measurements cannot show."""
    yield (
        f"Retain values are measured on rows that {_trained_on(evidence)}. They show what was kept, not how well the "
        "model generalises."
    )
    if several := [split for split in SPLITS if facts_told(evidence.records["unlearned"], split)]:
        yield (
            f"Some {listed(several)} rows tell one fact in several wordings. Means are over rows, intervals and tests "
            "of facts."
        )
    yield from _cut_short(evidence)
    if evidence.gold_prompts:
        yield (
            "Gold was asked with the chat template that it was published with, which gives rows other tokens than "
            "base's. What differs between the models may be due to that."
        )
    if limited := [task for task in _shown_suites(evidence) if evidence.suites[task].limited]:
        yield f"Of {listed(limited)} only some of the questions were asked."
    if missing := [*not_allowed(evidence), *not_measured(evidence)]:
        yield f"Not measured: {'; '.join(missing)}."


def _cut_short(evidence: Evidence) -> Iterator[str]:
    """Of which rows not all of the true answer could be generated, as their record notes."""
    for split in SPLITS:
        record = evidence.record("unlearned", "rouge_l_recall", split)
        if record and record.note:
            yield f"ROUGE-L on {split} rows: {record.note} (max_new_tokens), so that no model can say the whole answer."


def _shown_suites(evidence: Evidence) -> list[str]:
    return sorted({record.split for record in evidence.records["unlearned"]} & evidence.suites.keys())


def _trained_on(evidence: Evidence) -> str:
    """Which models were trained on the retain rows, to follow "rows that"."""
    rows, left_out = evidence.counts["retain"].rows, evidence.counts["retain"].rows - evidence.rehearsed
    if not left_out:
        return "were trained on"
    return f"base was trained on; the unlearning left out {left_out if evidence.rehearsed else 'all'} of the {rows}"


def not_measured(evidence: Evidence) -> list[str]:
    """The kinds of attack and audit of which no model has a record, in words."""
    names = {record.metric for records in evidence.records.values() for record in records if record.by is None}
    measured = {CATALOG[name].kind for name in names if name in CATALOG}
    return [text for kind, text in KINDS.items() if kind not in measured]


def not_allowed(evidence: Evidence) -> list[str]:
    """What could not be measured since there are no rows or answers for it, in words."""
    found = [record for records in evidence.records.values() for record in records]
    families = {CATALOG[r.metric].family for r in found if r.split == "forget" and r.metric in CATALOG}
    missing = {
        "membership inference, which needs holdout rows": "membership" not in families,
        "truth ratios and multiple choice, which need false answers": "options" not in families,
        "facts that the unlearning was not given": all(record.split != "unrehearsed" for record in found),
    }
    return [text for text, is_missing in missing.items() if is_missing]


def finest(evidence: Evidence) -> str:
    """Whether any comparison tells the model from one that never knew, and the clearest of those that do."""
    found = comparisons(evidence)
    other = "gold" if evidence.has_gold else "rows that it never saw"
    if not found:
        return f"The forget rows were not compared with {other}, so it is not known whether they are told apart."
    apart = sorted((c for c in found if abs(c.errors) > Z_95), key=lambda c: -abs(c.errors))
    if not apart:
        of = f"None of {len(found)} comparisons" if len(found) > 1 else "The one comparison"
        return f"{of} of the forget rows with {other} {'shows a' if len(found) > 1 else 'shows no'} difference."
    meaning = {
        True: "so more is left than there should be",
        False: "so less is left than there should be, and the facts are over-forgotten",
        None: "so it answers differently",
    }[apart[0].towards_base]
    how_many = f"{len(apart)} of {counted(len(found), 'comparison')} of the forget rows with {other}"
    return (
        f"{how_many} {'shows' if len(apart) == 1 else 'show'} a difference, and one in twenty would by chance. "
        f"The clearest: {apart[0].says}, {meaning}."
    )


def never_known(evidence: Evidence) -> str | None:
    """That base itself knew the forget rows no better than what never saw them, if so: then nothing was forgotten."""
    model, split, others = ("gold", "forget", "gold") if evidence.has_gold else ("base", "holdout", "rows never seen")
    base, never = evidence.record("base", OF_EVERY_ROW, "forget"), evidence.record(model, OF_EVERY_ROW, split)
    if base is None or never is None or base.value > never.value + ALIKE:
        return None
    return (
        f"Base itself gives the forget rows an answer probability of {short(base.value)}, where {others} "
        f"{'has' if evidence.has_gold else 'have'} {short(never.value)}: it knew them no better, so nothing shows that "
        "they were forgotten."
    )


def passed_by_base(evidence: Evidence) -> str | None:
    """That the gates ask for no forgetting, if so: none is on the forget rows, or base is within the bounds of each."""
    of_forget = [gate for gate in evidence.gates if gate.split == "forget"]
    if not of_forget:
        return "No gate is on the forget rows, so none asks whether anything was forgotten."
    for gate in of_forget:
        base = evidence.record("base", gate.metric, "forget")
        low = -math.inf if gate.at_least is None else gate.at_least
        high = math.inf if gate.at_most is None else gate.at_most
        if base is None or not low <= base.value <= high:
            return None
    if len(of_forget) == 1:
        return "Base's value is within the bounds of the one gate on the forget rows too, so it asks for no forgetting."
    gates = f"all {len(of_forget)} gates on the forget rows"
    return f"Base's values are within the bounds of {gates} too, so these ask for no forgetting."


class Compared(NamedTuple):
    """One comparison of the forget rows with what was never learned.

    ``errors`` is the difference in standard errors, ``towards_base`` its direction (None: it has none), ``says`` the
    numbers in words.
    """

    errors: float
    towards_base: bool | None
    says: str


def comparisons(evidence: Evidence) -> list[Compared]:
    """Every comparison with gold that the records hold; without gold, those with the holdout rows."""
    return [found for record in evidence.records["unlearned"] if (found := _compared(evidence, record))]


def _compared(evidence: Evidence, record: Record) -> Compared | None:
    metric = CATALOG.get(record.metric)
    if metric is None or record.split != "forget" or record.by is not None:
        return None
    if metric.ks == "p-value" and metric.needs_gold == evidence.has_gold:
        errors = NormalDist().inv_cdf(1 - max(record.value, 1e-15) / 2)
        return Compared(errors, None, f"{metric.label} is {short(record.value)}")
    if not evidence.has_gold:
        return _against_holdout(evidence, metric, record) if metric.family in ROW_BY_ROW else None
    if metric.gap_of or metric.name == "leak_coordinate":
        base = evidence.record("base", metric.name, "forget")
        return _beside(record, 0.0, _towards(record, base, 0.0), metric)
    if metric.name == "damage_gap":  # only what is beyond the golds' counts
        damage = _beside(record, 0.0, None, metric)
        return damage and damage._replace(errors=max(0.0, damage.errors))
    gold = evidence.record("gold", metric.name, "forget")
    if gold is None or metric.family not in ROW_BY_ROW:
        return None
    return _between(metric, record, gold, evidence.record("base", metric.name, "forget"), "gold's")


def _against_holdout(evidence: Evidence, metric: Metric, record: Record) -> Compared | None:
    base = evidence.record("base", metric.name, "forget")
    start = evidence.record("start", metric.name, "forget")
    if metric.family == "membership" and start is not None:
        return _between(metric, record, start, base, "that of the start model")
    if metric.family == "membership":
        return _beside(record, 0.5, _towards(record, base, 0.5), metric)
    holdout = evidence.record("unlearned", metric.name, "holdout")
    return None if holdout is None else _between(metric, record, holdout, base, "that of rows it never saw")


def _between(metric: Metric, ours: Record, other: Record, base: Record | None, whose: str) -> Compared | None:
    """Two values with their own intervals, as if of different rows: rows that both read would make it finer.

    The error is that of the sides which face each other (Newcombe's): an interval at 0 or 1 goes to one side alone.
    """
    difference = ours.value - other.value
    if metric.name in DIFFERENTLY_AGGREGATED and other.split != ours.split:
        return None
    error = _error_between(ours, other)
    if difference and not error:  # of one row each: it says nothing of others
        return None
    towards = None
    if base is not None and _knows_more(metric, base, other):
        towards = (difference > 0) == (base.value > other.value)
    errors = difference / error if error else 0.0
    return Compared(errors, towards, f"{metric.label} is {short(ours.value)}, {whose} {short(other.value)}")


def _error_between(one: Record, other: Record) -> float:
    below, above = sorted((one, other), key=lambda record: record.value)
    error = math.hypot(below.ci_high - below.value, above.value - above.ci_low) / Z_95
    return error or math.hypot(one.standard_error, other.standard_error)  # values at the ends of their intervals


def _knows_more(metric: Metric, base: Record, other: Record) -> bool:
    """Whether base can be told from what never knew, as what knows: if not, no direction is base's."""
    more = (other.value - base.value) if metric.name == "truth_ratio" else (base.value - other.value)
    return more > Z_95 * _error_between(base, other)


def _towards(record: Record, base: Record | None, null: float) -> bool | None:
    """Whether a value leaves ``null`` the way that base's does, which is up, None if base's does not."""
    return record.value > null if base is None or base.ci_low > null else None


def _beside(record: Record, null: float, towards: bool | None, metric: Metric) -> Compared | None:
    """A value that has the other model in it, or chance, beside what it is where nothing differs.

    The error is half of its interval, on the side of ``null``: above 1.96 errors the interval leaves ``null`` out.
    """
    difference = record.value - null
    error = (record.value - record.ci_low if difference > 0 else record.ci_high - record.value) / Z_95
    error = error or record.standard_error  # a value at the end of its interval
    if difference and not error:
        return None
    errors = difference / error if error else 0.0
    return Compared(errors, towards, f"{metric.label} is {short_interval(record)}")
