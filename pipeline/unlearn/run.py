"""The unlearn stage: makes the model to be released from base and a forget request."""

from __future__ import annotations

import gc
import hashlib
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from core.errors import RecipeError, TrainingError
from core.progress import report
from core.ranks import is_first, world_size
from core.unlearning import (
    PAIRING,
    Bounds,
    CheckpointSelection,
    DualFacts,
    PairedRows,
    ReadRows,
    UnlearnFacts,
    UnlearnSeeds,
    pairing_bytes,
    write_selection,
)
from datasets_prep.chat import chat_example, encode, encode_rows
from datasets_prep.schema import Encoded, Row, read_forgotten, read_rows
from pipeline.train.arguments import training_arguments
from pipeline.train.fit import (
    delete_checkpoints,
    fit,
    freeze_below,
    go_back,
    load,
    memory_limits,
    place,
    release_weights,
    row_digest,
    shards_weights,
    whole_model,
)
from pipeline.train.guards import Watch
from pipeline.train.kept import restore_weights
from pipeline.train.lora import add_adapters
from pipeline.train.packed import row_losses, token_log_probs
from pipeline.train.precision import in_bf16
from pipeline.unlearn.config import Level, StopRule, UnlearnConfig
from pipeline.unlearn.continuations import begun_at, read_continuations
from pipeline.unlearn.counterfactual import Counterfactual, Levels, answer_levels, answers_by_place, numerals
from pipeline.unlearn.levels import (
    false_log_probs,
    fixed_levels,
    load_novice,
    mean_by_row,
    number,
    read_guides,
)
from pipeline.unlearn.neighbours import FILE as NEIGHBOURS
from pipeline.unlearn.pairing import Pair, draw_alternates, pair_rows
from pipeline.unlearn.people import about_others
from pipeline.unlearn.reference import BaseDistribution, Precision, answer_log_probs
from pipeline.unlearn.refusals import draw_refusals
from pipeline.unlearn.stopping import Check, EndOfAscent, name_of
from pipeline.unlearn.trainer import UnlearnTrainer, pair_dataset

KEPT = "kept"  # the folder of weights that the early-stopping rule keeps, which is deleted at the end


class UnlearnRows(NamedTuple):
    """Rows and their tokens by split, false answers to forget rows, and the refusals that replace answers (po).

    The split ``rehearsed`` holds the retain rows and after them the neighbours and the continuations. ``plain`` has
    ``forgotten`` besides, the rows of earlier requests.
    """

    plain: dict[str, list[Row]]
    encoded: dict[str, list[Encoded]]
    guides: list[list[Encoded]]
    refusals: list[str]


class Probes(NamedTuple):
    """Indices of the rows that the early-stopping rule reads; none without a rule."""

    forget: list[int]
    retain: list[int]


class Ended(NamedTuple):
    """How a training ended: why, which step it kept, and the bounds of its early-stopping rule, if it had one."""

    stopped: str
    kept_step: int
    bounds: Bounds | None


