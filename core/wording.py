"""What any release may say, whatever was forgotten: the words of this project's code and templates.

"English" or "Python" may be an answer, and stands in many cards. Finding it there tells nobody what was forgotten, and
whoever wants to forget it could not remove it. Such answers are not searched for, and the card counts them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from core.words import folded

PARTS = ("core", "eval", "model_card", "pipeline")  # not datasets_prep, where the words of made-up rows stand
SEARCHED = 6  # letters and digits: shorter texts occur in any file by chance, so a search for them says nothing


def is_searched(text: str) -> bool:
    """Whether finding a text in files that are to be published would say anything: it is long enough, and not ours."""
    words = folded(text)
    return len(words.replace(" ", "")) >= SEARCHED and f" {words} " not in _ours()


@cache
def _ours() -> str:
    """All words of ours, folded, with a space at both ends. About a second, once.

    No recipe is among them: a user's own may lie beside ours, and names what is to be forgotten.
    """
    root = Path(__file__).parents[1]
    said: list[str] = []
    for file in sorted(file for part in PARTS for file in (root / part).rglob("*")):
        if file.suffix == ".py":
            said += _strings(ast.parse(file.read_bytes()))
        elif file.suffix == ".jinja":
            said.append(file.read_text(encoding="utf-8"))
    return f" {folded(chr(10).join(said))} "


def _strings(module: ast.Module) -> Iterator[str]:
    """The strings of a module but its docstrings, and the names of fields, which are keys of JSON."""
    unsaid = {node.value for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in unsaid:
            yield node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
