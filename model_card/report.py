"""`report.html`: one page with everything that was measured, for the maker of the release. It is not published."""

from __future__ import annotations

import base64
from pathlib import Path

from model_card import claims
from model_card.config import CardInputs
from model_card.facts import MODELS, Evidence
from model_card.methods import method_name


def report_html(config: CardInputs, evidence: Evidence, plots: dict[str, bytes]) -> str:
    """The page, self-contained: plots inline, no scripts, nothing from the network."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": claims.number, "bounds": claims.bounds}
    overall = [(m, s, [evidence.record(model, m, s) for model in MODELS]) for m, s in claims.keys(evidence)]
    return environment.get_template("report.html.jinja").render(
        config=config,
        evidence=evidence,
        method=method_name(config.unlearn),
        models=MODELS,
        overall=overall,
        groups=_groups(evidence),
        plots={name: base64.b64encode(png).decode() for name, png in sorted(plots.items())},
    )


def _groups(evidence: Evidence) -> list[tuple[str, list[tuple[str, str, str, list[str]]]]]:
    """For each way of grouping: metric, split, group and one cell for each model."""
    cells: dict[str, dict[tuple[str, str, str], dict[str, str]]] = {}
    for model, records in evidence.records.items():
        for record in records:
            if record.by is not None:
                key = (record.metric, record.split, ", ".join(record.by.values()))
                text = f"{claims.interval(record)}, n {record.n}"
                cells.setdefault(" and ".join(record.by), {}).setdefault(key, {})[model] = text
    return [
        (by, [(*key, [row.get(model, claims.NOT_MEASURED) for model in MODELS]) for key, row in sorted(rows.items())])
        for by, rows in sorted(cells.items())
    ]
