"""The audit of one model: its forget rows under attack, and its sampled answers.

An attack treats the model or the questions; what it leaves is read from the true answers, by the scoring pass that
everything else uses. Gold is attacked in the same way, and what counts is the gap to it: what comes back in a model
that never knew the fact is not the fact.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import ArtifactError, SystemLimitError
from core.progress import report
from core.ranks import from_all_ranks, rank, ranks
from datasets_prep.schema import Encoded, PerturbedRow, Row
from eval.audit_config import Robustness
from eval.catalog import CATALOG, Family, Metric, of_family
from eval.config import EvalConfig
from eval.records.rows import groups
from eval.schema import Record
from eval.scoring.probes import Encoder, Scorer
from eval.statistics import intervals

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sample = Mapping[str, Any]
READINGS = [metric for metric in CATALOG.values() if metric.attacked]
Readings = dict[str, dict[str, float]]  # by row_id


def check(config: EvalConfig, forget: Sequence[Row]) -> None:
    """Refuse what the audit could not do, before anything is measured.

    Raises SystemLimitError where bitsandbytes is missing, DataError where relearning leaves no row to probe.
    """
    from eval.attacks.relearn import divided

    asked = config.robustness
    if asked and asked.quantize and importlib.util.find_spec("bitsandbytes") is None:
        raise SystemLimitError(
            "eval.robustness.quantize needs the package bitsandbytes, which is not installed. Install it, or take "
            "quantize out of the recipe."
        )
    if asked and asked.relearn:
        divided([row.row_id for row in forget], asked.relearn.forget_share, config.seed)


def audit(
    scorer: Scorer,
    tokenizer: Any,
    encode: Encoder,
    rows: Mapping[str, Sequence[Row]],
    perturbed: Sequence[PerturbedRow],
    probed: Mapping[str, Mapping[str, Any]],
    data: Path,
    config: EvalConfig,
) -> dict[str, dict[str, Any]]:
    """What the audit adds to the sample of each forget row, by ``row_id``.

    ``attacked``: {attack: {reading: value}}, and ``sampled``: {"n", "hits"}, each where the recipe asks for it and the
    row has what it takes (a paraphrase, a known language, a word that its false answers lack).
    """
    from eval.scoring.packed_linear import packed

    found: dict[str, dict[str, Any]] = {row.row_id: {} for row in rows["forget"]}
    if config.robustness:
        untreated = {row.row_id: {m.name: probed[row.row_id][m.name] for m in READINGS} for row in rows["forget"]}
        readings_of = itertools.chain(
            [("untreated", untreated)], _attacks(scorer, encode, rows, data, config, config.robustness)
        )
        for attack, readings in readings_of:
            for row_id, values in readings.items():
                found[row_id].setdefault("attacked", {})[attack] = values
    if config.sampling:
        with packed(scorer.model):
            sampled = list(_sampled(scorer.model, tokenizer, encode, rows["forget"], perturbed, config))
        for row_id, hits in from_all_ranks(sampled):
            found[row_id]["sampled"] = hits
    return found


def _attacks(
    scorer: Scorer,
    encode: Encoder,
    rows: Mapping[str, Sequence[Row]],
    data: Path,
    config: EvalConfig,
    asked: Robustness,
) -> Iterator[tuple[str, Readings]]:
    from eval.attacks.prompts import in_another_language, paraphrased, shown_words
    from eval.attacks.quantize import quantized

    forget = {row.row_id: row for row in rows["forget"]}
    plain = {row_id: encode(row.question, row.answer) for row_id, row in forget.items()}

    def read(model: PreTrainedModel, examples: dict[str, Encoded]) -> Readings:
        return _read(Scorer(model, config.batch_tokens), examples)

    def asked_as(questions: Mapping[str, str]) -> Readings:
        return _read(scorer, {row_id: encode(q, forget[row_id].answer) for row_id, q in questions.items()})

    for form in asked.quantize:
        report(f"quantizing to {form}")
        yield form, read(quantized(scorer.model, form), plain)
    if asked.relearn:
        yield from _relearned(scorer.model, encode, rows, plain, config, read)
    if asked.paraphrase:
        yield "paraphrase", asked_as(paraphrased(rows["forget"], data))
    if asked.other_language:
        yield "other_language", asked_as(in_another_language(rows["forget"], data))
    if asked.first_words:
        shown = {i: encode(row.question, shown_words(row.answer, asked.first_words)) for i, row in forget.items()}
        yield "first_words", _read(scorer, plain, {i: _shared(shown[i], plain[i]) for i in plain})


def _relearned(
    model: PreTrainedModel,
    encode: Encoder,
    rows: Mapping[str, Sequence[Row]],
    plain: dict[str, Encoded],
    config: EvalConfig,
    read: Callable[[PreTrainedModel, dict[str, Encoded]], Readings],
) -> Iterator[tuple[str, Readings]]:
    """Relearning on a part of the forget rows, then on as many retain rows; the other forget rows are read."""
    from eval.attacks.relearn import divided, drawn, relearned

    assert config.robustness  # noqa: S101
    assert config.robustness.relearn  # noqa: S101
    relearn = config.robustness.relearn
    taught, probed = divided(list(plain), relearn.forget_share, config.seed)
    retain = {row.row_id: row for row in rows["retain"]}
    unrelated = drawn(list(retain), len(taught), config.seed)
    sources = {
        "relearn_forget": [plain[i] for i in taught],
        "relearn_retain": [encode(retain[i].question, retain[i].answer) for i in unrelated],
    }
    for attack, examples in sources.items():
        yield attack, read(relearned(model, examples, relearn, config.seed), {i: plain[i] for i in probed})


def _read(scorer: Scorer, examples: Mapping[str, Encoded], skip: Mapping[str, int] | None = None) -> Readings:
    """The readings of each answer, from its token ``skip`` on."""
    found = {}
    for row_id, scores in zip(examples, scorer.score(list(examples.values())), strict=True):
        start = skip[row_id] if skip else 0
        found[row_id] = {metric.name: scores.after(start).measure(metric) for metric in READINGS}
    return found


def _shared(first: Encoded, second: Encoded) -> int:
    """How many tokens of ``second``'s completion ``first`` has too; one at least is left."""
    ours, theirs = first.input_ids[first.completion_start :], second.input_ids[second.completion_start :]
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return min(same, len(theirs) - 1)


