"""What stops any training: numbers that are not finite, and a forget loss as high as that of a uniform guess."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from core.progress import report


class StepRefused(Exception):  # noqa: N818
    """A step is not taken, and the training ends.

    The refused losses are those of the weights before the step, so these are not good either (see `go_back` in fit.py).
    """


def check_step(step: int, numbers: dict[str, float], ceiling: float | None) -> None:
    """Check losses and gradient norm of ``step`` before the optimizer uses them.

    ``ceiling`` is ln|V| if a method pushes the forget loss up: that is the loss of a uniform guess, and beyond it the
    ascent only destroys the model. Raises StepRefused if a number is not finite or the forget loss is at the ceiling.
    """
    broken = [name for name, value in numbers.items() if not math.isfinite(value)]
    if broken:
        raise StepRefused(f"{' and '.join(broken)} of step {step} not finite")
    if ceiling is not None and numbers.get("forget_loss", 0.0) >= ceiling:
        raise StepRefused(f"the forget loss of step {step} had reached ln|V|, that of a uniform guess")


class Watch(TrainerCallback):
    """Reports each logged step to the progress listener."""

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
        """Report losses, gradient norm and learning rate."""
        shown = ("forget_loss", "refusal_loss", "retain_loss", "grad_norm", "learning_rate")
        numbers = {name: float(logs[name]) for name in shown if logs and name in logs}
        report(self.doing, state.global_step, state.max_steps, **numbers)
