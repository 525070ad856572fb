"""`data inspect`: the rows that a recipe would forget, before anything is trained."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from typing import Any

import numpy as np
from rich import markup
from rich.console import Console
from rich.table import Table

from datasets_prep import checks
from datasets_prep.card import count_cells
from datasets_prep.config import DataConfig
from datasets_prep.prepare import Prepared, describe, prepare
from datasets_prep.schema import SPLITS, CheckFacts, RowFacts
from pipeline.collection import load
from pipeline.commands.shared import show, without_controls

EXAMPLES = 3  # rows of each split
HIDDEN = "(hidden: --show-forget shows it)"


def inspect(options: argparse.Namespace) -> int:
    """Print counts, checks and three rows per split, with the answers of forget rows only if they are asked for.

    Raises DataError, after printing, if a check of the recipe would stop the run.
    """
    config = load(options.recipe, options.set).data
    prepared = prepare(config)
    facts = describe(config, prepared, prepared.findings)
    examples = _examples(prepared, show_forget=options.show_forget)
    text = "" if options.json else _text(config, prepared, facts, examples)
    more = {"columns_not_read": prepared.loaded.not_read, "cells": _cells(prepared), "examples": examples}
    show(options, facts.plain() | more, text)
    checks.stop(prepared.findings, config.checks)
    return 0


def _examples(prepared: Prepared, *, show_forget: bool) -> dict[str, list[dict[str, Any]]]:
    """The first, the middle and the last row of each split."""
    examples: dict[str, list[dict[str, Any]]] = {}
    for index, name in enumerate(SPLITS):
        places = np.flatnonzero(prepared.split == index)
        chosen = places[np.unique(np.linspace(0, len(places) - 1, min(EXAMPLES, len(places))).astype(int))]
        examples[name] = []
        for place in chosen.tolist():
            row = prepared.loaded.rows[place]
            answer = row.answer if name != "forget" or show_forget else HIDDEN
            examples[name].append({"row_id": row.row_id, "question": row.question, "answer": answer})
    return examples


def _cells(prepared: Prepared) -> list[dict[str, Any]]:
    _, cells = count_cells(prepared.loaded.rows, prepared.split)
    return [
        {"language": language, "topic_id": topic, **dict(zip(SPLITS, counts, strict=True))}
        for (language, topic), counts in cells.items()
    ]


def escape(text: str) -> str:
    """Text of a row, for rich: no markup, and nothing that changes the width of a cell once it is printed."""
    return markup.escape(without_controls(text))


def _text(config: DataConfig, prepared: Prepared, facts: RowFacts, examples: dict[str, Any]) -> str:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 140
    console = Console(file=io.StringIO(), width=width, color_system=None)
    sizes = ", ".join(f"{count:,} {name}" for name, count in dict(facts.rows).items())
    console.print(
        f"setting {config.setting}: {sizes}; {facts.identities:,} identities, {facts.mixed_identities:,} mixed"
    )
    if facts.rows_forgotten:
        console.print(f"{facts.rows_forgotten:,} rows that were forgotten before are only measured")
    for what, why in facts.left_out.items():
        console.print(f"left out: {what.replace('_', ' ')} ({why})")
    for name, count in (facts.splits_left_out or {}).items():
        console.print(f"split of the source that is not read: {escape(name)} ({count:,} rows)")
    if unread := prepared.loaded.not_read:
        console.print(f"columns of the source that are not read: {escape(', '.join(unread))}")
    console.print(_count_table(prepared))
    console.print(_check_table(facts.checks))
    for name, rows in examples.items():
        for row in rows:
            console.print(
                f"\n[bold]{name}[/] {escape(row['row_id'])}\n  {escape(row['question'])}\n  {escape(row['answer'])}"
            )
    return str(console.file.getvalue()).rstrip()  # type: ignore[attr-defined]


def _count_table(prepared: Prepared) -> Table:
    by_language, by_topic = count_cells(prepared.loaded.rows, prepared.split)
    table = Table("topic", title=f"rows as {' / '.join(SPLITS)}")
    for language in by_language:
        table.add_column(language or "rows", justify="right")
    for topic in dict.fromkeys(topic for _, topic in by_topic):
        cells = [by_topic.get((language, topic), (0,) * len(SPLITS)) for language in by_language]
        table.add_row(escape(topic) if topic else "(none given)", *(" / ".join(map(str, counts)) for counts in cells))
    table.add_section()
    table.add_row("all", *(" / ".join(map(str, counts)) for counts in by_language.values()))
    return table


def _check_table(facts: dict[str, CheckFacts]) -> Table:
    table = Table("check", "found", "action", "first cases", title="checks")
    for name, finding in facts.items():
        action = finding.action if finding.count else ""
        table.add_row(checks.MEANING[name], str(finding.count), action, escape("; ".join(finding.first[:2])))
    return table
