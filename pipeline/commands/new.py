"""`new`: a recipe for one's own model and forget request, from a few answers."""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from core.errors import DataError, InputError, RecipeError
from core.hub_ids import check_repository, is_commit, is_hub_id
from core.licences import LICENCES
from core.places import user_path
from core.words import plain_words
from datasets_prep import checks, sources, splits
from datasets_prep.config import Columns, DataConfig
from datasets_prep.files import READERS, read_file
from datasets_prep.prepare import Prepared, prepare
from datasets_prep.rows import Rows, told_first
from datasets_prep.schema import FORGET, RETAIN, SPLITS
from pipeline import new_recipe
from pipeline.commands.doctor import show_checks
from pipeline.commands.prepare import prepare as prepare_recipe
from pipeline.commands.release_plan import show_plan
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
    "language": "Which language are they in? A code of two letters, such as EN; the card names it. Empty: not said.",
    "forget": "What is to be forgotten? A file with those rows; or names, topics or words in them, with commas.\n"
    "Empty: some rows, drawn for a trial.",
    "repo": "Which repository is the release for? OWNER/NAME. Empty: a name made from the model's.",
}
OTHER_NAMES = {
    "question": ("prompt", "instruction"),
    "answer": ("completion", "response", "output"),
    "topic_id": ("topic",),
}
LOOKED_AT = 2000  # rows


def new(options: argparse.Namespace) -> int:
    """Ask what no option says, write the recipe, and print the plan of its release and what `doctor` finds.

    Returns 2 if the new recipe would fail. Raises InputError for an answer or rows that cannot be used; then nothing
    is written.
    """
    file = _place(options.name)
    path = str(file) if file.is_absolute() else f"./{file}"
    columns = _columns(options.column)
    answers: Answers = {}
    likely: dict[str, str] = {}
    for key in QUESTIONS:
        if key == "license" and not answers["model"]:  # the demo's model has one
            if options.license is not None:
                raise InputError("--license is that of your own model. Give --model too, or leave --license out.")
            continue
        if key == "language" and _says_its_language(answers["rows"], columns):
            if options.language is not None:
                raise InputError("--language: the file has a column of languages. Leave --language out.")
            continue
        answers[key] = _answer(key, options, answers, columns)
        if key == "rows":
            columns |= (likely := _likely_columns(answers[key], columns))
    forget, data = _request(answers, answers["forget"], columns)
    prepared = prepare(data)
    try:
        checks.stop(prepared.findings, data.checks)
    except DataError as error:
        raise DataError(
            f"{error}\nNo recipe was written. Correct the rows; or copy own-data, whose section `data` takes `checks`."
        ) from error
    found = _found(prepared)
    text = new_recipe.compose(path, file.stem, _model_section(answers), answers["repo"], data, forget, found)
    _check(text, file)
    _create(file, text)
    say(f"{path} is written; lines marked `yours` are for you to check. Its rows and its plan:")
    say(", ".join(f"{count:,} {split}" for split, count in found.counts.items()))
    if forget.trial:
        say("note: what to forget was not said, and rows were drawn for a trial. Put in yours.")
    for ours, theirs in likely.items():
        say(f"note: the column {theirs!r} is read as {ours}.")
    if data.source.language is None and not _says_its_language(answers["rows"], columns):
        say("note: the rows' language is not said (--language), so the card will name none.")
    for names in new_recipe.spelled_alike(forget.people):
        say(
            f"note: {' and '.join(map(repr, names))} are taken for one name, and all their rows are forgotten. If they "
            "are different people, list ids of people or rows in `request.forget`."
        )
    kept = prepared.loaded.rows.where(prepared.split != FORGET)
    for name, left in new_recipe.saying(kept, forget.people):
        say(
            f"note: {len(left):,} rows about others say {name!r} and are not forgotten, for example {left[0]}. Those "
            "that you mean, add to `request.forget`."
        )
    for word in forget.words:
        if left := new_recipe.inside_words(kept, word):
            say(
                f"note: {len(left):,} rows hold {word!r} inside a longer word and are not forgotten, for example "
                f"{left[0]}. Those that you mean, add to `request.forget`."
            )
    if found.facts["forget"] < new_recipe.TRIAL:
        say(f"note: so few forget rows show large differences only. `gate {quote(path)}` will say how large.")
    planned: dict[str, Any] = {"recipe": path, "set": [], "device": None, "dry_run": True, "on": "local", "jobs": None}
    given = argparse.Namespace(**vars(options) | planned)
    member = prepare_recipe(given)
    show_plan(given, member)
    say("\nWhat a release would fail at (`doctor`):")
    if failed := show_checks(given, member):
        say(f"\n{failed} checks failed. Change {path}, then run `python -m pipeline doctor {quote(path)}` again.")
        return InputError.exit_code
    say(f"\nNext:  python -m pipeline data inspect {quote(path)}\nThen:  python -m pipeline release {quote(path)}")
    return 0


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
    if columns.get("question", "question") == columns.get("answer", "answer"):
        raise InputError(f"--column {' '.join(given)}: question and answer would be one column. Give each its own.")
    return columns


