"""One pass of a model over the answers of all rows, and what the log-probabilities of their tokens say about each row.

The scored target is the completion as it was trained: the answer with the template's end of turn. A forward
runs on the tree of its texts' tokens: no token is padding, and what texts share at the beginning (the chat format, a
question, the words before the fact) is computed once. The head runs before answer tokens only, and its logits become
float32 probabilities a few positions at a time, so no (batch, time, vocabulary) tensor exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
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
from eval.scoring.packed_linear import packed
from eval.statistics import formulas
from eval.statistics.formulas import Floats

POSITIONS = 16
"""How many positions' probabilities over the vocabulary are in memory at once: 3 MB for 49,152 tokens, in the cache."""

Encoder = Callable[[str, str], Encoded]
"""Question and answer to the tokens of a chat row, as in training."""
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """One answer, each token: natural log-probability, whether it was the model's most likely token, and z-score.

    The z-score is (log p - mean) / standard deviation, both of log p under the model's own distribution at that place
    (Min-K%++, arXiv 2404.02936).
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
        """The value of a metric of the family "answer": that of the function of its name in formulas.py."""
        formula: Callable[[ArrayLike], float] = getattr(formulas, metric.name)
        return formula(getattr(self, str(metric.reads)))


class Scorer:
    """Scores completions under one model, each only once.

    A forward holds at most ``batch_tokens`` tokens (a longer example goes alone), and texts that begin alike share
    their beginning in it. What was scored stays in memory with the model it belongs to: lm-eval's multiple choice asks
    for answers that the probes scored already, and costs nothing. Several processes share out the forwards.
    """

    def __init__(self, model: PreTrainedModel, batch_tokens: int) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self._known: dict[Tokens, list[tuple[Tokens, Scores]]] = {}

    def score(self, examples: Sequence[Encoded], *, alone: bool = False) -> list[Scores]:
        """Scores of every completion, in the order given: a call of all processes together, unless ``alone``.

        Raises ModelError if logits are not finite, DataError if a text is longer than the model's context.
        """
        new = sorted({example for example in examples if self._find(example) is None})
        self._check_lengths(new)
        batches = list(_batches(new, self.batch_tokens))
        mine = batches if alone else batches[rank() :: world_size()]
        done, scored = 0, []
        with packed(self.model) if mine else nullcontext():
            for batch in mine:
                scored += list(zip(batch, _forward(self.model, batch), strict=True))
                done += len(batch) * (1 if alone else world_size())
                report("log-probabilities", min(done, len(new)), len(new))
        for example, scores in scored if alone else from_all_ranks(scored):
            prompt, completion = _parts(example)
            self._known.setdefault(prompt, []).append((completion, scores))
        found = [self._find(example) for example in examples]
        return [scores for scores in found if scores is not None]

    def greedy(self, prompt: Tokens, end: int, limit: int) -> Tokens | None:
        """What greedy decoding gives after ``prompt``, where a scored completion already tells; else None.

        It does where each of its tokens, up to the token ``end`` or the ``limit``, was the model's most likely one. So
        a row that is known by heart need not be generated. The tokens are returned without ``end``.
        """
        for known, scores in self._known.get(prompt, ()):
            stop = known.index(end) if end in known else len(known)
            needed = min(stop + 1, limit)
            if needed <= len(known) and bool(scores.correct[:needed].all()):
                return known[: min(stop, limit)]
        return None

    def _check_lengths(self, examples: Sequence[Encoded]) -> None:
        """Nothing is cut: a truncated answer would be another one, and past its context a model knows nothing."""
        context = getattr(self.model.config, "max_position_embeddings", None)
        longest = max((len(example.input_ids) for example in examples), default=0)
        if context and longest > context:
            raise DataError(
                f"A row has {longest} tokens, and the model's context holds {context}. Shorten its question or answer."
            )

    def _find(self, example: Encoded) -> Scores | None:
        """Scores of a completion that was scored, or that begins one that was."""
        prompt, completion = _parts(example)
        length = len(completion)
        for known, scores in self._known.get(prompt, ()):
            if known[:length] == completion:
                return scores.first(length)
        return None


def _parts(example: Encoded) -> tuple[Tokens, Tokens]:
    return example.input_ids[: example.completion_start], example.input_ids[example.completion_start :]


def _batches(examples: Sequence[Encoded], batch_tokens: int) -> Iterator[list[Encoded]]:
    """Sorted examples in batches of at most ``batch_tokens`` tokens; what the one before has too counts once."""
    batch: list[Encoded] = []
    tokens = 0
    for example in examples:
        own = len(example.input_ids) - (_shared(batch[-1].input_ids, example.input_ids) if batch else 0)
        if batch and tokens + own > batch_tokens:
            yield batch
            batch, tokens, own = [], 0, len(example.input_ids)
        batch.append(example)
        tokens += own
    if batch:
        yield batch


def _shared(first: Tokens, second: Tokens) -> int:
    """How many tokens both texts begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _forward(model: PreTrainedModel, examples: Sequence[Encoded]) -> list[Scores]:
    """Scores of the completions, from one forward over the tree of their tokens, with the head where it is needed."""
    tree = TokenTree.of(examples)
    completions = [path[e.completion_start :] for path, e in zip(tree.paths, examples, strict=True)]
    scored = sorted({node for nodes in completions for node in nodes})
    predict_from = sorted({tree.parents[node] for node in scored})
    place = {node: index for index, node in enumerate(predict_from)}
    with torch.inference_mode():
        # Added to the attention scores: every attention of transformers takes that; not all take booleans.
        mask = torch.where(torch.from_numpy(tree.ancestors()), 0.0, torch.finfo(model.dtype).min)
        outputs = model(
            input_ids=torch.tensor([tree.tokens], device=model.device),
            position_ids=torch.tensor([tree.positions], device=model.device),
            attention_mask=mask[None, None].to(model.device, model.dtype),
            logits_to_keep=torch.tensor(predict_from, device=model.device),
            use_cache=False,
        )
        rows = torch.tensor([place[tree.parents[node]] for node in scored], device=model.device)
        targets = torch.tensor([tree.tokens[node] for node in scored], device=model.device)
        logprobs, correct, z_scores = _token_scores(outputs.logits[0], rows, targets)
    found = [np.searchsorted(scored, nodes) for nodes in completions]
    return [Scores(logprobs[index], correct[index], z_scores[index]) for index in found]


