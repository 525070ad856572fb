"""Shared by all commands and the command line: where the store is, and where output goes.

`--help` imports this module, so this module imports nothing slow.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal, TextIO, cast

from core.places import holder, store, user_path

REAL_RELEASE = "fame-topics-csd-llama32-3b"


def store_root(options: argparse.Namespace) -> Path:
    """The store as ``--store`` says, else this project's own; a relative path if it is below the current folder."""
    here = Path.cwd()
    place = here / user_path(getattr(options, "store", None) or str(store()))
    return place.relative_to(here) if place.is_relative_to(here) else place


def hub_of(options: argparse.Namespace, repo: str) -> Literal["local", "hf"]:
    """Where a repository is: as ``--hub`` says, else ``local`` if the store's loopback Hub holds it, else ``hf``."""
    chosen: Literal["local", "hf"] = options.hub or holder(repo, store_root(options))
    return chosen


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_controls(text: str) -> str:
    """A text that may repeat a stranger's words, with what a terminal would obey as JSON writes it."""
    return _CONTROL.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


def show(options: argparse.Namespace, value: dict[str, Any], text: str) -> None:
    """The result of a command on stdout: ``value`` with ``--json``, else ``text``."""
    print(without_controls(json.dumps(value, indent=1, ensure_ascii=False) if options.json else text))


def say(text: str) -> None:
    """Print a message to the user on stderr."""
    print(without_controls(text), file=sys.stderr, flush=True)


@contextmanager
def ignoring_broken_pipes() -> Iterator[None]:
    """Let a command come to its own end and exit code if the reader of its output leaves, as `head` does."""
    out, err = (cast("TextIO", _Output(stream)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()  # here, since Python ends with a code of its own if its last flush fails
            err.flush()


class _Output:
    """A stream that loses what is written after its reader has left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._lose()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._lose()

    def _lose(self) -> None:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), self._stream.fileno())  # what the stream still holds goes there too
