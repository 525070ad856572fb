"""TRL's SFTTrainer on packed question-answer rows, and the unlearning methods on top of it.

The rows come tokenised, with the answer's beginning marked, so the trainer prepares nothing. Both trainers normalise
by the answer tokens of the whole optimizer step: means per micro-batch would make the gradient depend on how a step
is split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DistributedType
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, SchedulerType
from transformers.training_args import OptimizerNames
from trl import SFTTrainer

from datasets_prep.schema import Encoded
from pipeline.errors import RecipeError, TrainingError
from pipeline.ranks import ranks
from pipeline.unlearn import losses
from pipeline.unlearn.attention import ROWS_SDPA
from pipeline.unlearn.completion import (
    completion_log_probs,
    completion_logits,
    pack,
    shared_header,
    target_log_probs,
)
from pipeline.unlearn.config import ASCENDING, UnlearnConfig
from pipeline.unlearn.guards import StepRefused, check_step
from pipeline.unlearn.pairing import Pair
from pipeline.unlearn.reference import BaseDistribution

NOT_THIS = -1  # in `forget_row` of a retain row, and in `retain_row` of a forget row


def row_dataset(rows: Sequence[Encoded]) -> Dataset:
    """One item a row, for :class:`CompletionTrainer`."""
    return _dataset([[(row, NOT_THIS, i)] for i, row in enumerate(rows)])


def pair_dataset(pairs: Sequence[Pair], forget: Sequence[Encoded], retain: Sequence[Encoded]) -> Dataset:
    """One item a pair: the forget row, if it has one, and its retain rows, for :class:`UnlearnTrainer`."""
    items = []
    for pair in pairs:
        first = [] if pair.forget is None else [(forget[pair.forget], pair.forget, NOT_THIS)]
        items.append([*first, *((retain[i], NOT_THIS, i) for i in pair.retain)])
    return _dataset(items)


NO_ROW = Encoded((0, 0), 2)  # for a rank that has no row left: a forward like the others', without a token to learn


def _even(dataset: Dataset, multiple: int) -> Dataset:
    """The dataset with empty items at its end, so that all ranks get equally many. Accelerate would repeat rows."""
    missing = -len(dataset) % multiple
    empty = Dataset.from_dict({name: [[]] * missing for name in COLUMNS}, features=dataset.features)
    return concatenate_datasets([dataset, empty]) if missing else dataset


class EvenSampler(Sampler[int]):
    """The order in which one process alone would draw ``rows`` items, then the empty ones up to ``size``."""

    def __init__(self, rows: int, size: int, data_seed: int | None) -> None:
        self.drawn = SeedableRandomSampler(range(rows), data_seed=data_seed)  # accelerate's own, as for one process
        self.size = size

    def __iter__(self) -> Iterator[int]:
        yield from self.drawn
        yield from range(len(self.drawn), self.size)

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch."""
        self.drawn.set_epoch(epoch)


def _dataset(items: list[list[tuple[Encoded, int, int]]]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [[list(row.input_ids) for row, _, _ in item] for item in items],
            "completion_start": [[row.completion_start for row, _, _ in item] for item in items],
            "forget_row": [[forget for _, forget, _ in item] for item in items],
            "retain_row": [[retain for _, _, retain in item] for item in items],
        }
    )


COLUMNS = ("input_ids", "completion_start", "forget_row", "retain_row")


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pack all rows of the items, forget rows first.

    Adds ``is_forget`` (N,), a boolean for each completion token, and ``forget_row`` and ``retain_row`` (B,), the index
    of each row among the forget and among the retain rows, or -1.
    """
    rows = [
        (forget, retain, Encoded(tuple(ids), start))
        for item in items
        for ids, start, forget, retain in zip(*(item[name] for name in COLUMNS), strict=True)
    ]
    if not rows:
        rows = [(NOT_THIS, NOT_THIS, NO_ROW)]
    rows.sort(key=lambda row: row[0] == NOT_THIS)  # stable
    encoded = [row for _, _, row in rows]
    batch = pack(encoded, shared_header(encoded))
    batch["forget_row"] = torch.tensor([forget for forget, _, _ in rows])
    batch["retain_row"] = torch.tensor([retain for _, retain, _ in rows])
    batch["is_forget"] = (batch["forget_row"] != NOT_THIS)[batch["row"]]
    return batch


class Counts(NamedTuple):
    """What the means of a loss divide by: answer tokens of both kinds, and forget rows. Tensors without dimensions."""

    forget_tokens: torch.Tensor
    retain_tokens: torch.Tensor
    forget_rows: torch.Tensor


def counts_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The counts of one micro-batch, and 1 for itself (0 where a rank had no row left for it), shape (4,)."""
    forget = batch["is_forget"].sum()
    is_row = batch["forget_row"] != NOT_THIS
    holds_rows = (is_row | (batch["retain_row"] != NOT_THIS)).any()
    return torch.stack([forget, len(batch["is_forget"]) - forget, is_row.sum(), holds_rows.long()])


