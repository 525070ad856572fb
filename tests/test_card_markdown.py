from __future__ import annotations

import html
import math
import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.markdown import escape
from model_card import lint, tables
from model_card.markdown import read

MARKUP = st.text(alphabet=st.sampled_from(list("ab1 |\\`*_[]<>&#-+=.)(~!$:/\"'\n\té{}%")), min_size=1, max_size=40)


def words(markdown: str) -> str:
    from markdown_it import MarkdownIt

    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


@given(MARKUP)
@settings(max_examples=300, deadline=None)
def test_escaped_text_reads_as_it_was_typed(text: str) -> None:
    plain = " ".join(text.split())
    assert words(escape(text)) == plain
    assert words(f"# {escape(text)}") == plain


@given(MARKUP, MARKUP)
@settings(max_examples=200, deadline=None)
def test_escaped_text_stays_in_its_table_cell(left: str, right: str) -> None:
    text = tables.table(["A", "B"], [[escape(left), escape(right)]])
    rows = read(text)[0].tables[0]
    assert rows == [{"A": " ".join(left.split()), "B": " ".join(right.split())}]


@given(st.floats(allow_nan=False, allow_infinity=False, width=64))
@example(4398046511104.5625)  # half a unit of the last printed digit, and as much as floats of this size are apart
@settings(max_examples=300, deadline=None)
def test_a_printed_number_shows_its_value_and_no_other(value: float) -> None:
    printed = tables.number(value)
    assert lint.shows(printed, value)
    if 1e-300 < abs(value) < 1e9:
        assert not lint.shows(printed, value * 1.2 + math.copysign(0.002 if abs(value) >= 0.001 else 0, value))
