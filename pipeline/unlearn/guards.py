"""What stops a training: a loss that is not finite, and the recipe's rule for the end of the ascent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.errors import TrainingError
from pipeline.progress import report


class Watch(TrainerCallback):
    """Reports each logged step to whoever watches, and stops the run at the first number that is not finite."""

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Raises TrainingError on a non-finite loss or gradient norm."""
        shown = ("forget_loss", "retain_loss", "grad_norm", "learning_rate")
        numbers = {name: float(logs[name]) for name in shown if logs and name in logs}
        broken = [name for name, value in numbers.items() if not math.isfinite(value)]
        if broken:
            raise TrainingError(
                f"{self.doing}: {' and '.join(broken)} at step {state.global_step} is not finite, so the weights are "
                "spoilt. Nothing was kept. Lower the learning rate or the forget weight, or cap the forget loss."
            )
        report(self.doing, state.global_step, state.max_steps, **numbers)


@dataclass(frozen=True)
class Check:
    """Mean losses in nats per answer token, and the level that the forget loss is compared with."""

    forget: float
    retain: float
    level: float


class EndOfAscent(TrainerCallback):
    """Checks forget and retain loss every ``every`` steps, keeps the checkpoint of the rule, and ends the ascent.

    The kept checkpoint is the one within ``retain_bound`` whose forget loss is closest to its level; it lies in
    ``kept`` as bfloat16 safetensors, as it will be released. Checks are entries of the trainer's ``log_history``,
    with ``probe_forget_loss``, ``probe_retain_loss`` and ``probe_level``; what was kept follows from them, so a
    resumed run needs nothing else.
    """

    def __init__(self, measure: Callable[[], Check], retain_bound: float, every: int, kept: Path) -> None:
        self.measure = measure
        self.retain_bound = retain_bound
        self.every = every
        self.kept = kept
        self.reason = "all epochs done"

    def kept_step(self, history: list[dict[str, float]]) -> int | None:
        """The step of the kept checkpoint (of equals the first), None where no check was within the retain bound."""
        fit = [entry for entry in history if entry.get("probe_retain_loss", math.inf) <= self.retain_bound]
        closest = min(fit, key=lambda entry: abs(entry["probe_forget_loss"] - entry["probe_level"]), default=None)
        return None if closest is None else int(closest["step"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure once: levels that move with the model are those of its weights now, also after a restart."""
        self.measure()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Check at every ``every``-th step and at the last one."""
        if state.global_step % self.every and state.global_step < state.max_steps:
            return control
        check = self.measure()
        losses = {"probe_forget_loss": check.forget, "probe_retain_loss": check.retain, "probe_level": check.level}
        state.log_history.append({"step": state.global_step, **losses})
        if self.kept_step(state.log_history) == state.global_step:
            _save(kwargs["model"].state_dict(), self.kept)
        if check.retain > self.retain_bound:
            self.reason = f"retain loss {check.retain:.3f} left its bound {self.retain_bound:.3f}"
        elif check.forget >= check.level:
            self.reason = f"forget loss {check.forget:.3f} reached its level {check.level:.3f}"
        else:
            return control
        control.should_training_stop = True
        control.should_save = False  # a run that is resumed from here would go past the end
        return control


def _save(state: Mapping[str, torch.Tensor], target: Path) -> None:
    # A tied head is the same tensor as the embedding, and safetensors refuses to store one twice.
    seen: set[int] = set()
    tensors = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().to(torch.bfloat16).contiguous().cpu()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(target)
