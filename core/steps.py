"""The steps of a training as the trainer counts them, from a recipe's ``args``: their size, their number, checkpoints.

``args`` may hold any field of the trainer. Whatever a number here follows from is checked here, since plans and checks
read it long before the trainer does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from core.errors import RecipeError

MOST_EPOCHS = 1_000_000
"""More is a slip, and a number near a float's limit fits no whole number of steps."""


def split_of_step(args: Mapping[str, Any]) -> tuple[int, int]:
    """Items per micro-batch, and micro-batches per optimizer step, under a recipe's ``args``.

    A forget row with its retain rows is one item. Raises RecipeError if either number is not a whole number above 0.
    """
    batch, parts = args.get("per_device_train_batch_size", 8), args.get("gradient_accumulation_steps", 1)
    for name, value in (("per_device_train_batch_size", batch), ("gradient_accumulation_steps", parts)):
        if type(value) is not int or value < 1:
            raise RecipeError(f"args.{name} is {value!r}; give a whole number of 1 or more, without quotes.")
    return batch, parts


def rows_per_step(args: Mapping[str, Any]) -> int:
    """Training items per optimizer step under a recipe's ``args``; a forget row with its retain rows is one item."""
    batch, parts = split_of_step(args)
    return batch * parts


def steps_of(args: Mapping[str, Any], rows: int) -> int:
    """Optimizer steps on ``rows`` items: ``max_steps`` if it is above 0, else those of ``num_train_epochs``.

    Raises RecipeError if one of ``args`` is no number to count with.
    """
    most, epochs = args.get("max_steps", -1), args.get("num_train_epochs", 3)
    if type(most) is not int or most == 0:
        raise RecipeError(
            f"args.max_steps is {most!r}; give a whole number of 1 or more, without quotes, or -1 for all epochs."
        )
    if type(epochs) not in (int, float) or not 0 <= epochs <= MOST_EPOCHS:
        raise RecipeError(
            f"args.num_train_epochs is {epochs!r}; give a number from 0 to {MOST_EPOCHS:,}, without quotes."
        )
    return most if most > 0 else math.ceil(epochs * math.ceil(rows / rows_per_step(args)))


def saves_of(args: Mapping[str, Any], rows: int) -> int:
    """Checkpoints that a training on ``rows`` items writes: after each epoch, or each ``save_steps`` and at the end.

    Raises RecipeError if one of ``args`` is no number to count with.
    """
    steps, every = steps_of(args, rows), args.get("save_steps", 500)
    if type(every) not in (int, float) or every < 0:
        raise RecipeError(
            f"args.save_steps is {every!r}; give a number of steps, or a share of all steps below 1, without quotes."
        )
    strategy = args.get("save_strategy", "no")  # the pipeline's default, not the trainer's
    if strategy == "epoch":
        return math.ceil(steps / math.ceil(rows / rows_per_step(args)))
    if strategy == "steps":
        return math.ceil(steps / ((every if every >= 1 else math.ceil(steps * every)) or steps or 1))
    return 0
