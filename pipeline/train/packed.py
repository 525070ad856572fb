"""Rows packed into one sequence, and the log-probabilities of their answers; the LM head runs at answer tokens only.

Training and relearning share this forward. A batch is one sequence of length T that holds B rows one after another,
without padding. Position ids restart at each row, and no row sees another: `pipeline.train.attention` keeps them apart
by layout, any other attention of transformers by the block-diagonal mask that it builds from such position ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from core.errors import ModelError
from core.ranks import my_share, sum_over_ranks
from datasets_prep.schema import Encoded
from pipeline.train.attention import row_layout
from pipeline.train.head import TargetLogProbs, head_in_tiles

HEADER_FROM = 8
"""A shared prefix of fewer tokens is computed in every row; see docs/measurements/time-and-memory.md."""
CPU_TOKENS, ACCELERATOR_TOKENS = 1024, 8192
"""Of a forward without gradients."""


def shared_header(rows: Sequence[Encoded]) -> int:
    """Length in tokens of the prompts' shared prefix; 0 if computing it once would not pay."""
    shortest = min(row.completion_start for row in rows)
    first = rows[0].input_ids
    same = next((i for i in range(shortest) if any(row.input_ids[i] != first[i] for row in rows)), shortest)
    return same if same >= HEADER_FROM and len(rows) > 1 else 0


def pack(rows: Sequence[Encoded], header: int = 0) -> dict[str, torch.Tensor]:
    """One packed sequence of B rows with T tokens, N of them in completions.

    The first ``header`` tokens are the shared prefix of all prompts and occur once. Under causal attention their states
    do not depend on what follows, and each row's positions continue after them. A shared prefix needs the attention of
    :mod:`pipeline.train.attention`.

    Returns ``input_ids`` and ``position_ids`` of shape (1, T), and the layout for :mod:`pipeline.train.attention`. For
    each completion token, of shape (N,): ``predict_from``, the index whose hidden state predicts it, ``targets``, the
    token itself, and ``row``, the index of its row in ``rows``.
    """
    ids: list[int] = list(rows[0].input_ids[:header])
    positions: list[int] = list(range(header))
    predict_from: list[int] = []
    targets: list[int] = []
    row_of: list[int] = []
    for index, row in enumerate(rows):
        start = len(ids) - header  # where the row would begin if the shared prefix were in front of its own tokens
        ids += row.input_ids[header:]
        positions += range(header, len(row.input_ids))
        before = range(row.completion_start - 1, len(row.input_ids) - 1)
        predict_from += [i if i < header else start + i for i in before]
        targets += row.input_ids[row.completion_start :]
        row_of += [index] * len(before)
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "predict_from": torch.tensor(predict_from, dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
        "row": torch.tensor(row_of, dtype=torch.long),
        **row_layout([len(row.input_ids) for row in rows], header),
    }


def completion_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of shape (N, V), float32, at the completion tokens of a packed batch (on the model's device)."""
    outputs = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        logits_to_keep=batch["predict_from"],
        rows_padded=batch["rows_padded"],
        rows_packed=batch["rows_packed"],
        use_cache=False,
    )
    return outputs.logits[0].float()


def completion_log_probs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of shape (N,), in nats, of the completion tokens of a packed batch."""
    targets = batch["targets"]
    if head := head_in_tiles(model, len(targets)):
        with head.scoring(targets):
            return completion_logits(model, batch)[:, 0]
    return target_log_probs(completion_logits(model, batch), targets)


def target_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of shape (N,), in nats, of ``targets`` (N,) under float32 ``logits`` (N, V)."""
    log_probs: torch.Tensor = TargetLogProbs.apply(logits, targets)  # type: ignore[no-untyped-call]
    return log_probs