def _answer(key: str, options: argparse.Namespace, before: Answers, columns: Mapping[str, str]) -> str:
    """The option's value or, at a terminal, the user's answer, asked for until it can be used; else empty.

    Raises InputError for a value that cannot be used.
    """
    given = getattr(options, key)
    if key == "forget" and given is not None and not given.strip():
        raise InputError("--forget: is empty. Say what is to be forgotten, or leave it out for a trial.")
    if given is not None or not sys.stdin.isatty():
        return CHECKS[key]((given or "").strip(), before, columns)
    while True:
        say(f"\n{QUESTIONS[key]}")
        line = sys.stdin.readline()
        if not line:
            raise InputError(f"The input ended before the answer. Give --{key}, or answer the question.")
        try:
            return CHECKS[key](line.strip(), before, columns)
        except InputError as error:
            say(f"error: {error}")


def _model(answer: str, before: Answers, columns: Mapping[str, str]) -> str:
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


def _license(answer: str, before: Answers, columns: Mapping[str, str]) -> str:
    if answer not in LICENCES:
        given = f"{answer!r:.60} is not supported" if answer else "the model's licence is not given"
        raise InputError(f"--license: {given}. Give {' or '.join(LICENCES)}; a release keeps its model's licence.")
    return answer


def _rows(answer: str, before: Answers, columns: Mapping[str, str]) -> str:
    if not answer:
        raise InputError(
            f"--rows: no file is given. Give one with the columns question and answer ({', '.join(READERS)})."
        )
    if not user_path(answer).is_file():
        raise InputError(f"--rows: there is no file {answer!r:.200}. Check the path.")
    _check_columns(answer, columns)
    _loaded(answer, tuple({**columns, **_likely_columns(answer, columns)}.items()))
    return answer


def _first_record(file: str) -> dict[str, Any] | None:
    """None if it is no object; what is wrong is said where the rows are read."""
    _, _, record = next(read_file(file, "--rows"), ("", 0, None))
    return record if isinstance(record, dict) else None


def _says_its_language(file: str, columns: Mapping[str, str]) -> bool:
    return "language" in columns or "language" in (_first_record(file) or {})


def _language(answer: str, before: Answers, columns: Mapping[str, str]) -> str:
    if answer and not re.fullmatch(r"[A-Za-z]{2}", answer):
        raise InputError(f"--language: {answer!r:.40} is no code of two letters (ISO 639-1), such as EN.")
    return answer.upper()


def _check_columns(file: str, columns: Mapping[str, str]) -> None:
    """Raise InputError, with the option that would help, if the file lacks a column that is needed or given."""
    record = _first_record(file)
    if record is None:
        return
    wanted = {"question": "question", "answer": "answer", **columns}
    missing = [ours for ours, theirs in wanted.items() if theirs not in record]
    if missing:
        sources.refuse_running_text(record, f"--rows: {file}")
        help_ = " ".join(f"--column {ours}={_likely(ours, record) or '…'}" for ours in missing)
        raise InputError(
            f"--rows: {file} has no column {', '.join(wanted[ours] for ours in missing)}. It has "
            f"{sources.names_of(record)}. Say which it is: {help_}"
        )


