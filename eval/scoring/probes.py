"""One pass of a model over the answers of all rows, and what the log-probabilities of their tokens say about each row.

The scored target is the completion as in training: the answer with the template's end of turn. A forward runs on the
tree of its texts' tokens: there is no padding, and a shared prefix (the chat format, a question, the words before the
fact) is computed once. Attention runs text by text (`pipeline.train.attention`), so that no mask of (tokens, tokens) is
needed. The head runs only at the positions that predict answer tokens, and its logits become float32 probabilities a
few positions at a time, so there is no (batch, time, vocabulary) tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import PreTrainedModel

from core.errors import DataError, ModelError
from core.progress import report
from core.ranks import from_all_ranks, rank, world_size
from datasets_prep.schema import Encoded, PerturbedRow, Row
from eval.catalog import Metric, of_family
from eval.scoring.batches import FORWARD_BYTES, logits_bytes
from eval.scoring.packed_linear import packed
from eval.statistics import formulas
from eval.statistics.formulas import Floats
from pipeline.train.attention import attending_rows

PADDED = 8
"""The texts of a forward, padded to the longest as attention sees them, have at most so many times ``batch_tokens``."""
POSITIONS = 16
"""Positions whose probabilities over the vocabulary are in memory at once: 3 MB for 49,152 tokens, fits a cache."""

Encoder = Callable[[str, str], Encoded]
"""Question and answer to the tokens of a chat row, as in training."""
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """Of each token of one answer: natural log-probability, whether it was the model's most likely token, and z-score.

    The z-score is (log p - mean) / standard deviation, both of log p under the model's own distribution at that
    position (Min-K%++, arXiv 2404.02936).
    """

    logprobs: Floats
    correct: np.ndarray
    z_scores: Floats

    def first(self, length: int) -> Scores:
        """The scores of the first ``length`` tokens."""
        return Scores(self.logprobs[:length], self.correct[:length], self.z_scores[:length])

    def after(self, length: int) -> Scores:
        """The scores of the tokens after the first ``length``."""
        return Scores(self.logprobs[length:], self.correct[length:], self.z_scores[length:])

    def measure(self, metric: Metric) -> float:
        """The value of a metric of the family "answer"; its formula is the function of its name in formulas.py."""
        formula: Callable[[ArrayLike], float] = getattr(formulas, metric.name)
        return formula(getattr(self, str(metric.reads)))


class Scorer:
    """Scores completions under one model, each only once.

    A forward holds at most ``batch_tokens`` tokens (a longer example goes alone), and fewer if their logits would take
    more than ``FORWARD_BYTES``; a shared prefix counts once. Scores stay in memory for the lifetime of the scorer, so
    lm-eval's multiple choice, which asks for answers that the probes have scored, costs nothing. Several processes
    divide the forwards among them.
    """

    def __init__(self, model: PreTrainedModel, batch_tokens: int) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self._known: dict[Tokens, list[tuple[Tokens, Scores]]] = {}

    def score(self, examples: Sequence[Encoded], *, alone: bool = False) -> list[Scores]:
        """Scores of every completion, in the order given. All processes must call it together, unless ``alone``.

        Raises ModelError if logits are not finite, DataError if a text is longer than the model's context.
        """
        new = sorted({example for example in examples if self._find(example) is None})
        self._check_lengths(new)
        batches = list(_batches(new, self.batch_tokens, FORWARD_BYTES // logits_bytes(self.model)))
        share = batches if alone else batches[rank() :: world_size()]
        done, scored = 0, []
        if share:
            with packed(self.model), attending_rows(self.model):
                for batch in share:
                    scored += list(zip(batch, _forward(self.model, batch), strict=True))
                    done += len(batch) * (1 if alone else world_size())
                    report("log-probabilities", min(done, len(new)), len(new))
        for example, scores in scored if alone else from_all_ranks(scored):
            prompt, completion = _parts(example)
            self._known.setdefault(prompt, []).append((completion, scores))
        all_scores = [self._find(example) for example in examples]
        return [scores for scores in all_scores if scores is not None]

    def greedy(self, prompt: Tokens, end: int, limit: int) -> Tokens | None:
        """What greedy decoding gives after ``prompt``, if a scored completion already determines it; else None.

        It does if each of its tokens, up to the token ``end`` or the ``limit``, was the model's most likely one. So a
        memorised row need not be generated. The tokens are returned without ``end``.
        """
        for known, scores in self._known.get(prompt, ()):
            stop = known.index(end) if end in known else len(known)
            needed = min(stop + 1, limit)
            if needed <= len(known) and bool(scores.correct[:needed].all()):
                return known[: min(stop, limit)]
        return None

    def _check_lengths(self, examples: Sequence[Encoded]) -> None:
        """Raise DataError if a text is longer than the model's context; no text is truncated."""
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        longest = max((len(example.input_ids) for example in examples), default=0)
        if context and longest > context:
            raise DataError(
                f"A row has {longest} tokens, but the model's context holds {context}. Shorten its question or answer."
            )

    def _find(self, example: Encoded) -> Scores | None:
        """Scores of a completion that was scored, or that is a prefix of one; else None."""
        prompt, completion = _parts(example)
        length = len(completion)
        for known, scores in self._known.get(prompt, ()):
            if known[:length] == completion:
                return scores.first(length)
        return None


