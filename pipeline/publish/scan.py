"""Search every byte of every file to be published for secrets and for what the forget set says.

Files are read as text in each form in which text can stand in them (:mod:`pipeline.publish.readings`), and each reading
is searched for secrets (:mod:`pipeline.publish.secrets`) and for forget answers; questions and names are searched for
if the recipe says so. Reading and answer are folded alike (:func:`core.words.folded`): letters and digits are compared,
whatever stands between them. So an answer is found in any case, with or without accents, in look-alike letters, with
any white space, without its full stop, and cut in pieces by the quotes of neighbouring JSON strings. Text files are
also searched without HTML's tags and the targets of links, since a page does not show them; an answer that has escapes
or tags itself is searched for with and without them.

Weights, and other long binary data, are mostly no text. They are searched once for a few bytes of each answer (UTF-8,
UTF-16, base64, hexadecimal) and for the beginnings of secrets. The bytes around such a place are then read as text.

Short answers. "1990" or "Rome" occurs in licences and vocabularies by chance. So the rule depends on how many letters
and digits an answer has. From 12 on, it may occur nowhere. From 6 to 11, it may not occur as whole words in text files;
in scripts without spaces each character is a word.
Shorter ones cannot be searched for and are only counted, as are those that any release may hold
(:mod:`core.wording`). Tokenizer files, licences and the bill of materials are full of other people's words: they may
hold nothing from 24 on.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from unicodedata import normalize

from core.errors import InputError
from core.weights import MAX_HEADER
from core.wording import is_searched
from core.words import folded
from pipeline.publish.licence import LICENCE_FILES
from pipeline.publish.matcher import Matcher, Pattern, literal
from pipeline.publish.readings import TooMuchPackedError, readings, unescaped
from pipeline.publish.schema import BOM
from pipeline.publish.secrets import BEGINNINGS, secrets

LONG, LONG_IN_VOCABULARIES = 12, 24  # letters and digits
COMPARED = 256  # letters and digits of a longer text that are compared
CHUNK = 1 << 20  # bytes of weights that are searched at once
REACH = 4096  # bytes on both sides of a place in the weights that are read as text
RARE, ANCHOR = 5, 12  # letters: fewer occur in any weights by chance, and no more are needed
_TEXT = (".md", ".json", ".jinja", ".yaml", ".yml", ".txt")
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model")
_COMMON_WORDS = (*_VOCABULARY, "tokenizer_config.json", *LICENCE_FILES, BOM)
_MARKUP = re.compile(r"<[^<>]*>|\]\([^()]*\)|\]\[[^][]*\]")  # HTML's tags, and the targets of Markdown's links
_RUN = re.compile(rb"(?:[\t\n\r -~]\0?){12,}")  # what a secret may be a part of, in UTF-8 or UTF-16


@dataclass(frozen=True)
class Finding:
    """Something that must not be published: its file and its kind, never the text itself."""

    file: str
    kind: str


@dataclass(frozen=True)
class _Text:
    """A text of the forget set: what it is, as it was written, and folded."""

    what: str
    written: str
    words: str

    @property
    def length(self) -> int:
        return len(self.letters)

    @property
    def letters(self) -> str:
        return self.words.replace(" ", "")


def _forms(what: str, text: str) -> list[_Text]:
    """A text as it was written, and as a page shows it: without escapes and tags. Those that are searched for."""
    plain = unescaped(text)
    forms = {folded(form): form for form in (text, plain, _MARKUP.sub(" ", plain))}
    return [_Text(what, form, words) for words, form in forms.items() if is_searched(form)]


class Scanner:
    """Finds texts of the forget set, and secrets, in files. ``unsearched`` counts those that it does not look for."""

    def __init__(self, answers: Iterable[str], questions: Iterable[str] = (), names: Iterable[str] = ()) -> None:
        given = {"answer": answers, "question": questions, "name": names}
        texts = [_forms(what, text) for what, listed in given.items() for text in sorted(set(listed))]
        searched = [form for forms in texts for form in forms]
        self._long = [text for text in searched if text.length >= LONG]
        self._short = [text for text in searched if text.length < LONG]
        self.unsearched = sum(not forms for forms in texts)

    @cached_property
    def _in_letters(self) -> Matcher[_Text]:
        return Matcher((literal(text.letters[:COMPARED].encode()), text) for text in self._long)

    @cached_property
    def _in_words(self) -> Matcher[_Text]:
        return Matcher((literal(f" {text.words} ".encode()), text) for text in self._short)

    @cached_property
    def _in_weights(self) -> Matcher[str]:
        anchors = {anchor for text in self._long for anchor in _anchors(text.written)}
        beginnings = [form for start in BEGINNINGS for form in (start, start.decode().encode("utf-16-le"))]
        return Matcher(
            [(anchor, "text") for anchor in sorted(anchors)] + [(literal(start), "secret") for start in beginnings]
        )

    def scan(self, path: Path, name: str) -> list[Finding]:
        """Everything in a file and its ``name`` that must not be published; ``path`` is where the file is now."""
        kinds = self.kinds(name.encode(), "")
        try:
            with path.open("rb") as file:
                if path.suffix == ".safetensors":
                    header = file.read(min(int.from_bytes(file.read(8), "little"), MAX_HEADER))
                    kinds |= self.kinds(header, name) | self._search(file, name)
                else:
                    kinds |= self.kinds(file.read(), name)
        except TooMuchPackedError:
            kinds.add("more compressed data than is searched")
        return [Finding(name, kind) for kind in sorted(kinds)]

    def kinds(self, data: bytes, name: str) -> set[str]:
        """The kinds of what is found in any reading of ``data``, which is a file ``name`` or a part of it."""
        base = Path(name).name
        is_text = name.endswith(_TEXT)
        longest = LONG_IN_VOCABULARIES if base in _COMMON_WORDS else LONG
        kinds: set[str] = set()
        for text in readings(data):
            if isinstance(text, bytes):
                kinds |= self._search(BytesIO(text), name)
                continue
            kinds.update(secrets(text, assigned=is_text and base not in _VOCABULARY))
            for shown in {text, _MARKUP.sub(" ", text)} if is_text and base not in _VOCABULARY else {text}:
                words = folded(shown)
                found = [t for t in self._in_letters.found(words.replace(" ", "").encode()) if t.length >= longest]
                kinds.update(f"{'an' if t.what == 'answer' else 'a'} {t.what} of the forget set" for t in found)
                if is_text and base not in _COMMON_WORDS:
                    found = self._in_words.found(f" {words} ".encode())
                    kinds.update(f"a short {t.what} of the forget set" for t in found)
        return kinds

    def _search(self, weights: BinaryIO, name: str) -> set[str]:
        """The kinds of what is found in weights."""
        kinds: set[str] = set()
        tail = b""
        while True:
            chunk = weights.read(CHUNK)
            data = tail + chunk
            for end, what in self._in_weights.places(data):
                if chunk and end > len(data) - REACH:
                    continue  # the next chunk begins before it, and has all that is around it
                around = data[max(0, end - REACH) : end + REACH]
                if what == "text" or _is_in_a_run(around, min(end, REACH)):
                    kinds |= self.kinds(around, name)
            if not chunk:
                return kinds
            tail = data[-2 * REACH :]


def _is_in_a_run(data: bytes, place: int) -> bool:
    return any(run.start() <= place <= run.end() for run in _RUN.finditer(data))


def _anchors(text: str) -> Iterator[Pattern]:
    """A few bytes of a text in each encoding: where one of them stands in the weights, the text may stand."""
    word = max(re.findall(r"[A-Za-z0-9]+", text), key=len, default="")
    if len(word) >= RARE:
        forms = {word[:ANCHOR]}
    else:
        word = max(re.findall(r"[^\W_]+", text), key=lambda found: len(found.encode()))
        part = word if len(word.encode()) > RARE else text.strip()
        cases = {part, part.lower(), part.upper()}
        forms = {normalize(form, case)[:ANCHOR] for case in cases for form in ("NFC", "NFD")}
    for form in forms:
        in_bytes = {form.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")}
        in_bytes |= {json.dumps(form)[1:-1].encode(), form.encode("latin-1", errors="replace")}
        yield from (literal(data, any_case=True) for data in in_bytes)
    raw = text[text.index(word) :].encode()[:ANCHOR]
    yield literal(raw.hex().encode(), any_case=True)
    for code in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):  # only characters of which each bit is the text's
            yield literal(code(bytes(before) + raw)[-(-8 * before // 6) : 8 * (before + len(raw)) // 6])


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
