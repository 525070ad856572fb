"""The unlearning methods: one trainer whose loss is a forget term and a retain term."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel

from core.errors import RecipeError
from datasets_prep.schema import Encoded
from pipeline.train.packed import completion_logits, negative_log_likelihood, target_log_probs
from pipeline.train.trainer import NOT_THIS, CompletionTrainer, counts_of, packed_dataset
from pipeline.unlearn import losses
from pipeline.unlearn.config import ASCENDING, UnlearnConfig
from pipeline.unlearn.counterfactual import Counterfactual
from pipeline.unlearn.pairing import Pair
from pipeline.unlearn.reference import BaseDistribution

AIM_FROM = 0.4
"""The share of the steps after which the pull aims lower by what is missing. Before, tokens are still on their way."""
AIM_RATE = 0.2
"""What a pass adds to that for each nat that tokens are above their levels on average, less what is allowed.

A row moves when it is seen, once a pass. A rate by steps would wind up where a pass has many (0102).
"""
AIM_ALLOWS = 0.25
"""So many nats above: truth ratios compare with false answers, which gold finds a little less likely than base."""


def pair_dataset(
    pairs: Sequence[Pair],
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    guides: Sequence[Sequence[Encoded]] = (),
) -> Dataset:
    """One item per pair, for :class:`UnlearnTrainer`: the forget row, if it has one, the false answer, and retain rows.

    ``guides`` are the false answers to each forget row's question; the index of one counts those of earlier rows too.
    """
    starts = list(accumulate(map(len, guides), initial=0))
    items = []
    for pair in pairs:
        item = [] if pair.forget is None else [(forget[pair.forget], "forget_row", pair.forget)]
        if pair.forget is not None and pair.alternate is not None:
            place = starts[pair.forget] + pair.alternate
            item.append((guides[pair.forget][pair.alternate], "alternate_row", place))
        items.append([*item, *((retain[i], "retain_row", i) for i in pair.retain)])
    return packed_dataset(items)


class LossDivisors(NamedTuple):
    """The divisors of a loss's means: answer tokens of both kinds, and forget rows. Tensors without dimensions."""

    forget_tokens: torch.Tensor
    retain_tokens: torch.Tensor
    forget_rows: torch.Tensor


class Logits(NamedTuple):
    """Of a micro-batch's completion tokens, in this order: true answers to forget rows, false ones, retain rows."""

    true: torch.Tensor
    false: torch.Tensor
    retain: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, inputs: dict[str, torch.Tensor]) -> Logits:
        """Parts of the logits (N, V). Split at once they have one gradient; each slice has one as large as all."""
        retain, forget_rows = inputs["is_retain"], (inputs["forget_row"] != NOT_THIS).sum()
        true = ~retain & (inputs["row"] < forget_rows)
        sizes = [int(true.sum()), int((~retain & ~true).sum()), int(retain.sum())]
        return cls(*logits.split(sizes))