def _sampled(
    model: PreTrainedModel,
    tokenizer: Any,
    encode: Encoder,
    forget: Sequence[Row],
    perturbed: Sequence[PerturbedRow],
    config: EvalConfig,
) -> Iterator[tuple[str, dict[str, int]]]:
    from eval.attacks.sampling import distinctive_words, row_seed, sample_answers, states_fact

    assert config.sampling  # noqa: S101
    false = {row.row_id: row.answers for row in perturbed}
    facts = {row.row_id: distinctive_words(row.answer, false[row.row_id]) for row in forget if row.row_id in false}
    askable = [row for row in forget if facts.get(row.row_id)][rank() :: ranks()]
    for done, row in enumerate(askable, start=1):
        example = encode(row.question, row.answer)
        texts = sample_answers(
            model,
            tokenizer,
            example.input_ids[: example.completion_start],
            config.sampling,
            max_new_tokens=config.max_new_tokens,
            batch_rows=config.batch_rows,
            seed=row_seed(config.seed, row.row_id),
        )
        hits = sum(states_fact(text, facts[row.row_id]) for text in texts)
        report("sampled answers", done, len(askable))
        yield row.row_id, {"n": len(texts), "hits": hits}


def audit_records(
    samples: Sequence[Sample], gold: Sequence[Sample] | None, config: EvalConfig, only: str | None = None
) -> list[Record]:
    """Records of the audit, and with gold's samples the gaps to it; overall, by language and by topic.

    Readings are means over rows, by bootstrap over the same rows. Which attacks there were, the samples say. ``only``
    asks for the overall record of that metric alone, and its gap.
    Raises ArtifactError where gold was not attacked in the same way.
    """
    theirs = _forget(gold) if gold is not None else None
    return [
        replace(record, by=by)
        for by, rows in groups(list(_forget(samples).values()), whole=only is not None)
        for record in _records({row["row_id"]: row for row in rows}, theirs, config, only)
    ]


