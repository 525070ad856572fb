"""The card stage: README.md and what belongs to it, all from the evidence alone.

The same evidence gives the same bytes. A card with a number that was not measured is refused, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from core.artifacts import json_text
from eval.schema import PublishedResults
from model_card import plots, tables
from model_card.agreement import check
from model_card.config import CardFacts, CardInputs
from model_card.facts import Evidence, collect
from model_card.local import read_local
from model_card.metadata import EVAL_RESULTS, benchmark_files
from model_card.published import write_card_file
from model_card.render import render
from model_card.report import report_html

REPORT = "report.html"


def run(config: CardInputs, inputs: Mapping[str, Path], out: Path) -> CardFacts:
    """Write the card of a release to ``out``.

    To be published: `README.md` and its plots, `results.json`, and `card.json`, with which the card can be rendered
    again. To stay here: `report.html`. ``inputs``: data, unlearn, eval-base, eval-gold, eval-unlearned,
    gate; base (if it is a release), neighbours (if the unlearning rehearsed any), eval-start (if a gate refers to it),
    compare and eval-other (if another checkpoint was compared). Raises ArtifactError if evidence is missing, and
    InputError if the card does not agree with it.
    """
    evidence, local = collect(inputs), read_local(inputs)
    card = render(config, evidence)
    check(card, config, evidence, local.secret_rows())
    drawn = plots.drawn(evidence, local)
    report = report_html(config, evidence, local, drawn)
    (out / "README.md").write_text(card, encoding="utf-8")
    (out / "plots").mkdir()
    for plot in drawn:
        (out / "plots" / f"{plot.name}.png").write_bytes(plot.png)
    if entries := benchmark_files(evidence):
        (out / EVAL_RESULTS).mkdir()
        for name, text in entries.items():
            (out / EVAL_RESULTS / name).write_text(text, encoding="utf-8")
    (out / "results.json").write_text(combined(evidence), encoding="utf-8")
    write_card_file(out, config, evidence)
    (out / REPORT).write_text(report, encoding="utf-8")
    return CardFacts(passed=evidence.passed, metrics=len(tables.overall(evidence)), languages=evidence.languages())


def refused(config: CardInputs, inputs: Mapping[str, Path], out: Path) -> Path:
    """Write the report of a release whose gates failed to ``out``: it shows why. Raises as :func:`run`."""
    evidence, local = collect(inputs), read_local(inputs)
    page = out / REPORT
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report_html(config, evidence, local, plots.drawn(evidence, local)), encoding="utf-8")
    return page


def combined(evidence: Evidence) -> str:
    """The records of all models as published in ``results.json``: measured values, no text of any row."""
    return json_text(PublishedResults(models=evidence.records).plain())
