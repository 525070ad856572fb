"""The plots of a card and a report: which there are, what they show in words, and their files.

The same evidence gives the same bytes. On the card they are PNG on white, which is readable on any page; in the report
they are SVG whose colours follow the page, and each mark says its value under the pointer.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from core.markdown import counted
from model_card import figures, tables
from model_card.facts import Evidence
from model_card.local import Local

STYLE = Path(__file__).parent / "plots.mplstyle"
DRAWN = {
    "results": figures.results,
    "truth-ratios": figures.truth_ratios,
    "groups": figures.groups,
    "robustness": figures.robustness,
    "relative": figures.relative,
    "training": figures.training,
}
TITLES = {
    "results": "What was to be forgotten, and what was to be kept",
    "truth-ratios": "Forget quality",
    "groups": "Languages and topics",
    "robustness": "Robustness",
    "relative": "Between gold and base",
    "training": "The unlearning",
}


class Plot(NamedTuple):
    """A plot, with what it shows in words."""

    name: str
    alt: str
    png: bytes
    svg: str


def available(evidence: Evidence) -> list[str]:
    """The names of the plots that this evidence has, in their order."""
    there = {
        "results": True,
        "truth-ratios": evidence.record("unlearned", "truth_ratio", "forget") is not None,
        "groups": bool(figures.shown_kinds(evidence)),
        "robustness": bool(figures.gaps(evidence)),
        "relative": evidence.record("unlearned", "damage", "forget") is not None,
        "training": evidence.ascent.steps > 0,
    }
    return [name for name in DRAWN if there[name]]


def describe(evidence: Evidence) -> dict[str, str]:
    """What each plot shows, for those who do not see it."""
    steps, kept = counted(evidence.ascent.steps, "step"), evidence.ascent.kept_step
    answers = {
        split: ", ".join(
            f"{tables.NAMES[model]} {tables.number(record.value)}"
            for model in evidence.models
            if (record := evidence.record(model, figures.ANSWERS, split))
        )
        for split in ("forget", "retain")
    }
    return {
        "results": f"Answer probability with 95 % intervals. On forget rows: {answers['forget']}. On retain rows: "
        f"{answers['retain']}.",
        "truth-ratios": "Distributions of the forget rows' truth ratios for each model.",
        "groups": f"Answer probability on the forget rows by {' and '.join(figures.shown_kinds(evidence))}"
        + (", with gold's value." if evidence.has_gold else "."),
        "robustness": "What each attack brings back beyond gold's, with 95 % intervals and the bounds of the gates.",
        "relative": "The relative test: the golds at 0, base at 1, and this model with its intervals.",
        "training": f"Losses over {steps}; step {kept} is released.",
    }


def drawn(evidence: Evidence, local: Local) -> list[Plot]:
    """Every plot that this evidence has."""
    import matplotlib.style

    alt = describe(evidence)
    with matplotlib.style.context(["default", STYLE]):  # not the user's own style
        return [_plot(name, alt[name], evidence, local) for name in available(evidence)]


def _plot(name: str, alt: str, evidence: Evidence, local: Local) -> Plot:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure()
    canvas = figures.Canvas(figure)
    DRAWN[name](canvas, evidence, local)
    png, svg = io.BytesIO(), io.StringIO()
    # Not savefig(), which draws everything twice. Without metadata, since it would name the version of matplotlib.
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # both files are laid out alike, and once
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)  # the page's own background is seen
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return Plot(name, alt, png.getvalue(), for_page(svg.getvalue(), name, canvas.tips))


def for_page(svg: str, name: str, tips: Mapping[str, list[str]]) -> str:
    """An SVG to stand in a page: ids of its own, colours as variables of the page, and what each mark says."""
    from markupsafe import escape

    svg = svg[svg.index("<svg") :]
    for gid, texts in tips.items():
        start = svg.index(f'<g id="{gid}">')
        before, *marks = svg[start:].split("<use ", len(texts))
        said = [f'<use data-tip="{escape(text)}" {mark}' for text, mark in zip(texts, marks, strict=True)]
        svg = svg[:start] + before + "".join(said)
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"#(1f2933|52606d|9aa5b1|e4e7eb)", r"var(--plot-\1)", svg)
    for colour in figures.COLOURS.values():
        svg = svg.replace(colour, f"var(--plot-{colour[1:]})")
    return re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
