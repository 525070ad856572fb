"""TRL's SFTTrainer on packed question-answer rows.

The rows are tokenised already, with the beginning of the answer marked, so the trainer prepares nothing. Losses are
averaged over the answer tokens of the whole optimizer step: with means per micro-batch the gradient would depend on how
a step is split into micro-batches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from accelerate.data_loader import SeedableRandomSampler
from accelerate.utils import DistributedType
from datasets import Dataset, concatenate_datasets
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import Sampler
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    SchedulerType,
)
from transformers.training_args import OptimizerNames
from trl import SFTTrainer

from core.errors import RecipeError, TrainingError
from core.ranks import world_size
from datasets_prep.schema import Encoded
from pipeline.train.arguments import training_arguments
from pipeline.train.attention import ROWS_SDPA
from pipeline.train.guards import StepRefused, check_step
from pipeline.train.packed import completion_log_probs, negative_log_likelihood, pack, shared_header

NOT_THIS = -1  # in the two other columns of KINDS: a row is of one kind
KINDS = ("forget_row", "alternate_row", "retain_row")
"""What a row of a batch may be, in the order of the batch: its index among the rows of its kind has this name."""


def row_dataset(rows: Sequence[Encoded]) -> Dataset:
    """One item per row, for :class:`CompletionTrainer`."""
    return packed_dataset([[(row, "retain_row", i)] for i, row in enumerate(rows)])


NO_ROW = Encoded((0, 0), 2)  # for a rank without a row: it runs a forward like the others, without a token to learn


def _even(dataset: Dataset, multiple: int) -> Dataset:
    """The dataset, padded with empty items so that all ranks get equally many. Accelerate would repeat rows."""
    missing = -len(dataset) % multiple
    empty = Dataset.from_dict({name: [[]] * missing for name in COLUMNS}, features=dataset.features)
    return concatenate_datasets([dataset, empty]) if missing else dataset


class EvenSampler(Sampler[int]):
    """The order in which a single process would draw ``rows`` items, then the empty items up to ``size``."""

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


def packed_dataset(items: list[list[tuple[Encoded, str, int]]]) -> Dataset:
    """Items of rows; each row has its kind (one of :data:`KINDS`) and its index among the rows of that kind."""
    return Dataset.from_dict(
        {
            "input_ids": [[list(row.input_ids) for row, _, _ in item] for item in items],
            "completion_start": [[row.completion_start for row, _, _ in item] for item in items],
            **{kind: [[i if of == kind else NOT_THIS for _, of, i in item] for item in items] for kind in KINDS},
        }
    )


COLUMNS = ("input_ids", "completion_start", *KINDS)


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pack all rows of the items: forget rows first, then alternatives to their answers, then retain rows.

    Adds ``is_forget`` and ``is_retain`` (N,), booleans for each completion token, and each of :data:`KINDS` (B,): each
    row's index among the rows of that kind, or -1.
    """
    rows = [
        (indices, Encoded(tuple(ids), start))
        for item in items
        for ids, start, *indices in zip(*(item[name] for name in COLUMNS), strict=True)
    ]
    if not rows:
        rows = [([NOT_THIS] * len(KINDS), NO_ROW)]
    rows.sort(key=lambda row: [index == NOT_THIS for index in row[0]])  # stable
    encoded = [row for _, row in rows]
    batch = pack(encoded, shared_header(encoded))
    batch |= dict(zip(KINDS, torch.tensor([indices for indices, _ in rows]).unbind(dim=1), strict=True))
    for kind in ("forget", "retain"):
        batch[f"is_{kind}"] = (batch[f"{kind}_row"] != NOT_THIS)[batch["row"]]
    return batch


