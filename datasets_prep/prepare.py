"""The data stage: load rows, split and check them, and write the splits.

Everything is loaded, split, checked and encoded before the first file is written, so bad rows leave no files behind.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.progress import report
from datasets_prep import card, checks, sources, splits
from datasets_prep.chat import chat_example, encode, load_tokenizer, refuse_special_tokens
from datasets_prep.checks import Findings
from datasets_prep.config import DataConfig
from datasets_prep.perturb import FalseAnswers
from datasets_prep.request import as_released, of_part
from datasets_prep.rows import Placed, Rows, told_first, with_false_answers
from datasets_prep.schema import (
    CHECKS,
    EARLIER,
    FORGOTTEN,
    REAL_WORLD,
    SPLITS,
    CheckFacts,
    DataFacts,
    DigestedSource,
    FalseAnswerFacts,
    ParaphrasedRow,
    PerturbedRow,
    RowFacts,
    SplitSizes,
    TokenFacts,
    json_line,
    write_facts,
    write_rows,
)
from datasets_prep.sources import Loaded
from datasets_prep.splits import Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """The rows of a source, the split of each, and what the checks found.

    ``forgotten`` are those that earlier releases were made to forget, and no longer among the rows.
    """

    loaded: Loaded
    split: Split
    findings: Findings
    forgotten: Rows


def prepare(config: DataConfig) -> Prepared:
    """Load, split and check. Raises DataError if the source or the request cannot be used; findings do not raise."""
    report("loading rows")
    loaded, split = _divided(config)
    report("checks")
    findings = checks.check(loaded.rows, split)  # before rows are kept apart: they are retain rows like the others
    return _kept_apart(config, loaded, split, findings)


def unchecked(config: DataConfig) -> Prepared:
    """The rows and the split of each, as :func:`prepare` has them, without findings. Raises DataError as it does."""
    return _kept_apart(config, *_divided(config), {})


def _divided(config: DataConfig) -> tuple[Loaded, Split]:
    """The rows of the part that is used, and the split of each."""
    loaded = sources.load(config)
    if config.part:
        part = of_part(loaded.rows, config.part)
        outside = {"rows_outside_part": len(loaded.rows) - len(part)}
        loaded = replace(loaded, rows=part, reported={**loaded.reported, **outside})
    return loaded, splits.assign(config, loaded.rows)


def _kept_apart(config: DataConfig, loaded: Loaded, split: Split, findings: Findings) -> Prepared:
    """Forgotten rows are taken out, and some retain rows become unrehearsed ones."""
    earlier = split == EARLIER
    forgotten, rows = as_released(loaded.rows.where(earlier), config), loaded.rows.where(~earlier)
    stay = with_false_answers(rows)  # in TOFU those on which its utility is measured
    marked = splits.keep_unrehearsed(split[~earlier], config, stay, told_first(rows))
    return Prepared(replace(loaded, rows=rows), marked, findings, forgotten)


def run(config: DataConfig, inputs: Mapping[str, Path], out: Path) -> DataFacts:
    """Write split files, ``perturbed.jsonl``, ``guides.jsonl``, ``paraphrased.jsonl``, ``checks.json`` and the card.

    If the source has questions about the real world, they are in ``real_world.jsonl``, and rows that earlier releases
    were made to forget in ``forgotten.jsonl``.

    ``inputs["model"]`` is a folder with a tokenizer: every row must fit its chat template, and its tokens are counted.
    Raises DataError for rows that cannot be used, one with a special token in any of its texts among them, and
    ModelError for such a tokenizer; then nothing is written.
    """
    prepared = prepare(config)
    rows, split = prepared.loaded.rows, prepared.split
    checks.stop(prepared.findings, config.checks)
    report("counting tokens")
    tokenizer = load_tokenizer(inputs["model"])
    _refuse_special_tokens(tokenizer, prepared)
    lengths, answers = _token_counts(tokenizer, rows)
    row_ids = (row_id for (row_id,) in rows.columns("row_id"))
    findings = {**prepared.findings, "too_long": checks.check_lengths(row_ids, lengths.tolist(), config.max_tokens)}
    checks.stop(findings, config.checks)
    return write(config, prepared, out, findings, _tokens(split, lengths, answers))


def write(
    config: DataConfig, prepared: Prepared, out: Path, findings: Findings, tokens: dict[str, TokenFacts]
) -> DataFacts:
    """Write the artifact of checked rows into ``out`` and return its facts, which are also ``checks.json``."""
    report("writing")
    digest = _write_splits(prepared, out)
    false = FalseAnswers(prepared.loaded.rows, prepared.split, config.perturbed, config.seed)
    _write_false_answers(false, prepared.loaded.real_world, out)
    if prepared.loaded.real_world:
        write_rows(out / f"{REAL_WORLD}.jsonl", (placed.row for placed in prepared.loaded.real_world))
    if len(prepared.forgotten):
        write_rows(out / f"{FORGOTTEN}.jsonl", prepared.forgotten)
    paraphrases = _paraphrases(prepared)
    write_rows(out / "paraphrased.jsonl", paraphrases)
    described = describe(config, prepared, findings)
    source = DigestedSource(**dict(described.source), rows_sha256=digest)
    perturbed = FalseAnswerFacts(**false.counts)
    facts = DataFacts(**dict(described) | {"source": source}, perturbed=perturbed, tokens=tokens)
    write_facts(out / CHECKS, facts)
    (out / "README.md").write_text(card.render(config, prepared.loaded.rows, prepared.split, facts), encoding="utf-8")
    return facts


def describe(config: DataConfig, prepared: Prepared, findings: Findings) -> RowFacts:
    """Counts and findings, without any text of a row."""
    rows, split = prepared.loaded.rows, prepared.split
    identity, _ = rows.codes("identity_id")
    counts = {name: int((split == index).sum()) for index, name in enumerate(SPLITS)}
    sets = Counter(str(placed.row.topic_id) for placed in prepared.loaded.real_world)
    left_out = {} if counts["holdout"] else {"membership_inference": f"no holdout rows: {splits.no_holdout(config)}"}
    return RowFacts(
        source=prepared.loaded.description,
        **prepared.loaded.reported,
        real_world=dict(sets) or None,
        rows_forgotten=len(prepared.forgotten) or None,
        rows=SplitSizes(**counts),
        identities=len(np.unique(identity[identity >= 0])),
        mixed_identities=splits.mixed_identities(rows, split),
        left_out=left_out,
        checks={
            name: CheckFacts(action=getattr(config.checks, name), count=finding.count, first=finding.first)
            for name, finding in findings.items()
        },
    )


def _refuse_special_tokens(tokenizer: PreTrainedTokenizerBase, prepared: Prepared) -> None:
    """Raise DataError if a text that is trained on or measured by any stage holds a special token."""
    loaded = prepared.loaded
    names = ("question", "answer", "paraphrased_question", "paraphrased_answer", "false_answers")
    for question, *texts, false in chain(loaded.rows.columns(*names), prepared.forgotten.columns(*names)):
        refuse_special_tokens(tokenizer, question, *filter(None, texts), *(false or ()))
    for question, answer in chain.from_iterable(loaded.paraphrases.values()):
        refuse_special_tokens(tokenizer, question, answer)
    for placed in loaded.real_world:
        refuse_special_tokens(tokenizer, placed.row.question, placed.row.answer, *placed.false_answers)


def _token_counts(tokenizer: PreTrainedTokenizerBase, rows: Rows) -> tuple[Any, Any]:
    """The number of tokens of each row as a chat, and of its answer with the end of turn."""
    lengths, answers = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.int64)
    for index, (question, answer) in enumerate(rows.columns("question", "answer")):
        encoded = encode(tokenizer, chat_example(tokenizer, question, answer))
        lengths[index] = len(encoded.input_ids)
        answers[index] = len(encoded.input_ids) - encoded.completion_start
        if index % 1000 == 999:
            report("counting tokens", index + 1, len(rows))
    return lengths, answers


def _tokens(split: Split, lengths: Any, answers: Any) -> dict[str, TokenFacts]:
    """Token counts of the chat rows: mean and longest row, and the mean of the answers with their end of turn."""
    return {
        name: TokenFacts(
            total=int(lengths[split == index].sum()),
            mean=round(float(lengths[split == index].mean()), 2),
            longest=int(lengths[split == index].max()),
            mean_answer=round(float(answers[split == index].mean()), 2),
        )
        for index, name in enumerate(SPLITS)
        if (split == index).any()
    }


def _write_splits(prepared: Prepared, out: Path) -> str:
    """Write the split files. Returns the sha256 of the sorted rows, whatever order and format the source has."""
    digest = hashlib.sha256()
    with ExitStack() as stack:
        files = [stack.enter_context((out / f"{name}.jsonl").open("w", encoding="utf-8")) for name in SPLITS]
        for row, code in zip(prepared.loaded.rows, prepared.split, strict=True):
            line = json_line(row)
            digest.update(line.encode())
            files[code].write(line)
    return digest.hexdigest()


def _write_false_answers(false: FalseAnswers, real_world: Sequence[Placed], out: Path) -> None:
    with (
        (out / "perturbed.jsonl").open("w", encoding="utf-8") as perturbed,
        (out / "guides.jsonl").open("w", encoding="utf-8") as guides,
    ):
        for split in SPLITS:
            for evaluated, guiding in false.of_split(split):
                if evaluated:
                    perturbed.write(json_line(evaluated))
                if guiding:
                    guides.write(json_line(guiding))
        for placed in real_world:
            perturbed.write(json_line(PerturbedRow(placed.row.row_id, REAL_WORLD, placed.false_answers)))


def _paraphrases(prepared: Prepared) -> Iterator[ParaphrasedRow]:
    loaded = prepared.loaded
    names = ("row_id", "question", "answer", "paraphrased_question", "paraphrased_answer")
    splits_of = chain((SPLITS[code] for code in prepared.split), repeat(FORGOTTEN, len(prepared.forgotten)))
    rows = chain(loaded.rows.columns(*names), prepared.forgotten.columns(*names))
    for split, (row_id, question, answer, *other) in zip(splits_of, rows, strict=True):
        if other[0] or other[1]:
            yield ParaphrasedRow(row_id, split, other[0] or question, other[1] or answer)
        yield from (ParaphrasedRow(row_id, split, *pair) for pair in loaded.paraphrases.get(row_id, ()))