def _token_scores(logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Log-probability, "most likely" and z-score, each (N,), of token ``targets`` (N,) by row ``rows`` of the logits.

    ``logits`` (P, V) may be of any dtype; sums over the vocabulary are in float32, ``POSITIONS`` rows at a time.
    Raises ModelError if they are not finite.
    """
    found = [_vocabulary_sums(logits[begin : begin + POSITIONS].float()) for begin in range(0, len(logits), POSITIONS)]
    normaliser, mean, deviation = (torch.cat([sums[i] for sums in found]) for i in range(3))
    best = torch.cat([sums[3] for sums in found])
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
    # Where the distribution is a single token nothing deviates; the bound keeps the score finite there.
    deviation = variance.clamp(min=torch.finfo(torch.float32).eps).sqrt()
    return top + total.log(), mean - total.log(), deviation, best


@dataclass(frozen=True)
class TokenTree:
    """The tokens of several texts, each beginning that texts share only once.

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

    def ancestors(self) -> np.ndarray:
        """(T, T) booleans: True where the second node is the first or comes before it in a text; attention's mask."""
        seen = np.eye(len(self.tokens), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def probe(
    scorer: Scorer,
    rows: Sequence[Row],
    perturbed: Sequence[PerturbedRow],
    encode: Encoder,
    min_k: float,
    paraphrases: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measurements of each row by ``row_id``, from one pass over its answer, its paraphrase and its false answers.

    ``loss`` (mean NLL in nats), ``answer_probability``, ``exact_memorization``, ``extraction_strength``; the membership
    scores ``min_k``, ``min_k_plus_plus`` and ``zlib``; where the row has false answers ``perturbed_losses``,
    ``probability_with_options``, and ``truth_ratio`` with ``truth_ratio_of``: ``paraphrase`` where ``paraphrases`` has
    another wording of the row's answer, else ``answer``.
    """
    said_otherwise = paraphrases or {}
    asked = {row.row_id: row.question for row in rows}
    false = {row.row_id: row.answers for row in perturbed if row.row_id in asked}
    texts = [(row.row_id, row.answer) for row in rows]
    texts += [(row_id, answer) for row_id, answers in false.items() for answer in answers]
    texts += [(row_id, said_otherwise[row_id]) for row_id in false if row_id in said_otherwise]
    scores = scorer.score([encode(asked[row_id], answer) for row_id, answer in texts])
    scored = dict(zip(texts, scores, strict=True))
    measured = {}
    for row in rows:
        measured[row.row_id] = values = _row_metrics(scored[row.row_id, row.answer], row.answer, min_k)
        if row.row_id in false:
            losses = [_loss(scored[row.row_id, answer]) for answer in false[row.row_id]]
            other = said_otherwise.get(row.row_id, row.answer)
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
