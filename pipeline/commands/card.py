"""`card lint`: what is wrong with a model card, ours or another's."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from core import bounded_json
from core.errors import ArtifactError, InputError
from core.hub_ids import check_repository
from core.places import user_path
from model_card.lint import SOURCES, Problem, lint, lint_folder
from pipeline.commands.shared import hub_of, show
from pipeline.publish.hub import Target, connect, hub_errors


def lint_card(options: argparse.Namespace) -> int:
    """Check the card of a folder, a file or a repository. Raises InputError if it breaks a rule or is not there."""
    place = user_path(options.card)
    if not place.exists() and _is_path(options.card):
        raise InputError(
            f"card lint: there is no file or folder {place.absolute()}. Give a README.md, its folder, or a repository "
            "as OWNER/NAME."
        )
    problems = _of_place(place) if place.exists() else _of_repository(options)
    value = {"card": options.card, "problems": [problem._asdict() for problem in problems]}
    text = "\n".join(f"{problem.rule:<11}{problem.says}" for problem in problems) or "No rule is broken."
    show(options, value, text)
    if problems:
        raise InputError(f"{options.card}: the card breaks {len(problems)} rule(s), as listed.")
    return 0


def _is_path(card: str) -> bool:
    """Whether this can only be meant as a path: a repository has one slash, and none is called after a file."""
    return card.endswith(".md") or card.count("/") > 1 or card.startswith((".", "/", "~"))


def _of_place(place: Path) -> list[Problem]:
    try:
        return lint_folder(place)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ArtifactError(f"{place}: no card can be read there ({error}). Give a README.md or its folder.") from error


def _of_repository(options: argparse.Namespace) -> list[Problem]:
    """The card of a repository, by its name: neither weights nor other large files are downloaded."""
    check_repository(options.card, "card lint (there is no such file, so it must be a repository)")
    with connect(hub_of(options, options.card), anonymous=True) as target:
        return _downloaded(options.card, options.revision, target)


def _downloaded(repo: str, revision: str, target: Target) -> list[Problem]:
    with hub_errors(f"reading the card of {repo} at {revision}"):
        api = target.api()
        files = api.list_repo_files(repo, revision=revision)
        if "README.md" not in files:
            return [Problem("metadata", "There is no README.md.")]
        with TemporaryDirectory(prefix="card-") as folder:  # not the cache, where Hubs have one place for each name
            texts = {
                name: Path(api.hf_hub_download(repo, name, revision=revision, local_dir=folder)).read_bytes()
                for name in ("README.md", *SOURCES)
                if name in files
            }
    try:
        card = texts.pop("README.md").decode()
        return lint(card, files, [bounded_json.loads(text) for text in texts.values()])
    except ValueError as error:
        named = ", ".join(("README.md", *texts))
        raise ArtifactError(f"{repo} at {revision}: of {named}, one is not UTF-8 or not JSON ({error}).") from error