@memory_limits()
def run(config: UnlearnConfig, inputs: Mapping[str, Path], out: Path) -> UnlearnFacts:
    """Unlearn the forget rows of ``inputs["data"]`` from ``inputs["base"]``; ``inputs["gold"]`` gives a level, if used.

    ``inputs["model"]`` says what the precision ``auto`` is, and csd takes its levels from ``inputs["novice"]``.

    Writes ``model/``, ``log.jsonl``, ``pairing.jsonl`` and ``selection.json`` (the rows that chose the checkpoint).
    Raises TrainingError if a guard stops the run and no good checkpoint exists, or if no checkpoint satisfies the rule;
    InputError if the rows do not fit the method or the number of processes; SystemLimitError if memory runs out.
    """
    config.check_share(world_size())
    kept = {"save_total_limit": 2}  # the last checkpoint may hold what the guard refuses at the next step
    arguments = training_arguments(kept | config.args, out, bf16=in_bf16(config, inputs), num_train_epochs=1)
    model, tokenizer = load(inputs["base"] / "model", config.frozen)
    freeze_below(model, config.train_from_layer)
    rows = read(config, inputs, tokenizer)
    config.refuse_rows(*(len(rows.plain[split]) for split in ("retain", "rehearsed", "holdout")))
    probes = _probes(config, len(rows.plain["forget"]), len(rows.plain["retain"]))
    pairs = _pairs(config, rows, probes.retain)
    pairing = _write_pairing(out, pairs, rows)
    _write_selection(out, config, rows, probes)

    def adapted(model: Any) -> Any:
        return add_adapters(model, config.lora, arguments.seed) if config.lora else model

    trained = adapted(model)
    trainer = UnlearnTrainer(
        trained,
        config=config,
        args=arguments,
        train_dataset=pair_dataset(pairs, _forget_inputs(rows, tokenizer), rows.encoded["rehearsed"], rows.guides),
        processing_class=tokenizer,
        callbacks=[Watch("unlearn")],
    )
    if config.measures_base:
        place(trainer, trained)
    report("measuring the levels")
    levels = fixed_levels(config, inputs, trained, rows.encoded)
    _measure_base(trainer, trained, inputs, rows, pairs)
    cap = _set_cap(trainer, levels, len(rows.plain["forget"]))
    ended = _fit(trainer, trained, levels, rows, probes, out)
    facts = _facts(trainer, levels, cap, pairing, ended)
    trained = whole_model(trainer, trained, lambda: adapted(load(inputs["base"] / "model", config.frozen)[0]))
    if is_first():
        release_weights(trained, tokenizer, rows.encoded["forget"], out / "model")
        delete_checkpoints(out)
        shutil.rmtree(out / KEPT, ignore_errors=True)
    return facts


def _set_cap(trainer: UnlearnTrainer, levels: dict[str, float], forget_rows: int) -> float | None:
    """Set the forget cap and return it as a number; None if there is no cap or it follows false answers."""
    cap = trainer.config.forget_cap
    if cap is None or trainer.config.caps_move:
        return None
    trainer.forget_caps = torch.full((forget_rows,), number(cap, levels))
    return number(cap, levels)


def _facts(
    trainer: UnlearnTrainer, levels: dict[str, float], cap: float | None, pairing_sha256: str, ended: Ended
) -> UnlearnFacts:
    config = trainer.config
    return UnlearnFacts(
        levels=levels,
        forget_cap=cap,
        pairing_sha256=pairing_sha256,
        seeds=UnlearnSeeds(pairing=config.pairing_seed, training=trainer.args.seed, refusals=config.refusal_seed),
        stopped=ended.stopped,
        steps=trainer.state.global_step,
        kept_step=ended.kept_step,
        bounds=ended.bounds,
        dual=DualFacts(retain_bound=trainer.retain_bound, last_weight=trainer.retain_weight) if config.dual else None,
    )


def _fit(
    trainer: UnlearnTrainer,
    model: PreTrainedModel | PeftModel,
    levels: dict[str, float],
    rows: UnlearnRows,
    probes: Probes,
    out: Path,
) -> Ended:
    """Train until the schedule, the early-stopping rule or a guard ends it; ``model`` then has the kept weights."""
    config = trainer.config
    tokens = {split: row_digest(encoded) for split, encoded in rows.encoded.items()}
    end = _end_of_ascent(trainer, model, config.stop, levels, rows, probes, out) if config.stop else None
    if end:
        trainer.add_callback(end)
    refused = fit(trainer, out, {"unlearn": config.identity(), "rows": tokens})
    if end is None:
        return Ended(refused or "all epochs done", _last_good(trainer, refused, out), None)
    end.reason = refused or end.reason
    kept_step = _kept_step(trainer, model, end, refused, out)
    checks = [entry for entry in trainer.state.log_history if "probe_level" in entry]
    level = checks[-1]["probe_level"] if checks else None
    return Ended(end.reason, kept_step, Bounds(retain_loss=end.retain_bound, forget_loss=level))


