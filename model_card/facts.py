"""The evidence of a card: everything that a card says about results is read from artifacts here.

`Evidence` is all that a card is made of, and it is published: the records in `results.json`, the verdict in
`gate.json`, the rest in `card.json` (model_card/published.py). It has no text of any row. What stays on this machine is
in model_card/local.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.artifacts import Git, Manifest, read_facts, read_manifest
from core.lineage import EarlierRelease, Lineage
from core.strict import Strict
from core.unlearning import NeighbourFacts, UnlearnFacts, read_pairing
from core.wording import is_searched
from datasets_prep.schema import FORGOTTEN, SPLITS, Row, read_forgotten, read_perturbed, read_rows
from eval.schema import (
    MODELS,
    Comparison,
    JudgedGate,
    OtherPrompts,
    Record,
    Verdict,
    evaluations,
    find_record,
    read_comparison,
    read_other_prompts,
    read_records,
    read_verdict,
)
from model_card.suites import SuiteData, read_suites

OF_EVERY_ROW = "answer_probability"
"""A metric that is measured on every row, so that its records count the rows."""


@dataclass(frozen=True)
class Counts:
    """How many rows, different people and topics a split has (0: the source does not say), and rows by language."""

    rows: int
    identities: int
    topics: int
    by_language: dict[str, int]


class Asked(Strict):
    """What base was asked to make rows that are rehearsed, in numbers; ``of_unrehearsed`` are of unrehearsed rows."""

    asked: int
    kept: int
    empty: int
    stating_a_forgotten_fact: int
    continued: int
    of_unrehearsed: int


class StageRun(Strict):
    """How a stage ran: the device, its seconds, its peak memory in bytes, the sources and the packages."""

    device: str
    seconds: float
    peak_memory_bytes: int
    git: Git
    packages: dict[str, str]


class Provenance(Strict):
    """What the release was made of and on what.

    ``digests`` are those of the artifacts by stage, ``runs`` of those stages that this card reads: what was done before
    may have been done by other sources, with other packages.
    """

    digests: dict[str, str]
    runs: dict[str, StageRun]


class CardEvidence(Strict):
    """What a card says beside records and verdict.

    ``leak_bound`` is the share of leaking facts, in percent, that so many forgotten facts may miss; ``unsearched`` the
    number of forget answers that the published files were not searched for, ``perturbed`` of false answers,
    ``rehearsed`` of retain rows that the unlearning's schedule names. ``suites`` are the data by task. ``gold_prompts``
    says how gold's prompts differ from base's, ``compared`` how another checkpoint compares, and ``compared_prompts``
    how its prompts differ, if any. ``lineage`` are the releases that this one follows; what they forgot are the rows
    ``forgotten``.
    """

    counts: dict[str, Counts]
    topics: list[str]
    leak_bound: float
    unsearched: int
    perturbed: int
    ascent: UnlearnFacts
    rehearsed: int
    asked: Asked | None
    lineage: list[EarlierRelease]
    suites: dict[str, SuiteData]
    gold_prompts: OtherPrompts | None
    compared: Comparison | None
    compared_prompts: OtherPrompts | None
    provenance: Provenance


class Evidence(CardEvidence):
    """All that a card says."""

    records: dict[str, list[Record]]
    verdict: Verdict

    @property
    def gates(self) -> list[JudgedGate]:
        """The recipe's gates in their order."""
        return self.verdict.gates

    @property
    def passed(self) -> bool:
        """Whether all gates passed."""
        return self.verdict.passed

    @property
    def all_passed(self) -> str:
        """What is said where all gates passed."""
        return "The one gate passed" if len(self.gates) == 1 else f"All {len(self.gates)} gates passed"

    @property
    def models(self) -> list[str]:
        """The models that were evaluated, in the order of the columns."""
        return [model for model in MODELS if model in self.records]

    @property
    def has_gold(self) -> bool:
        """Whether a model that never saw the forget rows was evaluated."""
        return "gold" in self.records

    def record(self, model: str, metric: str, split: str, by: Mapping[str, str] | None = None) -> Record | None:
        """The record of ``metric`` on ``split`` for ``model``, of all rows or of a group; None if it has none."""
        records = self.records.get(model, [])
        if by is None:
            return find_record(records, metric, split)
        return next((r for r in records if r.metric == metric and r.split == split and r.by == by), None)

    @property
    def forgotten_facts(self) -> int:
        """How many facts the forget rows tell."""
        return facts_told(self.records["unlearned"], "forget") or self.counts["forget"].rows

    def gates_on(self, metric: str, split: str) -> list[JudgedGate]:
        """The gates on a metric of a split."""
        return [gate for gate in self.gates if (gate.metric, gate.split) == (metric, split)]

    def languages(self) -> list[str]:
        """Codes of all languages of the data, in alphabetical order."""
        return sorted({language for counts in self.counts.values() for language in counts.by_language})

    def published(self) -> CardEvidence:
        """The part for `card.json`."""
        return CardEvidence(**{name: getattr(self, name) for name in CardEvidence.model_fields})


