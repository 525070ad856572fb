"""The tables of a card: their rows, their order, and how a number is printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from core.markdown import escape, table
from eval.catalog import CATALOG, ROWS, is_headline, label
from eval.schema import FACTS, FEW, JudgedGate, Record
from model_card.config import CardInputs
from model_card.facts import Evidence

NOT_MEASURED = "–"
HEADLINES = 8  # rows of the table that a reader sees first
NAMES = {"start": "start model", "base": "base", "gold": "gold", "unlearned": "this model"}


def number(value: float) -> str:
    """``value`` with three decimals, or with two significant digits if three decimals would show zero."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"


def too_few(record: Record) -> bool:
    """Whether a record is of a language or topic with so few rows that it has no interval."""
    return record.by is not None and record.n < FEW


def interval(record: Record | None) -> str:
    """The value and its 95 % interval, the value alone of too few rows, or a dash if nothing was measured."""
    if record is None:
        return NOT_MEASURED
    if too_few(record):
        return number(record.value)
    return f"{number(record.value)} ({number(record.ci_low)} to {number(record.ci_high)})"


def verdict(passed: bool) -> str:
    """The word of a gate's verdict."""
    return "passed" if passed else "failed"


class Line(NamedTuple):
    """A row of a table of results: what was measured on which rows (all, or a group), and each model's value."""

    metric: str
    split: str
    by: dict[str, str] | None
    records: dict[str, Record | None]

    @property
    def n(self) -> str:
        """The numbers of rows, of which there is more than one if the models were measured on different ones."""
        return " / ".join(str(n) for n in sorted({record.n for record in self.records.values() if record is not None}))

    @property
    def better(self) -> str:
        """Which value is good."""
        first = next(record for record in self.records.values() if record is not None)
        never = "like gold" if "gold" in self.records else "like rows never seen"
        return {True: "higher", False: "lower", None: never}[first.higher_is_better]

    @property
    def cells(self) -> list[str]:
        """The value of each model."""
        return [interval(record) for record in self.records.values()]


def line(evidence: Evidence, metric: str, split: str, by: dict[str, str] | None = None) -> Line:
    """The row of a metric."""
    return Line(metric, split, by, {model: evidence.record(model, metric, split, by) for model in evidence.models})


def columns(evidence: Evidence) -> list[str]:
    """What the columns of the models are called."""
    return [NAMES[model] for model in evidence.models]


def order(metric: str, split: str) -> tuple[int, str, int, str]:
    """The sort key of a row: known metrics in the order of the catalogue, then others by name."""
    known = list(CATALOG)
    place = ROWS.index(split) if split in ROWS else len(ROWS)
    return (known.index(metric) if metric in known else len(known), metric, place, split)


def overall(evidence: Evidence, *, groups: bool = False) -> list[Line]:
    """Every metric on all rows of a split, in the order of the table, and with ``groups`` on their groups too."""
    found: dict[tuple[str, str, tuple[tuple[str, str], ...]], dict[str, Record | None]] = {}
    for model, records in evidence.records.items():
        for r in records:
            if groups or r.by is None:
                key = r.metric, r.split, tuple((r.by or {}).items())
                found.setdefault(key, dict.fromkeys(evidence.models))[model] = r
    keys = sorted(found, key=lambda key: (*order(*key[:2]), key[2]))
    return [Line(metric, split, dict(by) or None, found[metric, split, by]) for metric, split, by in keys]


def headlines(evidence: Evidence) -> list[Line]:
    """The few rows that a reader sees first.

    They are the metrics with a gate: those that failed, then those that the catalogue shows first, then the others, as
    far as there is room, and forget rows above the rest.
    """
    gated = {(gate.metric, gate.split): gate for gate in reversed(evidence.gates)}
    gated |= {(gate.metric, gate.split): gate for gate in evidence.verdict.failed()}
    keys = list(reversed(gated))
    chosen = sorted(keys, key=lambda key: (gated[key].passed, not is_headline(key[0])))[:HEADLINES]
    chosen.sort(key=lambda key: (key[1] != "forget", order(*key)))
    return [found for key in chosen if any((found := line(evidence, *key)).records.values())]


def by_group(evidence: Evidence, kind: str) -> list[Line]:
    """The rows of a table by ``language`` or ``topic``, of the metrics that the catalogue shows by language."""
    groups = evidence.languages() if kind == "language" else evidence.topics
    metrics = [metric.name for metric in CATALOG.values() if metric.by_language]
    lines = [
        line(evidence, metric, split, {kind: group})
        for metric in metrics
        for split in ("forget", "retain")
        for group in groups
    ]
    return [found for found in lines if any(found.records.values())]


