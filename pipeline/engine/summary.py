"""The summary at the end of a release: the measurements, the gates, and where everything is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import GateError
from eval.schema import JudgedGate, Record, evaluations, find_record, read_records, read_verdict
from pipeline.engine.artifact import Artifact
from pipeline.publish.schema import RECEIPT, read_receipt

if TYPE_CHECKING:
    from rich.table import Table


def require_pass(gate: Path) -> None:
    """Raise GateError that names every failed gate, unless all passed; ArtifactError if there is no verdict."""
    verdict = read_verdict(gate)
    if not verdict.passed:
        failed = [f"{judged.name}: {judged.why}" for judged in verdict.failed()]
        listed = "\n  ".join(failed or ["the recipe has no gates"])
        raise GateError(f"The gate failed, and nothing was published.\n  {listed}")


@dataclass(frozen=True)
class MetricLine:
    """A metric on a split: each model's record, and the gates on this metric."""

    metric: str
    split: str
    records: dict[str, Record | None]
    gates: list[JudgedGate]

    def plain(self) -> dict[str, Any]:
        """For JSON: the value of each model with its interval."""
        values = {model: _value(record) for model, record in self.records.items()}
        gates = [gate.model_dump(mode="json") for gate in self.gates]
        return {"metric": self.metric, "split": self.split, **values, "gates": gates}


def measurements(done: Mapping[str, Artifact]) -> list[MetricLine]:
    """One line for each metric and split."""
    models = {model: read_records(folder / "results.json") for model, folder in _evaluated(done).items()}
    gates = read_verdict(done["gate"].path).gates if "gate" in done else []
    keys: dict[tuple[str, str], None] = {}
    for records in (models.get("unlearned", []), *models.values()):
        keys |= {(record.metric, record.split): None for record in records if record.by is None}
    return [
        MetricLine(
            metric,
            split,
            {name: find_record(records, metric, split) for name, records in models.items()},
            [gate for gate in gates if (gate.metric, gate.split) == (metric, split)],
        )
        for metric, split in keys
    ]


def _evaluated(done: Mapping[str, Artifact]) -> dict[str, Path]:
    return evaluations({stage: artifact.path for stage, artifact in done.items()})


def _value(record: Record | None) -> dict[str, Any] | None:
    if record is None:
        return None
    return {"value": record.value, "ci_low": record.ci_low, "ci_high": record.ci_high, "n": record.n}


def results_table(done: Mapping[str, Artifact]) -> Table:
    """The table of results: one row for each metric and split, with 95 % intervals and the gates' verdicts."""
    from rich.table import Table

    table = Table(title="point estimate [95 % interval]", title_justify="left")
    models = _evaluated(done)
    for column in ("metric", "split", *models, "gate"):
        table.add_column(column, no_wrap=column in ("metric", "split"))
    for line in measurements(done):
        cells = [_cell(line.records[name]) for name in models]
        table.add_row(line.metric, line.split, *cells, "\n".join(_verdict(gate) for gate in line.gates))
    return table


def _cell(record: Record | None) -> str:
    return "–" if record is None else f"{record.value:.3f} \\[{record.ci_low:.3f}, {record.ci_high:.3f}]"


def _verdict(gate: JudgedGate) -> str:
    from rich.markup import escape

    word = "[green]pass[/green]" if gate.passed else "[bold red]FAIL[/bold red]"
    return f"{word}: {escape(gate.rule)}"


def places(done: Mapping[str, Artifact], links: Mapping[str, Path], root: Path) -> dict[str, str]:
    """Where a person finds the results: card, report, repository, receipt."""
    listed: dict[str, str] = {}
    if "card" in done:
        listed["card"] = str(links["card"] / "README.md")
        listed["report"] = str(links["card"] / "report.html")
    if "publish" in done:
        receipt = read_receipt(links["publish"])
        url = str(root / receipt.url) if receipt.endpoint == "local" else receipt.url
        listed["repo"] = f"{url} ({receipt.visibility}, tag {receipt.tag})"
        listed["receipt"] = str(links["publish"] / RECEIPT)
    return listed
