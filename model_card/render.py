"""The text of a card: README.md with its front matter, from the evidence alone."""

from __future__ import annotations

from typing import Any

from core.lineage import rows_of_each
from core.wording import SEARCHED
from eval.schema import FACTS, FEW
from model_card import claims, limits, metadata, plots, tables
from model_card.config import CardInputs
from model_card.dataset import dataset_of
from model_card.facts import Evidence
from model_card.markdown import escape, listed
from model_card.methods import cap_name, method_does, method_name
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
        "further_limits": list(limits.further(evidence)),
        "method": method_name(config.unlearn),
        "does": [*method_does(config.unlearn), *asked(evidence)],
        "capped": config.unlearn.get("forget_cap") is not None,
        "cap_level": cap_name(config.unlearn),
        "licence": config.model.rules,
        "lineage": list(zip(evidence.lineage, rows_of_each(evidence.lineage), strict=True)),
        "dataset": dataset_of(config),
        "topics_setting": config.data.get("setting") == "topics",
        "languages": listed([LANGUAGE_NAMES.get(code, escape(code)) for code in evidence.languages()]),
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
        "novice_settings": tables.settings_table(novice) if novice else "",
        "compared": tables.compared_table(evidence),
        "stages": tables.stages_table(evidence),
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(evidence.provenance.packages.items())),
    }


def code(text: str) -> str:
    """``text`` as code, which shows it unchanged; as escaped text if it holds what would end the code."""
    plain = " ".join(text.split())
    return escape(text) if "`" in plain or "<" in plain else f"`{plain}`"


def asked(evidence: Evidence) -> list[str]:
    """What base was asked to make rows that are rehearsed, in numbers."""
    facts = evidence.asked
    if facts is None:
        return []
    sentences = [
        f"Base was asked {facts.asked} questions about other people, and {facts.kept} of its answers are rehearsed. "
        f"Dropped were {facts.stating_a_forgotten_fact} that stated a forgotten fact and {facts.empty} that were empty "
        f"or did not end. {facts.of_unrehearsed} of the {facts.kept} are about the facts of *unrehearsed* rows.",
    ]
    if facts.continued:
        sentences.append(
            f"Rehearsed is also how base goes on after another word in the place of the fact, in {facts.continued} "
            "answers to forget questions, asked about other people where the question names somebody."
        )
    return sentences
