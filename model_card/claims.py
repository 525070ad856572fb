"""The sentences of a card that assert something, each with the metric and the gate that back it.

A claim is said only if its metric was measured for each model that it names, and if every gate on the metric passed
for this very value. One of these gates must bound the value as the sentence does: on the sides it names, and by the
model it names. What nobody measured or gated cannot be said: the template has no such sentence of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from core.markdown import counted
from eval.catalog import CATALOG, Metric, of_family
from eval.schema import ALPHA, JudgedGate, Record
from model_card.facts import Evidence
from model_card.tables import number

Records = Mapping[str, Record]
ALIKE = 0.05  # the largest difference of what is between 0 and 1 that a sentence calls "about as"
Part = Literal["forgotten", "attacked", "kept", "more"]


@dataclass(frozen=True)
class Claim:
    """A sentence about ``metric`` on ``split``, made of the records of ``models``; None if they do not say it.

    ``lower`` and ``upper`` are the sides on which a gate must bound it, and ``by`` is the model, or split, of whose
    value the bound on each of them must be made (None: any bound). Of the claims with the same ``topic``, only the
    first that is backed is said.
    """

    part: Part
    topic: str
    metric: str
    split: str
    models: tuple[str, ...]
    says: Callable[[Records], str | None]
    by: str | None = None
    lower: bool = False
    upper: bool = False

    def records(self, evidence: Evidence) -> dict[str, Record] | None:
        """The records by model (``holdout``: this model on other rows), None if one was not measured."""
        found = {
            model: evidence.record("unlearned", self.metric, "holdout")
            if model == "holdout"
            else evidence.record(model, self.metric, self.split)
            for model in self.models
        }
        return {model: r for model, r in found.items() if r is not None} if all(found.values()) else None

    def sentence(self, evidence: Evidence) -> str | None:
        """The sentence, or None if nothing backs it."""
        records, gates = self.records(evidence), evidence.gates_on(self.metric, self.split)
        if records is None or not all(_judged(gate, records["unlearned"]) for gate in gates):
            return None
        return self.says(records) if any(map(self._is_bounded_by, gates)) else None

    def _is_bounded_by(self, gate: JudgedGate) -> bool:
        below = not self.lower or (gate.at_least is not None and self._is_of(gate.rule_of("at least")))
        above = not self.upper or (gate.at_most is not None and self._is_of(gate.rule_of("at most")))
        return below and above

    def _is_of(self, bound: str) -> bool:
        return self.by is None or f"{self.by}'s" in bound


def _judged(gate: JudgedGate, record: Record) -> bool:
    """Whether a gate passed, and for these numbers."""
    measured = (gate.measured, gate.ci_low, gate.ci_high, gate.n)
    return gate.passed and measured == (record.value, record.ci_low, record.ci_high, record.n)


def short(value: float) -> str:
    """A number in a sentence: two decimals, or more if these would show zero."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.01 else number(value)


def short_interval(record: Record) -> str:
    """A value in a sentence, with its 95 % interval."""
    return f"{short(record.value)} ({short(record.ci_low)} to {short(record.ci_high)})"


def _share(records: Records) -> str:
    """How much of base's value is left, in percent, rounded down."""
    kept = records["unlearned"].value / records["base"].value if records["base"].value else 0.0
    return f"{min(100, math.floor(100 * kept))} %"


def _alike(records: Records, other: str) -> bool:
    """Whether the two values may be called about the same. A gate may be wider than that."""
    return abs(records["unlearned"].value - records[other].value) <= ALIKE


def _answers(records: Records) -> tuple[str, str, str]:
    """The answers to be forgotten, counted, and the words that go with so many."""
    n = records["unlearned"].told  # wordings of one fact have one answer
    return counted(n, "answer"), *(("is", "it") if n == 1 else ("are", "them"))


def _like_gold(records: Records) -> str:
    n, are, them = _answers(records)
    ours, gold, base = (short(records[model].value) for model in ("unlearned", "gold", "base"))
    if not _alike(records, "gold"):
        return (
            f"Its answer probability on the {n} to be forgotten is {ours}. A model that never saw {them} has {gold}, "
            f"and base has {base}."
        )
    return (
        f"The {n} to be forgotten {are} about as likely to it as to a model that never saw {them}: {ours}, against "
        f"{gold} there and {base} before the unlearning."
    )


def _like_holdout(records: Records) -> str:
    n, are, _ = _answers(records)
    ours, never, base = (short(records[model].value) for model in ("unlearned", "holdout", "base"))
    if not _alike(records, "holdout"):
        return (
            f"Its answer probability on the {n} to be forgotten is {ours}, on answers that it never saw {never}, and "
            f"before the unlearning it was {base}."
        )
    return (
        f"The {n} to be forgotten {are} about as likely to it as answers that it never saw: {ours} against {never}, "
        f"and {base} before the unlearning."
    )


