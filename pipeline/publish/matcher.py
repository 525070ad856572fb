"""Thousands of patterns in one pass over bytes, by vectorscan (the library of hyperscan's successors)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

import hyperscan

Meaning = TypeVar("Meaning")


class Pattern(NamedTuple):
    """An expression in vectorscan's syntax, which is PCRE's, and its flags."""

    expression: bytes
    flags: int = 0


def literal(data: bytes, *, any_case: bool = False) -> Pattern:
    """Exactly these bytes; with ``any_case``, ASCII letters in either case."""
    text = b"".join(b"\\x%02x" % byte for byte in data)
    return Pattern(text, hyperscan.HS_FLAG_CASELESS if any_case else 0)


def may_match(pattern: re.Pattern[str]) -> Pattern:
    """What finds at least all that a pattern of :mod:`re` finds in ASCII text."""
    flags = hyperscan.HS_FLAG_PREFILTER | hyperscan.HS_FLAG_DOTALL | hyperscan.HS_FLAG_MULTILINE
    any_case = hyperscan.HS_FLAG_CASELESS if pattern.flags & re.IGNORECASE else 0
    return Pattern(pattern.pattern.encode(), flags | any_case | hyperscan.HS_FLAG_SINGLEMATCH)


class Matcher(Generic[Meaning]):
    """Finds patterns, each of which stands for something of the caller's."""

    def __init__(self, patterns: Iterable[tuple[Pattern, Meaning]]) -> None:
        listed = list(patterns)
        self._meanings = [meaning for _, meaning in listed]
        self._database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        if listed:
            self._database.compile(
                expressions=[pattern.expression for pattern, _ in listed],
                ids=list(range(len(listed))),
                flags=[pattern.flags for pattern, _ in listed],
            )

    def places(self, data: bytes) -> list[tuple[int, Meaning]]:
        """Where each match ends, and what it stands for."""
        found: list[tuple[int, Meaning]] = []
        if self._meanings:
            add = found.append
            self._database.scan(data, match_event_handler=lambda i, _, end, *rest: add((end, self._meanings[i])))
        return found

    def found(self, data: bytes) -> list[Meaning]:
        """What the patterns in ``data`` stand for, in the order of the patterns."""
        ids: set[int] = set()
        if self._meanings:
            self._database.scan(data, match_event_handler=lambda i, *rest: ids.add(i))
        return [self._meanings[i] for i in sorted(ids)]
