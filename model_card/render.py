"""The text of a card: README.md with its front matter, from the evidence alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.lineage import rows_of_each
from core.markdown import counted, escape, listed
from core.wording import SEARCHED
from eval.schema import FACTS, FEW
from model_card import claims, limits, metadata, plots, tables
from model_card.config import CardInputs
from model_card.dataset import dataset_of
from model_card.facts import Evidence, StageRun
from model_card.methods import cap_name, cap_plus, method_does, method_name
from model_card.templates import template

LANGUAGE_NAMES = {"DE": "German", "EN": "English", "ES": "Spanish", "FR": "French", "IT": "Italian"}

ATTACKS = 2  # claims about attacks in the first paragraph; the others stand with all attacks


def render(config: CardInputs, evidence: Evidence) -> str:
    """The text of README.md with its front matter."""
    return template("card.md.jinja").render(context(config, evidence))


def context(config: CardInputs, evidence: Evidence) -> dict[str, Any]:
    """The values that the template uses. Tables and lists are Markdown; names and prose are plain text."""
    references = tables.reference_settings(config)
    novice = tables.novice_settings(config)
    evaluated = tables.evaluation_settings(config)
    own, defaults = tables.unlearn_settings(config)
    everything = tables.overall(evidence)
    plain = [row for row in everything if not tables.is_audit(row)]
    audited = [row for row in everything if tables.is_audit(row)]
    return {
        "inputs": config,
        "evidence": evidence,
        "searched": SEARCHED,
        "metadata": metadata.card_data(config, evidence).to_yaml().strip(),
        "claims": claims.made(evidence, "forgotten", "kept") + claims.made(evidence, "attacked")[:ATTACKS],
        "attacked_claims": claims.made(evidence, "attacked"),
        "more_claims": claims.made(evidence, "more"),
        "failed": evidence.verdict.failed(),
        "alt": plots.describe(evidence),
        "shown": plots.available(evidence),
        "headlines": tables.headline_table(evidence),
        "limits": [*limits.limits(config, evidence), *(escape(text) for text in config.card.limitations)],
        "further_limits": [escape(text) for text in limits.further(evidence)],
        "method": method_name(config.unlearn),
        "does": [*method_does(config.unlearn), *asked(evidence)],
        "capped": config.unlearn.get("forget_cap") is not None,
        "cap_level": cap_name(config.unlearn),
        "cap_plus": cap_plus(config.unlearn),
        "estimated": _checks_some(config.unlearn, evidence),
        "licence": config.model.rules,
        "lineage": list(zip(evidence.lineage, rows_of_each(evidence.lineage), strict=True)),
        "dataset": dataset_of(config),
        "part": _part(config.data.get("part")),
        "topics_setting": config.data.get("setting") == "topics",
        "languages": listed([_language(name) for name in evidence.counts["forget"].by_language]),
        "topics": ", ".join(code(topic) for topic in evidence.topics),
        "results": tables.results_table(evidence, plain),
        "audited": tables.results_table(evidence, audited) if audited else "",
        "meanings": tables.meanings(plain),
        "audited_meanings": tables.meanings(audited),
        "gates": tables.gates_table(evidence),
        "gate_notes": tables.gate_notes(evidence),
        "few": FEW,
        "certified": FACTS,
        "by_language": tables.group_table(evidence, "language"),
        "by_topic": tables.group_table(evidence, "topic"),
        "counts": tables.counts_table(evidence),
        "own_settings": tables.settings_table(own) if own else "",
        "default_settings": tables.settings_table(defaults) if defaults else "",
        "reference_settings": tables.settings_table(references) if references else "",
        "evaluation_settings": tables.settings_table(evaluated) if evaluated else "",
        "novice_settings": tables.settings_table(novice) if novice else "",
        "compared": tables.compared_table(evidence),
        "stages": tables.stages_table(evidence),
        "sources": sources(evidence.provenance.runs),
        "versions": versions(evidence.provenance.runs),
    }


def _part(part: Any) -> list[str]:
    """Which rows of the source a recipe takes, as Markdown; empty if all."""
    if not isinstance(part, Mapping):
        return []
    people = part.get("identities")
    return [
        *([f"rows in {listed([_language(name) for name in part['languages']])}"] if part.get("languages") else []),
        *([f"rows on {', '.join(map(code, part['topics']))}"] if part.get("topics") else []),
        *([f"of each language the first {counted(people, 'person', 'people')}"] if people else []),
    ]


def _language(name: str) -> str:
    return LANGUAGE_NAMES.get(name, escape(name))


def code(text: str) -> str:
    """``text`` as code, which shows it unchanged; as escaped text if it holds what would end the code."""
    plain = " ".join(text.split())
    return escape(text) if "`" in plain or "<" in plain else f"`{plain}`"


def _checks_some(unlearn: Mapping[str, Any], evidence: Evidence) -> bool:
    """Whether the checks of the unlearning read only some of the forget rows."""
    checked = (unlearn.get("stop") or {}).get("forget_rows")
    return bool(checked and checked < evidence.counts["forget"].rows)


def asked(evidence: Evidence) -> list[str]:
    """What base was asked to make rows that are rehearsed, in numbers."""
    facts = evidence.asked
    if facts is None:
        return []
    sentences = [
        f"Base was asked {counted(facts.asked, 'question')} about other people, and {facts.kept} of its answers "
        f"{'is' if facts.kept == 1 else 'are'} rehearsed. Dropped were {facts.stating_a_forgotten_fact} that stated a "
        f"forgotten fact and {facts.empty} that {'was' if facts.empty == 1 else 'were'} empty or did not end.",
    ]
    if unrehearsed := evidence.counts["unrehearsed"].rows:
        sentences.append(
            f"It was asked for the facts of {facts.of_unrehearsed} of the {counted(unrehearsed, '*unrehearsed* row')} "
            "too, and what it said to that is rehearsed."
        )
    if facts.continued:
        sentences.append(
            "Rehearsed is also how base goes on after another word in the place of the fact, in "
            f"{counted(facts.continued, 'answer')} to forget questions, asked about other people where the question "
            "names somebody."
        )
    return sentences


def sources(runs: Mapping[str, StageRun]) -> list[str]:
    """The sources that the stages ran with, as Markdown: one sentence, or one for each if they are not the same."""
    stages: dict[str, list[str]] = {}
    for stage, run in sorted(runs.items()):
        commit = f"`{run.git.commit}`" if run.git.commit else "unknown"
        stages.setdefault(commit + (", with uncommitted changes" if run.git.dirty else ""), []).append(stage)
    if len(stages) == 1:
        return [f"Source commit {source}." for source in stages if source != "unknown"]
    return [f"Source commit of {listed(of_one)}: {source}." for source, of_one in stages.items()]


def versions(runs: Mapping[str, StageRun]) -> list[str]:
    """The packages that the unlearning ran with, and what other stages ran with in the place of these, as Markdown."""
    ours = runs["unlearn"].packages
    others: dict[str, list[str]] = {}
    for stage, run in sorted(runs.items()):
        names = sorted(name for name in ours.keys() | run.packages.keys() if ours.get(name) != run.packages.get(name))
        if names:
            other = listed([f"{name} {run.packages[name]}" if name in run.packages else f"no {name}" for name in names])
            others.setdefault(other, []).append(stage)
    said = ", ".join(f"{name} {version}" for name, version in sorted(ours.items()))
    return [
        *([f"The unlearning ran with {escape(said)}."] if said else []),
        *(f"With {escape(other)} instead ran {listed(stages)}." for other, stages in others.items()),
    ]
