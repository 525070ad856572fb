"""One pass of a model over the answers of all rows, and what the log-probabilities of their tokens say about each row.

The scored target is the completion as it was trained: the answer with the template's end of turn. A forward
runs on the tree of its texts' tokens: no token is padding, and what texts share at the beginning (the chat format, a
question, the words before the fact) is computed once. The head runs before answer tokens only, so no (batch, time,
vocabulary) tensor exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets_prep.schema import Encoded, PerturbedRow, Row
from eval import metrics
from eval.metrics import Floats
from pipeline.errors import ModelError
from pipeline.progress import report

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Encoder = Callable[[str, str], Encoded]
"""Question and answer to the tokens of a chat row, as in training."""
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Scores:
    """One answer: the natural log-probability of each token, and whether it was the model's most likely token."""

    logprobs: Floats
    correct: np.ndarray


class Scorer:
    """Scores completions under one model, each only once.

    A forward holds at most ``batch_tokens`` tokens (a longer example goes alone), and texts that begin alike share
    their beginning in it. What was scored stays in memory with the model it belongs to: lm-eval's multiple choice asks
    for answers that the probes scored already, and costs nothing.
    """

    def __init__(self, model: PreTrainedModel, batch_tokens: int) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self._known: dict[Tokens, list[tuple[Tokens, Scores]]] = {}

    def score(self, examples: Sequence[Encoded]) -> list[Scores]:
        """Scores of every completion, in the order given. Raises ModelError where logits are not finite."""
        new = sorted({example for example in examples if self._find(example) is None})
        done = 0
        for batch in _batches(new, self.batch_tokens):
            for example, scores in zip(batch, _forward(self.model, batch), strict=True):
                prompt, completion = _parts(example)
                self._known.setdefault(prompt, []).append((completion, scores))
            done += len(batch)
            report("log-probabilities", done, len(new))
        found = [self._find(example) for example in examples]
        return [scores for scores in found if scores is not None]

    def _find(self, example: Encoded) -> Scores | None:
        """Scores of a completion that was scored, or that begins one that was."""
        prompt, completion = _parts(example)
        length = len(completion)
        for known, scores in self._known.get(prompt, ()):
            if known[:length] == completion:
                return Scores(scores.logprobs[:length], scores.correct[:length])
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
    import torch

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
        logits = outputs.logits[0].float()
        normaliser = torch.logsumexp(logits, dim=-1)
        if not bool(torch.isfinite(normaliser).all()):
            raise ModelError(
                "The model's logits are not finite: its weights hold NaN or infinity, or overflow. Train it again."
            )
        rows = torch.tensor([place[tree.parents[node]] for node in scored], device=model.device)
        targets = torch.tensor([tree.tokens[node] for node in scored], device=model.device)
        logprobs = (logits[rows, targets] - normaliser[rows]).double().cpu().numpy()
        correct = (logits.argmax(dim=-1)[rows] == targets).cpu().numpy()
    found = [np.searchsorted(scored, nodes) for nodes in completions]
    return [Scores(logprobs[index], correct[index]) for index in found]


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
