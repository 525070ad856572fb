"""Rules that any model card should keep, ours or another's: what is missing, wrong, unfinished or without a source.

Nothing is fetched. A link to another site may be dead, and no rule here says so.
"""

from __future__ import annotations

import math
import re
import sys
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from core import bounded_json, card_head
from core.errors import ArtifactError
from core.hub_ids import is_hub_id
from core.licences import LICENCES
from core.markdown import anchors

PLACEHOLDER = re.compile(
    r"more information needed|\b(?:todo|tbd|fixme|undefined|nan)\b|lorem ipsum|\{\{|\{%|<your"
    r"|\[none\]|(?-i:\bNone\b(?! of\b))",
    re.IGNORECASE,
)
LOCAL_PATH = re.compile(r"(?<![\w:/.<~])/[\w.-]+/[\w.-]+|\bfile:/|(?<!\w)~/|\b[A-Za-z]:\\")
DECIMAL = re.compile(r"(?<![\w.:/+-])-?\d+\.\d+(?:e[+-]?\d+)?(?![\w/+-]|\.\d)")
PLACES = range(-400, 309)  # of the last digit of a float, as anybody may print it
REQUIRED = ("license", "library_name", "pipeline_tag", "base_model", "language")
MISSPELT = {"licence": "license", "lisence": "license", "languages": "language", "dataset": "datasets", "tag": "tags"}
LANGUAGE = re.compile(r"[a-z]{2,3}(-\w+)?|multilingual|code")
# Families whose licence follows from the name of the start model, and what it must be.
FAMILIES = {
    r"meta-llama/(Meta-)?Llama-3-": "llama3",
    r"meta-llama/(Meta-)?Llama-3\.1-": "llama3.1",
    r"meta-llama/Llama-3\.2-": "llama3.2",
    r"meta-llama/Llama-3\.3-": "llama3.3",
    r"meta-llama/Llama-4-": "llama4",
    r"google/gemma-4-": "apache-2.0",
    r"google/gemma-(?!4-)": "gemma",
    r"HuggingFaceTB/SmolLM": "apache-2.0",
    r"mistralai/(Mistral-7B|Mixtral)-": "apache-2.0",
    r"Qwen/Qwen3-": "apache-2.0",
    r"allenai/OLMo-": "apache-2.0",
    r"EleutherAI/pythia-": "apache-2.0",
    r"microsoft/[Pp]hi-": "mit",
}
SOURCES = (
    "results.json",
    "gate.json",
    "card.json",
    "release.json",
)  # files of a release whose numbers a card may repeat
WITHOUT_RESULTS = {"license", "licence", "citation", "provenance", "how to use", "usage"}  # versions and settings


class Problem(NamedTuple):
    """A rule that a card breaks, and how."""

    rule: str
    says: str


def lint(card: str, files: Collection[str], sources: Collection[object] = ()) -> list[Problem]:
    """What is wrong with a card, in its order.

    ``files`` are the paths of the repository, for its links. ``sources`` are JSON values with the numbers that the card
    may repeat; those of its own metadata count too.
    """
    head, body = card_head.split(card)
    if head is None:
        return [Problem("metadata", "There is no metadata: a card begins with a block of YAML between lines of ---.")]
    try:
        metadata = card_head.load(head)
    except ValueError as error:
        return [Problem("metadata", f"The metadata cannot be read: {' '.join(str(error).split())}")]
    if not isinstance(metadata, dict):
        return [Problem("metadata", "The metadata is not a mapping of keys to values.")]
    numbers = set(_numbers([metadata, *sources]))
    return [
        *(Problem("metadata", says) for says in _metadata(metadata)),
        *(Problem("licence", says) for says in _licence(metadata, body)),
        *(Problem("unfinished", says) for says in unfinished(body)),
        *_page(body, files, numbers),
    ]


def lint_folder(folder: Path) -> list[Problem]:
    """:func:`lint` of the card in a folder, or of a card alone, with the files and results beside it.

    The verdict on a run's card is in the folder of the stage `gate`, beside the card's. Raises OSError or
    UnicodeDecodeError if there is no such text, ArtifactError if results beside it are not JSON.
    """
    card = folder / "README.md" if folder.is_dir() else folder
    root = card.parent
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    places = [root / name for name in SOURCES]
    if not (root / "gate.json").is_file():
        places.append(root.absolute().parent / "gate" / "gate.json")
    sources = [_source(path) for path in places if path.is_file()]
    return lint(card.read_text(encoding="utf-8"), files, sources)


def _source(file: Path) -> object:
    try:
        return bounded_json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(
            f"{file}: is not JSON ({error}). Correct it, or lint the card in another folder."
        ) from error


def unfinished(text: str) -> Iterator[str]:
    """Placeholders, and paths of somebody's machine."""
    lines = text.split("\n")
    starts = list(accumulate((len(line) + 1 for line in lines), initial=0))
    for what, pattern in (("Placeholder", PLACEHOLDER), ("Local path", LOCAL_PATH)):
        for match in pattern.finditer(text):
            number = bisect_right(starts, match.start())
            yield f"{what} {match[0]!r} in line {number}: {lines[number - 1].strip()[:80]}."


def shows(printed: str, value: float) -> bool:
    """Whether ``printed`` is ``value`` rounded to the digits that are printed."""
    number = _printed(printed)
    if number is None or not math.isfinite(value):
        return False
    # Half a unit of the last digit. As decimals, since the difference of two large floats has an error of that size.
    return abs(number - Decimal(value)) <= Decimal(5).scaleb(_last_place(number) - 1)


