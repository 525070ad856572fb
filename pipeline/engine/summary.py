"""The end of a release: what was measured beside what was demanded, and where everything is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ArtifactError, GateError
from eval.schema import Record, find_record, read_records
from pipeline.engine.artifact import Artifact

if TYPE_CHECKING:
    from rich.table import Table

MODELS = ("base", "gold", "unlearned")


def read_verdict(gate: Path) -> dict[str, Any]:
    """The content of ``gate.json``. Raises ArtifactError where it is missing or malformed."""
    try:
        verdict = json.loads((gate / "gate.json").read_text(encoding="utf-8"))
        return {"passed": verdict["passed"] is True, "gates": list(verdict["gates"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{gate / 'gate.json'}: cannot be read as a verdict ({error}). Delete its folder."
        ) from error


def require_pass(gate: Path) -> None:
    """Raise GateError that names every failed gate, unless all passed."""
    verdict = read_verdict(gate)
    if not verdict["passed"]:
        failed = [f"{g['metric']} on {g['split']}: {g['why']}" for g in verdict["gates"] if not g["passed"]]
        listed = "\n  ".join(failed or ["the recipe has no gates"])
        raise GateError(f"The gate failed, and nothing was published.\n  {listed}")


def measurements(done: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """One entry for each metric and split: the value of each model with its interval, and the gates that judge it."""
    models = {
        name: read_records(done[f"eval-{name}"].path / "results.json") for name in MODELS if f"eval-{name}" in done
    }
    gates = read_verdict(done["gate"].path)["gates"] if "gate" in done else []
    seen: dict[tuple[str, str], None] = {}
    for records in (models.get("unlearned", []), *models.values()):
        seen |= {(record.metric, record.split): None for record in records if record.by is None}
    rows = []
    for metric, split in seen:
        values = {name: _value(find_record(records, metric, split)) for name, records in models.items()}
        judged = [gate for gate in gates if (gate["metric"], gate["split"]) == (metric, split)]
        rows.append({"metric": metric, "split": split, **values, "gates": judged})
    return rows


def _value(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {"value": record.value, "ci_low": record.ci_low, "ci_high": record.ci_high, "n": record.n}


def results_table(done: Mapping[str, Artifact]) -> Table:
    """Metric; base; gold; unlearned; gate: point estimates with their 95 % intervals."""
    from rich.table import Table

    table = Table(title="point estimate [95 % interval]", title_justify="left")
    for column in ("metric", "split", *MODELS, "gate"):
        table.add_column(column, no_wrap=column in ("metric", "split"))
    for row in measurements(done):
        cells = [_cell(row.get(name)) for name in MODELS]
        table.add_row(row["metric"], row["split"], *cells, "\n".join(_verdict(gate) for gate in row["gates"]))
    return table


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    return f"{value['value']:.3f} \\[{value['ci_low']:.3f}, {value['ci_high']:.3f}]"


def _verdict(gate: dict[str, Any]) -> str:
    from rich.markup import escape

    word = "[green]pass[/green]" if gate["passed"] else "[bold red]FAIL[/bold red]"
    return f"{word}: {escape(gate['rule'])}"


def places(done: Mapping[str, Artifact], links: Mapping[str, Path], root: Path) -> dict[str, str]:
    """Where a person finds what was made: card, report, repo, receipt."""
    found: dict[str, str] = {}
    if "card" in done:
        found["card"] = str(links["card"] / "README.md")
        found["report"] = str(links["card"] / "report.html")
    if "publish" in done:
        receipt = links["publish"] / "receipt.json"
        try:
            content = json.loads(receipt.read_text(encoding="utf-8"))
            url = str(root / content["url"]) if content["endpoint"] == "local" else content["url"]
            found["repo"] = f"{url} ({content['visibility']}, tag {content['tag']})"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{receipt}: cannot be read as a receipt ({error}). Delete its folder.") from error
        found["receipt"] = str(receipt)
    return found
