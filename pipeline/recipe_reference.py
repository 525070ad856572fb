"""The text of `docs/recipe.md`: every key of a recipe with type, default and meaning, from the models that read them.

What a key means is the ``description`` of its field, what a section means the docstring of its model, and what a metric
means its entry in `eval/catalog.py`. The page is written by
``UPDATE_GOLDENS=1 python -m pytest tests/test_recipe_reference.py``.
"""

from __future__ import annotations

import json
from inspect import getdoc
from typing import Any

from pydantic.fields import FieldInfo

from core.markdown import anchors
from core.strict import Strict
from eval.attacks.catalog import ATTACKS
from eval.catalog import CATALOG, FORGET, READINGS
from pipeline.collection import CollectionConfig
from pipeline.recipe import Recipe
from pipeline.recipe_errors import sections

HEAD = """\
<!-- Written from the models by tests/test_recipe_reference.py. Change a description there, not here. -->

# Every key of a recipe

A recipe is one YAML file; `pipeline/recipes` has examples, and [how a release is made](how-it-works.md) explains the
terms. `extends: NAME` on the first level names one other recipe, or its file, whose values hold if this one gives none
(a list is replaced as a whole). `--set KEY=VALUE` changes a value for one run. A relative path begins at the folder of
the file that names it, and one given by `--set` at the current folder. A key that is not here, a wrong type and an
impossible combination are refused with the key's path and line.

A *section* has keys of its own, in a table of its own. `[]` stands for each entry of a list, `NAME` for each key of a
mapping. A collection (`pipeline/recipes/collections`) is a file with the section `collection` alone.

The [metrics](#metrics) that gates and margins name are at the end.
"""
METRICS = """\
## Metrics

*Best* is *like gold* where higher is as wrong as lower: on rows that were to be forgotten. Tasks of `eval.suites` bring
the metrics of lm-eval (`acc`).
"""
ATTACKED = """\
Under an attack (`eval.robustness`) the forget rows' answers are read again. Each reading is a metric, and with `_gap`
at the end its mean difference to gold under the same attack, row by row: `extraction_strength_nf4_gap`. `leak_at_K` is
there for each K that `eval.sampling.k` allows, and has a gap too.
"""
NAMES = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`", "null": "`null`"}
LIMITS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def recipe_reference() -> str:
    """The whole page as Markdown."""
    places = _places(CollectionConfig, "collection", _places(Recipe, "", {}))
    titles = {model: ", ".join(f"`{place}`" for place in found) or "The recipe" for model, found in places.items()}
    anchored = zip(titles, anchors(titles.values()), strict=True)
    links = {model.__name__: f"[section](#{anchor})" for model, anchor in anchored}
    parts = [HEAD]
    for model, title in titles.items():
        parts.append(f"## {title}\n\n{_plain(getdoc(model) or '')}\n\n{_table(model, places[model], links)}\n")
    return "\n".join([*parts, METRICS, _metrics(), ATTACKED, _readings()])


def _metrics() -> str:
    """All metrics but the readings under an attack and the gaps; of leak@k the first."""
    rows = ["| metric | is called | splits | best | needs | meaning |", "|---|---|---|---|---|---|"]
    for metric in CATALOG.values():
        if metric.family == "reading" or metric.gap_of or (metric.k or 1) > 1:
            continue
        best = "higher, on forget rows like gold" if metric.better == "what is known" else metric.better
        if metric.better == "what is known" and metric.splits == FORGET:
            best = "like gold"
        golds = "several golds" if metric.needs_golds else "gold" if metric.needs_gold else ""
        needs = ", ".join(filter(None, (golds, "holdout rows" if metric.needs_holdout else "")))
        cells = (f"`{metric.name}`", metric.label, ", ".join(metric.splits), best, needs, metric.meaning)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _readings() -> str:
    """The attacks, and the metrics that are read under each."""
    rows = ["| metrics | the answers are read |", "|---|---|"]
    for attack in ATTACKS:
        names = "<br>".join(f"`{metric.name}_{attack.name}`" for metric in READINGS)
        rows.append(f"| {names} | {attack.how} |")
    return "\n".join(rows) + "\n"


def _places(model: type[Strict], at: str, found: dict[type[Strict], list[str]]) -> dict[type[Strict], list[str]]:
    """Where in a recipe each model stands; a section comes before those inside it."""
    found.setdefault(model, []).extend([at] if at else [])
    for name, field in model.model_fields.items():
        each = "[]" if "list[" in str(field.annotation) else ".NAME" if "dict[" in str(field.annotation) else ""
        for section in sections(field.annotation):
            _places(section, f"{at}.{name}{each}".removeprefix("."), found)
    return found


def _table(model: type[Strict], places: list[str], links: dict[str, str]) -> str:
    schemas = model.model_json_schema()["properties"]
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        keys = "<br>".join(f"`{place}.{name}`" for place in places) or f"`{name}`"
        cells = (keys, _type(schemas[name], links), _default(field), str(field.description))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _type(schema: dict[str, Any], links: dict[str, str]) -> str:
    """A JSON schema in words."""
    *others, last = _alternatives(schema, links)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(schema: dict[str, Any], links: dict[str, str]) -> list[str]:
    if "anyOf" in schema:
        return [words for member in schema["anyOf"] for words in _alternatives(member, links)]
    if "$ref" in schema:
        return [links[schema["$ref"].rpartition("/")[2]]]
    if "enum" in schema or "const" in schema:
        return [f"`{value}`" for value in schema.get("enum", [schema.get("const")])]
    if schema["type"] == "array":
        least = f" of {schema['minItems']} or more" if "minItems" in schema else ""
        return [f"list{least} ({_type(schema['items'], links)})"]
    if schema["type"] == "object":
        values = schema.get("additionalProperties")
        return [f"mapping (text: {_type(values, links)})" if isinstance(values, dict) else "mapping"]
    limits = " and ".join(f"{sign} {schema[limit]:,.15g}" for limit, sign in LIMITS.items() if limit in schema)
    longest = f"of up to {schema['maxLength']} characters" if "maxLength" in schema else ""
    return [" ".join(filter(None, (NAMES[schema["type"]], limits, longest)))]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Strict):
        return "its own defaults"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _plain(text: str) -> str:
    """A docstring's code spans as Markdown has them."""
    return text.replace("``", "`")