class CompletionTrainer(SFTTrainer):
    """Minimises the cross-entropy of the answers, averaged over the answer tokens of the optimizer step.

    Items come from :func:`row_dataset`. ``log_history`` gets ``retain_loss`` and ``retain_tokens`` (and, in subclasses,
    those of the forget rows) of each optimizer step, over all ranks. Raises StepRefused before a step whose losses or
    gradient are not finite, RecipeError where the device lacks the optimizer.
    """

    forget_name = "forget"  # what the log calls the rows that come first

    def __init__(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if model.config._attn_implementation != ROWS_SDPA:
            raise ValueError(f"rows that share a header need attn_implementation={ROWS_SDPA!r}; load the model with it")
        self.rows = len(kwargs["train_dataset"])
        if ranks() > 1:
            together = ranks() * kwargs["args"].per_device_train_batch_size
            kwargs["train_dataset"] = _even(kwargs["train_dataset"], together)
        try:
            super().__init__(model, data_collator=collate, **kwargs)
        except (TypeError, ValueError, ImportError, NotImplementedError) as error:
            raise RecipeError(f"args: the trainer (trl.SFTTrainer) refuses them: {error}") from error
        self.remove_callback(PrinterCallback)  # steps are reported by `guards.Watch`
        # compute_loss divides by the tokens of the step, so Trainer must not divide by the number of micro-batches.
        self.loss_is_scaled_for_ga = True  # type: ignore[assignment]
        self._sums = torch.zeros(4, dtype=torch.float64)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of ``args.optim``."""
        try:
            return cast("torch.optim.Optimizer", super().create_optimizer(model))
        except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
            raise RecipeError(
                f"args.optim is {OptimizerNames(self.args.optim).value}, which cannot be made for the device "
                f"{self.args.device}: {error}. Take adamw_torch, which every device has."
            ) from error

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule of ``args.lr_scheduler_type``."""
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except (TypeError, ValueError, KeyError) as error:
            raise RecipeError(
                f"args.lr_scheduler_type is {SchedulerType(self.args.lr_scheduler_type).value} and "
                f"args.lr_scheduler_kwargs {self.args.lr_scheduler_kwargs or 'not given'}, of which no schedule can be "
                f"made: {error}"
            ) from error

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        dataset = train_dataset if train_dataset is not None else cast("Dataset", self.train_dataset)
        if ranks() == 1:
            return cast("Sampler[int] | None", super()._get_train_sampler(dataset))
        return EvenSampler(self.rows, len(dataset), self.args.data_seed)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(COLUMNS)  # type: ignore[assignment]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Forget and retain answer tokens, forget rows and micro-batches of the optimizer step over all ranks, (4,)."""
        counts = torch.stack([counts_of(batch) for batch in batch_samples]).sum(0).to(device)
        return self.accelerator.reduce(counts, reduction="sum")

    def log_probs(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of the completion tokens, shape (N,)."""
        return completion_log_probs(model, inputs)

    def step_loss(self, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], step: torch.Tensor) -> torch.Tensor:
        """The micro-batch's part of the loss of the step, whose counts are ``step``."""
        return losses.negative_log_likelihood(log_probs, step[:2].sum())

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
        log_probs = self.log_probs(model, inputs)
        loss = self.step_loss(log_probs, inputs, num_items_in_batch)
        self._count(-log_probs.detach(), inputs["is_forget"])
        if self._steps_in_backward and self.accelerator.sync_gradients:
            check_step(self.state.global_step + 1, self._step_losses(), self._ceiling())
        # DDP averages gradients over ranks, while the divisor already counts the tokens of all of them.
        return loss * self.accelerator.num_processes

    def _count(self, nll: torch.Tensor, is_forget: torch.Tensor) -> None:
        forget, retain = nll[is_forget].double(), nll[~is_forget].double()
        parts = [forget.sum(), forget.new_tensor(len(forget)), retain.sum(), retain.new_tensor(len(retain))]
        self._sums += torch.stack(parts).cpu()

    def _step_losses(self) -> dict[str, float]:
        """Both losses and token counts since the last log, over all ranks."""
        sums = self.accelerator.reduce(self._sums.to(self.accelerator.device), reduction="sum").tolist()
        found: dict[str, float] = {}
        for name, total, tokens in ((self.forget_name, *sums[:2]), ("retain", *sums[2:])):
            if tokens:
                found |= {f"{name}_loss": total / tokens, f"{name}_tokens": int(tokens)}
        return found

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Trainer's, and the last look at a step before the optimizer takes it."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        numbers = self._step_losses() | ({} if norm is None else {"grad_norm": float(norm)})
        try:
            check_step(self.state.global_step + 1, numbers, self._ceiling())
        except StepRefused as refused:
            if not self._steps_in_backward:
                raise
            raise TrainingError(
                f"{refused}, and DeepSpeed has taken it: the weights are spoilt, and nothing was kept. Lower the "
                "learning rate, or launch another way than zero3."
            ) from refused
        return norm

    @property
    def _steps_in_backward(self) -> bool:
        """Whether the optimizer's step is part of the backward pass, so that losses must be looked at before it."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _ceiling(self) -> float | None:
        """The bound of the forget loss, where there is one."""
        return None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add both losses and token counts of the step."""
        logs |= self._step_losses()
        self._sums.zero_()
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the card of a release is made by the card stage from measured results."""


class UnlearnTrainer(CompletionTrainer):
    """Minimises forget_weight x forget term + retain_weight x retain term of ``config.method``.

    Items come from :func:`pair_dataset` and are taken in their order. ``forget_caps``, one bound a forget row in nats
    per token, may be set and changed at any time. ``reference`` is base's log-probability of each forget answer, for
    npo; ``base`` has base's distributions, for a KL retain term; ``retain_bound`` is what a dual weight holds to.
    """

    def __init__(self, model: PreTrainedModel, *, config: UnlearnConfig, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.config = config
        self.forget_caps: torch.Tensor | None = None
        self.reference: torch.Tensor | None = None
        self.base: BaseDistribution | None = None
        self.retain_bound = 0.0
        if config.method == "po":
            self.forget_name = "refusal"
        self._logits: torch.Tensor | None = None
        self._forget_gradient: list[torch.Tensor] | None = None
        self._norms: dict[str, float] = {}
        plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
        if config.gradient_norms_every and self.accelerator.distributed_type not in plain:
            raise RecipeError(
                f"unlearn.gradient_norms_every needs whole gradients on each rank, and this run shards them "
                f"({self.accelerator.distributed_type.value}). Set it to 0."
            )
        checkpointing = cast("dict[str, Any] | None", self.args.gradient_checkpointing_kwargs) or {}
        if config.gradient_norms_every and checkpointing.get("use_reentrant"):
            raise RecipeError(
                "unlearn.gradient_norms_every takes the gradient of one term, which reentrant checkpointing cannot "
                "give. Take use_reentrant out of args.gradient_checkpointing_kwargs, or set gradient_norms_every to 0."
            )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else cast("Dataset", self.train_dataset))

    def log_probs(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of the completion tokens, shape (N,); keeps their logits for a KL retain term."""
        if self.base is None:
            return super().log_probs(model, inputs)
        self._logits = completion_logits(model, inputs)
        return target_log_probs(self._logits, inputs["targets"])

    def step_loss(self, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], step: torch.Tensor) -> torch.Tensor:
        """The micro-batch's part of the loss of the step, whose counts are ``step``."""
        counts = Counts(*step[:3])
        if self.config.loss_normalization == "microbatch_mean":
            counts = Counts(*(counts_of(inputs)[:3] * step[3]))
        loss = log_probs.new_zeros(())
        if self.config.method != "ga":
            loss = loss + self.retain_weight * self._retain_term(log_probs, inputs, counts)
        if self.config.method != "ft":
            weight = 1.0 if self.config.forget_weight is None else self.config.forget_weight
            forget = weight * self._forget_term(log_probs, inputs, counts)
            if self._measures_norms:
                self._add_forget_gradient(forget)
            loss = loss + forget
        self._logits = None
        return loss

    def _retain_term(self, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], counts: Counts) -> torch.Tensor:
        retain = ~inputs["is_forget"]
        if self.base is None or self._logits is None:
            return losses.negative_log_likelihood(log_probs[retain], counts.retain_tokens)
        rows = [row for row in inputs["retain_row"].tolist() if row != NOT_THIS]
        if not rows:
            return log_probs[retain].sum()  # zero: a rank without rows takes part in the backward pass
        logits = self._logits[int(inputs["is_forget"].sum()) :]  # forget rows come first
        return losses.kl_from_base(logits, self.base.logits(rows, logits.device), counts.retain_tokens)

    def _forget_term(self, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], counts: Counts) -> torch.Tensor:
        config, forget = self.config, inputs["is_forget"]
        log_probs, row = log_probs[forget], inputs["row"][forget]
        rows = inputs["forget_row"][inputs["forget_row"] != NOT_THIS]
        caps = None if self.forget_caps is None else self.forget_caps.to(rows.device)[rows]
        beta, gamma = config.beta or 0.0, config.gamma or 0.0
        if config.method == "po":
            return losses.negative_log_likelihood(log_probs, counts.forget_tokens)
        if config.method == "wga":
            return losses.weighted_gradient_ascent(log_probs, row, counts.forget_tokens, beta=beta, caps=caps)
        if config.method == "npo":
            reference = cast("torch.Tensor", self.reference).to(rows.device)[rows]
            return losses.negative_preference(log_probs, row, counts.forget_rows, reference=reference, beta=beta)
        if config.method == "simnpo":
            return losses.simple_negative_preference(
                log_probs, row, counts.forget_rows, here=len(rows), beta=beta, gamma=gamma
            )
        return losses.gradient_ascent(log_probs, row, counts.forget_tokens, caps=caps)

    def _ceiling(self) -> float | None:
        """ln|V|, where the method pushes the loss up. A base that starts above it never knew the rows: no bound."""
        uniform = math.log(cast("PreTrainedModel", self.model).config.vocab_size)
        first = next((entry["forget_loss"] for entry in self.state.log_history if "forget_loss" in entry), None)
        first = self._step_losses().get("forget_loss", 0.0) if first is None else first
        return uniform if self.config.method in ASCENDING and first <= uniform else None

    @property
    def retain_weight(self) -> float:
        """The weight of the next step: the recipe's, or under a dual weight what the last step made of it."""
        start = 1.0 if self.config.retain_weight is None else self.config.retain_weight
        if self.config.dual is None:
            return start
        history = reversed(self.state.log_history)  # which comes back from a checkpoint
        return float(next((entry["retain_weight"] for entry in history if "retain_weight" in entry), start))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the retain weight of the next step under a dual weight, and the gradient norms of both terms."""
        dual, found = self.config.dual, self._step_losses()
        if dual and "retain_loss" in found:
            logs["retain_weight"] = max(
                0.0, self.retain_weight + dual.rate * (found["retain_loss"] - self.retain_bound)
            )
        logs |= self._norms
        self._norms = {}
        super().log(logs, start_time)

    @property
    def _measures_norms(self) -> bool:
        every = self.config.gradient_norms_every
        return every > 0 and (self.state.global_step + 1) % every == 0

    def _add_forget_gradient(self, forget: torch.Tensor) -> None:
        """The forget term's own gradient; what the whole gradient has beyond it is the retain term's."""
        gradient = torch.autograd.grad(forget, self._trained(), retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(self._trained(), gradient, strict=True)]
        before = self._forget_gradient
        self._forget_gradient = parts if before is None else [a + b for a, b in zip(before, parts, strict=True)]

    def _trained(self) -> list[torch.nn.Parameter]:
        model = cast("torch.nn.Module", self.model)
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trainer's; after the last micro-batch of a step the norms are taken, before gradients are clipped."""
        loss = super().training_step(*args, **kwargs)
        if self._forget_gradient is not None and self.accelerator.sync_gradients:
            # compute_loss scales by the number of ranks and DDP averages: in all a sum over ranks.
            forget = [self.accelerator.reduce(part, reduction="sum") for part in self._forget_gradient]
            whole = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._trained()]
            self._norms = {
                "forget_grad_norm": float(torch.stack([f.norm() for f in forget]).norm()),
                "retain_grad_norm": float(
                    torch.stack([(w - f).norm() for w, f in zip(whole, forget, strict=True)]).norm()
                ),
            }
            self._forget_gradient = None
        return loss