def is_among(printed: str, values: Collection[float]) -> bool:
    """Whether a decimal number is one of ``values``, rounded."""
    number = _printed(printed)
    if number is None:
        return False
    near = float(number)
    # Twice what rounding to these digits takes, and what float() took: floats, to leave few to the decimals.
    reach = 10.0 ** _last_place(number) + math.ulp(near)
    return any(shows(printed, value) for value in values if abs(value - near) <= reach)


def _printed(text: str) -> Decimal | None:
    """A number that a float may be printed as; None for anything else, which is no value that was measured."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    is_float = number.is_finite() and _last_place(number) in PLACES and math.isfinite(float(number))
    return number if is_float else None


def _last_place(number: Decimal) -> int:
    """The power of ten of a number's last digit."""
    return int(number.as_tuple().exponent)


def _numbers(value: object) -> Iterator[float]:
    """Every number in JSON values, and every one written in their texts."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, str):
        yield from (float(found) for found in DECIMAL.findall(value))
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        yield float(value)


def _metadata(metadata: Mapping[str, Any]) -> Iterator[str]:
    for wrong, right in MISSPELT.items():
        if wrong in metadata:
            yield f"{wrong} is not a key of the Hub; write {right}."
    for key in REQUIRED:
        if not metadata.get(key):
            yield f"{key} is missing."
    if not re.fullmatch(r"[a-z0-9.-]+", str(metadata.get("license") or "other")):
        yield f"license is {metadata['license']!r}, which is not an id of the Hub such as apache-2.0."
    if metadata.get("license") == "other" and not (metadata.get("license_name") and metadata.get("license_link")):
        yield "license is other, so license_name and license_link must say which."
    for key, is_right in (
        ("language", LANGUAGE.fullmatch),
        ("base_model", is_hub_id),
        ("datasets", is_hub_id),
        ("tags", lambda tag: bool(tag.strip())),
    ):
        values = metadata.get(key) or []
        for value in values if isinstance(values, list) else [values]:
            if not (isinstance(value, str) and is_right(value)):
                yield f"{key} holds {value!r}, which is not one."
    index = metadata.get("model-index")
    if index is not None and not _is_index(index):
        yield "model-index is not a list of {name, results}, each result with task, dataset and metrics."


def _is_index(index: object) -> bool:
    models = index if isinstance(index, list) else [None]
    return all(isinstance(model, dict) and model.get("name") and _are_results(model.get("results")) for model in models)


def _are_results(results: object) -> bool:
    keys = {"task", "dataset", "metrics"}
    return isinstance(results, list) and all(isinstance(found, dict) and keys <= found.keys() for found in results)


def _licence(metadata: Mapping[str, Any], body: str) -> Iterator[str]:
    bases = metadata.get("base_model") or []
    licence = metadata.get("license")
    if licence == "other":  # the Hub has no id for it
        licence = metadata.get("license_name")
    for base in bases if isinstance(bases, list) else [bases]:
        expected = next((has for family, has in FAMILIES.items() if re.match(family, str(base))), None)
        if expected is None or not licence:
            continue
        if licence != expected:
            yield f"license is {licence}, and {base} has the licence {expected}."
        displayed = LICENCES[expected].displayed
        if displayed not in body:
            yield f'The licence of {base} requires "{displayed}" on the card.'


def _page(body: str, files: Collection[str], numbers: Collection[float]) -> Iterator[Problem]:
    """Links, images and numbers, as a renderer sees them."""
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inlines = [token for token in tokens if token.type in ("inline", "html_block")]
    headings = [inline.content for opened, inline in pairwise(tokens) if opened.type == "heading_open"]
    places = set(anchors(headings)) | set(re.findall(r"(?:id|name)=[\"']([\w-]+)", body))
    heading = ""
    for token in inlines:
        if token.content in headings:
            heading = token.content.casefold()
        for part in token.children or []:
            if part.type == "link_open":
                yield from _link(str(part.attrs.get("href", "")), places, files)
            elif part.type == "image":
                yield from _image(str(part.attrs.get("src", "")), part.content, files)
        for tag in re.findall(r"<img\b[^<>]*>", token.content):
            source, alt = (re.search(rf"\b{name}=[\"']([^\"']*)", tag) for name in ("src", "alt"))
            yield from _image(source[1] if source else "", alt[1] if alt else "", files)
        if heading not in WITHOUT_RESULTS:
            yield from _unsourced(token, numbers)


def _link(href: str, places: Collection[str], files: Collection[str]) -> Iterator[Problem]:
    if not href:
        yield Problem("links", "A link leads nowhere.")
    elif href.startswith("#"):
        if unquote(href[1:]).casefold() not in places:
            yield Problem("links", f"The link {href} leads to no heading.")
    elif not re.match(r"[a-z][a-z0-9+.-]*:|//", href, re.IGNORECASE):
        if unquote(href.split("#")[0].removeprefix("./")) not in files:
            yield Problem("links", f"The link {href} leads to no file of the repository.")
    elif href.startswith(("http://localhost", "http://127.", "file:")):
        yield Problem("links", f"The link {href} leads to somebody's machine.")


def _image(source: str, alt: str, files: Collection[str]) -> Iterator[Problem]:
    if not alt.strip():
        yield Problem("images", f"The image {source!r} has no alternative text.")
    if source and not re.match(r"[a-z]+:|//", source) and unquote(source.removeprefix("./")) not in files:
        yield Problem("links", f"The image {source} is no file of the repository.")


def _unsourced(token: Any, numbers: Collection[float]) -> Iterator[Problem]:
    texts = [part.content for part in token.children or [] if part.type == "text"]
    for found in DECIMAL.findall(" ".join(texts)):
        if not is_among(found, numbers):
            yield Problem("numbers", f"The number {found} is in no file of results: {token.content[:80]!r}.")
