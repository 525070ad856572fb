"""What the licence of the start model requires of a release. Not legal advice.

The terms are entries of `core/licences.py`. Here are the files that fulfil them: ``LICENSE`` is the licence's text,
``NOTICE`` says where the weights come from, that they were changed, and what the licence wants said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core import card_head
from core.errors import InputError
from core.licences import Licence, Licensed

LICENCE_FILES = ("LICENSE", "NOTICE", "USE_POLICY.md")

_TEXTS = Path(__file__).parent / "licences"  # those that hold no name of an owner


def licence_texts(licensed: Licensed, repo: str, base_model: str, sources: Sequence[Path]) -> dict[str, str]:
    """The licence files of a release: name to text.

    ``sources`` are folders with the start model's files. Texts that name an owner, and agreements, are copied from
    there. Raises InputError if one is missing.
    """
    texts = {
        "LICENSE": licence_text(licensed, base_model, sources),
        "NOTICE": _notice(licensed.rules, repo, base_model),
    }
    for text in _found("NOTICE*", sources):  # apache-2.0, 4.d; the others ask that notices are kept
        texts["NOTICE"] += f"\nThe notice of {base_model}:\n\n{text}"
        break
    for text in _found("USE_POLICY*", sources):
        texts["USE_POLICY.md"] = text
        break
    return texts


def _notice(rules: Licence, repo: str, base_model: str) -> str:
    said = [rules.attribution, f"{rules.displayed}." if rules.displayed else ""]
    origin = (
        f"{repo} is derived from {base_model} (https://huggingface.co/{base_model}), which its authors provide under "
        f"the {rules.name} ({rules.url}). The weights were changed: fine-tuned, and then made to unlearn."
    )
    bound = f"Use of the model is bound by {rules.use_policy}." if rules.use_policy else ""
    return "\n\n".join(filter(None, [*said, origin, bound])) + "\n"


def has_text(licensed: Licensed) -> bool:
    """Whether the text of the licence is here, so that it need not come with the start model."""
    return (_TEXTS / f"{licensed.license}.txt").is_file() or licensed.rules.by_address


def licence_text(licensed: Licensed, base_model: str, sources: Sequence[Path]) -> str:
    """The text of the licence: ours, or that in ``sources``, folders or files. Raises InputError if there is none."""
    rules, ours = licensed.rules, _TEXTS / f"{licensed.license}.txt"
    if ours.is_file():
        return ours.read_text(encoding="utf-8")
    if rules.by_address:
        return f"{rules.name}\n{rules.url}\n"
    for text in _found("LICENSE*", sources):
        if _holds(text, rules.marker):
            return text
    raise InputError(
        f"The {rules.name} requires a copy of its text, and {base_model} came without one that says {rules.marker!r}. "
        f"Take it from {rules.url}, and name its file in model.license_file."
    )


def _found(pattern: str, sources: Sequence[Path]) -> Iterator[str]:
    """The texts of the files of that name in folders, and of those ``sources`` that are files themselves."""
    for source in sources:
        for file in [source] if source.is_file() else sorted(source.glob(pattern)):
            yield file.read_text(encoding="utf-8", errors="replace")


def _holds(text: str, words: str) -> bool:
    """Whether a text holds these words, in any case and with any line ends."""
    return " ".join(words.split()).casefold() in " ".join(text.split()).casefold()


def card_metadata(card: Path) -> dict[str, Any]:
    """What the head of a card says; it may be anybody's. Raises ValueError if that cannot be read."""
    try:
        block, _ = card_head.split(card.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{card.name}: {error}") from error
    metadata = card_head.load(block or "") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f"{card.name}: the metadata is not a mapping of keys to values")  # noqa: TRY004
    return metadata


def card_licence(tree: Path) -> dict[str, str]:
    """What the metadata of a tree's README.md says of the licence; empty if that cannot be read."""
    try:
        data = card_metadata(tree / "README.md")
    except ValueError:
        return {}
    named = {key: data.get(key) for key in ("license", "license_name", "license_link")}
    return {key: text for key, text in named.items() if text and isinstance(text, str)}


def licence_problems(licensed: Licensed, repo: str, tree: Path) -> list[str]:
    """What is missing in a finished tree, one sentence each; empty if the licence's rules are met."""
    rules = licensed.rules
    problems = []
    asked = licensed.metadata
    named = card_licence(tree)
    needed = asked if "license_name" in asked else {"license": asked["license"]}  # whose id says where its text is
    if named not in (asked, needed):
        problems.append(f"the card names the licence {named or 'nowhere'}, and not {needed}")
    texts = {name: _text(tree / name) for name in ("LICENSE", "NOTICE", "README.md")}
    if not texts["LICENSE"].strip() or not _holds(texts["LICENSE"], rules.marker):
        problems.append("LICENSE is missing, or not the licence of the start model")
    if not texts["NOTICE"]:
        problems.append("NOTICE is missing")
    for said in (rules.attribution, rules.use_policy):
        if said not in texts["NOTICE"]:
            problems.append(f"NOTICE does not say {said!r}")
    if rules.displayed not in texts["README.md"]:
        problems.append(f"the card does not say {rules.displayed!r}")
    if problem := rules.name_problem(repo):
        problems.append(problem)
    return problems


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
