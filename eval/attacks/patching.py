"""Activation patching: how deep in the layers a forgotten fact can still be read (unlearning depth score, UDS).

Lee, Kim and Jo, *Measuring the Depth of LLM Unlearning via Activation Patching*, arXiv 2605.24614. Base, which can read
what its layers say of a fact, runs on the true answer. At one layer its hidden states at the positions that predict the
fact are replaced by those of gold (stage 1) or of the model (stage 2), and the fact's log-probability falls. The layers
where it falls with gold's states hold the fact. The score says how much of that fall the model's states bring about: 0
if the fact is all there, 1 if it is as absent as from gold. A gold of another seed has less than 1: where it lacks more
than gold, it is cut off at 1, and where it lacks less, it is not.

There the fact is an annotated span of the answer. Here it is what false answers to the same question do not share: the
tokens between the common beginning and the common end. An answer without false ones is taken whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from core.errors import ModelError
from core.progress import report
from core.ranks import from_all_ranks, rank, world_size
from datasets_prep.schema import Encoded
from eval.attacks.cached import continuing
from eval.attacks.residual import Act, at_layers, layers_of
from eval.scoring.batches import logits_bytes, rows_at_once
from eval.scoring.packed_linear import packed
from eval.scoring.probes import shared_prefix
from eval.statistics.formulas import Floats, unlearning_depth_score


class Fact(NamedTuple):
    """The tokens of a prompt and its answer up to the end of the fact, which begins at index ``begin`` (at least 1)."""

    input_ids: tuple[int, ...]
    begin: int


def fact_of(answer: Encoded, false: Sequence[Encoded]) -> Fact:
    """Where the fact of an answer stands: between what it shares with all its false answers; the whole answer if none.

    At least one token remains.
    """
    ids, begin, end = answer.input_ids, answer.completion_start, len(answer.input_ids)
    if false:
        begin = min(min(shared_prefix(ids, other.input_ids) for other in false), end - 1)
        rest = ids[begin:][::-1]
        end -= min(shared_prefix(rest, other.input_ids[begin:][::-1]) for other in false)
    return Fact(ids[: max(end, begin + 1)], begin)


def depth_scores(
    base: PreTrainedModel,
    gold: PreTrainedModel,
    model: PreTrainedModel,
    facts: Mapping[str, Fact],
    threshold: float,
    batch_tokens: int,
) -> dict[str, float]:
    """The unlearning depth score of each fact that a layer of base holds, by its name; ranks divide the work.

    Raises ModelError if the models have other numbers or widths of layers.
    """
    shapes = {(len(layers_of(each)), each.config.get_text_config().hidden_size) for each in (base, gold, model)}
    if len(shapes) > 1:
        raise ModelError(
            f"eval.robustness.patching: base, gold and the model have different layers (number, width: {shapes}). "
            "Compare models of one architecture, or take patching out."
        )
    share, scores = list(facts.items())[rank() :: world_size()], []
    with packed(base), packed(gold), packed(model):
        for done, (name, fact) in enumerate(share, start=1):
            of_gold, of_model = (falls(base, source, fact, batch_tokens) for source in (gold, model))
            scores.append((name, unlearning_depth_score(of_gold, of_model, threshold)))
            report("patched layers", done, len(share))
    return {name: score for name, score in from_all_ranks(scores) if score is not None}


def falls(base: PreTrainedModel, source: PreTrainedModel, fact: Fact, batch_tokens: int) -> Floats:
    """By how much the log-probability of a fact's tokens falls in base if a layer has the states of ``source``.

    Returns (layers,), in nats per token of the fact. A forward holds as many layers as ``batch_tokens`` allow, each in
    its own copy of the fact; what precedes the fact is computed once.
    """
    ids = torch.tensor([fact.input_ids], device=base.device)
    with torch.inference_mode():
        states = _states(source, ids[:, :-1], fact.begin - 1)
        before = DynamicCache(config=base.config)
        if fact.begin > 1:
            base(input_ids=ids[:, : fact.begin - 1], logits_to_keep=1, **continuing(base, before))
        span = ids[:, fact.begin - 1 :]
        untouched = _log_probs(base, before, span, {})
        length = span.shape[1] - 1
        size = rows_at_once(length, logits_bytes(base, softmax=True), batch_tokens // length)
        layers = range(len(states))
        patched = [
            _log_probs(base, before, span, {layer: states[layer] for layer in layers[first : first + size]})
            for first in layers[::size]
        ]
    return np.asarray((untouched - torch.cat(patched)).double().cpu())


def _states(model: PreTrainedModel, ids: torch.Tensor, begin: int) -> list[torch.Tensor]:
    """The output (time, width) of each layer at the positions from ``begin`` on."""
    states: list[torch.Tensor] = []
    keep: Act = lambda output: states.append(output[0, begin:].clone())  # noqa: E731
    with at_layers(model, dict.fromkeys(range(len(layers_of(model))), keep)):
        model(input_ids=ids, logits_to_keep=1, use_cache=False)
    return states


def _log_probs(
    model: PreTrainedModel, before: DynamicCache, span: torch.Tensor, states: Mapping[int, torch.Tensor]
) -> torch.Tensor:
    """Mean log-probability of the tokens of ``span`` (1, time) after its first, (copies,), in float32.

    There is a copy for each layer of ``states``, in which that layer has these states; without any, one copy as it is.
    """
    copies = max(len(states), 1)
    cache = copy.deepcopy(before)
    cache.batch_repeat_interleave(copies)
    acts = {layer: _replace(number, given) for number, (layer, given) in enumerate(states.items())}
    with at_layers(model, acts):
        logits = model(input_ids=span[:, :-1].expand(copies, -1), **continuing(model, cache)).logits
    targets = span[:, 1:].expand(copies, -1)
    return logits.float().log_softmax(dim=-1).gather(2, targets[..., None]).mean(dim=(1, 2))


def _replace(number: int, states: torch.Tensor) -> Act:
    return lambda output: output[number].copy_(states)
