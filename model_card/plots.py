"""The two plots of a card, as PNG bytes that depend on the evidence alone."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from model_card.facts import MODELS, Evidence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"forget": "#c0392b", "retain": "#2471a3", "refusal": "#8e6bbf"}
_METRIC = "answer_probability"


def draw(evidence: Evidence) -> dict[str, bytes]:
    """``results.png``, and ``training.png`` if the unlearning logged its steps."""
    plots = {"results.png": png(_results, evidence)}
    if evidence.steps:
        plots["training.png"] = png(_training, evidence)
    return plots


def png(draw_on: Any, *panels: Any, height: float = 3.6) -> bytes:
    """A picture of one panel below the other; ``draw_on(axes, panel)`` draws each. ``height`` is in inches."""
    import matplotlib as mpl
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with mpl.style.context("default"):  # not the user's own style
        figure = Figure(figsize=(7, height * len(panels)), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        for i, panel in enumerate(panels, 1):
            axes = figure.add_subplot(len(panels), 1, i)
            draw_on(axes, panel)
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(buffer, format="png", metadata={"Software": None})  # it would name the version of matplotlib
    return buffer.getvalue()


def _training(axes: Axes, evidence: Evidence) -> None:
    for rows in ("forget", "refusal", "retain"):
        losses = [(entry.step, getattr(entry, f"{rows}_loss")) for entry in evidence.steps]
        losses = [(step, loss) for step, loss in losses if loss is not None]
        if losses:
            axes.plot(*zip(*losses, strict=True), color=_COLOURS[rows], label=f"{rows}, rows of a step")
    for split in ("forget", "retain") if evidence.checks else ():
        values = [getattr(check, f"{split}_loss") for check in evidence.checks]
        steps = [check.step for check in evidence.checks]
        axes.plot(steps, values, "o", color=_COLOURS[split], label=f"{split}, all rows of a check")
    if evidence.ascent.kept_step is not None:
        axes.axvline(evidence.ascent.kept_step, color="#888888", linewidth=1, label="released step")
    levels = [(check.step, check.level) for check in evidence.checks if check.level is not None]
    if levels:
        axes.plot(*zip(*levels, strict=True), color=_COLOURS["forget"], linestyle=":", label="forget, level to reach")
    axes.set(xlabel="optimizer step", ylabel="loss, nats per answer token", ylim=(0, None))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _results(axes: Axes, evidence: Evidence) -> None:
    for offset, split in ((-0.18, "forget"), (0.18, "retain")):
        records = [(i, evidence.record(model, _METRIC, split)) for i, model in enumerate(MODELS)]
        bars = [(i + offset, r.value, r.value - r.ci_low, r.ci_high - r.value) for i, r in records if r is not None]
        if bars:
            places, values, below, above = zip(*bars, strict=True)
            errors = [[max(0.0, e) for e in below], [max(0.0, e) for e in above]]
            axes.bar(places, values, 0.34, color=_COLOURS[split], label=f"{split} rows", yerr=errors, capsize=4)
    axes.set_xticks(range(len(MODELS)), MODELS)
    axes.set(ylabel="answer probability", ylim=(0, 1.05))
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)