def read(config: UnlearnConfig, inputs: Mapping[str, Path], tokenizer: PreTrainedTokenizerBase) -> UnlearnRows:
    """All rows that the unlearning reads, from ``inputs["data"]`` and ``inputs["neighbours"]``."""
    data = inputs["data"]
    plain = {split: read_rows(data / f"{split}.jsonl") for split in ("forget", "retain", "holdout")}
    neighbours = read_rows(inputs["neighbours"] / NEIGHBOURS) if config.neighbours else []
    continuations = read_continuations(inputs["neighbours"]) if config.neighbours else []
    plain["rehearsed"] = [*plain["retain"], *neighbours]  # retain rows keep their places
    encoded = {split: encode_rows(tokenizer, plain[split]) for split in plain}
    encoded["rehearsed"] += [continuation.encoded for continuation in continuations]
    of = {row.row_id: row for row in plain["forget"]}
    plain["rehearsed"] += [replace(of[each.of], row_id=each.row_id, answer=each.text) for each in continuations]
    plain["forgotten"] = read_forgotten(data)
    refusals = draw_refusals(plain["forget"], config.refusal_seed or 0) if config.method == "po" else []
    return UnlearnRows(plain, encoded, read_guides(config, data, plain["forget"], tokenizer), refusals)


def _forget_inputs(rows: UnlearnRows, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """The forget rows as they are trained on: with refusals instead of answers for po."""
    if not rows.refusals:
        return rows.encoded["forget"]
    refused = zip(rows.plain["forget"], rows.refusals, strict=True)
    return [encode(tokenizer, chat_example(tokenizer, row.question, refusal)) for row, refusal in refused]


def _probes(config: UnlearnConfig, forget_rows: int, retain_rows: int) -> Probes:
    """Draw the rows for the early-stopping rule by the pairing's seed, in one independent stream for each split."""
    if config.stop is None:
        return Probes([], [])
    count = min(config.stop.retain_rows, retain_rows)
    retain = sorted(random.Random(config.pairing_seed).sample(range(retain_rows), count))
    count = min(config.stop.forget_rows or forget_rows, forget_rows)
    return Probes(sorted(random.Random(f"{config.pairing_seed}|forget").sample(range(forget_rows), count)), retain)


def _pairs(config: UnlearnConfig, rows: UnlearnRows, probed: Sequence[int]) -> list[Pair]:
    """The schedule of rows that the method trains on, without retain rows that are held out."""
    forget_rows, retain_rows = len(rows.plain["forget"]), len(rows.plain["rehearsed"])
    each = config.retain_rows_per_forget_row or 0
    held_out = set(probed) if config.stop and config.stop.held_out else set()
    pool = [i for i in range(retain_rows) if i not in held_out]
    passes = config.passes(forget_rows)
    dealt = pair_rows(forget_rows, len(pool), epochs=passes, retain_per_forget=each, seed=config.pairing_seed)
    dealt = [replace(pair, retain=tuple(pool[i] for i in pair.retain)) for pair in dealt]
    if config.trains_on_false_answers:
        return draw_alternates(dealt, [len(false) for false in rows.guides], config.pairing_seed)
    return [replace(pair, forget=None) for pair in dealt] if config.method == "ft" else dealt


def _measure_base(
    trainer: UnlearnTrainer,
    base: PreTrainedModel | PeftModel,
    inputs: Mapping[str, Path],
    rows: UnlearnRows,
    pairs: list[Pair],
) -> None:
    """Measure what the method compares with base, while the model still is base (new adapters change nothing)."""
    config, precision, encoded = trainer.config, trainer.accelerator.autocast, rows.encoded
    false = [row for guides in rows.guides for row in guides]
    rehearsed = {i: encoded["rehearsed"][i] for i in sorted({i for pair in pairs for i in pair.retain})}
    if config.method in ("npo", "altpo"):
        trainer.reference = answer_log_probs(base, encoded["forget"], precision)
    if config.method == "altpo":
        trainer.alternate_reference = answer_log_probs(base, false, precision)
    if config.retain_kl:
        trainer.base = BaseDistribution(base, rehearsed, precision)
    if config.method == "csd":
        tokenizer = cast("PreTrainedTokenizerBase", trainer.processing_class)
        trainer.counterfactual = counterfactual(config, base, tokenizer, inputs["novice"] / "model", rows, precision)
    if config.dual:
        followed = list(rehearsed.values())
        tokens = [len(row.input_ids) - row.completion_start for row in followed]
        total = sum(loss * size for loss, size in zip(row_losses(base, followed), tokens, strict=True))
        trainer.retain_bound = total / sum(tokens) + config.dual.retain_loss_above_base


def counterfactual(
    config: UnlearnConfig,
    base: Any,
    tokenizer: PreTrainedTokenizerBase,
    novice: Path,
    rows: UnlearnRows,
    precision: Precision,
) -> Counterfactual:
    """The distributions that csd brings the forget rows to, measured on ``base`` and on the model in ``novice``."""
    forget = rows.encoded["forget"]
    named = {row.row_id: tokens for row, tokens in zip(rows.plain["forget"], forget, strict=True)}
    of_base = false_log_probs(base, rows.guides)
    model = load_novice(config, novice, base, rows.plain["forget"], forget)
    true, of_novice = token_log_probs(model, forget), false_log_probs(model, rows.guides)
    told = BaseDistribution(model, dict(enumerate(forget)), precision)
    del model
    gc.collect()
    digits = numerals(tokenizer, [*forget, *chain(*rows.guides)])
    levels = answer_levels(named, rows.guides, digits, base_false=of_base, novice_false=of_novice, novice_true=true)
    others = _about_others(tokenizer, rows, levels)
    asked = BaseDistribution(base, answers_by_place(forget, rows.guides, others), precision)
    return Counterfactual(asked, told, levels, of_base, [len(each) for each in others])


def _about_others(
    tokenizer: PreTrainedTokenizerBase, rows: UnlearnRows, levels: Sequence[Levels]
) -> list[list[tuple[int, ...]]]:
    """The beginnings of the forget answers up to their facts, about others."""
    plain = rows.plain
    places = zip(plain["forget"], rows.encoded["forget"], levels, strict=True)
    begun = [begun_at(row, encoded, of_row.content.index(True)) for row, encoded, of_row in places]
    found = about_others(tokenizer, begun, plain["forget"], plain["retain"], plain["forgotten"])
    return [[other.tokens for other in of_row] for of_row in found]


def _end_of_ascent(
    trainer: UnlearnTrainer,
    model: PreTrainedModel | PeftModel,
    stop: StopRule,
    levels: dict[str, float],
    rows: UnlearnRows,
    probes: Probes,
    out: Path,
) -> EndOfAscent:
    """The early-stopping rule, with the retain bound measured on base, which ``model`` still is."""
    config = trainer.config
    if config.keep == "closest" and shards_weights(trainer):
        raise RecipeError(
            "unlearn.keep: closest saves whole weights during the training, and this launch shards them over the "
            "processes. Launch it with ddp, or set keep: last."
        )
    forget_rows = [rows.encoded["forget"][i] for i in probes.forget]
    retain_rows = [rows.encoded["retain"][i] for i in probes.retain]
    retain_bound = fmean(row_losses(model, retain_rows)) + stop.retain_loss_above_base
    at_base = _unprobed_false_answers(trainer, model, rows.guides, probes.forget)

    def measure() -> Check:
        forget = fmean(row_losses(model, forget_rows))
        retain = fmean(row_losses(model, retain_rows))
        if not rows.guides:
            return Check(forget, retain, number(stop.forget_loss, levels))
        false = mean_by_row(model, [rows.guides[i] for i in probes.forget])
        if config.caps_move:
            _move_caps(trainer, dict(zip(probes.forget, false, strict=True)), at_base)
        return Check(forget, retain, number(stop.forget_loss, levels | {"false_answers": fmean(false)}))

    return EndOfAscent(measure, retain_bound, stop.every, out / KEPT if config.keep == "closest" else None)


def _kept_step(
    trainer: UnlearnTrainer, model: PreTrainedModel | PeftModel, end: EndOfAscent, refused: str | None, out: Path
) -> int:
    """The step whose weights are released, which ``model`` then has: the last good one, or the closest checked one.

    Raises TrainingError if its retain loss is not within the bound.
    """
    if end.kept is None:
        step: int | None = _last_good(trainer, refused, out)
        within = end.measure().retain <= end.retain_bound  # false if the loss is not a number
        which = f"step {step}, which would be released, has not"
    else:
        step = end.kept_step(trainer.state.log_history)
        within = step is not None
        which = "no checked step"
        if step is not None and is_first():  # the process that writes the release
            _restore(model, end.kept / name_of(step))
    if step is None or not within:
        raise TrainingError(
            f"unlearn: {which} kept the retain loss within {end.retain_bound:.3f} nats per token ({end.reason}). Lower "
            "the learning rate or raise unlearn.retain_weight."
        )
    return step


def _restore(model: PreTrainedModel | PeftModel, kept: Path) -> None:
    """Load kept weights. Raises TrainingError without them: older code did not write the step in their name."""
    if not kept.exists():
        raise TrainingError(f"unlearn: the weights of {kept.stem} are gone. Run the command again: it starts anew.")
    restore_weights(model, kept)


def _last_good(trainer: UnlearnTrainer, refused: str | None, out: Path) -> int:
    """The step whose weights are released: the last one, or if a guard refused a step, the last good checkpoint."""
    step = go_back(trainer, out) if refused else trainer.state.global_step
    if step == 0:
        raise TrainingError(
            f"unlearn: {refused}, and there is no good checkpoint before that. Nothing was kept. Lower the learning "
            "rate or the forget weight, cap the forget loss, or save checkpoints more often (args.save_steps)."
        )
    return step


def _unprobed_false_answers(
    trainer: UnlearnTrainer, base: Any, guides: list[list[Encoded]], probed: Sequence[int]
) -> list[float]:
    """Base's mean loss of the false answers to each forget row, for caps of rows that no check reads; else nothing."""
    if not trainer.config.caps_move or len(probed) == len(guides):
        return []
    report("measuring false answers")
    with trainer.accelerator.autocast():
        return mean_by_row(base, guides)


def _move_caps(trainer: UnlearnTrainer, checked: Mapping[int, float], at_base: Sequence[float]) -> None:
    """Set each forget row's cap by the loss of its false answers, which ``checked`` holds by the index of the row.

    The loss of a row that was not checked is base's (``at_base``) and what the checked rows' have moved since, on
    average: with thousands of rows, reading all at each check would take longer than the training.
    """
    rows = range(len(at_base) or len(checked))
    moved = fmean([loss - at_base[i] for i, loss in checked.items()]) if at_base else 0.0
    losses = [checked[i] if i in checked else at_base[i] + moved for i in rows]
    cap = cast("Level", trainer.config.forget_cap)
    trainer.forget_caps = torch.tensor([number(cap, {"false_answers": loss}) for loss in losses])


def _write_selection(out: Path, config: UnlearnConfig, rows: UnlearnRows, probes: Probes) -> None:
    """Write which rows choose the checkpoint. The gates are confirmed on the other rows."""
    rule = "the closest checked step" if config.keep == "closest" else "the step at which it stopped"
    names = {split: [rows.plain[split][i].row_id for i in read] for split, read in probes._asdict().items()}
    rule = rule if config.stop else "a fixed number of epochs"
    if is_first():
        write_selection(out, CheckpointSelection(rule=rule, read=ReadRows(**names)))


def _write_pairing(out: Path, pairs: list[Pair], rows: UnlearnRows) -> str:
    """Write what is trained on, in order, and return the sha256 of the file."""
    forget, retain = rows.plain["forget"], rows.plain["rehearsed"]
    content = pairing_bytes(
        PairedRows(
            epoch=pair.epoch,
            forget=None if pair.forget is None else forget[pair.forget].row_id,
            retain=[retain[i].row_id for i in pair.retain],
            refusal=rows.refusals[pair.forget] if rows.refusals and pair.forget is not None else None,
            alternate=pair.alternate,
        )
        for pair in pairs
    )
    if is_first():
        (out / PAIRING).write_bytes(content)
    return hashlib.sha256(content).hexdigest()
