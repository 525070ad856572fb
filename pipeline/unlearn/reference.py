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
from core.progress import report
from datasets_prep.schema import Encoded
from pipeline.train.packed import completion_logits, packed_batches, row_losses

Precision = Callable[[], AbstractContextManager[Any]]  # the trainer's own, so that step one starts from a ratio of one


def answer_log_probs(model: Any, rows: Sequence[Encoded], precision: Precision) -> torch.Tensor:
    """Log-probability of each row's whole answer in nats, shape (rows,), without gradients."""
    with precision():
        means = row_losses(model, rows)
    sizes = [len(row.input_ids) - row.completion_start for row in rows]
    return torch.tensor([-mean * size for mean, size in zip(means, sizes, strict=True)])


class BaseDistribution:
    """Base's next-token distributions at the answer tokens of some rows.

    Keeps float32 hidden states on the CPU (bfloat16 if the training multiplies in it), and a copy of the head if the
    head is trained. Raises ModelError if the model's logits are not its head applied to its hidden states.
    """

    @torch.no_grad()
    def __init__(self, model: Any, rows: Mapping[Any, Encoded], precision: Precision) -> None:
        head = model.get_output_embeddings()
        trained = any(parameter.requires_grad for parameter in head.parameters())
        self.head = copy.deepcopy(head).requires_grad_(False) if trained else head
        self.precision = precision
        self.hidden: dict[Any, torch.Tensor] = {}
        captured: list[torch.Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
        names = list(rows)
        try:
            for indices, _, batch in packed_batches(model, list(rows.values()), logits=True):
                report("measuring predictions", len(self.hidden), len(names))
                hidden = self._measure(model, batch, captured)
                for place, index in enumerate(indices):
                    self.hidden[names[index]] = hidden[batch["row"] == place].cpu()
        finally:
            hook.remove()

    def _measure(self, model: Any, batch: dict[str, torch.Tensor], captured: list[torch.Tensor]) -> torch.Tensor:
        """The hidden states that the head reads at the answer tokens of a batch, as the hook captures them."""
        captured.clear()
        with self.precision():
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
        return hidden

    def logits(self, rows: Sequence[Any], device: torch.device) -> torch.Tensor:
        """Base's logits at the answer tokens of ``rows``, in their order, shape (N, V), float32."""
        return self.logits_at([(row, range(len(self.hidden[row]))) for row in rows], device)

    def logits_at(self, places: Sequence[tuple[Any, Sequence[int]]], device: torch.device) -> torch.Tensor:
        """Base's logits at these answer tokens of each row, in their order, shape (N, V), float32.

        The head is applied once: for a token or two at a time, reading its weights takes longer than multiplying.
        """
        hidden = torch.cat([self.hidden[row][list(at)] for row, at in places]).to(device)
        with torch.no_grad(), self.precision():
            logits: torch.Tensor = self.head(hidden).float()
        return logits