def _records(
    rows: Mapping[str, Sample], gold: dict[str, Sample] | None, config: EvalConfig, only: str | None
) -> Iterator[Record]:
    for metric, gap in _with_gaps("reading"):
        read = partial(_reading, metric)
        having = {i: row for i, row in rows.items() if metric.attack and metric.attack.name in row.get("attacked", {})}
        if having and only in (None, metric.name, gap.name):
            values = {i: read(row) for i, row in having.items()}
            yield _mean_record(metric, values, rows, config)
            if gold is not None:
                theirs = _of_gold(metric, gold, values, read)
                apart = {i: value - other for (i, value), other in zip(values.items(), theirs, strict=True)}
                yield _mean_record(gap, apart, rows, config)
    sampled = {i: row for i, row in rows.items() if "sampled" in row}
    asked = config.sampling.k if config.sampling and sampled else ()
    for metric, gap in _with_gaps("sampled"):
        if metric.k in asked and only in (None, metric.name, gap.name):
            yield from _leak_records(metric, gap, sampled, gold)


def _with_gaps(family: Family) -> list[tuple[Metric, Metric]]:
    """The metrics of a family, each with its gap to gold."""
    gaps = {metric.gap_of: metric for metric in of_family(family) if metric.gap_of}
    return [(CATALOG[name], gap) for name, gap in gaps.items()]


def _forget(samples: Sequence[Sample]) -> dict[str, Sample]:
    return {sample["row_id"]: sample for sample in samples if sample["split"] == "forget"}


def _reading(metric: Metric, row: Sample) -> float:
    return float(row["attacked"][metric.attack.name][metric.reading])  # type: ignore[union-attr]


def _of_gold(
    metric: Metric, gold: Mapping[str, Sample], row_ids: Iterable[str], read: Callable[[Sample], Any]
) -> list[Any]:
    """What is read of gold's same rows, in the same order."""
    try:
        return [read(gold[row_id]) for row_id in row_ids]
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"The evaluation of gold lacks {metric.name} for a row ({error}). Evaluate gold with the same recipe."
        ) from error


def _mean_record(metric: Metric, values: Mapping[str, float], rows: Mapping[str, Sample], config: EvalConfig) -> Record:
    found, languages = list(values.values()), [rows[row_id]["language"] for row_id in values]
    interval = intervals.mean_interval(found, config.bootstrap_samples, config.seed, languages)
    return Record.of(metric, "forget", float(np.mean(found)), interval, len(found))


def _leak_records(
    metric: Metric, gap: Metric, sampled: Mapping[str, Sample], gold: Mapping[str, Sample] | None
) -> Iterator[Record]:
    ours = _leak_record(metric, [row["sampled"] for row in sampled.values()])
    yield ours
    if gold is not None:
        theirs = _of_gold(metric, gold, sampled, lambda row: row["sampled"])
        yield _difference(gap, ours, _leak_record(metric, theirs))


def _leak_record(metric: Metric, sampled: Sequence[Mapping[str, int]]) -> Record:
    from eval.attacks.sampling import leak_at_k, leak_interval

    n, hits = ([row[key] for row in sampled] for key in ("n", "hits"))
    k = int(metric.k or 0)
    return Record.of(metric, "forget", float(leak_at_k(n, hits, k).mean()), leak_interval(n, hits, k), len(sampled))


def _difference(metric: Metric, ours: Record, gold: Record) -> Record:
    """Ours minus gold's, whose interval is combined from both, since without a hit the rows do not vary.

    Newcombe's method 10 (Statistics in Medicine 1998;17:873-890; for other intervals than Wilson's known as MOVER): it
    takes the two for independent, which for the same rows errs on the safe side.
    """
    value = ours.value - gold.value
    low = value - math.hypot(ours.value - ours.ci_low, gold.ci_high - gold.value)
    high = value + math.hypot(ours.ci_high - ours.value, gold.value - gold.ci_low)
    return Record.of(metric, "forget", value, (low, high), ours.n)
