"""`new`: a recipe for one's own model and forget request, from five answers."""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from core.errors import InputError
from core.hub_ids import check_repository, is_commit, is_hub_id
from core.licences import LICENCES
from core.places import user_path
from core.words import plain_words
from datasets_prep import checks, sources
from datasets_prep.config import Columns, DataConfig
from datasets_prep.files import READERS
from datasets_prep.prepare import Prepared, prepare
from datasets_prep.rows import Rows
from datasets_prep.schema import FORGET, RETAIN, SPLITS
from pipeline import new_recipe
from pipeline.commands.doctor import doctor
from pipeline.commands.release import release
from pipeline.commands.shared import say
from pipeline.new_recipe import Found, Selected
from pipeline.recipe import NAME, RECIPES, load_recipe
from pipeline.train.config import ModelConfig
from pipeline.train.start_model import check_model_folder

Answers = dict[str, str]
QUESTIONS = {
    "model": "Which model? A folder (safetensors, tokenizer, chat template), or OWNER/NAME@COMMIT on the Hub.\n"
    "Empty: the demo's, SmolLM2-135M-Instruct.",
    "license": f"Its licence? {' or '.join(LICENCES)}.",
    "rows": "Which file has the rows that the model knows or is to learn first? Columns question and answer suffice.\n"
    "Parquet, Arrow, JSON Lines, JSON or CSV.",
    "forget": "What is to be forgotten? A file with those rows; or names, topics or words in them, with commas.\n"
    "Empty: some rows, drawn for a trial.",
    "repo": "Which repository is the release for? OWNER/NAME. Empty: a name made from the model's.",
}
LOOKED_AT = 2000  # rows


def new(options: argparse.Namespace) -> int:
    """Ask what no option says, write the recipe and plan its release; write nothing if an answer cannot be used.

    Raises InputError for an answer that cannot be used and, after writing, what the plan of a release raises.
    """
    file = _place(options.name)
    path = str(file) if file.is_absolute() else f"./{file}"
    columns = _columns(options.column)
    answers: Answers = {}
    for key in QUESTIONS:
        if key != "license" or answers["model"]:  # the demo's model has one
            answers[key] = _answer(key, options, answers)
    forget, data = _request(answers, columns)
    prepared = prepare(data)
    found = _found(prepared)
    text = new_recipe.compose(path, file.stem, _model_section(answers), answers["repo"], data, forget, found)
    _check(text, file.stem)
    _create(file, text)
    say(f"{path} is written; lines marked `yours` are for you to check. Its rows and its plan:")
    say(", ".join(f"{count:,} {split}" for split, count in found.counts.items()))
    if found.counts["forget"] < new_recipe.TRIAL:
        say(f"note: so few forget rows show large differences only. `gate {path}` will say how large.")
    checks.stop(prepared.findings, data.checks)
    given = {**vars(options), "recipe": path, "set": []}
    plan = {"until": None, "device": None, "dry_run": True, "launch": "local", "on": "local", "jobs": None}
    code = release(argparse.Namespace(**given | plan))
    say("\nWhat a release would fail at (`doctor`):")
    doctor(argparse.Namespace(**given))
    say(f"\nNext:  python -m pipeline data inspect {path}\nThen:  python -m pipeline release {path}")
    return code


