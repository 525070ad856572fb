"""One pass of a model over the answers of all rows, and what the log-probabilities of their tokens say about each row.

The scored target is the completion as it was trained: the answer with the template's end of turn. Rows are packed
into one sequence without padding, true and false answers to one question share its tokens, and the head runs on answer
tokens only: no (batch, time, vocabulary) tensor exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets_prep.schema import Encoded, PerturbedRow, Row
from eval import metrics
from eval.metrics import Floats
from pipeline.errors import ModelError
from pipeline.progress import report

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Encoder = Callable[[str, str], Encoded]
"""Question and answer to the tokens of a chat row, as in training."""
Tokens = tuple[int, ...]
Group = tuple[Tokens, list[Tokens]]
"""A prompt and the completions to score after it."""


@dataclass(frozen=True)
class Scores:
    """One answer: the natural log-probability of each token, and whether it was the model's most likely token."""

    logprobs: Floats
    correct: np.ndarray


class Scorer:
    """Scores completions under one model, each token once.

    Completions of the same prompt share its tokens within a forward of at most ``batch_tokens`` tokens (a prompt with
    more goes alone). What was scored stays in memory with the model it belongs to, so that lm-eval's multiple choice,
    which asks for answers that the probes scored already, costs nothing.
    """

    def __init__(self, model: PreTrainedModel, batch_tokens: int) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self._known: dict[Tokens, list[tuple[Tokens, Scores]]] = {}

    def score(self, examples: Sequence[Encoded]) -> list[Scores]:
        """Scores of every completion, in the order given. Raises ModelError where logits are not finite."""
        new: dict[Tokens, list[Tokens]] = {}
        for example in examples:
            prompt, completion = _parts(example)
            if self._find(prompt, completion) is None and completion not in new.setdefault(prompt, []):
                new[prompt].append(completion)
        groups = [(prompt, completions) for prompt, completions in new.items() if completions]
        done, total = 0, sum(len(completions) for _, completions in groups)
        for batch in _batches(groups, self.batch_tokens):
            for (prompt, completions), scores in zip(batch, _forward(self.model, batch), strict=True):
                self._known.setdefault(prompt, []).extend(zip(completions, scores, strict=True))
                done += len(completions)
            report("log-probabilities", done, total)
        found = [self._find(*_parts(example)) for example in examples]
        return [scores for scores in found if scores is not None]

    def _find(self, prompt: Tokens, completion: Tokens) -> Scores | None:
        """Scores of a completion that was scored, or that begins one that was."""
        length = len(completion)
        for known, scores in self._known.get(prompt, ()):
            if known[:length] == completion:
                return Scores(scores.logprobs[:length], scores.correct[:length])
        return None


def _parts(example: Encoded) -> tuple[Tokens, Tokens]:
    return example.input_ids[: example.completion_start], example.input_ids[example.completion_start :]


def _batches(groups: Sequence[Group], batch_tokens: int) -> Iterator[list[Group]]:
    """Groups in batches of at most ``batch_tokens`` tokens, longest first: what does not fit fails at once."""
    batch: list[Group] = []
    tokens = 0
    for group in sorted(groups, key=lambda g: -_tokens(g)):
        if batch and tokens + _tokens(group) > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(group)
        tokens += _tokens(group)
    if batch:
        yield batch


def _tokens(group: Group) -> int:
    prompt, completions = group
    return len(prompt) + sum(map(len, completions))


