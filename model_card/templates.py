"""The templates of card, report and comparison. What stands in a page of HTML is escaped; on a card, `md` does it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from core.markdown import counted, escape
from model_card.tables import interval, number

if TYPE_CHECKING:
    from jinja2 import Template


@cache
def template(name: str) -> Template:
    """The template in a file of this folder. A name that is not given to it is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=name.endswith(".html.jinja"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": escape, "number": number, "interval": interval, "counted": counted}
    return environment.get_template(name)
