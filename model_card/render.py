"""The card stage: README.md, plots, a local report page and the combined results, all from the evidence alone.

The same evidence gives the same bytes. A card with a number that was not measured is refused, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.artifacts import json_text
from core.lineage import rows_of_each
from core.words import SEARCHED
from eval.schema import PublishedResults
from model_card import claims, metadata
from model_card.config import CardFacts, CardInputs
from model_card.dataset import dataset_of
from model_card.facts import Evidence, collect
from model_card.lint import check
from model_card.markdown import escape
from model_card.methods import cap_name, method_does, method_name
from model_card.plots import draw
from model_card.report import report_html

HERE = Path(__file__).parent
LANGUAGE_NAMES = {"DE": "German", "EN": "English", "ES": "Spanish", "FR": "French", "IT": "Italian"}


def run(config: CardInputs, inputs: Mapping[str, Path], out: Path) -> CardFacts:
    """Write the card of a release to ``out``.

    ``inputs``: data, neighbours (if the unlearning rehearsed any), unlearn, eval-base, eval-gold, eval-unlearned, gate.
    Raises ArtifactError if evidence is missing, and InputError if the rendered card breaks a rule of
    :mod:`model_card.lint`.
    """
    evidence = collect(inputs)
    card = render(config, evidence)
    check(card, config, evidence)
    plots = draw(evidence)
    (out / "README.md").write_text(card, encoding="utf-8")
    (out / "plots").mkdir()
    for name, png in plots.items():
        (out / "plots" / name).write_bytes(png)
    (out / "report.html").write_text(report_html(config, evidence, plots), encoding="utf-8")
    (out / "results.json").write_text(combined(evidence), encoding="utf-8")
    return CardFacts(passed=evidence.passed, metrics=len(claims.keys(evidence)), languages=evidence.languages())


def combined(evidence: Evidence) -> str:
    """The records of all models as published in ``results.json``: measured values, no text of any row."""
    return json_text(PublishedResults(models=evidence.records).plain())


def render(config: CardInputs, evidence: Evidence) -> str:
    """The text of README.md with its front matter."""
    import jinja2

    # Markdown is not HTML: what people typed goes through the `md` filter instead of HTML escaping.
    environment = jinja2.Environment(  # noqa: S701
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": escape, "number": claims.number}
    return environment.get_template("template.md.jinja").render(context(config, evidence))


def context(config: CardInputs, evidence: Evidence) -> dict[str, Any]:
    """The values that the template uses. Tables and lists are Markdown; names and prose are plain text."""
    references = claims.reference_settings(config)
    return {
        "inputs": config,
        "evidence": evidence,
        "searched": SEARCHED,
        "metadata": metadata.card_data(config, evidence).to_yaml().strip(),
        "method": method_name(config.unlearn),
        "does": [*method_does(config.unlearn), *asked(evidence)],
        "capped": config.unlearn.get("forget_cap") is not None,
        "cap_level": cap_name(config.unlearn),
        "licence": config.model.rules,
        "dataset": dataset_of(config),
        "topics_setting": config.data.get("setting") == "topics",
        "lineage": list(zip(evidence.lineage, rows_of_each(evidence.lineage), strict=True)),
        "languages": listed([LANGUAGE_NAMES.get(code, escape(code)) for code in evidence.languages()]),
        "topics": ", ".join(f"`{topic}`" for topic in evidence.topics()),
        "results": claims.results_table(evidence),
        "metrics": claims.metrics(evidence),
        "gates": claims.gates_table(evidence),
        "gate_notes": claims.gate_notes(evidence),
        "by_language": claims.language_table(evidence),
        "counts": claims.counts_table(evidence),
        "unlearn_settings": claims.settings_table(config.unlearn),
        "reference_settings": claims.settings_table(references) if references else "",
        "limitations": [*limits(config, evidence), *(escape(text) for text in config.card.limitations)],
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(evidence.packages.items())),
    }


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def asked(evidence: Evidence) -> list[str]:
    """What base was asked to make rows that are rehearsed, in numbers."""
    facts = evidence.neighbours
    if facts is None:
        return []
    return [
        f"Base was asked {facts.asked} questions about other people, and {facts.kept} of its answers are rehearsed. "
        f"Dropped were {facts.stating_a_forgotten_fact} that stated a forgotten fact and {facts.empty} that were empty "
        f"or did not end. {len(facts.of_unrehearsed)} of the {facts.kept} are about the facts of *unrehearsed* rows."
    ]


def limits(config: CardInputs, evidence: Evidence) -> list[str]:
    """What the measurements cannot show: sentences that follow from the numbers of rows and from what was left out."""
    n = evidence.counts["forget"].rows
    texts = [
        f"Even if none of the {n} forget rows leaked, up to {claims.leak_bound(n):.1f} % of facts like these could "
        "(95 % bound). If a test of this size finds no difference, that does not show that there is none.",
        _of_golds(config, evidence),
        f"Retain values are measured on rows that {_trained_on(evidence)}. They show what was kept, not how well the "
        "model generalises.",
    ]
    if evidence.gold_prompts:
        texts.append(
            "Gold was asked with the chat template that it was published with, which gives rows other tokens than "
            "base's. What differs between the models may be due to that."
        )
    if missing := claims.not_measured(evidence):
        texts.append(f"Not measured: {'; '.join(missing)}.")
    return texts


def _of_golds(config: CardInputs, evidence: Evidence) -> str:
    """How many golds there are, and in which metrics the difference between golds was measured."""
    if "gold" not in evidence.records:
        return "There is no gold, so it is not known how a model that never saw the forget rows would answer."
    seeds = config.gold.get("seeds")
    if not isinstance(seeds, list):
        return "There is one base and one gold, each trained with one seed. How much two golds differ was not measured."
    golds = f"There is one base, trained with one seed, and there are {1 + len(seeds)} golds, each with its own seed."
    if evidence.record("unlearned", "leak_coordinate", "forget") is None:
        return f"{golds} All values are compared with one of them. How much two golds differ was not measured."
    return (
        f"{golds} `leak_coordinate`, `damage` and `damage_gap` compare with all of them. All other values are compared "
        "with one gold; how much two golds differ in these was not measured."
    )


def _trained_on(evidence: Evidence) -> str:
    """Which models were trained on the retain rows, to follow "rows that"."""
    rows, left_out = evidence.counts["retain"].rows, evidence.counts["retain"].rows - evidence.rehearsed
    if not left_out:
        return "were trained on"
    return f"base was trained on; the unlearning left out {left_out if evidence.rehearsed else 'all'} of the {rows}"