def _forward(model: PreTrainedModel, groups: Sequence[Group]) -> list[list[Scores]]:
    """Scores of the completions of each group, from one forward over all of them."""
    import torch

    with torch.inference_mode():
        batch = {name: part.to(model.device) for name, part in pack_groups(groups).items()}
        seen, targets = batch["attention_mask"], batch["targets"]
        # Added to the attention scores: every attention of transformers takes that; not all take booleans.
        mask = torch.where(seen, 0.0, torch.finfo(model.dtype).min).to(model.dtype)
        outputs = model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=mask,
            logits_to_keep=batch["predict_from"],
            use_cache=False,
        )
        logits = outputs.logits[0].float()
        normaliser = torch.logsumexp(logits, dim=-1)
        if not bool(torch.isfinite(normaliser).all()):
            raise ModelError(
                "The model's logits are not finite: its weights hold NaN or infinity, or overflow. Train it again."
            )
        logprobs = (logits.gather(1, targets[:, None])[:, 0] - normaliser).double().cpu().numpy()
        correct = (logits.argmax(dim=-1) == targets).cpu().numpy()
    ends = np.cumsum([len(completion) for _, completions in groups for completion in completions])[:-1]
    scores = map(Scores, np.split(logprobs, ends), np.split(correct, ends))
    return [[next(scores) for _ in completions] for _, completions in groups]


def pack_groups(groups: Sequence[Group]) -> dict[str, torch.Tensor]:
    """One sequence of T tokens with each prompt once and its completions after it, N tokens of them in all.

    ``attention_mask`` (1, 1, T, T) is True where a token sees another: its own prompt and completion, up to itself.
    ``input_ids`` and ``position_ids`` are (1, T); positions go on from the prompt's end in each completion.
    ``predict_from``, the index whose hidden state predicts the token, and ``targets``, the token, are (N,).
    """
    import torch

    ids: list[int] = []
    positions: list[int] = []
    predict_from: list[int] = []
    parts: list[tuple[int, int]] = []  # of each token: its group, and its completion there (0: the prompt)
    for number, (prompt, completions) in enumerate(groups):
        end = len(ids) + len(prompt) - 1
        for branch, tokens in enumerate([prompt, *completions]):
            first = len(prompt) if branch else 0
            if branch:
                predict_from += [end, *range(len(ids), len(ids) + len(tokens) - 1)]
            ids += tokens
            positions += range(first, first + len(tokens))
            parts += [(number, branch)] * len(tokens)
    group, branch_of = torch.tensor(parts).T
    seen = (group[:, None] == group) & ((branch_of == 0) | (branch_of[:, None] == branch_of))
    targets = [token for _, completions in groups for completion in completions for token in completion]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": seen.tril()[None, None],
        "predict_from": torch.tensor(predict_from),
        "targets": torch.tensor(targets),
    }


def probe(
    scorer: Scorer,
    rows: Sequence[Row],
    perturbed: Sequence[PerturbedRow],
    encode: Encoder,
    min_k: float,
) -> dict[str, dict[str, Any]]:
    """Measurements of each row by ``row_id``, from one pass over its answer and its false answers.

    ``loss`` (mean NLL in nats), ``answer_probability``, ``exact_memorization``, ``extraction_strength``, ``min_k`` and,
    where the row has false answers, ``perturbed_losses`` and ``truth_ratio``.
    """
    by_id = {row.row_id: row for row in rows}
    owners = [(row.row_id, row.answer) for row in rows]
    owners += [(false.row_id, answer) for false in perturbed if false.row_id in by_id for answer in false.answers]
    scores = scorer.score([encode(by_id[row_id].question, answer) for row_id, answer in owners])
    measured: dict[str, dict[str, Any]] = {}
    for (row_id, _), answer_scores in zip(owners, scores, strict=True):
        if row_id not in measured:  # the true answers come first
            measured[row_id] = _row_metrics(answer_scores, min_k)
        else:
            losses = measured[row_id].setdefault("perturbed_losses", [])
            losses.append(float(-answer_scores.logprobs.mean()))
    for values in measured.values():
        if "perturbed_losses" in values:
            values["truth_ratio"] = metrics.truth_ratio(values["loss"], values["perturbed_losses"])
    return measured


def _row_metrics(scores: Scores, min_k: float) -> dict[str, Any]:
    return {
        "loss": float(-scores.logprobs.mean()),
        "answer_probability": metrics.answer_probability(scores.logprobs),
        "exact_memorization": metrics.exact_memorization(scores.correct),
        "extraction_strength": metrics.extraction_strength(scores.correct),
        "min_k": metrics.min_k(scores.logprobs, min_k),
    }
