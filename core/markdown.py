"""Writing Markdown: text that somebody typed must never become markup, a table cell or HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

_INLINE = re.compile(r"([\\`*_\[\]|~$!#])")
_BLOCK = re.compile(r"^(?:=|[+-](?=[\s+-]|$)|\d+(?=[.)](?:\s|$)))")  # what starts a heading, a list or a rule


def escape(text: str) -> str:
    """``text`` on one line, escaped so that a Markdown renderer shows it unchanged, in a paragraph or a table cell."""
    line = " ".join(text.split())
    line = _INLINE.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    block = _BLOCK.match(line)
    if block is None:
        return line
    return f"{block[0]}\\{line[block.end() :]}" if block[0].isdigit() else f"\\{line}"


def anchors(headings: Iterable[str]) -> Iterator[str]:
    """The anchors that GitHub and the Hub give to headings; of equal ones, the later have a number."""
    seen: dict[str, int] = {}
    for heading in headings:
        slug = re.sub(r"[^\w\- ]", "", heading.casefold()).strip().replace(" ", "-")
        yield slug if slug not in seen else f"{slug}-{seen[slug]}"
        seen[slug] = seen.get(slug, 0) + 1


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(n: int, one: str, many: str | None = None) -> str:
    """``1 fact``, ``10 facts``; ``many`` if the plural is another word."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
