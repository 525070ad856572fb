"""Whether a card says what its evidence says. The card is read as a reader sees it, not as the code that wrote it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from core.errors import InputError
from core.hub_ids import is_hub_id
from datasets_prep.schema import Row
from eval.catalog import label
from eval.schema import Record
from model_card import tables
from model_card.config import CardInputs
from model_card.dataset import dataset_of
from model_card.facts import Evidence
from model_card.lint import DECIMAL, is_among, shows, unfinished
from model_card.markdown import Section, read
from model_card.metadata import indexed, result_name
from model_card.tables import Line

SECTIONS = (
    "What this does not show",
    "How to use",
    "How to verify",
    "Licence",
    "Details",
    "All metrics",
    "Gates",
    "Method and settings",
    "Data",
    "Provenance",
)
AUDITED = "Robustness and audit"
GROUPED = "By language and topic"
COMPARED = "Compared with another checkpoint"
DATASET = ("name", "license")  # of the recipe's section on its data, beside the citation
VERSION = re.compile(r"\d+\.\d+")
CELL = re.compile(r"(\S+) \((\S+) to (\S+)\)")
_ANSWER_LENGTH = 8  # characters; shorter answers are words that a card may use for other reasons


def check(card: str, config: CardInputs, evidence: Evidence, forget: Sequence[Row]) -> None:
    """Raise InputError with everything that is wrong with the card. ``forget``: the rows that it must not repeat."""
    if broken := problems(card, config, evidence, forget):
        listed = "\n".join(f"- {problem}" for problem in broken)
        raise InputError(
            f"The rendered card breaks {len(broken)} rule(s). Correct the recipe's `card` section:\n{listed}"
        )


def problems(card: str, config: CardInputs, evidence: Evidence, forget: Sequence[Row] = ()) -> list[str]:
    """What is wrong with the card, one sentence each; empty if nothing is."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        parsed = ModelCard(card)
    except (ValueError, yaml.YAMLError) as error:
        return [f"The front matter cannot be read: {error}"]
    sections = read(parsed.text)
    return [
        *_metadata(parsed.data.to_dict(), config, evidence),
        *_text(card, config, evidence),
        *_forgotten(card, forget),
        *_sections(sections),
        *_headlines(_rows(sections, ""), evidence),
        *_results(sections, evidence),
        *_groups(_rows(sections, GROUPED), evidence),
        *_gates(_rows(sections, "Gates"), evidence),
        *_comparison(_rows(sections, COMPARED), evidence),
        *_counts(_rows(sections, "Data"), evidence),
        *_settings(sections, config),
        *_prose(sections, config, evidence),
    ]


def refuse_unfinished(said: Mapping[str, Any], topics: Collection[str]) -> None:
    """Raise InputError if what a recipe says, by section, has a placeholder or path that no card may show.

    ``topics`` are those of the forget rows, which may look like one.
    """
    dataset = said["card"].get("dataset") or {}
    shown = {
        "card": [*(said["card"][key] for key in ("title", "summary", "limitations")), *map(dataset.get, DATASET)],
        "gates": [gate["reason"] for gate in said["gates"]],
        **{section: said[section] for section in ("base", "gold", "novice", "unlearn", "eval")},
    }
    texts = ((section, _without(topics, text)) for section, value in shown.items() for text in _strings(value))
    if broken := [f"- {section}: {problem}" for section, text in texts for problem in unfinished(text)]:
        raise InputError("A card with this would be refused. Correct the recipe:\n" + "\n".join(broken))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


def _without(given: Iterable[str], text: str) -> str:
    """A text without what the data are called, which may hold {{braces}}, or be called /people/person."""
    for name in given:
        text = text.replace(name, "\n" * name.count("\n")) if any(unfinished(name)) else text
    return text


