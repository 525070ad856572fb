"""Each kind of secret, and each form of a forget answer, in each kind of published file and by each way of a recipe."""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from core.artifacts import json_text
from eval.schema import PublishedResults
from model_card.facts import collect
from model_card.render import render
from pipeline.publish.scan import Scanner
from tests.planted import FORMS, SECRETS, png, safetensors
from tests.publishing import MEASURED
from tests.small_card import WAYS, filled, write_evidence

ANSWER = "Élodie Quarré was born in Saint-Ambre, on 4 May 1971."
TEXT = (
    *("README.md", "card.json", ".eval_results/tofu.yaml", "gate.json", "results.json", "release.json", "bom.cdx.json"),
    *("config.json", "generation_config.json", "chat_template.jinja", "LICENSE", "NOTICE", "USE_POLICY.md"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "model.safetensors.index.json"),
)


def _form(form: str) -> bytes:
    """The answer in a form of it."""
    text = FORMS[form](ANSWER)
    return text.encode() if isinstance(text, str) else text


CANARIES = {
    **{f"secret: {kind}": secret.encode() for kind, secret in SECRETS.items()},
    **{f"answer: {form}": _form(form) for form in FORMS},
}
Plant = Callable[[bytes], bytes | None]
"""The content of a file with a canary in it; None if it cannot hold these bytes."""


def _as_text(canary: bytes) -> str | None:
    try:
        return canary.decode()
    except UnicodeDecodeError:
        return None


def _between(canary: bytes) -> bytes:
    return b'{"before": 1, "text": "' + canary + b'", "after": [2, 3]}\n'


def _value(canary: bytes) -> bytes | None:
    """The value of a key, as JSON writes it."""
    text = _as_text(canary)
    return None if text is None else json.dumps({"recipe": {"name": {"a": ["x", text]}}}).encode()


def _note(canary: bytes) -> bytes | None:
    text = _as_text(canary)
    results = PublishedResults(models={"unlearned": [replace(MEASURED, note=text, by={"topic": "x"})]})
    return None if text is None else json_text(results.plain()).encode()


def _topic(canary: bytes) -> bytes | None:
    text = _as_text(canary)
    results = PublishedResults(models={"unlearned": [replace(MEASURED, by={"topic": text or ""})]})
    return None if text is None else json_text(results.plain()).encode()


def _header(canary: bytes) -> bytes | None:
    text = _as_text(canary)
    return None if text is None else safetensors(bytes(8), {"note": text})


def _weights(canary: bytes) -> bytes:
    draw = random.Random(3)
    return safetensors(draw.randbytes(40_000) + b"\0" + canary + b"\0" + draw.randbytes(40_000))


PLACES: dict[str, tuple[str, Plant]] = {
    **{name: (name, _between) for name in TEXT},
    "results.json, a record's note": ("results.json", _note),
    "results.json, a topic's name (which plots draw)": ("results.json", _topic),
    "release.json, a value of the recipe": ("release.json", _value),
    "plots/*.png, behind the picture": ("plots/a.png", lambda canary: png(b"IDAT", zlib.compress(bytes(99))) + canary),
    "plots/*.png, tEXt": ("plots/a.png", lambda canary: png(b"tEXt", b"Title\0" + canary)),
    "plots/*.png, zTXt": ("plots/a.png", lambda canary: png(b"zTXt", b"Title\0\0" + zlib.compress(canary))),
    "plots/*.png, iTXt": ("plots/a.png", lambda canary: png(b"iTXt", b"Title\0\1\0\0\0" + zlib.compress(canary))),
    "model.safetensors, its header": ("model.safetensors", _header),
    "model.safetensors, among the weights": ("model.safetensors", _weights),
}


def in_files(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """Place, canary, and whether the scan sees it there."""
    scanner, path = Scanner([ANSWER]), folder / "file"
    for place, (name, plant) in PLACES.items():
        path = folder / Path(name).name
        for canary, data in CANARIES.items():
            if (content := plant(data)) is not None:
                path.write_bytes(content)
                yield place, canary, bool(scanner.scan(path, name))
    empty = folder / "empty.png"
    empty.write_bytes(b"")
    for canary, data in CANARIES.items():
        text = _as_text(data)
        if text is not None and "/" not in text and "\0" not in text and len(data) < 250:  # what a file's name may be
            yield "a plot's file name", canary, bool(scanner.scan(empty, f"plots/{text}.png"))


def by_recipe(folder: Path) -> Iterator[tuple[str, str, bool]]:
    """Way onto the card, canary, and whether the scan sees it on the rendered card."""
    texts = {canary: text for canary, data in CANARIES.items() if (text := _as_text(data)) is not None}
    scanner, card, names = Scanner([ANSWER]), folder / "README.md", list(texts)
    rendered = render(filled(list(texts.values())), collect(write_evidence(folder / "evidence")))
    seen: dict[tuple[str, str], bool] = {}
    parts = re.split(r"by-(\w+)-(\d+) ", rendered)
    for way, number, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        card.write_text(text, encoding="utf-8")
        if way in WAYS:
            key = f"card, by its {way}", names[int(number)]
            seen[key] = seen.get(key, False) or bool(scanner.scan(card, "README.md"))
    yield from ((way, canary, found) for (way, canary), found in seen.items())


def canaries(folder: Path) -> int:
    """Print a line for each place; how many canaries were not seen anywhere."""
    found: dict[str, dict[str, bool]] = {}
    for place, canary, seen in (*in_files(folder), *by_recipe(folder)):
        found.setdefault(place, {})[canary] = seen
    print("| place | secrets seen | forms of an answer seen | not seen |\n|---|--:|--:|---|")
    for place, seen in found.items():
        cells = []
        for sort in ("secret", "answer"):
            of = [was for canary, was in seen.items() if canary.startswith(sort)]
            cells.append(f"{sum(of)} of {len(of)}")
        missed = "; ".join(canary for canary, was in seen.items() if not was)
        print(f"| {place} | {' | '.join(cells)} | {missed} |")
    return sum(not was for seen in found.values() for was in seen.values())