def _place(name: str) -> Path:
    """The file of the recipe. Raises InputError if it exists, or cannot be that of a recipe."""
    file = user_path(name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")
    if not re.fullmatch(NAME, file.stem) or len(file.stem) > 100:
        raise InputError(f"{file.stem!r:.120} cannot be a recipe's name. Use small letters, digits, '.', '_' and '-'.")
    if (RECIPES / f"{file.stem}.yaml").exists():
        raise InputError(
            f"{file.stem} is a recipe of this project, whose results are in runs/{file.stem}. Give another name."
        )
    if not file.parent.is_dir():
        raise InputError(f"{file.parent} is not a folder. Make it, or give another name.")
    if file.exists() or file.is_symlink():
        raise InputError(f"{file} exists, and no file is overwritten. Give another name, or remove it.")
    return file


def _columns(given: list[str]) -> dict[str, str]:
    """Our names of columns and the file's, from OURS=THEIRS."""
    columns = {}
    for pair in given:
        ours, equals, theirs = pair.partition("=")
        if not (equals and theirs and ours in Columns.model_fields):
            raise InputError(
                f"--column {pair}: write OURS=THEIRS, with one of {', '.join(Columns.model_fields)} as OURS."
            )
        columns[ours] = theirs
    return columns


def _answer(key: str, options: argparse.Namespace, before: Answers) -> str:
    """The option's value or, at a terminal, the user's answer, asked for until it can be used; else empty.

    Raises InputError for a value that cannot be used.
    """
    given = getattr(options, key)
    if given is not None or not sys.stdin.isatty():
        return _checked(key, given or "", before)
    while True:
        say(f"\n{QUESTIONS[key]}")
        line = sys.stdin.readline()
        if not line:
            raise InputError(f"The input ended before the answer. Give --{key}, or answer the question.")
        try:
            return _checked(key, line, before)
        except InputError as error:
            say(f"error: {error}")


def _checked(key: str, answer: str, before: Answers) -> str:
    return CHECKS[key](answer.strip(), before)


def _model(answer: str, before: Answers) -> str:
    if not answer:
        return answer
    if _is_folder(answer):
        check_model_folder(user_path(answer))
        return answer
    repo, at, commit = answer.partition("@")
    if not is_hub_id(repo):
        raise InputError(f"--model: {answer!r:.120} is neither a folder nor OWNER/NAME@COMMIT on the Hub.")
    if at and not is_commit(commit):
        raise InputError(
            f"--model: {commit!r:.60} is not a commit. Give its 40 hex digits; the repository's page has them."
        )
    return answer


def _is_folder(model: str) -> bool:
    return model.startswith((".", "/", "~")) or user_path(model).is_dir()


def _license(answer: str, before: Answers) -> str:
    if answer not in LICENCES:
        given = f"{answer!r:.60} is not supported" if answer else "the model's licence is not given"
        raise InputError(f"--license: {given}. Give {' or '.join(LICENCES)}; a release keeps its model's licence.")
    return answer


def _rows(answer: str, before: Answers) -> str:
    if not answer:
        raise InputError(
            f"--rows: no file is given. Give one with the columns question and answer ({', '.join(READERS)})."
        )
    if not user_path(answer).is_file():
        raise InputError(f"--rows: there is no file {answer!r:.200}. Check the path.")
    return answer


def _forget(answer: str, before: Answers) -> str:
    if user_path(answer).suffix.lower() in READERS and not user_path(answer).is_file():
        raise InputError(f"--forget: there is no file {answer!r:.200}. Check the path, or give names, topics or words.")
    return answer


def _repo(answer: str, before: Answers) -> str:
    licence, name = LICENCES[before.get("license", "apache-2.0")], _model_name(before["model"])
    prefix = licence.name_prefix if licence.name_problem(name) else ""
    repo = answer or f"your-name/{prefix}{name}-unlearned"
    check_repository(repo, "--repo")
    if problem := licence.name_problem(repo):
        raise InputError(f"--repo: {problem}.")
    return repo


def _model_name(model: str) -> str:
    """The part behind the owner of a model's id on the Hub. That of a folder is made from the folder's name."""
    if not model:
        return "SmolLM2-135M-Instruct"
    if not _is_folder(model):
        return model.partition("@")[0].split("/")[1]
    name = re.sub(r"[^\w.]+|\.\.+", "-", user_path(model).resolve().name, flags=re.ASCII)
    return name[:80].removesuffix(".git").strip("-._") or "model"


CHECKS: Mapping[str, Callable[[str, Answers], str]] = {
    "model": _model,
    "license": _license,
    "rows": _rows,
    "forget": _forget,
    "repo": _repo,
}


def _request(answers: Answers, columns: Mapping[str, str]) -> tuple[Selected, DataConfig]:
    """What is forgotten, and the recipe's data. Raises InputError if the file or the request cannot be used."""
    anything = DataConfig.model_validate(new_recipe.data_section(answers["rows"], columns, [{"rows": ["any"]}]))
    forget = _selected(sources.load(anything).rows, answers["forget"], anything.seed)
    return forget, DataConfig.model_validate(new_recipe.data_section(answers["rows"], columns, forget.plain()))


def _selected(rows: Rows, forget: str, seed: int) -> Selected:
    if not forget:
        return new_recipe.drawn(rows, seed)
    if user_path(forget).suffix.lower() in READERS:
        return Selected([({"file": forget}, "rows of the source, word for word")])
    words = [word.strip() for word in forget.split(",") if word.strip()]
    if not words:
        raise InputError(f"--forget: {forget!r} names nothing. Give names, topics or words, separated by commas.")
    return new_recipe.asked_for(rows, words)


def _found(prepared: Prepared) -> Found:
    rows, split = prepared.loaded.rows, prepared.split
    counts = {name: int((split == index).sum()) for index, name in enumerate(SPLITS)}
    longest = max(len(plain_words(text)) for (text,) in rows.columns("answer"))
    return Found(counts, longest, _nobody_else(rows, np.flatnonzero(np.isin(split, (FORGET, RETAIN))).tolist()))


def _nobody_else(rows: Rows, given: list[int]) -> str | None:
    """Why no given question can be asked about another person, as the stage `neighbours` does; seen on some rows."""
    from pipeline.unlearn.neighbours import named, nobody_else

    return nobody_else(named([rows[place] for place in random.Random(0).sample(given, min(len(given), LOOKED_AT))]))


def _model_section(answers: Answers) -> ModelConfig | None:
    model, licence = answers["model"], answers.get("license")
    if not model:
        return None
    if _is_folder(model):
        owner = answers["repo"].partition("/")[0]
        return ModelConfig.model_validate({"path": model, "name": f"{owner}/{_model_name(model)}", "license": licence})
    repo, _, commit = model.partition("@")
    return ModelConfig.model_validate(
        {"hub": {"id": repo, "revision": commit or None}, "name": repo, "license": licence}
    )


def _check(text: str, name: str) -> None:
    """Raise RecipeError if the text is no recipe, before a file of the user's holds it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / f"{name}.yaml"
        copy.write_text(text, encoding="utf-8")
        load_recipe(str(copy))


def _create(file: Path, text: str) -> None:
    """Write a new file whole. Raises InputError if it exists by now or cannot be written; then there is none."""
    try:
        with file.open("x", encoding="utf-8") as out:
            try:
                out.write(text)
                out.flush()
            except OSError:
                file.unlink()
                raise
    except OSError as error:
        raise InputError(f"{file}: cannot be written ({error}). Give another place.") from error