def _parts(example: Encoded) -> tuple[Tokens, Tokens]:
    return example.input_ids[: example.completion_start], example.input_ids[example.completion_start :]


def _batches(examples: Sequence[Encoded], batch_tokens: int, predictions: int) -> Iterator[list[Encoded]]:
    """Sorted examples in batches of at most ``batch_tokens`` tokens, of which ``predictions`` are predicted.

    A prefix shared with the example before is free.
    """
    batch: list[Encoded] = []
    tokens = predicted = longest = 0
    for example in examples:
        length, start = len(example.input_ids), example.completion_start
        shared = shared_prefix(batch[-1].input_ids, example.input_ids) if batch else 0
        longest = max(longest, length)
        tokens += length - shared
        predicted += length - max(shared, start)
        padded = (len(batch) + 1) * longest
        if batch and (tokens > batch_tokens or predicted > predictions or padded > PADDED * batch_tokens):
            yield batch
            batch, tokens, predicted, longest = [], length, length - start, length
        batch.append(example)
    if batch:
        yield batch


def shared_prefix(first: Tokens, second: Tokens) -> int:
    """Length of the beginning that two texts share, in tokens."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _forward(model: PreTrainedModel, examples: Sequence[Encoded]) -> list[Scores]:
    """Scores of the completions, from one forward over their token tree; the head runs only at predicting positions."""
    tree = TokenTree.of(examples)
    completions = [path[e.completion_start :] for path, e in zip(tree.paths, examples, strict=True)]
    scored = sorted({node for nodes in completions for node in nodes})
    predict_from = sorted({tree.parents[node] for node in scored})
    place = {node: index for index, node in enumerate(predict_from)}
    with torch.inference_mode():
        outputs = model(
            input_ids=torch.tensor([tree.tokens], device=model.device),
            position_ids=torch.tensor([tree.positions], device=model.device),
            logits_to_keep=torch.tensor(predict_from, device=model.device),
            use_cache=False,
            **{name: indices.to(model.device) for name, indices in tree.layout().items()},
        )
        rows = torch.tensor([place[tree.parents[node]] for node in scored], device=model.device)
        targets = torch.tensor([tree.tokens[node] for node in scored], device=model.device)
        logprobs, correct, z_scores = _token_scores(outputs.logits[0], rows, targets)
    indices = [np.searchsorted(scored, nodes) for nodes in completions]
    return [Scores(logprobs[index], correct[index], z_scores[index]) for index in indices]


def _token_scores(logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Log-probability, "most likely" and z-score, each (N,), of the tokens ``targets`` (N,).

    Token i is predicted by row ``rows[i]`` of ``logits`` (P, V), which may be of any dtype. Sums over the vocabulary
    are in float32, ``POSITIONS`` rows at a time. Raises ModelError if the logits are not finite.
    """
    parts = [_vocabulary_sums(logits[begin : begin + POSITIONS].float()) for begin in range(0, len(logits), POSITIONS)]
    normaliser, mean, deviation = (torch.cat([sums[i] for sums in parts]) for i in range(3))
    best = torch.cat([sums[3] for sums in parts])
    logprobs = logits[rows, targets].float() - normaliser[rows]
    z_scores = (logprobs - mean[rows]) / deviation[rows]
    if not bool(torch.isfinite(torch.stack([logprobs, z_scores])).all()):  # one logit at -inf leaves the sum finite
        raise ModelError(
            "The model's logits are not finite: its weights hold NaN or infinity, or overflow. Train it again."
        )
    return (
        logprobs.double().cpu().numpy(),
        (best[rows] == targets).cpu().numpy(),
        z_scores.double().cpu().numpy(),
    )


