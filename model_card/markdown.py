"""Markdown in both directions: writing text and tables, and reading what a reader will see.

Text that somebody typed must never become markup, a table cell or HTML. :func:`read` sees a card as a renderer does, so
the lint judges the words and numbers that people will read and not the code that wrote them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_INLINE = re.compile(r"([\\`*_\[\]|~$!#])")
_SUMMARY = re.compile(r"<summary>(.*?)</summary>")
_BLOCK = re.compile(r"^(?:=|[+-](?=[\s+-]|$)|\d+(?=[.)](?:\s|$)))")  # what starts a heading, a list or a rule


def escape(text: str) -> str:
    """``text`` on one line, escaped so that a Markdown renderer shows it unchanged, in a paragraph or a table cell."""
    line = " ".join(text.split())
    line = _INLINE.sub(r"\\\1", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    block = _BLOCK.match(line)
    if block is None:
        return line
    return f"{block[0]}\\{line[block.end() :]}" if block[0].isdigit() else f"\\{line}"


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


@dataclass
class Section:
    """The content below one heading, or the summary of what is folded.

    ``prose`` is the text of paragraphs and list items, ``tables`` have rows by column title.
    """

    heading: str
    prose: list[str] = field(default_factory=list)
    tables: list[list[dict[str, str]]] = field(default_factory=list)


def read(text: str) -> list[Section]:
    """The sections of a document as a reader sees them, without front matter. Code is left out."""
    from markdown_it import MarkdownIt

    sections = [Section("")]
    head: list[str] = []
    cells: list[str] = []
    inside = ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in ("heading_open", "th_open", "td_open"):
            inside = token.type
        elif token.type == "html_block" and (summary := _SUMMARY.search(token.content)):
            sections.append(Section(summary[1]))
        elif token.type in ("heading_close", "th_close", "td_close"):
            inside = ""
        elif token.type == "table_open":
            head = []
            sections[-1].tables.append([])
        elif token.type == "tr_open":
            cells = []
        elif token.type == "tr_close" and not head:
            head = cells
        elif token.type == "tr_close":
            sections[-1].tables[-1].append(dict(zip(head, cells, strict=True)))
        elif token.type == "inline":
            words = [
                c.content
                for c in token.children or []
                if c.type in ("text", "softbreak") or (inside and c.type == "code_inline")
            ]
            seen = "".join(words)
            if inside == "heading_open":
                sections.append(Section(seen))
            elif inside:
                cells.append(seen)
            else:
                sections[-1].prose.append(seen)
    return sections
