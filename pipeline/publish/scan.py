"""Search every byte of every file to be published for secrets and for the answers of the forget set.

How answers are found. File and answer are folded in the same way, byte by byte: ASCII and Latin-1 letters become
lower case; spaces, line ends, NUL and backslash are removed. An answer then matches in any case, with any white space,
in UTF-8 or UTF-16, plain or with JSON's escapes, in text or in a tensor. The fold needs no context, so a file is read
once, in chunks that overlap by the longest answer. To search for thousands of answers at once, four bytes of each are
its anchor: numpy finds the places of all anchors, and whole answers are compared only there.

Short answers. "1990" or "Rome" occurs in vocabularies, licences and random weights by chance. So the rule depends on
the folded length of an answer. From 12 bytes on, it may occur nowhere. From 6 to 11 bytes, it may not occur as whole
words in text files, except tokenizer files and licences. Shorter answers are only counted.

Not found: text that is compressed (the pixels of a PNG) or encoded again (base64).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from core.errors import InputError

CHUNK = 4 * 1024 * 1024
LONG, SHORT = 12, 6  # folded bytes
ANCHOR = 4  # bytes: one 32-bit word
HASH_BITS = 20
_REMOVED = b" \t\r\n\v\f\0\\"
_FOLD = bytes(b | 0x20 if 65 <= b <= 90 or b >= 128 else b for b in range(256))
_TEXT = (".md", ".json", ".jinja", ".yaml", ".yml", ".txt")
_VOCABULARY = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json")

# Kind, the bytes that every such secret begins with, and the whole pattern.
_SECRETS = [
    ("a Hugging Face token", b"hf_", rb"hf_[A-Za-z0-9]{30,}"),
    ("a Hugging Face organisation token", b"api_org_", rb"api_org_[A-Za-z0-9]{30,}"),
    ("an AWS access key", b"AKIA", rb"AKIA[0-9A-Z]{16}(?![0-9A-Za-z])"),
    ("an AWS access key", b"ASIA", rb"ASIA[0-9A-Z]{16}(?![0-9A-Za-z])"),
    ("a private key", b"-----BEGIN ", rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY"),
    *[("a GitHub token", b"gh%c_" % kind, rb"gh%c_[A-Za-z0-9]{36}" % kind) for kind in b"pousr"],
    ("a GitHub token", b"github_pat_", rb"github_pat_[A-Za-z0-9_]{60,}"),
    ("a GitLab token", b"glpat-", rb"glpat-[A-Za-z0-9_-]{20,}"),
    ("a Slack token", b"xox", rb"xox[abprs]-[A-Za-z0-9-]{20,}"),
    ("a Google API key", b"AIza", rb"AIza[A-Za-z0-9_-]{35}"),
    ("an OpenAI or Anthropic key", b"sk-", rb"sk-[A-Za-z0-9_-]{0,20}?[A-Za-z0-9]{20}[A-Za-z0-9_-]{20,}"),
    ("a PyPI token", b"pypi-", rb"pypi-AgE[A-Za-z0-9_-]{50,}"),
]
_COMPILED = [(kind, start, re.compile(pattern)) for kind, start, pattern in _SECRETS]
_LONGEST_SECRET = 256


@dataclass(frozen=True)
class Finding:
    """Something that must not be published: its file and its kind, never the text itself."""

    file: str
    kind: str


def fold(data: bytes) -> bytes:
    """The folded form in which answers and files are compared."""
    return data.translate(_FOLD, _REMOVED)


class Scanner:
    """Finds given answers, and secrets, in files. ``too_short`` is the number of answers that are not searched for."""

    def __init__(self, answers: Iterable[str]) -> None:
        unique = {answer.strip() for answer in answers}
        lengths = {answer: len(fold(answer.encode())) for answer in unique}
        self._long = [a for a in unique if lengths[a] >= LONG]
        self._words = [a for a in unique if SHORT <= lengths[a] < LONG]
        self.too_short = sum(length < SHORT for length in lengths.values())

    @cached_property
    def _needles(self) -> dict[bytes, list[tuple[int, bytes]]]:
        """For each anchor the needles that have it, as (offset of the anchor in the needle, needle)."""
        # A spelling can fold to almost nothing (U+2020 in UTF-16 is two spaces); such a needle would find noise.
        needles = {n for answer in self._long for n in _spellings(answer) if len(n) >= LONG // 2}
        windows = {needle: [needle[i : i + ANCHOR] for i in range(len(needle) - ANCHOR + 1)] for needle in needles}
        shared = Counter(window for of_needle in windows.values() for window in set(of_needle))
        table: dict[bytes, list[tuple[int, bytes]]] = defaultdict(list)
        for needle, of_needle in windows.items():
            # The window that the fewest needles share: names and numbers, not "was born in".
            offset = min(range(len(of_needle)), key=lambda i: shared[of_needle[i]])
            table[of_needle[offset]].append((offset, needle))
        return dict(table)

    @cached_property
    def _word_pattern(self) -> re.Pattern[str] | None:
        words = sorted({_words(answer) for answer in self._words}, key=len, reverse=True)
        return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, words)) + r")(?!\w)") if words else None

    def scan(self, path: Path, name: str) -> list[Finding]:
        """Everything in the file ``path`` that must not be published; ``name`` is its name in the findings."""
        kinds: set[str] = set()
        secret_tail = answer_tail = b""
        longest = max((len(needle) for needles in self._needles.values() for _, needle in needles), default=1)
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                plain = secret_tail + chunk.replace(b"\0", b"")  # without NUL, UTF-16 reads as UTF-8
                kinds.update(_secrets(plain))
                secret_tail = plain[-_LONGEST_SECRET:]
                folded = answer_tail + fold(chunk)
                if self._has_answer(folded):
                    kinds.add("an answer of the forget set")
                answer_tail = folded[-(longest - 1) :] if longest > 1 else b""
        if self._has_short_answer(path, name):
            kinds.add("a short answer of the forget set")
        return [Finding(name, kind) for kind in sorted(kinds)]

    def _has_answer(self, folded: bytes) -> bool:
        for place in self._anchored(folded):
            for offset, needle in self._needles[folded[place : place + ANCHOR]]:
                if place >= offset and folded.startswith(needle, place - offset):
                    return True
        return False

    @cached_property
    def _anchors(self) -> tuple[Any, Any]:
        """The anchors as sorted words, and a table that says whether an anchor has a given hash."""
        import numpy as np

        words = np.unique(np.frombuffer(b"".join(self._needles), dtype="<u4"))
        table = np.zeros(1 << HASH_BITS, dtype=bool)
        table[_hash(words)] = True
        return words, table

    def _anchored(self, data: bytes) -> Iterator[int]:
        """The places of anchors in ``data``."""
        import numpy as np

        anchors, table = self._anchors
        for shift in range(min(ANCHOR, len(data) - ANCHOR + 1) if len(anchors) else 0):
            words = np.frombuffer(data, dtype="<u4", offset=shift, count=(len(data) - shift) // ANCHOR)
            maybe = np.flatnonzero(table[_hash(words)])  # few, so the exact look-up costs little
            nearest = np.minimum(np.searchsorted(anchors, words[maybe]), len(anchors) - 1)
            yield from (maybe[anchors[nearest] == words[maybe]] * ANCHOR + shift).tolist()

    def _has_short_answer(self, path: Path, name: str) -> bool:
        if self._word_pattern is None or not name.endswith(_TEXT) or Path(name).name in _VOCABULARY:
            return False
        text = path.read_text(encoding="utf-8", errors="replace")
        readings = [text]
        if name.endswith(".json"):
            readings.append(re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text))
        return any(self._word_pattern.search(_words(reading)) for reading in readings)


def _words(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _spellings(answer: str) -> Iterator[bytes]:
    """Every folded form that an answer may have in a file."""
    for text in {answer, unicodedata.normalize("NFC", answer), unicodedata.normalize("NFD", answer)}:
        for cased in {text, text.lower(), text.upper()}:
            plain = (cased.encode(), cased.encode("utf-16-le"), cased.encode("utf-16-be"))
            yield from (fold(data) for data in plain)
            yield fold(json.dumps(cased)[1:-1].encode())
            yield fold(json.dumps(cased, ensure_ascii=False)[1:-1].encode())


def _secrets(data: bytes) -> Iterator[str]:
    for kind, start, pattern in _COMPILED:
        place = data.find(start)
        while place >= 0:
            if pattern.match(data, place):
                yield kind
                break
            place = data.find(start, place + 1)


def _hash(words: Any) -> Any:
    # Multiplicative hashing (Knuth, TAOCP 3, 6.4): the high bits of a product depend on all bits of the word.
    import numpy as np

    return np.multiply(words, np.uint32(2654435761)) >> np.uint32(32 - HASH_BITS)


def refuse_findings(tree: Path, scanner: Scanner) -> None:
    """Scan every file of ``tree``. Raises InputError that names the file and kind of every finding."""
    findings: list[Finding] = []
    for path in sorted(p for p in tree.rglob("*") if p.is_file()):
        findings += scanner.scan(path, path.relative_to(tree).as_posix())
    if findings:
        listed = "; ".join(f"{finding.file} holds {finding.kind}" for finding in findings)
        raise InputError(
            f"This tree must not be published: {listed}. Remove it at the source of the file, and run again."
        )
