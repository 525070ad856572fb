"""Files that one stage writes and another reads: each has one type, and is written and read here.

A reader guesses nothing. A key that is missing or unknown, a value of another type and a file of another version are
errors, which name the file, the key and the stage to run again.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from core import bounded_json
from core.digests import MANIFEST
from core.errors import ArtifactError
from core.strict import Strict
from core.yaml_source import dotted

Content = TypeVar("Content")
REMEDY = "Delete the folder {} to have it built again."
SHOWN = 3  # problems that an error lists


class Versioned(Strict):
    """Content of a file that says the version of its form. Each type gives its own: ``version: Literal[2] = 2``.

    Raise it when a field comes, goes or means something else, and the version of the stage that writes the file too.
    """

    version: int


def json_text(value: object) -> str:
    """The JSON of a file: UTF-8 as it is, one value a line. Raises ValueError for a number that is not finite."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def write_file(path: Path, content: Strict) -> None:
    """Write the JSON of ``content``."""
    path.write_text(json_text(content.model_dump(mode="json")), encoding="utf-8")


def read_file(path: Path, kind: type[Content], remedy: str) -> Content:
    """The ``kind`` in a file. Raises ArtifactError that ends with ``remedy``: "Run the gate stage again.", say."""
    return parse(_text(path, remedy), kind, str(path), remedy)


def read_lines(path: Path, kind: type[Content], remedy: str) -> list[Content]:
    """As :func:`read_file`, of a file with one JSON object a line."""
    # Not splitlines(): texts may hold U+2028 and other characters that it takes for line ends.
    lines = _text(path, remedy).split("\n")
    return [parse(line, kind, f"{path}: line {i}", remedy) for i, line in enumerate(lines, 1) if line]


def _text(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {remedy}") from error


def parse(text: str, kind: type[Content], place: str, remedy: str) -> Content:
    """The ``kind`` that JSON text holds; ``place`` says in errors where it stands. Raises ArtifactError."""
    try:
        _check_version(text, kind)
        content: Content = _adapter(kind).validate_json(text)  # type: ignore[arg-type]  # types are hashable
    except ValueError as error:  # which json's and pydantic's errors are too
        raise ArtifactError(f"{place}: {_explain(error)}. {remedy}") from error
    return content


@cache  # making one takes longer than reading a manifest
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _check_version(text: str, kind: object) -> None:
    """Before anything else: what another version calls by another name is not missing, it is of another version."""
    if not (isinstance(kind, type) and issubclass(kind, Versioned)):
        return
    content, ours = bounded_json.loads(text), kind.model_fields["version"].default
    if isinstance(content, dict) and (given := content.get("version")) != ours:
        said = "no version" if given is None else f"version {given!r}"
        raise ValueError(f"made by {said} of {kind.__name__}, and only version {ours} is read")


def _explain(error: ValueError) -> str:
    """What is wrong: which keys, and how."""
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON ({error})"
    if not isinstance(error, ValidationError):
        return str(error)
    problems = [_problem(problem) for problem in error.errors(include_url=False)]
    more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def _problem(found: Any) -> str:
    """One finding of pydantic in words."""
    key = dotted(found["loc"]) or "the whole"
    if found["type"] == "missing":
        return f"{key} is missing"
    if found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key} is not known"
    said = found["msg"][0].lower() + found["msg"][1:]
    return f"is not JSON ({said})" if found["type"] == "json_invalid" else f"{key} is {found['input']!r:.60}: {said}"


class Git(Strict):
    """The commit of the sources (None: no checkout), and whether they had changes on top of it."""

    commit: str | None
    dirty: bool


class FileEntry(Strict):
    """A file of an artifact: its digest, and what of the file system tells that it was not touched since."""

    sha256: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class Made(Strict):
    """How an artifact came to be, as the runner knows it when the stage has run.

    ``config`` and ``inputs`` (digests by name) are what the key is of; ``facts`` are what the stage says of its result;
    ``seconds``, ``peak_memory_bytes`` and what follows tell of the machine, and are no part of the key.
    """

    stage: str
    version: str
    key: str
    config: Any
    inputs: dict[str, str]
    facts: dict[str, Any]
    seconds: float
    peak_memory_bytes: int
    git: Git
    packages: dict[str, str]
    device: str
    argv: list[str]


class Manifest(Made):
    """The content of ``manifest.json``: with the files by name, and the digest of their content."""

    digest: str
    files: dict[str, FileEntry]


def read_manifest(artifact: Path) -> Manifest:
    """The manifest of an artifact. Raises ArtifactError where it is missing or damaged."""
    return read_file(artifact / MANIFEST, Manifest, REMEDY.format(artifact.resolve()))


def read_facts(artifact: Path, kind: type[Content]) -> Content:
    """What a stage said of its result, from the artifact's manifest. Raises ArtifactError."""
    manifest = read_manifest(artifact)
    place = f"{artifact / MANIFEST}: facts"
    return parse(json.dumps(manifest.facts), kind, place, f"Run the {manifest.stage} stage again.")
