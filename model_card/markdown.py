"""Reading Markdown: :func:`read` sees a card as a renderer does.

So the lint judges the words and numbers that people will read and not the code that wrote them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SUMMARY = re.compile(r"<summary>(.*?)</summary>")


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
