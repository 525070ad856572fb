"""Base's predictions, measured once before the first step, so that no second model is in memory during training.

NPO compares a row's log-probability with base's, one number per row. A KL retain term compares whole distributions;
stored for all rows, they would be as large as the vocabulary times the answer tokens. So base's last hidden states are
kept, and its head turns those of a batch into logits when they are needed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from core.errors import ModelError
from datasets_prep.schema import Encoded
from pipeline.train.packed import (
    batches_by_length,
    completion_log_probs,
    completion_logits,
    pack,
    row_losses,
    shared_header,
)

Precision = Callable[[], AbstractContextManager[Any]]  # the trainer's own, so that step one starts from a ratio of one


def answer_log_probs(model: Any, rows: Sequence[Encoded], precision: Precision) -> torch.Tensor:
    """Log-probability of each row's whole answer in nats, shape (rows,), without gradients."""
    with precision():
        means = row_losses(model, rows)
    sizes = [len(row.input_ids) - row.completion_start for row in rows]
    return torch.tensor([-mean * size for mean, size in zip(means, sizes, strict=True)])


def token_log_probs(model: Any, rows: Sequence[Encoded], *, batch_tokens: int = 1024) -> list[list[float]]:
    """Log-probability of each token of each row's answer in nats, without gradients and dropout."""
    was_training = model.training
    model.eval()
    found: list[list[float]] = [[] for _ in rows]
    with torch.no_grad():
        for indices in batches_by_length(rows, batch_tokens):
            some = [rows[i] for i in indices]
            batch = {key: value.to(model.device) for key, value in pack(some, shared_header(some)).items()}
            log_probs = completion_log_probs(model, batch)
            for place, index in enumerate(indices):
                found[index] = log_probs[batch["row"] == place].tolist()
    model.train(was_training)
    return found


class BaseDistribution:
    """Base's next-token distributions at the answer tokens of some rows.

    Keeps float32 hidden states on the CPU (bfloat16 if the training multiplies in it), and a copy of the head if the
    head is trained. Raises ModelError if the model's logits are not its head applied to its hidden states.
    """

    def __init__(
        self, model: Any, rows: Mapping[int, Encoded], precision: Precision, *, batch_tokens: int = 1024
    ) -> None:
        head = model.get_output_embeddings()
        trained = any(parameter.requires_grad for parameter in head.parameters())
        self.head = copy.deepcopy(head).requires_grad_(False) if trained else head
        self.precision = precision
        self.hidden: dict[int, torch.Tensor] = {}
        captured: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
        was_training = model.training
        model.eval()
        try:
            names = list(rows)
            for batch in batches_by_length([rows[name] for name in names], batch_tokens):
                self._measure(model, {names[i]: rows[names[i]] for i in batch}, captured)
        finally:
            hook.remove()
            model.train(was_training)

    def _measure(self, model: Any, rows: Mapping[int, Encoded], captured: list[torch.Tensor]) -> None:
        captured.clear()
        with torch.no_grad(), self.precision():
            batch = {key: value.to(model.device) for key, value in pack(list(rows.values())).items()}
            logits = completion_logits(model, batch)
            hidden = captured[0].flatten(0, -2)
            same = hidden.shape[0] == len(logits)
            if not same or not torch.allclose(self.head(hidden).float(), logits, rtol=1e-2, atol=1e-2):
                raise ModelError(
                    "unlearn: a KL retain term needs a model whose logits are its head applied to the last hidden "
                    f"states, and {type(model).__name__} changes them afterwards. Set retain_loss: nll."
                )
            if torch.is_autocast_enabled(model.device.type):
                hidden = hidden.to(torch.get_autocast_dtype(model.device.type))  # as the head would
        for index, name in enumerate(rows):
            self.hidden[name] = hidden[batch["row"] == index].cpu()

    def logits(self, rows: Sequence[int], device: torch.device) -> torch.Tensor:
        """Base's logits at the answer tokens of ``rows``, in their order, shape (N, V), float32."""
        hidden = torch.cat([self.hidden[row] for row in rows]).to(device)
        with torch.no_grad(), self.precision():
            logits: torch.Tensor = self.head(hidden).float()
        return logits
