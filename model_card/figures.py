"""How each plot of a card and a report is drawn. Numbers alone, and no text of any row."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eval.catalog import CATALOG, label
from eval.schema import Record
from model_card import tables
from model_card.facts import Evidence
from model_card.local import Local, Step
from model_card.tables import NAMES, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

MUTED = "#52606d"
# Told apart by all kinds of colour vision (after Okabe and Ito), and by their marks.
COLOURS = {
    "start": "#52606d", "base": "#d55e00", "gold": "#b07d00", "unlearned": "#0072b2", "forget": "#c0392b",
    "retain": "#2471a3", "refusal": "#8e6bbf",
}  # fmt: skip
WIDTH = 6.6  # inches
MOST_GROUPS = 200  # that a plot shows; their table has them all
READ = ("o", "^", "v")  # marks of the metrics that are read under attack
MARKS = {"start": "^", "base": "s", "gold": "D", "unlearned": "o"}
ANSWERS = "answer_probability"
QUANTILES = 100  # of a distribution with more rows than that
LOSSES_OF = {"forget": "true answers", "refusal": "refusals, not the answers"}
KEPT = ((ANSWERS, "retain"), (ANSWERS, "unrehearsed"), ("utility", "general"))


class Canvas:
    """A figure, and for each series of marks what is said of each mark."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.tips: dict[str, list[str]] = {}

    def marks(self, axes: Axes, points: Sequence[tuple[float, float]], tips: Sequence[str], **style: Any) -> None:
        """Marks without a line between them; ``tips`` are shown in the report under the pointer."""
        gid = f"marks-{len(self.tips)}"
        self.tips[gid] = list(tips)
        axes.plot(*zip(*points, strict=True), linestyle="none", gid=gid, **({"zorder": 4} | style))

    def interval(self, axes: Axes, record: Record, y: float, model: str, what: str, marker: str | None = None) -> None:
        """A model's value with its interval, unless of too few rows, on a horizontal line at ``y``."""
        colour = COLOURS[model]
        if not tables.too_few(record):
            axes.plot([record.ci_low, record.ci_high], [y, y], color=colour, linewidth=2.2, alpha=0.45, zorder=3)
        tip = f"{what}, {NAMES[model]}: {tables.interval(record)}, n {record.n}"
        self.marks(axes, [(record.value, y)], [tip], marker=marker or MARKS[model], color=colour)

    def legend(self, models: Sequence[str]) -> None:
        """The marks of the models, below the figure."""
        handles = [_mark(MARKS[model], COLOURS[model], NAMES[model]) for model in models]
        self.figure.legend(handles=handles, loc="outside lower center", ncols=len(models))


def results(canvas: Canvas, evidence: Evidence, _: Local) -> None:
    """What was to be forgotten beside what was to be kept: each model's value with its interval."""
    kept = [key for key in KEPT if evidence.record("unlearned", *key)]
    canvas.figure.set_size_inches(WIDTH, 2.0 + 0.42 * len(kept))
    left, right = canvas.figure.subplots(1, 2, width_ratios=[1, 1.1])
    models = evidence.models
    for i, model in enumerate(models):
        if record := evidence.record(model, ANSWERS, "forget"):
            canvas.interval(left, record, len(models) - 1 - i, model, f"{label(ANSWERS)}, forget rows")
    left.set_yticks(range(len(models)), [NAMES[model] for model in reversed(models)])
    never = None if evidence.has_gold else evidence.record("unlearned", ANSWERS, "holdout")
    like = ": like gold" if evidence.has_gold else ": like rows never seen" if never else ""
    left.set(title=f"To be forgotten{like}", xlim=(-0.02, 1.02), ylim=(-0.6, len(models) - 0.4))
    left.set_xlabel(f"{label(ANSWERS)}, forget rows")
    if never:
        left.axvspan(never.ci_low, never.ci_high, color=COLOURS["gold"], alpha=0.18, linewidth=0)
        left.annotate("rows it never saw", (never.ci_high, len(models) - 0.55), color=MUTED, fontsize=8, va="center",
                      xytext=(4, 0), textcoords="offset points")  # fmt: skip
    for row, (metric, split) in enumerate(reversed(kept)):
        for i, model in enumerate(models):
            if record := evidence.record(model, metric, split):
                offset = 0.24 * ((len(models) - 1) / 2 - i)
                canvas.interval(right, record, row + offset, model, f"{label(metric)}, {split} rows")
    names = [f"{label(metric)},\n{split} rows" for metric, split in reversed(kept)]
    right.set_yticks(range(len(kept)), names)
    right.set(title="To be kept: like base", xlim=(-0.02, 1.02), ylim=(-0.6, len(kept) - 0.4))
    right.set_xlabel("value, with 95 % interval")
    canvas.legend(models)


