"""What is known of a recipe's rows, for its plan: how many each split has, and how many tokens they have.

Both are facts once the data stage is done. Before, files of this machine are read. Rows that are not here yet are
assumed to be as long as those of FAME.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import add
from pathlib import Path
from typing import NamedTuple

from core.digests import digest_of
from core.errors import InputError, panics_as_errors
from datasets_prep.config import DataConfig
from datasets_prep.schema import FAME, SPLITS, read_data_facts, read_rows
from pipeline.cost.rows import FAME_TEXT, SAMPLE_TEXT, Lengths, Row, Text, per_byte_of, row_of
from pipeline.train.config import Shape

KNOWN_ROWS = {"5c67fed496053691db3720ec3fb99825a34dfe72": 20_000}  # retain + forget + test of that revision of FAME
KNOWN_SPLITS = {("locuslab/TOFU", "forget10_perturbed"): {"forget": 400, "retain": 3600, "holdout": 400}}
"""By data set and first subset of the forget rows."""
ENCODED = 500
"""Answers that are encoded to see how many tokens a byte has. Ours."""


class Files(NamedTuple):
    """The rows of local files: how many each split has, the length of their texts, and some answers."""

    counts: dict[str, int]
    texts: dict[str, Text]
    answers: tuple[str, ...]


def counts_of(config: DataConfig, done: Path | None) -> dict[str, int] | None:
    """Rows of each split; None if they are not known. ``done`` is the artifact of the data stage, if it is there."""
    if done:
        return read_data_facts(done).rows.model_dump()
    if files := _files(config):
        return files.counts
    if config.part:  # whose rows only the rows tell
        return None
    source, shares = config.source, config.shares
    total = None
    if source.sample:
        total = 5 * source.sample.identities * source.sample.topics
    elif source.hub:
        total = KNOWN_ROWS.get(source.hub.revision)
    rows = None
    if total and shares:
        rows = {name: round(total * share) for name, share in shares.model_dump().items()}
    elif source.hub and source.hub.subsets:
        known = KNOWN_SPLITS.get((source.hub.id, source.hub.subsets.forget[0]))
        rows = dict(known) if known else None
    if rows:
        rows["unrehearsed"] = config.unrehearsed_of(rows["retain"])
        rows["retain"] -= rows["unrehearsed"]
    return rows


def lengths_of(config: DataConfig, done: Path | None, shape: Shape, model: Path | None) -> Lengths:
    """How long the rows are: by the tokens that the data stage counted, whose artifact is ``done``, if it is there.

    Before, by the bytes of their texts. How many tokens a byte has is seen on some answers, if the folder ``model`` has
    a tokenizer; else the vocabulary of the ``shape`` tells it.
    """
    if done and (counted := _counted(done)):
        return Lengths(counted)
    if files := _files(config):
        per_byte = (model and _per_byte(model / "tokenizer.json", files.answers)) or per_byte_of(shape)
        return Lengths({split: row_of(text, per_byte) for split, text in files.texts.items()})
    hub = config.source.hub
    text = SAMPLE_TEXT if config.source.sample else FAME_TEXT
    assumed = config.source.sample is None and (hub is None or hub.id != FAME)
    return Lengths(dict.fromkeys(SPLITS, row_of(text, per_byte_of(shape))), assumed)


@cache  # an artifact does not change
def _counted(data: Path) -> dict[str, Row]:
    """The rows of an artifact; none if their tokens were not counted.

    What was counted of a prompt holds the chat template's header, which a forward of several rows has once. So tokens
    of questions are taken from their bytes, of which each has as many tokens as one of the answers.
    """
    found = {}
    for split, tokens in read_data_facts(data).tokens.items():
        rows = read_rows(data / f"{split}.jsonl")
        text = _text([len(row.question.encode()) for row in rows], [len(row.answer.encode()) for row in rows])
        row = row_of(text, (tokens.mean_answer - 1) / text.answer)
        found[split] = row._replace(longest=tokens.longest - tokens.mean + tokens.mean_answer)
    return found


def _text(questions: Sequence[int], answers: Sequence[int]) -> Text:
    """The texts of rows with so many bytes of question and of answer."""
    question = sum(questions) / len(questions)
    return Text(question, sum(answers) / len(answers), max(map(add, questions, answers)) - question)


def _files(config: DataConfig) -> Files | None:
    """The rows of the local files; None if rows come from elsewhere, or cannot be used, which the preflight says.

    A part of the sample set is generated, which takes milliseconds.
    """
    if not (config.source.file or config.source.files or (config.source.sample and config.part)):
        return None
    try:
        return _read(config.model_dump_json(), digest_of(config.identity()))
    except InputError:
        return None


@cache  # a command asks several times; ``content`` is the digest of what the files hold
def _read(config: str, content: str) -> Files:
    from datasets_prep import prepare  # brings Arrow: 0.2 s and 50 MB, which other commands do not need

    prepared = prepare.unchecked(DataConfig.model_validate_json(config))
    rows = prepared.loaded.rows
    questions, answers = rows.lengths("question"), rows.lengths("answer")
    counts, texts = {}, {}
    for index, name in enumerate(SPLITS):
        here = prepared.split == index
        counts[name] = int(here.sum())
        if counts[name]:
            texts[name] = _text(questions[here].tolist(), answers[here].tolist())
    some = rows[:: -(-len(rows) // ENCODED)].columns("answer")
    return Files(counts, texts, tuple(answer for (answer,) in some))


@cache
def _per_byte(tokenizer: Path, answers: tuple[str, ...]) -> float | None:
    """Tokens of a byte of the answers; None if the file is no tokenizer's."""
    from tokenizers import Tokenizer  # transformers, which brings it, takes seconds

    try:
        with panics_as_errors():
            encoded = Tokenizer.from_file(str(tokenizer)).encode_batch(list(answers), add_special_tokens=False)
    except Exception:  # what the Rust tokenizers raise
        return None
    return sum(len(each.ids) for each in encoded) / sum(len(answer.encode()) for answer in answers)
