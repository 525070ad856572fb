"""What the licence of the start model requires of a release. Not legal advice.

apache-2.0, section 4: a copy of the licence, and a notice that the files were changed. Llama 3.2 Community License,
1.b: a copy of the Agreement, the attribution in a NOTICE file, "Built with Llama" displayed, and a name that begins
with Llama.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from core.errors import InputError
from core.licences import LICENCES, LicenceId, name_problem

LICENCE_FILES = ("LICENSE", "NOTICE", "USE_POLICY.md")

_TEXTS = Path(__file__).parent / "licences"
_MARKER = {"apache-2.0": "Apache License", "llama3.2": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT"}


def licence_texts(licence: LicenceId, repo: str, base_model: str, sources: Sequence[Path]) -> dict[str, str]:
    """The licence files of a release: name to text.

    ``sources`` are folders with the start model's files. The Llama Agreement is copied from there; this project has no
    copy. Raises InputError if it is missing.
    """
    notice = f"{repo} is derived from {base_model}. The weights were changed: fine-tuned, and then made to unlearn.\n"
    if licence == "apache-2.0":
        return {"LICENSE": (_TEXTS / "apache-2.0.txt").read_text(encoding="utf-8"), "NOTICE": notice}
    rules = LICENCES[licence]
    notice = f"{rules.attribution}\n\n{rules.displayed}. {notice}"
    texts = {"NOTICE": notice, "LICENSE": _agreement(base_model, sources)}
    policy = next((f for folder in sources for f in sorted(folder.glob("USE_POLICY*"))), None)
    if policy is not None:
        texts["USE_POLICY.md"] = policy.read_text(encoding="utf-8")
    return texts


def _agreement(base_model: str, sources: Sequence[Path]) -> str:
    for folder in sources:
        for file in sorted(folder.glob("LICENSE*")):
            text = file.read_text(encoding="utf-8", errors="replace")
            if _MARKER["llama3.2"] in text.upper():
                return text
    raise InputError(
        f"The Llama 3.2 licence requires a copy of its Agreement, and {base_model} came without one. "
        "Put the LICENSE.txt of its repository into the start model's folder."
    )


def card_licence(tree: Path) -> str:
    """The licence in the metadata of a tree's README.md, ``""`` if there is none or it cannot be read."""
    from huggingface_hub import ModelCard

    try:
        return str(ModelCard.load(tree / "README.md").data.license or "")
    except (OSError, ValueError):
        return ""


def licence_problems(licence: str, repo: str, tree: Path) -> list[str]:
    """What is missing in a finished tree, one sentence each; empty if the licence's rules are met."""
    if licence not in LICENCES:
        return [f"the licence {licence!r} is not known here; known are {', '.join(LICENCES)}"]
    rules = LICENCES[licence]
    problems = []
    if (named := card_licence(tree)) != licence:
        problems.append(f"the card names the licence {named!r}")
    texts = {name: _text(tree / name) for name in ("LICENSE", "NOTICE", "README.md")}
    if _MARKER[licence].upper() not in texts["LICENSE"].upper():
        problems.append("LICENSE is missing, or not the licence of the start model")
    if not texts["NOTICE"]:
        problems.append("NOTICE is missing")
    if rules.attribution not in texts["NOTICE"]:
        problems.append(f"NOTICE does not say {rules.attribution!r}")
    if rules.displayed not in texts["README.md"]:
        problems.append(f"the card does not say {rules.displayed!r}")
    if problem := name_problem(licence, repo):
        problems.append(problem)
    return problems


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