def negative_log_likelihood(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy: minus the sum of ``log_probs`` over ``tokens``, nats per token."""
    return -log_probs.sum() / tokens.clamp(min=1)


def row_means(values: torch.Tensor, row: torch.Tensor, rows: int) -> torch.Tensor:
    """Mean of ``values`` (N,) over the tokens of each row, shape (rows,)."""
    sums = values.new_zeros(rows).index_add_(0, row, values)
    counts = values.new_zeros(rows).index_add_(0, row, values.new_ones(len(values)))
    return sums / counts


def batches_by_length(rows: Sequence[Encoded], batch_tokens: int) -> list[list[int]]:
    """Indices of ``rows``, shortest first, in batches of at most ``batch_tokens`` tokens (a longer row goes alone)."""
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids)):
        size = len(rows[index].input_ids)
        if size > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(index)
        room -= size
    return batches


def packed_batches(
    model: Any, rows: Sequence[Encoded], *, logits: bool = False, divided: bool = False
) -> Iterator[tuple[list[int], bool, dict[str, torch.Tensor]]]:
    """Indices of some ``rows``, whether they count, and their packed batch on the model's device, until all rows came.

    The model is in evaluation mode meanwhile. A batch has 1,024 tokens on a CPU and 8,192 on an accelerator, which
    fewer would not keep busy. Whoever reads whole ``logits``, which are large, gets 1,024 everywhere, and each row with
    a prompt of its own: a shared prefix moves the last bits. If the work is ``divided``, each rank gets its share, in
    which a batch that another rank has too does not count; otherwise each gets everything.
    """
    tokens = CPU_TOKENS if logits or model.device.type == "cpu" else ACCELERATOR_TOKENS
    batches = batches_by_length(rows, tokens)
    was_training = model.training
    model.eval()
    try:
        for indices, counts in my_share(batches) if divided else [(batch, True) for batch in batches]:
            some = [rows[i] for i in indices]
            packed = pack(some, 0 if logits else shared_header(some))
            yield indices, counts, {key: value.to(model.device) for key, value in packed.items()}
    finally:
        model.train(was_training)


@torch.no_grad()
def row_losses(model: Any, rows: Sequence[Encoded]) -> list[float]:
    """Mean loss of each row's answer in nats per token, without gradients and dropout; ranks divide the work."""
    means = torch.zeros(len(rows), dtype=torch.float64, device=model.device)
    for indices, counts, batch in packed_batches(model, rows, divided=True):
        losses = row_means(-completion_log_probs(model, batch), batch["row"], len(indices))
        if counts:
            means[indices] = losses.double()
    return [float(mean) for mean in sum_over_ranks(means)]


@torch.no_grad()
def token_log_probs(model: Any, rows: Sequence[Encoded]) -> list[list[float]]:
    """Log-probability of each token of each row's answer in nats, without gradients and dropout."""
    found: list[list[float]] = [[] for _ in rows]
    for indices, _, batch in packed_batches(model, rows):
        log_probs = completion_log_probs(model, batch)
        for place, index in enumerate(indices):
            found[index] = log_probs[batch["row"] == place].tolist()
    return found


def check_rows_apart(model: Any) -> None:
    """Raise ModelError if a packed row sees the one before it, as it does through a convolution or a recurrent state.

    Two rows are packed in one order and in the other, which must not move their log-probabilities: the first row has
    nothing before it. Both orders have the same tokens, so that products have the same shapes and round alike. What a
    row sees of another may be less than rounding allows, so neither may have a gradient in the other's embeddings.
    """
    size = 6
    tokens = torch.arange(2 * size) * (model.get_input_embeddings().num_embeddings // (2 * size))
    rows = [Encoded(tuple(half.tolist()), 1) for half in tokens.split(size)]
    problem = "in a packed sequence a row would see the one before it"
    try:
        found, other_way = (torch.tensor(token_log_probs(model, order)) for order in (rows, rows[::-1]))
        rounding = torch.finfo(model.dtype).eps ** 0.5
        is_alike = torch.allclose(found, other_way.flip(0), rtol=rounding, atol=rounding, equal_nan=True)
        if is_alike and not _is_seen_by_the_other(model, rows):
            return
    except (KeyError, TypeError, ValueError) as error:  # an attention of its own, which knows nothing of packed rows
        problem = f"its forward does not take packed rows ({type(error).__name__}: {error})"
    raise ModelError(
        f"Models of the type {model.config.model_type} are not supported: {problem}. Give a model whose layers are all "
        "attention, such as a Llama or a Qwen3."
    )


def _is_seen_by_the_other(model: Any, rows: Sequence[Encoded]) -> bool:
    """Whether the log-probabilities of one of two rows have a gradient in the embeddings of the other."""
    leaves: list[torch.Tensor] = []

    def as_leaf(module: torch.nn.Module, inputs: Any, embedded: torch.Tensor) -> torch.Tensor:
        del module, inputs
        leaves.append(embedded.detach().requires_grad_())
        return leaves[-1]

    hook = model.get_input_embeddings().register_forward_hook(as_leaf)
    try:
        with torch.enable_grad():
            _, _, batch = next(packed_batches(model, rows))
            log_probs = completion_log_probs(model, batch)
    finally:
        hook.remove()
    first = len(rows[0].input_ids)
    of_second, of_first = (
        torch.autograd.grad(log_probs[batch["row"] == row].sum(), leaves[0], retain_graph=True)[0][0] for row in (1, 0)
    )
    return bool(of_second[:first].nan_to_num().any() or of_first[first:].nan_to_num().any())