def training(canvas: Canvas, evidence: Evidence, local: Local) -> None:
    """The losses over the steps, forget against retain, with the released step marked."""
    canvas.figure.set_size_inches(WIDTH, 3.2)
    panels, losses = canvas.figure.subplots(1, 2), [*local.steps, *local.checks]
    for axes, splits in zip(panels, (("forget", "refusal"), ("retain",)), strict=True):
        for split in splits:
            _losses(canvas, axes, local, split)
        there = [split for split in splits if any(_loss(step, split) is not None for step in losses)]
        if "refusal" in there:  # their loss falls, and that of the answers is another
            axes.legend(handles=[_mark("o", COLOURS[split], LOSSES_OF[split]) for split in there])
        axes.set(title=f"{splits[0].capitalize()} rows", xlabel="optimizer step")
        if axes.lines:
            axes.set_ylim(0, None)
            axes.axvline(evidence.ascent.kept_step, color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
            axes.annotate("released", (evidence.ascent.kept_step, 0.03), xycoords=("data", "axes fraction"), ha="right",
                          xytext=(-4, 0), textcoords="offset points", color=MUTED, fontsize=8)  # fmt: skip
        else:
            axes.annotate("not trained on", (0.5, 0.5), xycoords="axes fraction", ha="center", color=MUTED)
            axes.set(xticks=[], yticks=[])
    panels[0].set_ylabel("loss, nats per answer token")


def _loss(step: Step, split: str) -> float | None:
    return {"forget": step.forget_loss, "refusal": step.refusal_loss, "retain": step.retain_loss}[split]


def _losses(canvas: Canvas, axes: Axes, local: Local, split: str) -> None:
    colour = COLOURS[split]
    for steps, what, mark in ((local.steps, "rows of the step", "."), (local.checks, "all rows of a check", "o")):
        losses = [(step.step, loss) for step in steps if (loss := _loss(step, split)) is not None]
        if losses:
            tips = [f"step {step}, {split} loss: {number(loss)} ({what})" for step, loss in losses]
            if mark == ".":
                axes.plot(*zip(*losses, strict=True), color=colour, alpha=0.75)
            canvas.marks(axes, losses, tips, marker=mark, color=colour)
    levels = [(check.step, check.level) for check in local.checks if check.level is not None]
    if split == "forget" and levels:
        axes.plot(*zip(*levels, strict=True), color=colour, linestyle=":", linewidth=1.2)
        axes.annotate("level to reach", levels[0], color=MUTED, fontsize=8, xytext=(0, 4), textcoords="offset points")


def truth_ratios(canvas: Canvas, evidence: Evidence, local: Local) -> None:
    """The distributions of the forget rows' truth ratios that the test of forget quality compares."""
    canvas.figure.set_size_inches(WIDTH, 3.2)
    axes = canvas.figure.subplots()
    for model in evidence.models:
        rows = local.samples.get(model, ())
        values = sorted(row["truth_ratio"] for row in rows if row["split"] == "forget" and "truth_ratio" in row)
        if not values:
            continue
        chosen = range(len(values))
        if len(values) > QUANTILES:
            chosen = range(0, len(values), len(values) // QUANTILES)
        points = [(values[i], (i + 1) / len(values)) for i in chosen]
        xs, ys = zip(*points, strict=True)
        axes.step([xs[0], *xs], [0, *ys], where="post", color=COLOURS[model], alpha=0.8)
        tips = [f"{NAMES[model]}: {100 * y:.0f} % of rows have at most {number(x)}" for x, y in points]
        canvas.marks(axes, points, tips, marker=MARKS[model], color=COLOURS[model], markersize=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain())
    axes.xaxis.set_minor_formatter(_plain())
    axes.set(xlabel="truth ratio: false answers over the true one", ylabel="share of forget rows", ylim=(0, 1.02))
    canvas.legend(evidence.models)


def _plain() -> LogFormatter:
    """Labels of a logarithmic axis where matplotlib puts them, as plain numbers: its own are formulas."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    return Plain()


def groups(canvas: Canvas, evidence: Evidence, _: Local) -> None:
    """The forget rows by language and by topic, with gold's value."""
    kinds = shown_kinds(evidence)
    most = max(len(group_lines(evidence, kind)) for kind in kinds)
    canvas.figure.set_size_inches(WIDTH, 1.3 + 0.27 * most)
    panels = canvas.figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        lines = list(reversed(group_lines(evidence, kind)))
        for y, line in enumerate(lines):
            group = (line.by or {})[kind]
            if gold := line.records.get("gold"):
                tip = f"{group}, gold: {tables.interval(gold)}, n {gold.n}"
                axes.plot([gold.value, gold.value], [y - 0.36, y + 0.36], color=COLOURS["gold"], linewidth=2.4)
                canvas.marks(axes, [(gold.value, y)], [tip], marker="|", color=COLOURS["gold"], markersize=9)
            if ours := line.records["unlearned"]:
                canvas.interval(axes, ours, y, "unlearned", group)
        names = [(line.by or {})[kind] for line in lines]
        axes.set_yticks(range(len(lines)), [name if len(name) <= 26 else f"{name[:25]}…" for name in names])
        axes.set(title=f"By {kind}", xlim=(-0.02, 1.02), xlabel=f"{label(ANSWERS)}, forget rows")
        axes.set_ylim(-0.7, len(lines) - 0.3)
    canvas.legend([model for model in ("gold", "unlearned") if model in evidence.records])


def shown_kinds(evidence: Evidence) -> list[str]:
    """By what the forget rows are shown in groups: what the data name, and not by more groups than a page can hold."""
    return [kind for kind in ("language", "topic") if 0 < len(group_lines(evidence, kind)) <= MOST_GROUPS]


def group_lines(evidence: Evidence, kind: str) -> list[tables.Line]:
    """The answer probability of the forget rows by ``kind``, language or topic."""
    found = tables.by_group(evidence, kind)
    return [line for line in found if line.metric == ANSWERS and line.split == "forget"]


def gaps(evidence: Evidence) -> list[tables.Line]:
    """The rows of readings under attack, beyond gold's."""
    return [line for line in tables.overall(evidence) if line.metric in CATALOG and CATALOG[line.metric].gap_of]


def robustness(canvas: Canvas, evidence: Evidence, _: Local) -> None:
    """What each attack brings back beyond what it brings back from gold."""
    lines = [line for line in gaps(evidence) if line.records["unlearned"]]
    attacks = list(dict.fromkeys(map(_attack, lines)))
    readings = list(dict.fromkeys(map(_reading, lines)))
    canvas.figure.set_size_inches(WIDTH, 1.4 + 0.46 * len(attacks))
    axes = canvas.figure.subplots()
    axes.axvline(0, color=COLOURS["gold"], linewidth=1.6)
    for line in lines:
        place = readings.index(_reading(line))
        y = len(attacks) - 1 - attacks.index(_attack(line)) + 0.26 * ((len(readings) - 1) / 2 - place)
        for gate in evidence.gates_on(line.metric, line.split):
            for bound in (gate.at_least, gate.at_most):
                if bound is not None:
                    axes.plot([bound, bound], [y - 0.13, y + 0.13], color=COLOURS["base"], linewidth=1.6)
        if ours := line.records["unlearned"]:
            canvas.interval(axes, ours, y, "unlearned", label(line.metric), marker=READ[place])
    axes.set_yticks(range(len(attacks)), [wrapped(attack) for attack in reversed(attacks)])
    axes.set(xlabel="beyond gold's (the line at 0), with 95 % interval", ylim=(-0.7, len(attacks) - 0.3))
    axes.locator_params(axis="x", nbins=6)
    marks = [_mark(READ[i], COLOURS["unlearned"], reading) for i, reading in enumerate(readings)]
    marks.append(_mark("|", COLOURS["base"], "a gate's bound"))
    canvas.figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))


