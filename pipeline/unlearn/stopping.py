"""The early-stopping rule of an unlearning run: checks on the way, the checkpoint to keep, and the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from core.ranks import is_first
from pipeline.train.arguments import CHECKPOINTS
from pipeline.train.kept import keep_weights

PATIENCE = 3
"""So many checks in a row with the retain loss above its bound end a run: while the rate is high it rises and comes
back (docs/measurements/unlearning-trials.md). What is released was within the bound in any case."""


@dataclass(frozen=True)
class Check:
    """Mean losses in nats per answer token, and the level that the forget loss is compared with."""

    forget: float
    retain: float
    level: float


def name_of(step: int) -> str:
    """The file of the weights that are kept of a step."""
    return f"step-{step}.safetensors"


class EndOfAscent(TrainerCallback):
    """Checks forget and retain loss every ``every`` steps, keeps the checkpoint of the rule, and ends the ascent.

    It ends if the forget loss has reached its level while the retain loss is within ``retain_bound``, or if the retain
    loss was above it at :data:`PATIENCE` checks in a row. The kept checkpoint is the one within ``retain_bound`` whose
    forget loss is closest to its level; it is written into ``kept``, a folder beside the checkpoints that is None if
    nobody will read it: it takes whole weights, and no rank may have them. Checks are entries of the trainer's
    ``log_history``, with ``probe_forget_loss``, ``probe_retain_loss`` and ``probe_level``. The kept step follows from
    them, so a resumed run needs only them and the weights of that step.
    """

    def __init__(self, measure: Callable[[], Check], retain_bound: float, every: int, kept: Path | None) -> None:
        self.measure = measure
        self.retain_bound = retain_bound
        self.every = every
        self.kept = kept
        self.reason = "all epochs done"

    def kept_step(self, history: list[dict[str, float]]) -> int | None:
        """The step of the kept checkpoint (the first of equals); None if no check was within the retain bound."""
        fit = [entry for entry in history if entry.get("probe_retain_loss", math.inf) <= self.retain_bound]
        closest = min(fit, key=lambda entry: abs(entry["probe_forget_loss"] - entry["probe_level"]), default=None)
        return None if closest is None else int(closest["step"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure once, so that levels that move with the model fit its current weights, also after a restart."""
        self.measure()

    def _delete_others(self, kept: Path, history: list[dict[str, float]]) -> None:
        """Delete kept weights that neither this run needs nor one that goes on from a checkpoint of it."""
        checkpoints = kept.with_name(CHECKPOINTS).glob("checkpoint-*")
        ends = [history[-1]["step"], *(int(folder.name.rpartition("-")[2]) for folder in checkpoints)]
        needed = {self.kept_step([entry for entry in history if entry["step"] <= end]) for end in ends}
        for file in kept.iterdir():
            if file.name not in {name_of(step) for step in needed if step is not None}:
                file.unlink()

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
        if self.kept and is_first() and self.kept_step(state.log_history) == state.global_step:
            keep_weights(kwargs["model"], self.kept / name_of(state.global_step))
            self._delete_others(self.kept, state.log_history)
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
