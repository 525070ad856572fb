"""TRL's SFTTrainer on packed question-answer rows, and Gradient Difference on top of it.

The rows come tokenised, with the answer's beginning marked, so the trainer prepares nothing. Both trainers normalise
by the answer tokens of the whole optimizer step: means per micro-batch would make the gradient depend on how a step
is split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PrinterCallback
from trl import SFTTrainer

from datasets_prep.schema import Encoded
from pipeline.unlearn import losses
from pipeline.unlearn.attention import ROWS_SDPA
from pipeline.unlearn.completion import completion_log_probs, pack, shared_header
from pipeline.unlearn.pairing import Pair

RETAIN = -1


def row_dataset(rows: Sequence[Encoded]) -> Dataset:
    """One item a row, for :class:`CompletionTrainer`."""
    return _dataset([[(row, RETAIN)] for row in rows])


def pair_dataset(pairs: Sequence[Pair], forget: Sequence[Encoded], retain: Sequence[Encoded]) -> Dataset:
    """One item a pair: the forget row and its retain rows, for :class:`GDTrainer`."""
    return _dataset([[(forget[p.forget], p.forget), *((retain[i], RETAIN) for i in p.retain)] for p in pairs])


def _dataset(items: list[list[tuple[Encoded, int]]]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [[list(row.input_ids) for row, _ in item] for item in items],
            "completion_start": [[row.completion_start for row, _ in item] for item in items],
            "forget_row": [[forget for _, forget in item] for item in items],
        }
    )


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pack all rows of the items, forget rows first.

    Adds ``is_forget`` (N,), a boolean for each completion token, and ``forget_row`` (B,), the index of each row among
    the forget rows, or -1.
    """
    rows = [
        (forget, Encoded(tuple(ids), start))
        for item in items
        for ids, start, forget in zip(item["input_ids"], item["completion_start"], item["forget_row"], strict=True)
    ]
    rows.sort(key=lambda pair: pair[0] == RETAIN)  # stable
    encoded = [row for _, row in rows]
    batch = pack(encoded, shared_header(encoded))
    batch["forget_row"] = torch.tensor([forget for forget, _ in rows])
    batch["is_forget"] = (batch["forget_row"] != RETAIN)[batch["row"]]
    return batch


class CompletionTrainer(SFTTrainer):
    """Minimises the cross-entropy of the answers, averaged over the answer tokens of the optimizer step.

    Items come from :func:`row_dataset`. ``log_history`` gets ``retain_loss`` and ``retain_tokens`` (and, in subclasses,
    ``forget_loss`` and ``forget_tokens``) of each optimizer step, over all ranks.
    """

    def __init__(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if model.config._attn_implementation != ROWS_SDPA:
            raise ValueError(f"rows that share a header need attn_implementation={ROWS_SDPA!r}; load the model with it")
        super().__init__(model, data_collator=collate, **kwargs)
        self.remove_callback(PrinterCallback)  # steps are reported by `guards.Watch`
        # compute_loss divides by the tokens of the step, so Trainer must not divide by the number of micro-batches.
        self.loss_is_scaled_for_ga = True  # type: ignore[assignment]
        self._sums = torch.zeros(4, dtype=torch.float64)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["input_ids", "completion_start", "forget_row"]  # type: ignore[assignment]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Forget and retain answer tokens of the optimizer step over all ranks, shape (2,)."""
        forget = sum(int(batch["is_forget"].sum()) for batch in batch_samples)
        total = sum(len(batch["is_forget"]) for batch in batch_samples)
        tokens = torch.tensor([forget, total - forget], device=device)
        return self.accelerator.reduce(tokens, reduction="sum")

    def step_loss(self, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """The micro-batch's part of the loss of the step. ``tokens`` is (forget, retain)."""
        return losses.negative_log_likelihood(log_probs, tokens.sum())

    def compute_loss(  # type: ignore[override]
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of one packed micro-batch; ``return_outputs`` is not supported (there are no logits to return)."""
        if return_outputs or num_items_in_batch is None:
            raise NotImplementedError("the packed trainers compute training losses only")
        log_probs = completion_log_probs(model, inputs)
        loss = self.step_loss(log_probs, inputs, num_items_in_batch)
        self._count(-log_probs.detach(), inputs["is_forget"])
        # DDP averages gradients over ranks, while the divisor already counts the tokens of all of them.
        return loss * self.accelerator.num_processes

    def _count(self, nll: torch.Tensor, is_forget: torch.Tensor) -> None:
        forget, retain = nll[is_forget].double(), nll[~is_forget].double()
        parts = [forget.sum(), forget.new_tensor(len(forget)), retain.sum(), retain.new_tensor(len(retain))]
        self._sums += torch.stack(parts).cpu()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add both losses and token counts of the steps since the last log."""
        sums = self.accelerator.reduce(self._sums.to(self.accelerator.device), reduction="sum").tolist()
        self._sums.zero_()
        for name, total, tokens in (("forget", *sums[:2]), ("retain", *sums[2:])):
            if tokens:
                logs |= {f"{name}_loss": total / tokens, f"{name}_tokens": int(tokens)}
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the card of a release is made by the card stage from measured results."""


class GDTrainer(CompletionTrainer):
    """Gradient Difference; items come from :func:`pair_dataset` and are taken in their order.

    ``forget_caps``, one bound a forget row in nats per token, may be set and changed at any time.
    """

    def __init__(
        self, model: PreTrainedModel, *, forget_weight: float = 1.0, retain_weight: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(model, **kwargs)
        self.forget_weight, self.retain_weight = forget_weight, retain_weight
        self.forget_caps: torch.Tensor | None = None

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else cast("Dataset", self.train_dataset))

    def step_loss(self, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """The micro-batch's part of :func:`pipeline.unlearn.losses.gradient_difference`."""
        caps = None
        if self.forget_caps is not None:
            caps = self.forget_caps.to(log_probs.device)[inputs["forget_row"].clamp(min=0)]
        return losses.gradient_difference(
            log_probs,
            inputs["is_forget"],
            inputs["row"],
            (tokens[0], tokens[1]),
            forget_weight=self.forget_weight,
            retain_weight=self.retain_weight,
            caps=caps,
        )