def is_audit(line: Line) -> bool:
    """Whether a row is of an attack, of sampled answers or of the relative test."""
    return line.metric in CATALOG and CATALOG[line.metric].is_audit


def headline_table(evidence: Evidence) -> str:
    """What a reader sees first, with a mark for each gate."""
    rows = [
        [escape(label(row.metric)), escape(rows_read(evidence, row)), *row.cells, marks(evidence, row)]
        for row in headlines(evidence)
    ]
    return table(["Metric", "Rows", *columns(evidence), "Gate"], rows)


def rows_read(evidence: Evidence, row: Line) -> str:
    """Number and split of a line's rows, ``40 forget``. Of fewer holdout rows than forget rows n may be the former."""
    metric, counts = CATALOG.get(row.metric), evidence.counts
    if metric and metric.needs_holdout and counts["holdout"].rows < counts["forget"].rows:
        return f"{row.n} or more of {row.split} and of holdout"
    return f"{row.n} {row.split}"


def marks(evidence: Evidence, row: Line) -> str:
    """A mark for each gate on the metric, with its bounds."""
    found = evidence.gates_on(row.metric, row.split)
    return "; ".join(f"{'✓' if gate.passed else '✗ **failed**'} {sides(gate)}" for gate in found) or NOT_MEASURED


def sides(gate: JudgedGate) -> str:
    """The gate's bounds, for example ``≥ 0.081 and ≤ 0.279``."""
    overlaps = gate.rule.startswith(("some of", "95 % interval contains"))
    if overlaps and gate.at_least is not None and gate.at_least == gate.at_most:
        return f"95 % interval holds {number(gate.at_least)}"
    known = [(sign, bound) for sign, bound in (("≥", gate.at_least), ("≤", gate.at_most)) if bound is not None]
    part = "part of the interval " if overlaps else ""
    return part + " and ".join(f"{sign} {number(bound)}" for sign, bound in known) or NOT_MEASURED


def results_table(evidence: Evidence, lines: list[Line]) -> str:
    """Metrics of all rows of a split, with intervals and numbers of rows."""
    rows = [[f"`{row.metric}`", escape(row.split), row.better, *row.cells, row.n] for row in lines]
    return table(["Metric", "Split", "Better", *columns(evidence), "n"], rows)


def group_table(evidence: Evidence, kind: str) -> str:
    """Metrics in each language or topic; empty if the data name none."""
    rows = [
        [f"`{row.metric}`", row.split, escape((row.by or {})[kind]), *row.cells, row.n]
        for row in by_group(evidence, kind)
    ]
    return table(["Metric", "Split", kind.capitalize(), *columns(evidence), "n"], rows) if rows else ""


def meanings(lines: list[Line]) -> list[tuple[str, str, str]]:
    """Name, label and meaning of each metric of the catalogue in a table."""
    names = dict.fromkeys(row.metric for row in lines if row.metric in CATALOG)
    return [(name, CATALOG[name].label, CATALOG[name].meaning) for name in names]


def gates_table(evidence: Evidence) -> str:
    """Every gate: its rule, what was measured, the verdict, and the recipe's reason for the threshold."""
    rows = [
        [
            f"`{gate.metric}`",
            escape(gate.split),
            escape(gate.rule),
            NOT_MEASURED if gate.measured is None else number(gate.measured),
            bounds(gate),
            str(gate.n),
            NOT_MEASURED if gate.smallest_difference is None else number(gate.smallest_difference),
            verdict(gate.passed),
            escape(gate.reason),
        ]
        for gate in evidence.gates
    ]
    return table(["Metric", "Split", "Rule", "Measured", "Bound", "n", "Could see", "Verdict", "Reason"], rows)


def bounds(gate: JudgedGate) -> str:
    """The gate's bounds as numbers: one, or two joined by "to"."""
    return " to ".join(map(number, bounds_of(gate))) or NOT_MEASURED


def bounds_of(gate: JudgedGate) -> list[float]:
    """The numbers of the gate's bounds: one if they are the same."""
    return [bound for bound in dict.fromkeys((gate.at_least, gate.at_most)) if bound is not None]


