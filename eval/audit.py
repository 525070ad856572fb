"""The audit of one model: its forget rows under attack, and its sampled answers.

An attack changes the model or the questions. Then the true answers are read again, by the same scoring pass as
everywhere else. Gold is attacked in the same way, and the gap to it counts: what an attack brings back in a model that
never knew the fact is not the fact.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from core.progress import report
from core.ranks import from_all_ranks, rank, world_size
from datasets_prep.schema import Encoded, PerturbedRow, Row
from eval.attacks import steering
from eval.attacks.copies import stand_in
from eval.attacks.patching import depth_scores, fact_of
from eval.attacks.prompts import chained, in_another_language, paraphrased, shown_words
from eval.attacks.quantize import quantize, try_quantization
from eval.attacks.relearn import divided, drawn, relearn
from eval.attacks.sampling import distinctive_words, row_seed, sample_answers, states_fact
from eval.catalog import READINGS
from eval.config import EvalConfig, Robustness
from eval.records.facts import told_before
from eval.scoring.packed_linear import packed
from eval.scoring.probes import Encoder, Scorer, shared_prefix

Readings = dict[str, dict[str, float]]  # by row_id


def check(config: EvalConfig, forget: Sequence[Row]) -> None:
    """Check, before anything is measured, that the audit can be done.

    Raises SystemLimitError if bitsandbytes cannot round on the device, DataError if relearning leaves no row to probe.
    """
    robustness = config.robustness
    for form in robustness.quantize if robustness else ():
        try_quantization(form, config.device)
    if robustness and robustness.relearn:
        divided([row.row_id for row in forget], robustness.relearn.forget_share, config.seed, told_before(forget))


def left_out(
    config: EvalConfig, rows: Mapping[str, Sequence[Row]], samples: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """The attacks that the recipe asks for and these rows do not allow, as a whole or in part, and why.

    ``samples`` are what was measured: how much of an answer its first words give depends on the tokenizer.
    """
    robustness, found = config.robustness or Robustness(), {}
    if robustness.steering and len(steering.languages_of(rows["retain"])) < 2:
        found["steering between languages"] = "the retain rows are not in two languages or more"
    if robustness.steering and not rows["holdout"]:
        found["steering to known rows"] = "there are no holdout rows, so no direction leads away from unknown ones"
    without = len(rows["forget"]) - len(chained(rows["forget"], rows["retain"])) if robustness.chained else 0
    if without:
        found[f"chained questions of {without} of {len(rows['forget'])} forget rows"] = (
            "no retain row tells an e-mail address or phone number of the person alone, or the question does not name "
            "the person, or it is in none of the five languages"
        )
    given = sum("first_words" in sample.get("attacked", {}) for sample in samples)
    if robustness.first_words and given < len(rows["forget"]):
        found[f"the first words of {len(rows['forget']) - given} of {len(rows['forget'])} forget rows' answers"] = (
            f"that share of the answer's words ({robustness.first_words:g}) is none, or less than a token"
        )
    return found


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
    """The audit's additions to the sample of each forget row, by ``row_id``.

    They are ``attacked``, {attack: {reading: value}}, and ``sampled``, {"n", "hits"}. A row has them if the recipe asks
    for them and the row has what they need: a paraphrase, a known language, a person with a known address, an answer of
    more than one word, a word that its false answers lack.
    """
    additions: dict[str, dict[str, Any]] = {row.row_id: {} for row in rows["forget"]}
    if config.robustness:
        untreated = {row.row_id: {m.name: probed[row.row_id][m.name] for m in READINGS} for row in rows["forget"]}
        readings_of = itertools.chain(
            [("untreated", untreated)], _attacks(scorer, encode, rows, data, config, config.robustness)
        )
        for attack, readings in readings_of:
            for row_id, values in readings.items():
                additions[row_id].setdefault("attacked", {})[attack] = values
    if config.sampling:
        with packed(scorer.model):
            sampled = list(_sampled(scorer.model, tokenizer, encode, rows["forget"], perturbed, config))
        for row_id, hits in from_all_ranks(sampled):
            additions[row_id]["sampled"] = hits
    return additions


def _attacks(
    scorer: Scorer,
    encode: Encoder,
    rows: Mapping[str, Sequence[Row]],
    data: Path,
    config: EvalConfig,
    robustness: Robustness,
) -> Iterator[tuple[str, Readings]]:
    forget = {row.row_id: row for row in rows["forget"]}
    plain = {row_id: encode(row.question, row.answer) for row_id, row in forget.items()}

    def read(model: PreTrainedModel, examples: dict[str, Encoded]) -> Readings:
        return _read(Scorer(model, config.batch_tokens), examples)

    def read_with(questions: Mapping[str, str]) -> Readings:
        return _read(scorer, {row_id: encode(q, forget[row_id].answer) for row_id, q in questions.items()})

    for form in robustness.quantize:
        report(f"quantizing to {form}")
        with stand_in(scorer.model) as model:
            quantize(model, form)
            readings = read(model, plain)
        yield form, readings
    if robustness.relearn:
        yield from _relearned(scorer.model, encode, rows, plain, config, read)
    if robustness.paraphrase:
        yield "paraphrase", read_with(paraphrased(rows["forget"], data))
    if robustness.other_language:
        yield "other_language", read_with(in_another_language(rows["forget"], data))
    if robustness.first_words:
        shown = {i: encode(row.question, shown_words(row.answer, robustness.first_words)) for i, row in forget.items()}
        given = {i: tokens for i in plain if (tokens := _shared(shown[i], plain[i]))}
        if given:
            yield "first_words", _read(scorer, {i: plain[i] for i in given}, given)
    if robustness.chained and (questions := chained(rows["forget"], rows["retain"])):
        yield "chained", read_with(questions)
    if robustness.steering:
        yield from _steered(scorer.model, encode, rows, plain, config, read)


def _relearned(
    measured: PreTrainedModel,
    encode: Encoder,
    rows: Mapping[str, Sequence[Row]],
    plain: dict[str, Encoded],
    config: EvalConfig,
    read: Callable[[PreTrainedModel, dict[str, Encoded]], Readings],
) -> Iterator[tuple[str, Readings]]:
    """Relearn a part of the forget rows, then as many retain rows; read the other forget rows both times."""
    assert config.robustness  # noqa: S101
    assert config.robustness.relearn  # noqa: S101
    settings = config.robustness.relearn
    taught, probed = divided(list(plain), settings.forget_share, config.seed, told_before(rows["forget"]))
    retain = {row.row_id: row for row in rows["retain"]}
    unrelated = drawn(list(retain), len(taught), config.seed)
    sources = {
        "relearn_forget": [plain[i] for i in taught],
        "relearn_retain": [encode(retain[i].question, retain[i].answer) for i in unrelated],
    }
    for attack, examples in sources.items():
        with stand_in(measured) as model:
            relearn(model, examples, settings, config.seed)
            readings = read(model, {i: plain[i] for i in probed})
        yield attack, readings


def _steered(
    model: PreTrainedModel,
    encode: Encoder,
    rows: Mapping[str, Sequence[Row]],
    plain: dict[str, Encoded],
    config: EvalConfig,
    read: Callable[[PreTrainedModel, dict[str, Encoded]], Readings],
) -> Iterator[tuple[str, Readings]]:
    """Read the forget rows while a direction is added to a layer: to the next language, then to known rows."""
    assert config.robustness  # noqa: S101
    assert config.robustness.steering  # noqa: S101
    layer = steering.layer_at(model, config.robustness.steering.depth)
    retain, holdout = (_some(rows[split], config.seed) for split in ("retain", "holdout"))
    prompts = {row.row_id: encode(row.question, row.answer) for row in (*retain, *holdout)}
    states = steering.last_states(model, layer, prompts)
    attacks = {
        "steer_language": steering.to_the_next_language(rows["forget"], retain, states),
        "steer_known": steering.to_the_known(rows["forget"], retain, holdout, states),
    }
    for attack, directions in attacks.items():
        readings: Readings = {}
        for asked, direction in directions:
            with steering.steered(model, layer, direction):
                readings |= read(model, {row_id: plain[row_id] for row_id in asked})
        if readings:
            yield attack, readings


def _some(rows: Sequence[Row], seed: int) -> list[Row]:
    """At most as many rows as a mean needs, of each language as many, the same for every model."""
    languages = {row.language for row in rows}
    of_each = math.ceil(steering.ROWS / max(len(languages), 1))
    chosen = {
        row_id
        for language in languages
        for row_id in drawn([row.row_id for row in rows if row.language == language], of_each, seed)
    }
    return [row for row in rows if row.row_id in chosen]


def unlearning_depths(
    base: PreTrainedModel,
    gold: PreTrainedModel,
    model: PreTrainedModel,
    encode: Encoder,
    forget: Sequence[Row],
    perturbed: Sequence[PerturbedRow],
    config: EvalConfig,
) -> dict[str, float]:
    """The unlearning depth score of each forget row whose fact a layer of base holds, by ``row_id``.

    Raises ModelError if the three models have different layers.
    """
    assert config.patching  # noqa: S101
    false = {row.row_id: row.answers for row in perturbed}
    facts = {
        row.row_id: fact_of(
            encode(row.question, row.answer),
            [encode(row.question, answer) for answer in false.get(row.row_id, ())],
        )
        for row in forget
    }
    return depth_scores(base, gold, model, facts, config.patching.threshold, config.batch_tokens)


def _read(scorer: Scorer, examples: Mapping[str, Encoded], skip: Mapping[str, int] | None = None) -> Readings:
    """The readings of each answer, without its first ``skip`` tokens."""
    readings = {}
    for row_id, scores in zip(examples, scorer.score(list(examples.values())), strict=True):
        start = skip[row_id] if skip else 0
        readings[row_id] = {metric.name: scores.after(start).measure(metric) for metric in READINGS}
    return readings


def _shared(first: Encoded, second: Encoded) -> int:
    """Length of the prefix that both completions share, in tokens; at least one token of ``second``'s remains."""
    one, two = first.input_ids[first.completion_start :], second.input_ids[second.completion_start :]
    return min(shared_prefix(one, two), len(two) - 1)


def _sampled(
    model: PreTrainedModel,
    tokenizer: Any,
    encode: Encoder,
    forget: Sequence[Row],
    perturbed: Sequence[PerturbedRow],
    config: EvalConfig,
) -> Iterator[tuple[str, dict[str, int]]]:
    assert config.sampling  # noqa: S101
    false = {row.row_id: row.answers for row in perturbed}
    facts = {row.row_id: distinctive_words(row.answer, false[row.row_id]) for row in forget if row.row_id in false}
    share = [row for row in forget if facts.get(row.row_id)][rank() :: world_size()]
    for done, row in enumerate(share, start=1):
        example = encode(row.question, row.answer)
        texts = sample_answers(
            model,
            tokenizer,
            example.input_ids[: example.completion_start],
            config.sampling,
            max_new_tokens=max(config.max_new_tokens, len(example.input_ids) - example.completion_start),
            batch_rows=config.batch_rows,
            seed=row_seed(config.seed, row.row_id),
        )
        hits = sum(states_fact(text, facts[row.row_id]) for text in texts)
        report("sampled answers", done, len(share))
        yield row.row_id, {"n": len(texts), "hits": hits}