def collect(inputs: Mapping[str, Path]) -> Evidence:
    """Read the artifacts; ``eval-start``, ``eval-gold`` and ``neighbours`` may be absent.

    ``base`` is there if it is a release, and ``compare`` and ``eval-other`` if another checkpoint was compared.

    Raises ArtifactError if one is missing or malformed.
    """
    records = {model: read_records(folder / "results.json") for model, folder in evaluations(inputs).items()}
    rows = {split: read_rows(inputs["data"] / f"{split}.jsonl") for split in SPLITS}
    if forgotten := read_forgotten(inputs["data"]):
        rows[FORGOTTEN] = forgotten
    return Evidence(
        records=records,
        verdict=read_verdict(inputs["gate"]),
        counts={split: _counts(of_split) for split, of_split in rows.items()},
        topics=sorted({row.topic_id for row in rows["forget"] if row.topic_id}),
        leak_bound=leak_bound(facts_told(records["unlearned"], "forget") or len(rows["forget"])),
        unsearched=sum(not is_searched(row.answer) for row in [*rows["forget"], *rows.get(FORGOTTEN, [])]),
        perturbed=sum(len(row.answers) for row in read_perturbed(inputs["data"] / "perturbed.jsonl")),
        ascent=read_facts(inputs["unlearn"], UnlearnFacts),
        rehearsed=len({row.row_id for row in rows["retain"]} & _paired(inputs["unlearn"])),
        asked=_asked(read_facts(inputs["neighbours"], NeighbourFacts)) if "neighbours" in inputs else None,
        lineage=read_facts(inputs["base"], Lineage).releases if "base" in inputs else [],
        suites=read_suites(inputs["eval-unlearned"] / "lm_eval"),
        gold_prompts=read_other_prompts(inputs["eval-gold"]) if "eval-gold" in inputs else None,
        compared=read_comparison(inputs["compare"]) if "compare" in inputs else None,
        compared_prompts=read_other_prompts(inputs["eval-other"]) if "eval-other" in inputs else None,
        provenance=_provenance({name: read_manifest(folder) for name, folder in inputs.items()}),
    )


def facts_told(records: Sequence[Record], split: str) -> int | None:
    """How many facts the rows of a split tell, if some tell one in several wordings."""
    record = find_record(list(records), OF_EVERY_ROW, split)
    return record.facts if record else None


def leak_bound(n: int) -> float:
    """Upper 95 % bound, in percent, of the share of leaking facts when none of ``n`` did: 1 − 0.05^(1/n)."""
    return 100 * (1 - 0.05 ** (1 / n))


def _paired(unlearn: Path) -> set[str]:
    """All rows that the schedule names beside forget rows."""
    return {row for pair in read_pairing(unlearn) for row in pair.retain}


def _asked(facts: NeighbourFacts) -> Asked:
    """The facts without the ids of rows, which may name people."""
    return Asked(**dict(facts) | {"of_unrehearsed": len(facts.of_unrehearsed)})


def _provenance(manifests: Mapping[str, Manifest]) -> Provenance:
    return Provenance(
        digests=manifests["unlearn"].inputs | {name: manifest.digest for name, manifest in manifests.items()},
        runs={
            name: StageRun(**{key: getattr(made, key) for key in StageRun.model_fields})
            for name, made in manifests.items()
        },
    )


def _counts(rows: list[Row]) -> Counts:
    languages = sorted({row.language for row in rows if row.language})
    return Counts(
        rows=len(rows),
        identities=len({row.identity_id for row in rows} - {None}),
        topics=len({row.topic_id for row in rows} - {None}),
        by_language={language: sum(row.language == language for row in rows) for language in languages},
    )