def _attack(line: tables.Line) -> str:
    attack = CATALOG[line.metric].attack
    return attack.how if attack else label(CATALOG[line.metric].gap_of or "")


def _reading(line: tables.Line) -> str:
    reading = CATALOG[line.metric].reading
    return label(reading) if reading else "sampled answers"


def _mark(marker: str, colour: str, text: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="none", marker=marker, color=colour, label=text)


def wrapped(text: str) -> str:
    """``text`` on as many lines as it needs."""
    return "\n".join(textwrap.wrap(text, 30))


def relative(canvas: Canvas, evidence: Evidence, local: Local) -> None:
    """The relative test: the line from gold to base, each gold beside it, and where this model stands."""
    canvas.figure.set_size_inches(WIDTH, 2.9)
    axes = canvas.figure.subplots()
    axes.plot([0, 1], [0, 0], color=MUTED, linewidth=1.2, zorder=1)
    leak = evidence.record("unlearned", "leak_coordinate", "forget") or evidence.record(
        "unlearned", "leak_coordinate_one_gold", "forget"
    )
    damage = evidence.record("unlearned", "damage", "forget")
    golds = local.golds or [(0.0, 0.0)]
    tips = [f"gold: leak {number(x)}, damage {number(y)}, against the other golds" for x, y in golds]
    canvas.marks(axes, golds, tips, marker=MARKS["gold"], color=COLOURS["gold"])
    canvas.marks(axes, [(1, 0)], ["base: 1 by definition"], marker=MARKS["base"], color=COLOURS["base"])
    top = max([0.2, *(y for _, y in golds)])
    if leak and damage:
        for gate in evidence.gates_on(leak.metric, "forget"):
            if gate.at_most is not None:
                axes.axvline(gate.at_most, color=MUTED, linestyle=(0, (3, 2)), linewidth=1)
                axes.annotate("gate", (gate.at_most, 0.93), xycoords=("data", "axes fraction"), color=MUTED, fontsize=8,
                              xytext=(4, 0), textcoords="offset points")  # fmt: skip
        colour, top = COLOURS["unlearned"], max(top, damage.ci_high)
        axes.plot([leak.ci_low, leak.ci_high], [damage.value] * 2, color=colour, linewidth=2.2, alpha=0.45)
        axes.plot([leak.value] * 2, [damage.ci_low, damage.ci_high], color=colour, linewidth=2.2, alpha=0.45)
        tip = f"this model: leak {tables.interval(leak)}, damage {tables.interval(damage)}"
        canvas.marks(axes, [(leak.value, damage.value)], [tip], marker=MARKS["unlearned"], color=colour)
    axes.set(xlabel="place on the line from gold (0) to base (1)", ylabel="distance from the line")
    axes.set(ylim=(-0.08 * top, 1.15 * top))
    canvas.legend(["base", "gold", "unlearned"])