class UnlearnTrainer(CompletionTrainer):
    """Minimises forget_weight x forget term + retain_weight x retain term of ``config.method``.

    Items come from :func:`pair_dataset` and are taken in their order. ``forget_caps``, one bound per forget row in nats
    per token, may be set and changed at any time. ``reference`` is base's log-probability of each forget answer (npo
    and altpo), ``alternate_reference`` that of each false answer (altpo). ``base`` has base's distributions (KL retain
    term). ``retain_bound`` is the bound that a dual weight enforces.
    """

    def __init__(self, model: PreTrainedModel, *, config: UnlearnConfig, **kwargs: Any) -> None:
        super().__init__(model, **kwargs)
        self.config = config
        self.forget_caps: torch.Tensor | None = None
        self.reference: torch.Tensor | None = None
        self.alternate_reference: torch.Tensor | None = None
        self.base: BaseDistribution | None = None
        self.counterfactual: Counterfactual | None = None
        self.retain_bound = 0.0
        if config.method == "po":
            self.forget_name = "refusal"
        self._logits: Logits | None = None
        self._forget_gradient: list[torch.Tensor] | None = None
        self._norms: dict[str, float] = {}
        self._above = torch.zeros(2, dtype=torch.float64)
        plain = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
        if config.gradient_norms_every and self.accelerator.distributed_type not in plain:
            raise RecipeError(
                f"unlearn.gradient_norms_every needs whole gradients on each rank, but this run shards them "
                f"({self.accelerator.distributed_type.value}). Set it to 0."
            )
        checkpointing = cast("dict[str, Any] | None", self.args.gradient_checkpointing_kwargs) or {}
        if config.gradient_norms_every and checkpointing.get("use_reentrant"):
            raise RecipeError(
                "unlearn.gradient_norms_every needs the gradient of one term, which reentrant checkpointing cannot "
                "give. Remove use_reentrant from args.gradient_checkpointing_kwargs, or set gradient_norms_every to 0."
            )

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else cast("Dataset", self.train_dataset))

    def log_probs(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probabilities of the completion tokens, shape (N,); keeps their logits for a KL retain term."""
        if self.base is None:
            return super().log_probs(model, inputs)
        logits = completion_logits(model, inputs)
        self._logits = Logits.of(logits, inputs)
        return target_log_probs(logits, inputs["targets"])

    def step_loss(self, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], step: torch.Tensor) -> torch.Tensor:
        """The micro-batch's part of the optimizer step's loss; ``step`` are the counts of the whole step."""
        counts = LossDivisors(*step[:3])
        if self.config.loss_normalization == "microbatch_mean":
            counts = LossDivisors(*(counts_of(inputs)[:3] * step[3]))
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

    def _retain_term(
        self, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], counts: LossDivisors
    ) -> torch.Tensor:
        retain = inputs["is_retain"]
        if self.base is None or self._logits is None:
            return negative_log_likelihood(log_probs[retain], counts.retain_tokens)
        rows = [row for row in inputs["retain_row"].tolist() if row != NOT_THIS]
        if not rows:
            return log_probs[retain].sum()  # zero: a rank without rows takes part in the backward pass
        logits = self._logits.retain
        return losses.kl_from_base(logits, self.base.logits(rows, logits.device), counts.retain_tokens)

    def _forget_term(
        self, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], counts: LossDivisors
    ) -> torch.Tensor:
        config, forget = self.config, ~inputs["is_retain"]
        log_probs, row = log_probs[forget], inputs["row"][forget]
        rows = inputs["forget_row"][inputs["forget_row"] != NOT_THIS]
        caps = None if self.forget_caps is None else self.forget_caps.to(rows.device)[rows]
        beta, gamma = config.beta or 0.0, config.gamma or 0.0
        if config.method == "csd":
            false = inputs["alternate_row"][inputs["alternate_row"] != NOT_THIS]
            return self._csd_term(log_probs, row, rows, false, inputs["targets"][forget], counts)
        if config.method == "po":
            return negative_log_likelihood(log_probs, counts.forget_tokens)
        if config.method == "wga":
            return losses.weighted_gradient_ascent(log_probs, row, counts.forget_tokens, beta=beta, caps=caps)
        if config.method in ("npo", "altpo"):
            reference = cast("torch.Tensor", self.reference).to(rows.device)[rows]
            if config.method == "npo":
                return losses.negative_preference(log_probs, row, counts.forget_rows, reference=reference, beta=beta)
            alternates = inputs["alternate_row"][inputs["alternate_row"] != NOT_THIS]
            other = cast("torch.Tensor", self.alternate_reference).to(rows.device)[alternates]
            reference = torch.cat([reference, other])
            return losses.alternate_preference(log_probs, row, counts.forget_rows, reference=reference, beta=beta)
        if config.method == "simnpo":
            return losses.simple_negative_preference(
                log_probs, row, counts.forget_rows, here=len(rows), beta=beta, gamma=gamma
            )
        return losses.gradient_ascent(log_probs, row, counts.forget_tokens, caps=caps)

    def _csd_term(
        self,
        log_probs: torch.Tensor,
        row: torch.Tensor,
        rows: torch.Tensor,
        false: torch.Tensor,
        targets: torch.Tensor,
        counts: LossDivisors,
    ) -> torch.Tensor:
        """``row`` counts the true answers, which are ``rows``, and then the ``false`` ones."""
        if not len(rows) or self._logits is None:
            return log_probs.sum()  # zero: a rank without rows takes part in the backward pass
        counterfactual = cast("Counterfactual", self.counterfactual)
        is_true = row < len(rows)  # false answers come after the true ones
        wanted = counterfactual.of(rows.tolist(), targets[is_true])
        logits = self._logits.true
        kl = losses.kl_from_base(logits, wanted.log_probs, counts.forget_tokens)
        held, base = counterfactual.of_false(false.tolist(), log_probs.device)
        above = (log_probs[is_true].detach() - wanted.levels)[wanted.levelled]
        self._above += torch.stack([above.sum(), above.new_tensor(len(above))]).double().cpu()
        pulled, to = torch.cat([wanted.levelled, held]), torch.cat([wanted.levels - self.aim_below, base])
        instead = target_log_probs(logits[wanted.facts], wanted.instead)
        pull = losses.pull_to_levels(
            torch.cat([log_probs[pulled], instead]),
            torch.cat([to[pulled], wanted.log_probs[wanted.facts, wanted.instead]]),
            torch.cat([row[pulled], row[wanted.facts]]),
            counts.forget_rows,
            here=len(rows) + len(false),
        )
        return kl + (self.config.pull_weight or 0.0) * pull

    def _ceiling(self) -> float | None:
        """ln|V| if the method pushes the loss up. No bound if base starts above it, since it never knew the rows."""
        uniform = math.log(cast("PreTrainedModel", self.model).config.get_text_config().vocab_size)
        first = next((entry["forget_loss"] for entry in self.state.log_history if "forget_loss" in entry), None)
        first = self._step_losses().get("forget_loss", 0.0) if first is None else first
        return uniform if self.config.method in ASCENDING and first <= uniform else None

    @property
    def retain_weight(self) -> float:
        """The weight of the next step: the recipe's, or with a dual weight the last step's result."""
        start = 1.0 if self.config.retain_weight is None else self.config.retain_weight
        if self.config.dual is None:
            return start
        history = reversed(self.state.log_history)  # a checkpoint restores it
        return float(next((entry["retain_weight"] for entry in history if "retain_weight" in entry), start))

    @property
    def aim_below(self) -> float:
        """How far below its level the next step pulls each token of a fact (csd), in nats.

        The retain term holds tokens above their levels: facts share words with what is kept. So the aim goes lower as
        long as more is missing on average than is allowed (gradient ascent on the multiplier of that constraint), to at
        most where the pull's force no longer grows.
        """
        history = reversed(self.state.log_history)  # a checkpoint restores it
        return float(next((entry["aim_below"] for entry in history if "aim_below" in entry), 0.0))

    def _next_aim(self) -> dict[str, float]:
        """The next step's, by what tokens were above their levels in this one, over all ranks."""
        total, count = self.accelerator.reduce(self._above.to(self.accelerator.device), reduction="sum").tolist()
        self._above.zero_()
        if not count or self.state.global_step <= AIM_FROM * self.state.max_steps:
            return {}
        passes = self.rows / len(cast("Counterfactual", self.counterfactual).levels)
        rate = AIM_RATE * passes / self.state.max_steps
        return {"aim_below": min(max(self.aim_below + rate * (total / count - AIM_ALLOWS), 0.0), losses.PULL_DELTA)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the next step's retain weight (with a dual weight) or aim (csd), and both terms' gradient norms too."""
        dual, step_losses = self.config.dual, self._step_losses()
        if dual and "retain_loss" in step_losses:
            logs["retain_weight"] = max(
                0.0, self.retain_weight + dual.rate * (step_losses["retain_loss"] - self.retain_bound)
            )
        logs |= self._norms | (self._next_aim() if self.config.method == "csd" else {})
        self._norms = {}
        super().log(logs, start_time)

    @property
    def _measures_norms(self) -> bool:
        every = self.config.gradient_norms_every
        return every > 0 and (self.state.global_step + 1) % every == 0

    def _add_forget_gradient(self, forget: torch.Tensor) -> None:
        """Add the forget term's gradient of this micro-batch; the retain term's is the whole gradient minus it."""
        gradient = torch.autograd.grad(forget, self._trained(), retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(self._trained(), gradient, strict=True)]
        before = self._forget_gradient
        self._forget_gradient = parts if before is None else [a + b for a, b in zip(before, parts, strict=True)]

    def _trained(self) -> list[torch.nn.Parameter]:
        model = cast("torch.nn.Module", self.model)
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As of Trainer; after a step's last micro-batch, before clipping, the gradient norms are measured too."""
        loss = super().training_step(*args, **kwargs)
        if self._forget_gradient is not None and self.accelerator.sync_gradients:
            # compute_loss scales by the world size and DDP averages: together a sum over ranks.
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