def _metadata(data: Mapping[str, Any], config: CardInputs, evidence: Evidence) -> Iterator[str]:
    dataset = dataset_of(config)
    expected = {
        "base_model": config.model.name,
        **config.model.metadata,
        "datasets": [dataset.hub] if dataset.hub else None,
        "language": [language.lower() for language in evidence.languages()] or None,  # rows may not say theirs
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    for key, value in expected.items():
        if data.get(key) != value:
            yield f"Metadata: {key} is {data.get(key)!r}, the recipe and the data say {value!r}."
    for name in [data.get("base_model"), *(data.get("datasets") or [])]:
        if not is_hub_id(str(name)):
            yield f"Metadata: {name!r} is not the id of a Hub repository."
    index = data.get("model-index") or [{}]
    shown = {
        metric.get("name"): metric["value"] for result in index[0].get("results", []) for metric in result["metrics"]
    }
    measured = {result_name(record, evidence): record.value for record in indexed(evidence)}
    for name in sorted(shown.keys() | measured.keys(), key=str):
        if shown.get(name) != measured.get(name):
            yield f"Metadata: model-index says {shown.get(name)} for {name}, results.json says {measured.get(name)}."


def _text(card: str, config: CardInputs, evidence: Evidence) -> Iterator[str]:
    citation = dataset_of(config).citation or ""
    yield from unfinished(_without((citation, *evidence.topics), card))
    if citation not in card:
        yield "The citation of the data is not on the card."
    if evidence.verdict.weights_sha256 not in card:
        yield "The digest of the weights that the gates passed is not on the card."
    if evidence.passed != (f"**{evidence.all_passed}.**" in card and "must not be released" not in card):
        yield f"The card does not say that the gates' verdict is passed = {evidence.passed}."
    licence = config.model.rules
    if licence.displayed not in card:
        yield f'The {licence.name} requires "{licence.displayed}" on the card.'
    if problem := licence.name_problem(config.publish.repo):
        yield f"Name: {problem}."


def _forgotten(card: str, forget: Sequence[Row]) -> Iterator[str]:
    words = " ".join(card.split()).casefold()
    for row in forget:
        for kind, text in (("answer", row.answer), ("question", row.question)):
            if len(text) >= _ANSWER_LENGTH and " ".join(text.split()).casefold() in words:
                yield f"The {kind} of forget row {row.row_id} is on the card."


def _sections(sections: list[Section]) -> Iterator[str]:
    headings = [section.heading for section in sections]
    for required in SECTIONS:
        if headings.count(required) != 1:
            yield f"Section {required!r} occurs {headings.count(required)} times; it must occur once."


def _rows(sections: list[Section], heading: str) -> list[dict[str, str]]:
    """The rows of the tables below a heading; "" is everything above the second heading."""
    chosen = sections[:2] if heading == "" else [section for section in sections if section.heading == heading]
    return [row for section in chosen for table in section.tables for row in table]


def _cell(cell: str, record: Record | None) -> bool:
    if record and tables.too_few(record):
        return _is_shown(cell, record.value)
    return _is_interval(cell, *((record.value, record.ci_low, record.ci_high) if record else (None, None, None)))


def _is_interval(cell: str, *values: float | None) -> bool:
    """Whether a cell shows a value and both ends of its interval, or a dash if there are none."""
    match = CELL.fullmatch(cell)
    if match is None:
        return cell == tables.NOT_MEASURED and None in values
    return all(map(_is_shown, match.groups(), values))


def _values(row: Mapping[str, str], expected: Line, place: str) -> Iterator[str]:
    for model, record in expected.records.items():
        shown = row[tables.NAMES[model]]
        if not _cell(shown, record):
            yield f"{place}, {model}: the card says {shown!r}, results.json says {tables.interval(record)!r}."


def _n(row: Mapping[str, str], expected: Line, place: str) -> Iterator[str]:
    if row["n"] != expected.n:
        yield f"{place}: the card says n = {row['n']}, results.json says {expected.n}."


def _headlines(rows: list[dict[str, str]], evidence: Evidence) -> Iterator[str]:
    expected = tables.headlines(evidence)
    shown = [(row["Metric"], row["Rows"]) for row in rows]
    if shown != [(label(line.metric), tables.rows_read(evidence, line)) for line in expected]:
        yield f"The first table: its rows are {shown}."
        return
    for row, line in zip(rows, expected, strict=True):
        place = f"The first table, {line.metric} on {line.split}"
        yield from _values(row, line, place)
        if row["Gate"] != tables.marks(evidence, line).replace("**", ""):
            yield f"{place}: the gate is {row['Gate']!r}, gate.json says {tables.marks(evidence, line)!r}."


def _results(sections: list[Section], evidence: Evidence) -> Iterator[str]:
    everything = tables.overall(evidence)
    for heading in ("All metrics", AUDITED):
        rows = _rows(sections, heading)
        expected = [line for line in everything if tables.is_audit(line) == (heading == AUDITED)]
        shown = [(row["Metric"], row["Split"]) for row in rows]
        if shown != [(line.metric, line.split) for line in expected]:
            yield f"{heading}: the rows are {shown}, and not those of results.json."
            continue
        for row, line in zip(rows, expected, strict=True):
            place = f"{heading}, {line.metric} on {line.split}"
            yield from (*_values(row, line, place), *_n(row, line, place))


def _groups(rows: list[dict[str, str]], evidence: Evidence) -> Iterator[str]:
    expected = [(kind, line) for kind in ("language", "topic") for line in tables.by_group(evidence, kind)]
    shown = [(row["Metric"], row["Split"], row.get("Language", row.get("Topic"))) for row in rows]
    if shown != [(line.metric, line.split, " ".join((line.by or {})[kind].split())) for kind, line in expected]:
        yield f"{GROUPED}: the rows are not those of results.json."
        return
    for row, (kind, line) in zip(rows, expected, strict=True):
        place = f"{GROUPED}, {line.metric} on {line.split} in {(line.by or {})[kind]}"
        yield from (*_values(row, line, place), *_n(row, line, place))


def _gates(rows: list[dict[str, str]], evidence: Evidence) -> Iterator[str]:
    if len(rows) != len(evidence.gates):
        yield f"Gates: {len(rows)} rows, gate.json has {len(evidence.gates)}."
        return
    for row, gate in zip(rows, evidence.gates, strict=True):
        cells = {"Metric": gate.metric, "Split": gate.split, "Rule": gate.rule, "Reason": gate.reason, "n": str(gate.n)}
        cells["Verdict"] = tables.verdict(gate.passed)
        for column, text in cells.items():
            if row[column] != " ".join(text.split()):
                yield f"Gates, {gate.metric} on {gate.split}: {column} is {row[column]!r}, gate.json says {text!r}."
        bounds: list[float | None] = [*tables.bounds_of(gate)] or [None]
        columns = {"Measured": [gate.measured], "Bound": bounds, "Could see": [gate.smallest_difference]}
        for column, values in columns.items():
            shown = row[column].split(" to ")
            if not (len(shown) == len(values) and all(map(_is_shown, shown, values))):
                yield f"Gates, {gate.metric} on {gate.split}: {column} is {row[column]!r}, gate.json says {values}."


def _comparison(rows: list[dict[str, str]], evidence: Evidence) -> Iterator[str]:
    entries = evidence.compared.metrics if evidence.compared else []
    shown = [(row["Metric"], row["Split"], row["n"], row["Verdict"]) for row in rows]
    if shown != [(entry.metric, entry.split, str(entry.n), entry.verdict) for entry in entries]:
        yield f"{COMPARED}: the rows are not those of the comparison."
        return
    for row, entry in zip(rows, entries, strict=True):
        values = {"Ours": entry.ours, "Theirs": entry.theirs, "Margin": entry.margin}
        wrong = [column for column, value in values.items() if not _is_shown(row[column], value)]
        if not _is_interval(row["Difference"], entry.difference, entry.ci_low, entry.ci_high):
            wrong.append("Difference")
        for column in wrong:
            yield f"{COMPARED}, {entry.metric} on {entry.split}: {column} is {row[column]!r}, which was not measured."


def _is_shown(text: str, value: float | None) -> bool:
    return text == tables.NOT_MEASURED if value is None else shows(text, value)


def _counts(rows: list[dict[str, str]], evidence: Evidence) -> Iterator[str]:
    for row, (split, counts) in zip(rows, evidence.counts.items(), strict=False):
        shown = {"People": counts.identities, "Topics": counts.topics}
        expected = {"Split": split, "Rows": str(counts.rows)}
        expected |= {column: str(n) if n or not counts.rows else tables.NOT_MEASURED for column, n in shown.items()}
        expected |= {language: str(counts.by_language.get(language, 0)) for language in evidence.languages()}
        if row != expected:
            yield f"Data: the card says {row}, the split files say {expected}."
    if len(rows) != len(evidence.counts):
        yield f"Data: {len(rows)} rows, there are {len(evidence.counts)} splits."


def _settings(sections: list[Section], config: CardInputs) -> Iterator[str]:
    found = [table for section in sections if section.heading == "Method and settings" for table in section.tables]
    expected = [*tables.unlearn_settings(config), tables.reference_settings(config), tables.novice_settings(config)]
    expected.append(tables.evaluation_settings(config))
    expected = [settings for settings in expected if settings]
    shown = [{row["Setting"]: row["Value"] for row in table} for table in found]
    if shown != [{key: " ".join(str(value).split()) for key, value in settings.items()} for settings in expected]:
        yield "Method: the settings are not those of the recipe."


def _prose(sections: list[Section], config: CardInputs, evidence: Evidence) -> Iterator[str]:
    """Decimal numbers in sentences are measured too: each must be a number of the evidence, or of a name."""
    records = [record for of_model in evidence.records.values() for record in of_model]
    known = [value for r in records for value in (r.value, r.ci_low, r.ci_high)]
    known += [number for gate in evidence.gates for number in gate.numbers()]
    known += evidence.ascent.numbers()
    known += [evidence.leak_bound, *map(float, DECIMAL.findall(evidence.ascent.stopped))]
    known += [float(number) for name in _names(config) for number in VERSION.findall(name)]
    for section in sections:
        if section.heading in ("Licence", "Provenance"):
            continue  # versions
        for text in section.prose:
            for match in DECIMAL.finditer(text):
                if not is_among(match[0], known):
                    yield f"The number {match[0]} below {section.heading!r} is not in the evidence: {text[:80]!r}."


def _names(config: CardInputs) -> Iterator[str]:
    """What prose may call the model and the data, such as "Llama 3.2" and "CC BY 4.0"."""
    dataset = dataset_of(config)
    yield from (config.model.name, config.model.rules.name, dataset.name, dataset.license, dataset.subset or "")
    for names in dataset.subsets.values():
        yield from names
