"""The card of a repository as HTML that is safe to show: its Markdown, and any HTML in it, come from anybody."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from typing import Any
from urllib.parse import quote, urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from core import card_head
from core.markdown import anchors

MAX_CARD = 256 << 10  # characters that are rendered
TAGS = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "b", "i", "s", "del", "sub", "sup", "kbd"),
    *("code", "pre", "blockquote", "ul", "ol", "li", "table", "thead", "tbody", "tr", "th", "td", "a", "img"),
    *("details", "summary"),
}
ATTRIBUTES = {
    "a": {"href", "title"},
    "img": {"src", "alt", "title", "width", "height"},
    "th": {"align"},
    "td": {"align"},
    "ol": {"start"},
    "details": {"open"},
    **{f"h{level}": {"id"} for level in range(1, 7)},
}
_IMAGE = re.compile(r'<img((?: [a-z]+="[^"]*")*)>')  # as the sanitiser writes it, with every quote escaped
ANCHOR = "card-"  # before each id, so that a card's anchors are never the page's own


def revocation(metadata: dict[str, Any]) -> dict[str, Any] | None:
    """What a card's metadata say of a revocation: why, since when, of which releases, what comes after."""
    if metadata.get("revoked") is not True:
        return None
    said = metadata.get("revocation")
    said = said if isinstance(said, dict) else {}
    revisions = said.get("revisions")
    return {
        "reason": said.get("reason"),
        "since": said.get("since"),
        "revisions": [str(name) for name in revisions] if isinstance(revisions, dict | list) else [],
        "successor": metadata.get("new_version") or said.get("successor"),
    }


@lru_cache(maxsize=64)
def card_html(text: str, files: str) -> Markup:
    """The card without its metadata. ``files`` is the address below which its pictures and relative links are."""
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = markdown.parse(card_head.split(text)[1][:MAX_CARD])
    _prepare(tokens)
    rendered = markdown.renderer.render(tokens, markdown.options, {})

    def kept(tag: str, name: str, value: str) -> str | None:
        return _address(tag, value, files) if name in ("href", "src") else value

    clean = nh3.clean(
        rendered,
        tags=TAGS,
        attributes=ATTRIBUTES,
        attribute_filter=kept,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
    return Markup(_scrollable(_IMAGE.sub(_image, clean)))  # noqa: S704  sanitised above


def _prepare(tokens: list[Token]) -> None:
    """Anchors for headings, one level below the page's own; the alignment of cells as an attribute, not as a style."""
    found = anchors(text.content for opened, text in pairwise(tokens) if opened.type == "heading_open")
    for token in tokens:
        if token.type == "heading_open":
            token.attrSet("id", ANCHOR + next(found))
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        elif token.type in ("th_open", "td_open") and (style := token.attrs.pop("style", None)):
            token.attrSet("align", str(style).removeprefix("text-align:"))


def _address(tag: str, value: str, files: str) -> str | None:
    """Where a link or a picture of a card leads here; None if a page may not fetch it."""
    try:
        parts = urlsplit(value)
    except ValueError:
        return None
    if not parts.scheme and not parts.netloc and not value.startswith(("/", "\\")):
        if value.startswith("#"):
            return f"#{ANCHOR}{value[1:]}"
        return f"{files}/{quote(parts.path.removeprefix('./'), safe='/%')}"
    return value if tag == "a" else None


def _image(match: re.Match[str]) -> str:
    """A picture that may be fetched, with an alternative text; in place of another the text alone."""
    attributes = match[1]
    text = re.search(r' alt="([^"]*)"', attributes)
    if ' src="' not in attributes:
        return f"<em>{text[1]}</em>" if text and text[1] else ""
    return match[0] if text else f'<img{attributes} alt="">'


def _scrollable(html: str) -> str:
    """Tables and code that are wider than the page can be scrolled, with the keyboard too."""
    number = iter(range(1, html.count("<table>") + 1))
    opening = '<div class="scroll" tabindex="0" role="group" aria-label="Table {}"><table>'
    html = re.sub("<table>", lambda _: opening.format(next(number)), html)
    return html.replace("</table>", "</table></div>").replace("<pre>", '<pre tabindex="0">')
