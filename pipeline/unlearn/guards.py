"""What stops a training: numbers that are not finite, a forget loss beyond all knowledge, and the recipe's own rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.progress import report
from pipeline.ranks import is_first
from pipeline.unlearn.kept import keep_weights


class StepRefused(Exception):  # noqa: N818
    """A step is not taken, and the training ends.

    What a step sees is the work of the weights before it, so these are not good either (see `go_back` in fit.py).
    """


def check_step(step: int, numbers: dict[str, float], ceiling: float | None) -> None:
    """Look at losses and gradient norm of ``step`` before the optimizer uses them.

    ``ceiling`` is ln|V| where a method pushes the forget loss up: a model that guesses uniformly has that loss, and
    from there on the ascent only destroys. Raises StepRefused.
    """
    broken = [name for name, value in numbers.items() if not math.isfinite(value)]
    if broken:
        raise StepRefused(f"{' and '.join(broken)} of step {step} not finite")
    if ceiling is not None and numbers.get("forget_loss", 0.0) >= ceiling:
        raise StepRefused(f"the forget loss of step {step} had reached ln|V|, that of a uniform guess")


PATIENCE = 3
"""So many checks in a row with the retain loss above its bound end a run: while the rate is high it rises and comes
back (docs/measurements/unlearning.md). What is released was within the bound in any case."""


class Watch(TrainerCallback):
    """Reports each logged step to whoever watches."""

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


@dataclass(frozen=True)
class Check:
    """Mean losses in nats per answer token, and the level that the forget loss is compared with."""

    forget: float
    retain: float
    level: float


class EndOfAscent(TrainerCallback):
    """Checks forget and retain loss every ``every`` steps, keeps the checkpoint of the rule, and ends the ascent.

    It ends where the forget loss has reached its level with the retain loss within ``retain_bound``, or where that was
    above it at :data:`PATIENCE` checks in a row. The kept checkpoint is the one within ``retain_bound`` whose forget
    loss is closest to its level; it lies in ``kept``. Checks are entries of the trainer's ``log_history``, with
    ``probe_forget_loss``, ``probe_retain_loss`` and ``probe_level``; what was kept follows from them, so a resumed run
    needs nothing else.
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
        if broken := [name for name, value in losses.items() if not math.isfinite(value)]:
            self.reason = f"{' and '.join(broken)} after step {state.global_step} not finite"
            control.should_training_stop, control.should_save = True, False
            return control
        state.log_history.append({"step": state.global_step, **losses})
        if is_first() and self.kept_step(state.log_history) == state.global_step:
            keep_weights(kwargs["model"], self.kept)
        last = [entry["probe_retain_loss"] for entry in state.log_history if "probe_retain_loss" in entry][-PATIENCE:]
        if len(last) == PATIENCE and min(last) > self.retain_bound:
            self.reason = (
                f"retain loss {check.retain:.3f} was above its bound {self.retain_bound:.3f} "
                f"at {PATIENCE} checks in a row"
            )
        elif check.forget >= check.level and check.retain <= self.retain_bound:
            self.reason = f"forget loss {check.forget:.3f} reached its level {check.level:.3f}"
        else:
            return control
        control.should_training_stop = True
        control.should_save = False  # a run that is resumed from here would go past the end
        return control
