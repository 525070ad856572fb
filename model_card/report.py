"""`report.html`: one page with everything that was measured, for the maker of the release. It is not published.

It fetches nothing. Its tables are data in the page, which `report.js` sorts, filters and searches. Beside what the card
says, it shows questions, true answers and what each model says.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from eval.catalog import label
from eval.schema import FEW, JudgedGate, Record
from model_card import claims, limits, tables
from model_card.config import CardInputs
from model_card.facts import Evidence
from model_card.local import Local
from model_card.methods import method_name
from model_card.plots import TITLES, Plot
from model_card.tables import NOT_MEASURED, number
from model_card.templates import template

HERE = Path(__file__).parent
ASKED = ("forget", "retain")  # whose answers the page shows
Cell = str | tuple[float | None, str]  # text, or a number to sort by with its text


class Grid(NamedTuple):
    """A table for `report.js`: columns, those of them that have a filter, rows, and the column to sort by at first.

    ``descending`` is of that first order. ``filters`` maps a column to what is chosen at first (empty: everything).
    """

    columns: list[str]
    rows: list[list[Cell]]
    filters: dict[str, str] = {}  # noqa: RUF012 (a NamedTuple's default)
    sort: str | None = None
    descending: bool = False


def report_html(config: CardInputs, evidence: Evidence, local: Local, plots: list[Plot]) -> str:
    """The page, self-contained."""
    script = (HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("report.html.jinja").render(
        config=config,
        evidence=evidence,
        method=method_name(config.unlearn),
        claims=claims.made(evidence, "forgotten", "kept", "attacked", "more"),
        limits=[*limits.limits(config, evidence), *limits.further(evidence)],
        plots=plots,
        titles=TITLES,
        grids=grids(evidence, local),
        few=FEW,
        style=(HERE / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=digest,
    )


def grids(evidence: Evidence, local: Local) -> dict[str, list[Grid]]:
    """The tables by the part of the page that they stand in."""
    return {
        "Gates": [_gates(evidence)],
        "Results": [_results(evidence)],
        "Answers": [_answers(evidence, local)],
        "Stages": [_stages(evidence)],
        "Data checks": [_checks(local)],
    }


def _value(record: Record | None) -> Cell:
    return (None, NOT_MEASURED) if record is None else (record.value, tables.interval(record))


def _number(value: float | None) -> Cell:
    return (value, NOT_MEASURED if value is None else number(value))


def _gates(evidence: Evidence) -> Grid:
    columns = ["Verdict", "Metric", "Rows", "Measured", "Bound", "n", "Could see", "Why, and the reason for the bound"]
    rows: list[list[Cell]] = [
        [
            tables.verdict(gate.passed),
            label(gate.metric),
            gate.split,
            _number(gate.measured),
            tables.sides(gate),
            (gate.n, f"{gate.n}"),
            _number(gate.smallest_difference),
            " ".join(_why(gate)),
        ]
        for gate in evidence.gates
    ]
    return Grid(columns, rows, {"Verdict": "", "Rows": ""})


def _why(gate: JudgedGate) -> Iterator[str]:
    yield gate.why
    yield from (part.says for part in (gate.confirmed, *gate.parts) if part)
    yield gate.reason
    if gate.limits:
        yield gate.limits


def _results(evidence: Evidence) -> Grid:
    rows: list[list[Cell]] = [
        [
            label(line.metric),
            line.split,
            " and ".join(line.by or ()) or "all rows",
            ", ".join((line.by or {}).values()),
            *map(_value, line.records.values()),
            line.n,
        ]
        for line in tables.overall(evidence, groups=True)
    ]
    columns = ["Metric", "Rows", "Grouped by", "Group", *tables.columns(evidence), "n"]
    return Grid(columns, rows, {"Rows": "", "Grouped by": "all rows"})


def _answers(evidence: Evidence, local: Local) -> Grid:
    """What each model says to forget and retain rows, worst first.

    A forget row is the worse the more of the true answer this model says beyond gold, and a retain row the less of it
    this model says than base, both in ROUGE-L recall.
    """
    said = {model: {row["row_id"]: row for row in rows if "generation" in row} for model, rows in local.samples.items()}
    rows: list[list[Cell]] = []
    for split in ASKED:
        for row in local.rows[split]:
            if not (ours := said["unlearned"].get(row.row_id)):
                continue
            other = said.get("gold" if split == "forget" else "base", {}).get(row.row_id)
            recall, theirs = ours["rouge_l_recall"], other["rouge_l_recall"] if other else 0.0
            worse = recall - theirs if split == "forget" else theirs - recall
            answers = [said.get(m, {}).get(row.row_id, {}).get("generation", "") for m in evidence.models]
            rows.append([split, row.language or "", row.topic_id or "", row.question, row.answer, *answers])
            rows[-1].append((worse, number(worse)))
    columns = ["Rows", "Language", "Topic", "Question", "True answer", *tables.columns(evidence), "Worse by"]
    return Grid(columns, rows, {"Rows": "forget", "Language": "", "Topic": ""}, "Worse by", True)


def _stages(evidence: Evidence) -> Grid:
    rows: list[list[Cell]] = []
    for stage, digest in evidence.provenance.digests.items():
        run = evidence.provenance.runs.get(stage)
        seconds: Cell = (run.seconds, f"{run.seconds:,.1f} s") if run else (None, NOT_MEASURED)
        memory: Cell = (
            (run.peak_memory_bytes, f"{run.peak_memory_bytes / 1e6:,.0f} MB") if run else (None, NOT_MEASURED)
        )
        rows.append([stage, seconds, memory, run.device if run else NOT_MEASURED, digest[:16]])
    return Grid(["Stage", "Time", "Peak memory", "Device", "Digest begins"], rows)


def _checks(local: Local) -> Grid:
    rows: list[list[Cell]] = [
        [name.replace("_", " "), check.action, (check.count, f"{check.count:,}"), "; ".join(check.first)]
        for name, check in local.data.checks.items()
    ]
    return Grid(["Check", "If found", "Found", "The first"], rows, sort="Found", descending=True)