def _kept(rows: str) -> Callable[[Records], str]:
    def says(records: Records) -> str:
        ours, base = (short(records[model].value) for model in ("unlearned", "base"))
        share = _share(records)
        on = counted(records["unlearned"].n, f"row {rows}", f"rows {rows}")
        return f"On {on}, it keeps {share} of base's answer probability ({ours} of {base})."

    return says


def _general(records: Records) -> str:
    ours, base = (f"{100 * records[model].value:.0f} %" for model in ("unlearned", "base"))
    n = counted(records["unlearned"].n, "general-knowledge question")
    return f"Of {n} it answers {ours} correctly, and base {base}."


def _membership(records: Records) -> str:
    ours, gold = (short(records[model].value) for model in ("unlearned", "gold"))
    if not _alike(records, "gold"):
        return f"Membership inference on the forgotten facts has an AUC of {ours} (gold {gold})."
    return (
        f"Membership inference finds the forgotten facts about as rarely as it does for gold (AUC {ours}, gold {gold})."
    )


def _membership_as_before(records: Records) -> str:
    ours, start = (short(records[model].value) for model in ("unlearned", "start"))
    if not _alike(records, "start"):
        return f"Membership inference on the forgotten facts has an AUC of {ours} (start model {start}, chance 0.5)."
    return (
        "Membership inference tells forgotten facts from facts never seen about as well as it does for the start "
        f"model, which saw neither (AUC {ours}, start model {start}, chance 0.5)."
    )


def _membership_alone(records: Records) -> str:
    auc = short_interval(records["unlearned"])
    return f"Membership inference against facts never seen has an AUC of {auc}, where 0.5 is chance."


def _fluent(records: Records) -> str:
    ours, gold = (short(records[model].value) for model in ("unlearned", "gold"))
    if not _alike(records, "gold"):
        return f"The fluency of its answers about what it forgot is {ours} (gold {gold})."
    return f"Asked about what it forgot, it answers about as fluently as gold ({ours}, gold {gold})."


def _not_told_apart(other: str) -> Callable[[Records], str | None]:
    """None if the test does tell them apart: a gate may allow that, with a low bound or `must_hold: overlap`."""

    def says(records: Records) -> str | None:
        p = records["unlearned"].value
        what = f"By how it ranks true and false answers, a Kolmogorov-Smirnov test does not tell {other}"
        return None if p < ALPHA else f"{what} (p = {short(p)})."

    return says


def _place(records: Records) -> str:
    return f"On the line from gold (0) to base (1) it stands at {short(records['unlearned'].value)}."


def _beyond_gold(metric: Metric) -> Callable[[Records], str]:
    attack, reading = metric.attack, CATALOG[metric.reading or ""].label

    def says(records: Records) -> str:
        how = attack.how if attack else ""
        return f"{how[:1].upper()}{how[1:]}, {reading} is {short_interval(records['unlearned'])} beyond gold's."

    return says


ANSWERS, ONE = "answer_probability", ("unlearned",)
CLAIMS = (
    Claim(
        "forgotten", "forgotten", ANSWERS, "forget", ("base", "gold", "unlearned"), _like_gold, "gold", True, True
    ),
    Claim(
        "forgotten", "forgotten", ANSWERS, "forget", ("base", "holdout", "unlearned"), _like_holdout, "holdout",
        True, True,
    ),
    Claim("kept", "retain", ANSWERS, "retain", ("base", "unlearned"), _kept("to be kept"), "base", True),
    Claim(
        "kept", "unrehearsed", ANSWERS, "unrehearsed", ("base", "unlearned"),
        _kept("that the unlearning was not given"), "base", True,
    ),
    Claim("kept", "general", "utility", "general", ("base", "unlearned"), _general, "base", True),
    *(
        Claim(
            "attacked" if metric.kind else "more", metric.name, metric.name, "forget", ONE, _beyond_gold(metric),
            upper=True,
        )
        for metric in of_family("reading")
        if metric.gap_of
    ),
    Claim("more", "told apart", "forget_quality", "forget", ONE, _not_told_apart("it from gold"), lower=True),
    Claim(
        "more", "told apart", "forget_against_holdout", "forget", ONE,
        _not_told_apart("forgotten questions from questions that it never saw"), lower=True,
    ),
    Claim("more", "membership", "mia_min_k_auc", "forget", ("gold", "unlearned"), _membership, "gold", True, True),
    Claim(
        "more", "membership", "mia_min_k_auc", "forget", ("start", "unlearned"), _membership_as_before, "start", True,
        True,
    ),
    Claim("more", "membership", "mia_min_k_auc", "forget", ONE, _membership_alone, lower=True, upper=True),
    Claim("more", "place", "leak_coordinate", "forget", ONE, _place, upper=True),
    Claim("more", "fluency", "fluency", "forget", ("gold", "unlearned"), _fluent, "gold", True),
)  # fmt: skip


def made(evidence: Evidence, *parts: Part) -> list[str]:
    """The sentences of these parts that are backed, in order."""
    said: dict[str, str] = {}
    for claim in CLAIMS:
        sentence = claim.sentence(evidence) if claim.part in parts and claim.topic not in said else None
        if sentence:
            said[claim.topic] = sentence
    return list(said.values())
