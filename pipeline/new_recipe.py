"""The text of a recipe for one's own model and forget request, as `new` writes it.

What a user decides is written here; how base is trained, unlearned, evaluated and gated is copied from the recipe
`own-data`, comments included, so that the two stay alike and the new file can be read alone.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import yaml

from core.errors import InputError
from core.words import as_words
from core.yaml_source import did_you_mean
from datasets_prep.config import DataConfig
from datasets_prep.rows import Rows
from datasets_prep.text import same, same_name
from eval.config import Gate
from eval.verdicts import measurable
from pipeline.recipe import RECIPES
from pipeline.recipe_paths import as_seen_from
from pipeline.train.config import ModelConfig

OWN_DATA = RECIPES / "own-data.yaml"
TRIAL = 30  # forget rows of a trial: as many as own-data's gates ask for
HOLDOUT = 0.2
SEED = 42
_UNREADABLE = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_SECTION = re.compile(r"(?m)^(\w+):")
_MIN_N = re.compile(r"(\s+min_n: )(\d+)")
_TOKENS = re.compile(r"(max_new_tokens: )\d+")


@dataclass(frozen=True)
class Selected:
    """What is forgotten: selections of `data.request.forget`, each with a comment, and whether they are a trial.

    ``words`` are those that were searched in the rows, ``people`` the names of those who were asked for.
    """

    selections: Sequence[tuple[dict[str, Any], str]]
    trial: bool = False
    words: Sequence[str] = ()
    people: Sequence[str] = ()

    def plain(self) -> list[dict[str, Any]]:
        """The selections as a recipe has them."""
        return [selection for selection, _ in self.selections]


class Found(NamedTuple):
    """What the rows say: how many each split has, how many facts these tell, the words of the longest answer.

    ``nobody``: why no question can be asked about somebody else, as the unlearning's neighbours are; None if one can.
    """

    counts: Mapping[str, int]
    facts: Mapping[str, int]
    longest: int
    nobody: str | None


def drawn(rows: Rows) -> Selected:
    """Rows for a trial: a tenth of all, at least 30 and at most a fifth. Raises InputError if these are none."""
    count = min(max(TRIAL, len(rows) // 10), len(rows) // 5)
    if not count:
        raise InputError(f"The file has {len(rows)} rows, which are too few to forget some of them. Give at least 5.")
    ids = sorted(row_id for (row_id,) in rows.columns("row_id"))
    chosen = sorted(random.Random(f"{SEED}|trial").sample(ids, count))
    return Selected([({"rows": chosen}, f"{count} rows, drawn for a trial")], trial=True)


def asked_for(rows: Rows, parts: Sequence[str]) -> Selected:
    """The selections that ``parts``, the texts between commas, mean: names or ids of people, topics, or words in rows.

    Names may be spelled in another way, and words too. A name, id or topic may have commas itself: of several the
    longest is meant. Raises InputError, with the nearest name, if one is in no row.
    """
    ids, names, topics = (_values(rows, column) for column in ("identity_id", "name", "topic_id"))
    spelled = set(map(_with_or_without_comma, names))

    def is_person(text: str) -> bool:
        return text in ids or _with_or_without_comma(text) in spelled

    asked, longest = dict[str, None](), 1 + max((text.count(",") for text in ids | names | topics), default=0)
    while parts:
        runs = (",".join(parts[:count]).strip() for count in range(longest, 1, -1))
        text = next((run for run in runs if is_person(run) or run in topics), parts[0].strip())
        asked[text] = None
        parts = parts[1 + text.count(",") :]
    of_people = [text for text in asked if is_person(text)]
    of_topics = [text for text in asked if text in topics and text not in of_people]
    words = [text for text in asked if text not in of_people and text not in topics]
    selections: list[tuple[dict[str, Any], str]] = []
    if of_people:
        selections.append(({"identities": of_people}, "everything about them"))
    if of_topics:
        selections.append(({"topics": of_topics}, "everything on these topics"))
    texts = list(_texts(rows)) if words else []
    for word in words:
        found = _saying(texts, word)
        if not found:
            raise InputError(
                f"--forget: {word!r} is in no row.{did_you_mean(word, ids | names | topics)} Give names, ids, topics "
                "or words of the rows, separated by commas, or a file with the rows to be forgotten."
            )
        selections.append(({"rows": sorted(found)}, f"the {len(found)} rows that say {_one_line(word)}"))
    pairs = set(rows.columns("identity_id", "name")) if of_people else set()
    wanted: set[Any] = {*of_people, *map(_with_or_without_comma, of_people)}
    people = {name for identity, name in pairs if name and wanted & {str(identity), _with_or_without_comma(name)}}
    return Selected(selections, words=words, people=sorted(people))


def _with_or_without_comma(name: str) -> tuple[str, bool]:
    """A name in any spelling. "Kim, Lee" are two people where nobody's name has the comma."""
    return same_name(name), "," in name


