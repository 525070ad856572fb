"""Rules that a rendered card must keep. They check the card as a reader sees it, not the code that wrote it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from core.errors import InputError
from core.hub_ids import is_hub_id
from eval.schema import Record
from model_card import claims
from model_card.config import CardInputs
from model_card.dataset import dataset_of
from model_card.facts import MODELS, Evidence
from model_card.markdown import Section, read
from model_card.metadata import result_name

SECTIONS = (
    "What was to be forgotten",
    "Results",
    "Gates",
    "Method",
    "Data",
    "How to use",
    "Limitations",
    "Licence",
    "How to verify",
    "How it was made",
)
_PLACEHOLDER = re.compile(
    r"more information needed|\b(?:todo|tbd|fixme|undefined|nan)\b|lorem ipsum|\{\{|\{%|<your"
    r"|\[none\]|(?-i:\bNone\b(?! of\b))",
    re.IGNORECASE,
)
_LOCAL_PATH = re.compile(r"(?<![\w:/.<~])/[\w.-]+/[\w.-]+|\bfile:/|(?<!\w)~/|\b[A-Za-z]:\\")
_CELL = re.compile(r"(\S+) \((\S+) to (\S+)\)")
_DECIMAL = re.compile(r"(?<![\w.:/+-])-?\d+\.\d+(?:e[+-]?\d+)?(?![\w/+-]|\.\d)")
_ANSWER_LENGTH = 8  # characters; shorter answers are words that a card may use for other reasons


def check(card: str, config: CardInputs, evidence: Evidence) -> None:
    """Raise InputError with everything that is wrong with the card."""
    if broken := problems(card, config, evidence):
        listed = "\n".join(f"- {problem}" for problem in broken)
        raise InputError(
            f"The rendered card breaks {len(broken)} rule(s). Correct the recipe's `card` section:\n{listed}"
        )


def problems(card: str, config: CardInputs, evidence: Evidence) -> list[str]:
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
        *_sections(sections, config),
        *_results(_rows(sections, "Results"), evidence),
        *_languages(_rows(sections, "By language"), evidence),
        *_gates(_rows(sections, "Gates"), evidence),
        *_counts(_rows(sections, "Data"), evidence),
        *_settings(sections, config),
        *_prose(sections, evidence),
    ]


def _metadata(data: Mapping[str, Any], config: CardInputs, evidence: Evidence) -> Iterator[str]:
    dataset = dataset_of(config)
    expected = {
        "base_model": config.model.name,
        **config.model.metadata,
        "datasets": [dataset.hub] if dataset.hub else None,
        "language": [language.lower() for language in evidence.languages()],
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
    measured = {result_name(r.metric, r.split): r.value for r in evidence.records["unlearned"] if r.by is None}
    for name in sorted(shown.keys() | measured.keys(), key=str):
        if shown.get(name) != measured.get(name):
            yield f"Metadata: model-index says {shown.get(name)} for {name}, results.json says {measured.get(name)}."


def _text(card: str, config: CardInputs, evidence: Evidence) -> Iterator[str]:
    citation = dataset_of(config).citation or ""
    for match in _PLACEHOLDER.finditer(card.replace(citation, "\n" * citation.count("\n"))):  # it may hold {{braces}}
        yield f"Placeholder {match[0]!r} in line {_line(card, match)}."
    for match in _LOCAL_PATH.finditer(card):
        yield f"Local path {match[0]!r} in line {_line(card, match)}."
    if evidence.weights_sha256 not in card:
        yield "The digest of the weights that the gates passed is not on the card."
    if evidence.passed != ("all passed" in card and "must not be released" not in card):
        yield f"The card does not say that the gates' verdict is passed = {evidence.passed}."
    licence = config.model.rules
    if licence.displayed not in card:
        yield f'The {licence.name} requires "{licence.displayed}" on the card.'
    if problem := licence.name_problem(config.publish.repo):
        yield f"Name: {problem}."
    words = " ".join(card.split()).casefold()
    for row in evidence.secret_rows():
        for kind, text in (("answer", row.answer), ("question", row.question)):
            if len(text) >= _ANSWER_LENGTH and " ".join(text.split()).casefold() in words:
                yield f"The {kind} of forget row {row.row_id} is on the card."


def _line(card: str, match: re.Match[str]) -> str:
    number = card.count("\n", 0, match.start())
    return f"{number + 1}: {card.splitlines()[number].strip()[:80]}"


def _sections(sections: list[Section], config: CardInputs) -> Iterator[str]:
    headings = [section.heading for section in sections]
    cites = dataset_of(config).citation is not None
    for required in (*SECTIONS, *(["Citation"] if cites else [])):
        if headings.count(required) != 1:
            yield f"Section {required!r} occurs {headings.count(required)} times; it must occur once."


def _rows(sections: list[Section], heading: str) -> list[dict[str, str]]:
    return [row for section in sections if section.heading == heading for table in section.tables for row in table]


def shows(printed: str, value: float) -> bool:
    """Whether ``printed`` is ``value`` rounded to the digits that are printed."""
    try:
        number = Decimal(printed)
    except InvalidOperation:
        return False
    exponent = number.as_tuple().exponent
    # Half a unit of the last digit. As decimals, since the difference of two large floats has an error of that size.
    known = isinstance(exponent, int) and math.isfinite(value)
    return known and abs(number - Decimal(value)) <= Decimal(5).scaleb(int(exponent) - 1)


def _cell(cell: str, record: Record | None) -> bool:
    if record is None:
        return cell == claims.NOT_MEASURED
    match = _CELL.fullmatch(cell)
    values = (record.value, record.ci_low, record.ci_high)
    return match is not None and all(shows(match[i + 1], values[i]) for i in range(3))


def _values(row: Mapping[str, str], records: Mapping[str, Record | None], place: str) -> Iterator[str]:
    for model, record in records.items():
        if not _cell(row[model], record):
            yield f"{place}, {model}: the card says {row[model]!r}, results.json says {claims.interval(record)!r}."
    ns = sorted({record.n for record in records.values() if record is not None})
    if row["n"] != " / ".join(str(n) for n in ns):
        yield f"{place}: the card says n = {row['n']}, results.json says {ns}."


def _results(rows: list[dict[str, str]], evidence: Evidence) -> Iterator[str]:
    expected = claims.keys(evidence)
    shown = [(row["Metric"], row["Split"]) for row in rows]
    if shown != expected:
        yield f"Results: the rows are {shown}, results.json has {expected}."
        return
    for row, (metric, split) in zip(rows, expected, strict=True):
        records = {model: evidence.record(model, metric, split) for model in MODELS}
        yield from _values(row, records, f"Results, {metric} on {split}")


def _languages(rows: list[dict[str, str]], evidence: Evidence) -> Iterator[str]:
    expected = claims.language_rows(evidence)
    if [(row["Metric"], row["Split"], row["Language"]) for row in rows] != [row[:3] for row in expected]:
        yield "By language: the rows are not those of results.json."
        return
    for row, (metric, split, language, records) in zip(rows, expected, strict=True):
        yield from _values(row, records, f"By language, {metric} on {split} in {language}")


def _gates(rows: list[dict[str, str]], evidence: Evidence) -> Iterator[str]:
    if len(rows) != len(evidence.gates):
        yield f"Gates: {len(rows)} rows, gate.json has {len(evidence.gates)}."
        return
    for row, gate in zip(rows, evidence.gates, strict=True):
        cells = {"Metric": gate.metric, "Split": gate.split, "Rule": gate.rule, "Reason": gate.reason, "n": str(gate.n)}
        cells["Verdict"] = "passed" if gate.passed else "failed"
        for column, text in cells.items():
            if row[column] != " ".join(text.split()):
                yield f"Gates, {gate.metric} on {gate.split}: {column} is {row[column]!r}, gate.json says {text!r}."
        bounds: list[float | None] = [b for b in dict.fromkeys((gate.at_least, gate.at_most)) if b is not None]
        columns = {"Measured": [gate.measured], "Bound": bounds or [None], "Could see": [gate.smallest_difference]}
        for column, values in columns.items():
            shown = row[column].split(" to ")
            if not (len(shown) == len(values) and all(map(_is_shown, shown, values))):
                yield f"Gates, {gate.metric} on {gate.split}: {column} is {row[column]!r}, gate.json says {values}."


def _is_shown(text: str, value: float | None) -> bool:
    return text == claims.NOT_MEASURED if value is None else shows(text, value)


def _counts(rows: list[dict[str, str]], evidence: Evidence) -> Iterator[str]:
    for row, (split, counts) in zip(rows, evidence.counts.items(), strict=False):
        expected = {"Split": split, "Rows": counts.rows, "People": counts.identities, "Topics": counts.topics}
        expected |= {language: counts.by_language.get(language, 0) for language in evidence.languages()}
        if row != {column: str(value) for column, value in expected.items()}:
            yield f"Data: the card says {row}, the split files say {expected}."
    if len(rows) != len(evidence.counts):
        yield f"Data: {len(rows)} rows, there are {len(evidence.counts)} splits."


def _settings(sections: list[Section], config: CardInputs) -> Iterator[str]:
    tables = [table for section in sections if section.heading == "Method" for table in section.tables]
    expected = [claims.flatten(settings) for settings in (config.unlearn, claims.reference_settings(config))]
    expected = [settings for settings in expected if settings]
    shown = [{row["Setting"]: row["Value"] for row in table} for table in tables]
    if shown != [{key: " ".join(str(value).split()) for key, value in settings.items()} for settings in expected]:
        yield "Method: the settings are not those of the recipe."


def _prose(sections: list[Section], evidence: Evidence) -> Iterator[str]:
    """Decimal numbers in sentences are measured too: each must be a number of the evidence."""
    records = [record for of_model in evidence.records.values() for record in of_model]
    known = [value for r in records for value in (r.value, r.ci_low, r.ci_high)]
    known += [number for gate in evidence.gates for number in gate.numbers()]
    known += evidence.ascent.numbers()
    known += [loss for check in evidence.checks for loss in check.numbers()]
    known.append(claims.leak_bound(evidence.counts["forget"].rows))
    for section in sections:
        if section.heading in ("Licence", "How it was made"):
            continue  # versions
        for text in section.prose:
            for match in _DECIMAL.finditer(text):
                if not any(shows(match[0], value) for value in known):
                    yield f"The number {match[0]} below {section.heading!r} is not in the evidence: {text[:80]!r}."