def _likely(ours: str, record: Mapping[str, Any]) -> str | None:
    """The column of a file that is likely meant by our name of it."""
    return next(
        (str(name) for name in record if str(name).strip().casefold() in (ours, *OTHER_NAMES.get(ours, ()))), None
    )


def _likely_columns(file: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Ours and the file's name of columns that are not given, and that nobody would read under the file's name."""
    record = _first_record(file) or {}
    unknown = [ours for ours in Columns.model_fields if ours not in columns and ours not in record]
    found = {ours: theirs for ours in unknown if (theirs := _likely(ours, record))}
    return {ours: theirs for ours, theirs in found.items() if theirs not in columns.values()}


def _forget(answer: str, before: Answers, columns: Mapping[str, str]) -> str:
    if user_path(answer).suffix.lower() in READERS and not user_path(answer).is_file():
        raise InputError(f"--forget: there is no file {answer!r:.200}. Check the path, or give names, topics or words.")
    _, data = _request(before, answer, columns)
    splits.assign(data, _loaded(before["rows"], tuple(columns.items()), before.get("language")))
    return answer


def _repo(answer: str, before: Answers, columns: Mapping[str, str]) -> str:
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


CHECKS: Mapping[str, Callable[[str, Answers, Mapping[str, str]], str]] = {
    "model": _model,
    "license": _license,
    "rows": _rows,
    "language": _language,
    "forget": _forget,
    "repo": _repo,
}


def _request(answers: Answers, forget: str, columns: Mapping[str, str]) -> tuple[Selected, DataConfig]:
    """What is forgotten, and the recipe's data. Raises InputError if the file or the request cannot be used."""
    file, language = answers["rows"], answers.get("language")
    selected = _selected(_loaded(file, tuple(columns.items()), language), forget)
    return selected, DataConfig.model_validate(new_recipe.data_section(file, columns, language, selected.plain()))


@cache  # the answers that follow look into the rows too
def _loaded(file: str, columns: tuple[tuple[str, str], ...], language: str | None = None) -> Rows:
    """All rows of a file. Their ids may be made of their language."""
    section = new_recipe.data_section(file, dict(columns), language, [{"rows": ["any"]}])
    return sources.load(DataConfig.model_validate(section)).rows


def _selected(rows: Rows, forget: str) -> Selected:
    if not forget:
        return new_recipe.drawn(rows)
    if user_path(forget).suffix.lower() in READERS:
        return Selected([({"file": forget}, "rows of the source, word for word")])
    parts = [part for part in forget.split(",") if part.strip()]
    if not parts:
        raise InputError(f"--forget: {forget!r} names nothing. Give names, topics or words, separated by commas.")
    return new_recipe.asked_for(rows, parts)


def _found(prepared: Prepared) -> Found:
    rows, split = prepared.loaded.rows, prepared.split
    counts = {name: int((split == index).sum()) for index, name in enumerate(SPLITS)}
    told = told_first(rows)
    facts = {name: len(np.unique(told[split == index])) for index, name in enumerate(SPLITS)}
    longest = max(len(plain_words(text)) for (text,) in rows.columns("answer"))
    return Found(counts, facts, longest, _nobody_else(rows, np.flatnonzero(np.isin(split, (FORGET, RETAIN))).tolist()))


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


def _check(text: str, file: Path) -> None:
    """Raise RecipeError if the text is no recipe, before a file of the user's holds it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / file.name
        copy.write_text(text, encoding="utf-8")
        try:
            load_recipe(str(copy))
        except RecipeError as error:
            raise RecipeError(str(error).replace(str(copy), str(file))) from error


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