def spelled_alike(names: Sequence[str]) -> list[list[str]]:
    """The names that a request takes for one, however they are spelled, where more than case and spaces differ."""
    spelled: dict[str, dict[str, str]] = {}
    for name in names:
        spelled.setdefault(same_name(name), {}).setdefault(same(name), name)
    return [list(found.values()) for found in spelled.values() if len(found) > 1]


def saying(rows: Rows, names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The ids of rows that say a name, for each name that some say."""
    texts = list(_texts(rows)) if names else []
    for name in names:
        if found := _saying(texts, name):
            yield name, found


def _saying(texts: Sequence[tuple[str, str]], word: str) -> list[str]:
    said = as_words(same_name(word))
    return [row_id for row_id, text in texts if said.search(text)]


def inside_words(rows: Rows, word: str) -> list[str]:
    """The ids of rows that hold a word at all, as a part of a longer one too."""
    return [row_id for row_id, text in _texts(rows) if same_name(word) in text]


def _texts(rows: Rows) -> Iterator[tuple[str, str]]:
    """The id of each row, and its question and answer in the spelling in which words are searched."""
    for row_id, *text in rows.columns("row_id", "question", "answer"):
        yield row_id, same_name(" ".join(text))


def data_section(
    rows_file: str, columns: Mapping[str, str], language: str | None, forget: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The section `data` as plain values. ``language``: of all rows, if no column says it."""
    return {
        "source": {"file": rows_file, "columns": dict(columns), "language": language or None},
        "setting": "request",
        "request": {"forget": [dict(selection) for selection in forget], "holdout": HOLDOUT},
        "seed": SEED,
        "perturbed": {"per_row": 3, "retain_rows": 60, "for_unlearning": 4},
    }


def compose(
    path: str, name: str, model: ModelConfig | None, repo: str, data: DataConfig, forget: Selected, found: Found
) -> str:
    """The recipe ``name`` for the file ``path``, which its comments name. ``model``: None for own-data's.

    ``model``, ``data`` and ``forget`` name files as they are seen from the current folder.
    """
    folder = Path(path).parent
    own = _sections(OWN_DATA.read_text(encoding="utf-8"))
    tokens = min(256, max(40, -(-2 * found.longest // 8) * 8))  # two for each word, rounded up
    unlearn = _TOKENS.sub(rf"\g<1>{tokens}", own["unlearn"])
    parts = [
        _HEAD.format(path=quote(path), name=name),
        own["model"] if model is None else _model(model, folder),
        _data(data, forget, folder),
        own["base"] if model is None else _OTHER_SIZE + own["base"],
        own["gold"],
        own["novice"],
        _without_neighbours(unlearn, found.nobody) if found.nobody else unlearn,
        _TOKENS.sub(rf"\g<1>{tokens} # about two for each word of the longest answer", own["eval"]),
        _gates(own["gates"], found.facts),
        _CARD.format(title=_quoted(f"{repo.split('/')[-1]}: some facts unlearned")),
        _PUBLISH.format(repo=_quoted(repo)),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _sections(text: str) -> dict[str, str]:
    """The text of each top-level key, with the comments above it."""
    starts: dict[str, int] = {}
    for found in _SECTION.finditer(text):
        above = text[: found.start()]
        while above.endswith("\n") and (line := above[:-1].rpartition("\n")[2]).startswith("#"):
            above = above[: -len(line) - 1]
        starts[found[1]] = len(above)
    ends = [*list(starts.values())[1:], len(text)]
    return {key: text[start:end] for (key, start), end in zip(starts.items(), ends, strict=True)}


def _model(model: ModelConfig, folder: Path) -> str:
    if model.hub:
        revision = model.hub.revision or "null # not pinned: write the commit here, 40 hex digits"
        source = f"  hub:\n    id: {_quoted(model.hub.id)}\n    revision: {revision}"
    else:
        source = f"  path: {_quoted(as_seen_from(folder, str(model.path)))}"
    return (
        "# If it was trained on the rows already, name it in `base` (`hub: {id: …, revision: …}` instead of `train`),\n"
        "# and here the model that it was trained from: what this one says of the rows is what is to be reached.\n"
        f"model:\n{source}\n  name: {_quoted(model.name)} # its id on the Hub, which the card names: check it\n"
        f"  license: {model.license} # of that model; the release keeps it"
    )


def _data(data: DataConfig, forget: Selected, folder: Path) -> str:
    source = data.source
    columns = {key: value for key, value in source.columns.model_dump().items() if value and value != key}
    selections = [
        ({key: as_seen_from(folder, value) if key == "file" else value for key, value in selection.items()}, why)
        for selection, why in forget.selections
    ]
    listed = "\n".join(f"      - {_flow(selection)} # {why}" for selection, why in selections)
    why = "A trial, so that everything can be run: put in yours." if forget.trial else "Yours."
    return _DATA.format(
        file=_quoted(as_seen_from(folder, str(source.file))),
        columns=_flow(columns),
        language=f"\n    language: {source.language} # of all rows" if source.language else "",
        why=why,
        forget=listed,
        holdout=HOLDOUT,
        seed=data.seed,
        perturbed=_flow(data.perturbed.model_dump()),
    )


def _without_neighbours(unlearn: str, why: str) -> str:
    lines = unlearn.split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith("  neighbours:"))
    first = at
    while lines[first - 1].startswith("  #"):
        first -= 1
    lines[first : at + 1] = [
        "  # `neighbours: {questions: 400, max_new_tokens: 40}` would keep more of what you did not give, but nobody",
        f"  # else can be asked your questions: {why}.",
    ]
    return "\n".join(lines)


def _gates(gates: str, facts: Mapping[str, int]) -> str:
    """own-data's gates, with as many facts asked for as the rows tell where these are fewer."""
    lines, judged = gates.split("\n"), iter(yaml.safe_load(gates)["gates"])
    for i, line in enumerate(lines):
        if not (found := _MIN_N.match(line)):
            continue
        asked = int(found[2])
        there = min(facts.get(split, asked) for split in measurable.rests_on(Gate.model_validate(next(judged))))
        if 0 < there < asked:
            few = f"all there are; own-data asks for {asked}, and so few show large differences only"
            lines[i] = f"{found[1]}{there} # {few}"
    return "\n".join(lines)


def _values(rows: Rows, column: str) -> set[str]:
    return {str(value) for value in rows.codes(column)[1] if value is not None}


def _one_line(text: str) -> str:
    return _quoted(" ".join(text.split()))


def _quoted(text: Any) -> str:
    """In JSON, which YAML reads, but for signs that it takes only as escapes."""
    return _UNREADABLE.sub(lambda sign: f"\\u{ord(sign[0]):04x}", json.dumps(text, ensure_ascii=False))


def _flow(value: Mapping[str, Any]) -> str:
    """A mapping on one line."""
    return "{" + ", ".join(f"{key}: {_quoted(item)}" for key, item in value.items()) + "}"


_HEAD = """\
# python -m pipeline release {path}
#
# Written by `python -m pipeline new`, and yours from now on. What was not asked about is as in own-data. Lines marked
# `yours` are for you to check. `data inspect {path}` shows the rows, and docs/recipe.md lists every key.
name: {name} # the folder under runs/"""

_DATA = """\
data:
  source:
    file: {file}
    # Our names on the left, your columns on the right. Only question and answer are required. Columns that the file
    # calls as we do (identity_id, name, language, topic_id, perturbed_answers) are read by themselves; people and
    # topics give better false answers.
    columns: {columns}{language}
  setting: request
  request:
    # {why} A row is forgotten if it meets every key of one of the selections: `identities`, `topics`,
    # `languages`, `rows` (ids, as `data inspect` shows them) or `file` (rows of the source, word for word). All other
    # rows are retained.
    forget:
{forget}
    # Yours. Rows that no model is trained on, with which forgotten rows are compared. This share is drawn. Better are
    # rows of the same kind as the forget rows, as a list like the one above. If your model knows all of the rows
    # already, give rows that it has not seen.
    holdout: {holdout}
  seed: {seed}
  perturbed: {perturbed} # false answers, mixed from words of others where you give none"""

_OTHER_SIZE = """\
# Steps and learning rates below fit own-data's model of 135 M parameters. Larger ones need smaller rates:
# fame-topics-csd-llama32-3b has those planned for 3 B.
"""

_CARD = """\
card:
  title: {title} # yours
  summary: A model some of whose facts were unlearned. # yours
  limitations:
    - There was no retrained model, so forgotten rows are compared with rows that were never seen. # yours
  # How the card names your data. Without it they are "a data set of the publisher's own".
  # dataset: {{name: Customers of 2025, license: cc-by-4.0, citation: "@misc{{…}}"}} # yours"""

_PUBLISH = """\
publish:
  repo: {repo} # yours
  hub: local # a Hub on this machine, to try everything out; `hf` for the Hugging Face Hub
  visibility: private
  tag: v1.0.0"""