def counts_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Forget and retain answer tokens, forget rows, and 1 for the micro-batch (0 if it has no row), shape (4,)."""
    tokens = [batch["is_forget"].sum(), batch["is_retain"].sum()]
    is_row = batch["forget_row"] != NOT_THIS
    holds_rows = (is_row | (batch["retain_row"] != NOT_THIS)).any()
    return torch.stack([*tokens, is_row.sum(), holds_rows.long()])


def try_step(args: dict[str, Any], *, bf16: bool) -> None:
    """Take a step of a training with a recipe's ``args``, with a tiny model on one row.

    The trainer notices at its first step what its configuration lets pass. Raises RecipeError if there is none with
    them on this device.
    """
    once = {"max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,  # a weight of 4,096: smaller ones have no moments of 8 bits
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    config._attn_implementation = ROWS_SDPA
    words = Tokenizer(WordLevel({"a": 0, "b": 1}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a", eos_token="b")  # noqa: S106 (tokens)
    with TemporaryDirectory(prefix="unlearn-step-") as folder:
        arguments = training_arguments(
            {**args, **once, "save_strategy": "no", "report_to": "none"}, Path(folder), bf16=bf16
        )
        if arguments.torch_compile or arguments.fsdp or arguments.deepspeed:  # a minute's work, or that of all ranks
            return
        try:
            CompletionTrainer(
                LlamaForCausalLM(config),
                args=arguments,
                train_dataset=row_dataset([Encoded((0, 1, 1), 1)]),
                processing_class=tokenizer,
            ).train()
        except RecipeError:
            raise
        except Exception as error:  # a step raises errors of many unrelated classes
            raise RecipeError(
                f"args: the trainer can take no step with them ({type(error).__name__}: {error}). Correct or remove "
                f"what that is about; if it is args.optim ({OptimizerNames(arguments.optim).value}), adamw_torch is "
                "what every device has."
            ) from error


def _no_optimizer(optimizer: Any, device: Any, error: Exception) -> RecipeError:
    return RecipeError(
        f"args.optim is {OptimizerNames(optimizer).value}, which cannot be made for the device {device}: {error}. Set "
        "adamw_torch, which every device has."
    )


class CompletionTrainer(SFTTrainer):
    """Minimises the cross-entropy of the answers, averaged over the answer tokens of the optimizer step.

    Items come from :func:`row_dataset`. ``log_history`` gets ``retain_loss`` and ``retain_tokens`` of each optimizer
    step over all ranks, and in subclasses those of the forget rows too. Raises StepRefused before a step whose losses
    or gradient are not finite, RecipeError if the device lacks the optimizer.
    """

    forget_name = "forget"  # the log's name for the rows that come first

    def __init__(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if model.config._attn_implementation != ROWS_SDPA:
            raise ValueError(f"a shared prefix needs attn_implementation={ROWS_SDPA!r}; load the model with it")
        self.rows = len(kwargs["train_dataset"])
        if world_size() > 1:
            items = world_size() * kwargs["args"].per_device_train_batch_size
            kwargs["train_dataset"] = _even(kwargs["train_dataset"], items)
        try:
            super().__init__(model, data_collator=collate, **kwargs)
        except (TypeError, ValueError, AttributeError, ImportError, NotImplementedError) as error:
            raise RecipeError(f"args: the trainer (trl.SFTTrainer) refuses them: {error}") from error
        for parameter in model.parameters():
            if (
                parameter.requires_grad
            ):  # TRL makes adapters over 4-bit weights bfloat16: most steps would round to none
                parameter.data = parameter.data.float()
        self.remove_callback(PrinterCallback)  # steps are reported by `guards.Watch`
        # compute_loss divides by the tokens of the step, so Trainer must not divide by the number of micro-batches.
        self.loss_is_scaled_for_ga = True  # type: ignore[assignment]
        self._sums = torch.zeros(4, dtype=torch.float64)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As of Trainer, after which nothing of the model is held.

        The Trainer names embeddings to bitsandbytes, which would keep those of every model to the end of the process.
        """
        try:
            return super().train(*args, **kwargs)
        finally:
            if optim := sys.modules.get("bitsandbytes.optim"):
                optim.GlobalOptimManager.get_instance().initialize()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer of ``args.optim``."""
        try:
            return cast("torch.optim.Optimizer", super().create_optimizer(model))
        except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
            raise _no_optimizer(self.args.optim, self.args.device, error) from error

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule of ``args.lr_scheduler_type``."""
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except (TypeError, ValueError, KeyError) as error:
            raise RecipeError(
                f"args.lr_scheduler_type is {SchedulerType(self.args.lr_scheduler_type).value} and "
                f"args.lr_scheduler_kwargs {self.args.lr_scheduler_kwargs or 'not given'}; no schedule can be made of "
                f"them: {error}"
            ) from error

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        dataset = train_dataset if train_dataset is not None else cast("Dataset", self.train_dataset)
        if world_size() == 1:
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
        """The micro-batch's part of the optimizer step's loss; ``step`` are the counts of the whole step."""
        return negative_log_likelihood(log_probs, step[:2].sum())

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
        self._count(-log_probs.detach(), inputs)
        if self._steps_in_backward and self.accelerator.sync_gradients:
            check_step(self.state.global_step + 1, self._step_losses(), self._ceiling())
        # DDP averages gradients over ranks, but the divisor already counts the tokens of all ranks.
        return loss * self.accelerator.num_processes

    def _count(self, nll: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        forget, retain = (nll[inputs[f"is_{kind}"]].double() for kind in ("forget", "retain"))
        parts = [forget.sum(), forget.new_tensor(len(forget)), retain.sum(), retain.new_tensor(len(retain))]
        self._sums += torch.stack(parts).cpu()

    def _step_losses(self) -> dict[str, float]:
        """Both losses and token counts since the last log entry, over all ranks."""
        sums = self.accelerator.reduce(self._sums.to(self.accelerator.device), reduction="sum").tolist()
        losses: dict[str, float] = {}
        for name, total, tokens in ((self.forget_name, *sums[:2]), ("retain", *sums[2:])):
            if tokens:
                losses |= {f"{name}_loss": total / tokens, f"{name}_tokens": int(tokens)}
        return losses

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """As of Trainer, with the last check of a step before the optimizer takes it."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        numbers = self._step_losses() | ({} if norm is None else {"grad_norm": float(norm)})
        try:
            check_step(self.state.global_step + 1, numbers, self._ceiling())
        except StepRefused as refused:
            if not self._steps_in_backward:
                raise
            raise TrainingError(
                f"{refused}, and DeepSpeed has taken it: the weights are spoilt, and nothing was kept. Lower the "
                "learning rate, or use another launch than zero3."
            ) from refused
        return norm

    @property
    def _steps_in_backward(self) -> bool:
        """Whether the optimizer's step is part of the backward pass, so that losses must be checked before it."""
        return self.accelerator.distributed_type == DistributedType.DEEPSPEED

    def _ceiling(self) -> float | None:
        """The bound of the forget loss, or None."""
        return None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log both losses and token counts of the step too."""
        logs |= self._step_losses()
        self._sums.zero_()
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the card stage makes the card from measured results."""