def gate_notes(evidence: Evidence) -> list[str]:
    """Notes below the table of gates: too few facts, which rows chose the checkpoint, what no gold means."""
    small = dict.fromkeys(f"`{gate.metric}` on {escape(gate.split)}" for gate in evidence.gates if _is_small(gate))
    notes = []
    if small:
        notes.append(f"These rest on fewer than {FACTS} facts and cannot be certified alone: {', '.join(small)}.")
    if evidence.verdict.selection:
        notes.append(evidence.verdict.selection)
    gates_by_sentence: dict[str, list[str]] = {}
    for gate in evidence.gates:
        for part in (gate.confirmed, *gate.parts):
            if part:
                gates = gates_by_sentence.setdefault(escape(part.says), [])
                gates.append(f"`{gate.metric}` on {escape(gate.split)}")
    notes += [f"{', '.join(dict.fromkeys(gates))}: {sentence}" for sentence, gates in gates_by_sentence.items()]
    return [*notes, *dict.fromkeys(gate.limits for gate in evidence.gates if gate.limits)]


def _is_small(gate: JudgedGate) -> bool:
    return gate.n > 0 and not gate.certifiable_alone


def compared_table(evidence: Evidence) -> str:
    """How another checkpoint compares; empty if none was compared."""
    if evidence.compared is None:
        return ""
    rows = []
    for entry in evidence.compared.metrics:
        numbers = [NOT_MEASURED if v is None else number(v) for v in (entry.ours, entry.theirs, entry.margin)]
        known = None not in (entry.difference, entry.ci_low, entry.ci_high)
        difference = (entry.difference or 0.0, entry.ci_low or 0.0, entry.ci_high or 0.0)
        shown = "{} ({} to {})".format(*map(number, difference)) if known else NOT_MEASURED
        verdict_of = entry.verdict
        rows.append(
            [f"`{entry.metric}`", escape(entry.split), str(entry.n), *numbers[:2], shown, numbers[2], verdict_of]
        )
    return table(["Metric", "Split", "n", "Ours", "Theirs", "Difference", "Margin", "Verdict"], rows)


def counts_table(evidence: Evidence) -> str:
    """Rows, people and topics of each split; a dash where the source does not say whom or what its rows are about."""
    rows = [
        [
            split,
            str(counts.rows),
            *(str(n) if n or not counts.rows else NOT_MEASURED for n in (counts.identities, counts.topics)),
            *(str(counts.by_language.get(lang, 0)) for lang in evidence.languages()),
        ]
        for split, counts in evidence.counts.items()
    ]
    return table(["Split", "Rows", "People", "Topics", *(escape(language) for language in evidence.languages())], rows)


def settings_table(settings: Mapping[str, Any]) -> str:
    """A section of a recipe, one line for each value that is set."""
    return table(["Setting", "Value"], [[f"`{key}`", escape(str(value))] for key, value in flatten(settings).items()])


def unlearn_settings(config: CardInputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of the unlearning: those that are not the defaults, and the others."""
    settings = flatten(config.unlearn)
    own = {key: value for key, value in settings.items() if _is_below(key, config.changed_from_defaults)}
    return own, {key: value for key, value in settings.items() if key not in own}


def _is_below(key: str, places: list[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def reference_settings(config: CardInputs) -> dict[str, Any]:
    """The settings of base and gold: one set if they share it, else two."""
    one_gold = {key: value for key, value in config.gold.items() if key != "seeds"}
    if config.base == one_gold or not one_gold:
        return flatten(config.base | {"gold": {"seeds": config.gold.get("seeds")}})
    return flatten({"base": config.base, "gold": config.gold})


def novice_settings(config: CardInputs) -> dict[str, Any]:
    """The settings of the novice; none if the method takes nothing from it."""
    return flatten(config.novice or {})


def evaluation_settings(config: CardInputs) -> dict[str, Any]:
    """The settings of the evaluations, each suite by its task."""
    settings: dict[str, Any] = config.eval or {}
    suites = {suite["task"]: {**suite, "task": None} for suite in settings.get("suites", [])}
    return flatten({**settings, "suites": suites})


def flatten(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys; what is not set is left out."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{above}{key}.")
        elif value is not None:
            flat[f"{above}{key}"] = value
    return flat


def stages_table(evidence: Evidence) -> str:
    """The artifacts by stage: digest, device, time and peak memory."""
    return table(["Stage", "Digest", "Device", "Time", "Peak memory"], list(_stages(evidence)))


def _stages(evidence: Evidence) -> Iterator[list[str]]:
    for stage, digest in sorted(evidence.provenance.digests.items()):
        run, ran = evidence.provenance.runs.get(stage), [NOT_MEASURED] * 3
        if run:
            ran = [escape(run.device), f"{run.seconds:.0f} s", f"{run.peak_memory_bytes / 1e6:.0f} MB"]
        yield [stage, f"`{digest}`", *ran]