def _vocabulary_sums(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of float32 logits (P, V), each (P,): log sum exp, mean and deviation of log p under p, and likeliest token."""
    top, best = logits.max(dim=-1)
    below = logits - top[:, None]
    weights = below.exp()
    total = weights.sum(dim=-1)
    mean = torch.linalg.vecdot(weights, below) / total
    weights *= below  # in place: these are the largest tensors of the evaluation
    variance = torch.linalg.vecdot(weights, below) / total - mean.square()
    # A distribution on a single token has no deviation; the bound keeps the score finite.
    deviation = variance.clamp(min=torch.finfo(torch.float32).eps).sqrt()
    return top + total.log(), mean - total.log(), deviation, best


@dataclass(frozen=True)
class TokenTree:
    """The tokens of several texts as a prefix tree: each shared prefix occurs once.

    Node i is ``tokens[i]`` at ``positions[i]`` of its texts, after node ``parents[i]`` (-1: it begins a text).
    ``paths`` are the nodes of each text.
    """

    tokens: list[int]
    positions: list[int]
    parents: list[int]
    paths: list[list[int]]

    @classmethod
    def of(cls, examples: Sequence[Encoded]) -> TokenTree:
        """The tree of the examples' tokens."""
        tree = cls([], [], [], [])
        nodes: dict[tuple[int, int], int] = {}
        for example in examples:
            node = -1
            path = []
            for position, token in enumerate(example.input_ids):
                parent, node = node, nodes.setdefault((node, token), len(tree.tokens))
                if node == len(tree.tokens):
                    tree.tokens.append(token)
                    tree.positions.append(position)
                    tree.parents.append(parent)
                path.append(node)
            tree.paths.append(path)
        return tree

    def layout(self) -> dict[str, torch.Tensor]:
        """Indices between the tree (T) and its texts side by side (B, L), as :func:`row_layout` makes them for rows.

        A shared node is taken from the last text that holds it; its state is the same in all of them.
        """
        longest = max(map(len, self.paths))
        packed = torch.empty(len(self.tokens), dtype=torch.long)
        for text, path in enumerate(self.paths):
            packed[path] = text * longest + torch.arange(len(path))
        return {
            "rows_padded": torch.tensor([path + [0] * (longest - len(path)) for path in self.paths]),
            "rows_packed": packed,
        }


def probe(
    scorer: Scorer,
    rows: Sequence[Row],
    perturbed: Sequence[PerturbedRow],
    encode: Encoder,
    min_k: float,
    paraphrases: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measurements of each row by ``row_id``, from one pass over its answer, its paraphrase and its false answers.

    Of every row: ``loss`` (mean NLL in nats), ``answer_probability``, ``exact_memorization``, ``extraction_strength``,
    and the membership scores ``min_k``, ``min_k_plus_plus`` and ``zlib``. If the row has false answers, also
    ``perturbed_losses``, ``probability_with_options``, and ``truth_ratio`` with ``truth_ratio_of``. The latter is
    ``paraphrase`` if ``paraphrases`` has another wording of the row's answer, else ``answer``.
    """
    reworded = paraphrases or {}
    questions = {row.row_id: row.question for row in rows}
    false = {row.row_id: row.answers for row in perturbed if row.row_id in questions}
    texts = [(row.row_id, row.answer) for row in rows]
    texts += [(row_id, answer) for row_id, answers in false.items() for answer in answers]
    texts += [(row_id, reworded[row_id]) for row_id in false if row_id in reworded]
    scores = scorer.score([encode(questions[row_id], answer) for row_id, answer in texts])
    scored = dict(zip(texts, scores, strict=True))
    measured = {}
    for row in rows:
        measured[row.row_id] = values = _row_metrics(scored[row.row_id, row.answer], row.answer, min_k)
        if row.row_id in false:
            losses = [_loss(scored[row.row_id, answer]) for answer in false[row.row_id]]
            other = reworded.get(row.row_id, row.answer)
            values["perturbed_losses"] = losses
            values["probability_with_options"] = formulas.probability_with_options(values["loss"], losses)
            values["truth_ratio"] = formulas.truth_ratio(_loss(scored[row.row_id, other]), losses)
            values["truth_ratio_of"] = "answer" if other == row.answer else "paraphrase"
    return measured


def _loss(scores: Scores) -> float:
    return float(-scores.logprobs.mean())


def _row_metrics(scores: Scores, answer: str, min_k: float) -> dict[str, Any]:
    return {
        "loss": _loss(scores),
        **{metric.name: scores.measure(metric) for metric in of_family("answer")},
        "min_k": formulas.min_k(scores.logprobs, min_k),
        "min_k_plus_plus": formulas.min_k(scores.z_scores, min_k),
        "zlib": formulas.zlib_score(_loss(scores), answer),
    }
