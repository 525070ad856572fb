"""What stops a training: a loss that is not finite, and the recipe's rule for the end of the ascent."""

from __future__ import annotations

import math
from collections.abc import Callable
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
class Levels:
    """Bounds of the ascent, in nats per answer token."""

    forget: float
    retain: float


class EndOfAscent(TrainerCallback):
    """Measures forget and retain loss every ``every`` steps, keeps the checkpoint of the rule, and ends the ascent.

    The kept checkpoint is the one within the retain bound whose forget loss is closest to the forget level; it lies
    in ``kept`` as bfloat16 safetensors, as it will be released. Checks are entries of the trainer's ``log_history``,
    with ``probe_forget_loss`` and ``probe_retain_loss``; what was kept follows from them, so a resumed run needs
    nothing else.
    """

    def __init__(self, measure: Callable[[], tuple[float, float]], levels: Levels, every: int, kept: Path) -> None:
        self.measure = measure
        self.levels = levels
        self.every = every
        self.kept = kept
        self.reason = "all epochs done"

    def kept_step(self, history: list[dict[str, float]]) -> int | None:
        """The step of the kept checkpoint (of equals the first), None where no check was within the retain bound."""
        fit = [entry for entry in history if entry.get("probe_retain_loss", math.inf) <= self.levels.retain]
        closest = min(fit, key=lambda entry: abs(entry["probe_forget_loss"] - self.levels.forget), default=None)
        return None if closest is None else int(closest["step"])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Check at every ``every``-th step and at the last one."""
        if state.global_step % self.every and state.global_step < state.max_steps:
            return control
        forget, retain = self.measure()
        state.log_history.append({"step": state.global_step, "probe_forget_loss": forget, "probe_retain_loss": retain})
        if self.kept_step(state.log_history) == state.global_step:
            self._keep(kwargs["model"])
        if retain > self.levels.retain:
            self.reason = f"retain loss {retain:.3f} left its bound {self.levels.retain:.3f}"
        elif forget >= self.levels.forget:
            self.reason = f"forget loss {forget:.3f} reached its level {self.levels.forget:.3f}"
        else:
            return control
        control.should_training_stop = True
        control.should_save = False  # a run that is resumed from here would go past the end
        return control

    def _keep(self, model: torch.nn.Module) -> None:
        # A tied head is the same tensor as the embedding, and safetensors refuses to store one twice.
        seen: set[int] = set()
        tensors = {}
        for name, tensor in model.state_dict().items():
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                tensors[name] = tensor.detach().to(torch.bfloat16).contiguous().cpu()
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.kept.with_suffix(".partial")
        save_file(tensors, temporary)
        temporary.replace(self.kept)
