"""The models of a collection beside each other: one page, a table for cards, and the plot of forget against retain."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from core.markdown import escape, table
from eval.schema import ComparedMetric, Record, Verdict, find_record
from model_card import tables
from model_card.plots import STYLE
from model_card.templates import template

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = [  # heading, metric, split
    ("forget rows: answer probability", "answer_probability", "forget"),
    ("retain rows: answer probability", "answer_probability", "retain"),
    ("forget quality", "forget_quality", "forget"),
    ("utility", "utility", "general"),
]
ACROSS, UP = SHOWN[0][1:], SHOWN[1][1:]


class Compared(NamedTuple):
    """One model.

    ``group`` names what it shares with those that have the same data and base. ``verdict``, and ``like`` (gold on the
    forget rows, base on all others), are those of an unlearned model. ``seconds`` is what was spent on it alone.
    """

    name: str
    group: str
    kind: Literal["base", "gold", "unlearned"]
    records: list[Record]
    verdict: Verdict | None
    like: dict[str, list[ComparedMetric]]
    repo: str | None
    seconds: float

    def record(self, metric: str, split: str) -> Record | None:
        """A value on all rows of a split."""
        return find_record(self.records, metric, split)

    @property
    def gates(self) -> str:
        """``8 of 8 passed``; empty if the model is not judged."""
        if self.verdict is None:
            return ""
        passed = sum(gate.passed for gate in self.verdict.gates)
        return f"{passed} of {len(self.verdict.gates)} passed"

    def shown(self, to: str) -> str:
        """``3 of 4``: for how many metrics equivalence to ``to`` is shown, of those that have a margin."""
        asked = [entry for entry in self.like.get(to, []) if entry.margin is not None and entry.difference is not None]
        return f"{sum(entry.verdict == 'equivalent' for entry in asked)} of {len(asked)}" if asked else ""


def card_table(models: Sequence[Compared], *, links: bool) -> str:
    """The table in Markdown, small enough for a card; with ``links`` to the repositories, if they are on the Hub."""
    rows = []
    for model in models:
        link = (
            f"[{escape(model.name)}](https://huggingface.co/{model.repo})"
            if model.repo and links
            else escape(model.name)
        )
        values = [tables.interval(model.record(metric, split)) for _, metric, split in SHOWN]
        rows.append([link, escape(model.group), *values, model.gates or tables.NOT_MEASURED])
    return table(["Model", "Data and start model", *(heading for heading, _, _ in SHOWN), "Gates"], rows)


def plot(models: Sequence[Compared]) -> bytes:
    """A PNG: for each group, answer probability on retain rows over that on forget rows, with 95 % intervals."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(model.group for model in models))

    def draw(axes: Axes, group: str) -> None:
        number = 0
        for model in models:
            across, up = model.record(*ACROSS), model.record(*UP)
            if model.group != group or across is None or up is None:
                continue
            passed = model.verdict is None or model.verdict.passed
            colour = "#555555" if model.kind != "unlearned" else f"C{number}"
            number += model.kind == "unlearned"
            axes.errorbar(
                across.value, up.value,
                xerr=[[max(0.0, across.value - across.ci_low)], [max(0.0, across.ci_high - across.value)]],
                yerr=[[max(0.0, up.value - up.ci_low)], [max(0.0, up.ci_high - up.value)]],
                fmt={"base": "s", "gold": "^", "unlearned": "o"}[model.kind], color=colour, capsize=3,
                markerfacecolor=colour if passed else "white", label=model.name + ("" if passed else " (gates failed)"),
            )  # fmt: skip
        axes.set(xlabel="forget rows: answer probability", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=group)
        axes.set_ylabel("retain rows: answer probability")
        axes.legend(frameon=False, loc="best", fontsize=8)

    buffer = io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):  # not the user's own style
        across, down = min(2, len(groups)), -(-len(groups) // 2)
        figure = Figure(figsize=(5.5 * across, 4.5 * down))
        FigureCanvasAgg(figure)
        panels = figure.subplots(down, across, squeeze=False).flatten()
        for axes, group in zip(panels, groups, strict=False):
            draw(axes, group)
        for unused in panels[len(groups) :]:
            unused.set_visible(False)
        figure.savefig(buffer, format="png", metadata={"Software": None})  # it would name the version of matplotlib
    return buffer.getvalue()


def page(title: str, description: str, models: Sequence[Compared], picture: bytes, spent: str) -> str:
    """The page in HTML, self-contained: the plot, the table, every gate that failed and every equivalence."""
    return template("comparison.html.jinja").render(
        title=title,
        description=description,
        models=models,
        columns=SHOWN,
        plot=base64.b64encode(picture).decode(),
        spent=spent,
    )
