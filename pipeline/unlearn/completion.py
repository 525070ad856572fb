"""Rows packed into one sequence, and the log-probabilities of their answers with the LM head only where it is needed.

Training and scoring share this forward. A batch is one sequence of length T that holds B rows one after another; the
position ids restart at each row, and no row sees another: under `pipeline.unlearn.attention` by layout, under any other
attention of transformers by the block-diagonal mask that it builds from such position ids. No token is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasets_prep.schema import Encoded

if TYPE_CHECKING:
    import torch


def pack(rows: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """One packed sequence of B rows with T tokens, N of them in completions.

    Returns ``input_ids`` and ``position_ids`` of shape (1, T), and of shape (N,): ``predict_from``, the index whose
    hidden state predicts the token, ``targets``, the token, and ``row``, the index of its row in ``rows``; and the
    layout that :mod:`pipeline.unlearn.attention` needs.
    """
    import torch

    from pipeline.unlearn.attention import row_layout

    ids: list[int] = []
    positions: list[int] = []
    predict_from: list[int] = []
    row_of: list[int] = []
    for index, row in enumerate(rows):
        start = len(ids)
        ids += row.input_ids
        positions += range(len(row.input_ids))
        completion = range(start + row.completion_start, start + len(row.input_ids))
        predict_from += [i - 1 for i in completion]
        row_of += [index] * len(completion)
    input_ids = torch.tensor([ids])
    source = torch.tensor(predict_from)
    return {
        "input_ids": input_ids,
        "position_ids": torch.tensor([positions]),
        "predict_from": source,
        "targets": input_ids[0, source + 1],
        "row": torch.tensor(row_of),
        **row_layout([len(row.input_ids) for row in rows]),
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
    return target_log_probs(completion_logits(model, batch), batch["targets"])


def target_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of shape (N,) of ``targets`` (N,) under ``logits`` (N, V)."""
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)


def row_means(values: torch.Tensor, row: torch.Tensor, rows: int) -> torch.Tensor:
    """Mean of ``values`` (N,) over the tokens of each row, shape (rows,)."""
    sums = values.new_zeros(rows).index_add_(0, row, values)
    counts = values.new_zeros(rows).index_add_(0, row, values.new_ones(len(values)))
    return sums / counts


def batches_by_length(rows: Sequence[Encoded], batch_tokens: int) -> list[list[int]]:
    """Indices of ``rows``, shortest first, in batches of at most ``batch_tokens`` (a longer row stands alone)."""
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


def row_losses(model: Any, rows: Sequence[Encoded], *, batch_tokens: int = 1024) -> list[float]:
    """Mean loss of each row's answer, nats per token, without gradients and in evaluation mode."""
    import torch

    was_training = model.training
    model.eval()
    means = [0.0] * len(rows)
    with torch.no_grad():
        for indices in batches_by_length(rows, batch_tokens):
            batch = {k: v.to(model.device) for k, v in pack([rows[i] for i in indices]).items()}
            losses = row_means(-completion_log_probs(model, batch), batch["row"], len(indices))
            for index, loss in zip(indices, losses.tolist(), strict=True):
                means[index] = loss
    model.train(was_training)
    return means
