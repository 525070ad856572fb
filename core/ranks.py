"""One stage on several processes: who this one is, what its share is, and what only the first of them does.

A recipe means the same on one process and on many: rows of an optimizer step, their order and the pairing are the
recipe's, and each process (rank) takes its share of every step. `accelerate launch` starts the ranks and tells each of
them its number through the environment, before anything heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from core.errors import RecipeError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


def ranks() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0")) if ranks() > 1 else 0


def is_first() -> bool:
    """Whether this process writes files and talks; of several it is the one with the number 0."""
    return rank() == 0


def split_of_step(args: Mapping[str, Any]) -> tuple[int, int]:
    """Items of a micro-batch and micro-batches of an optimizer step under a recipe's ``args``; a pair is one item.

    Raises RecipeError where one of them is no whole number above 0.
    """
    batch, parts = args.get("per_device_train_batch_size", 8), args.get("gradient_accumulation_steps", 1)
    for name, value in (("per_device_train_batch_size", batch), ("gradient_accumulation_steps", parts)):
        if type(value) is not int or value < 1:
            raise RecipeError(f"args.{name} is {value!r}; give a whole number of 1 or more, without quotes.")
    return batch, parts


def rows_per_step(args: Mapping[str, Any]) -> int:
    """Training items of one optimizer step under a recipe's ``args`` (a forget row with its retain rows is one)."""
    batch, parts = split_of_step(args)
    return batch * parts


def share_of_step(args: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """A recipe's ``args`` for one of ``processes`` ranks, so that all of them together take the recipe's step.

    Micro-batches are as large as the recipe's, or the next size that divides the share. Raises RecipeError where the
    step cannot be shared out.
    """
    rows = rows_per_step(args)
    if processes == 1:
        return dict(args)
    if rows % processes:
        raise RecipeError(
            f"args: a step has {rows} rows (per_device_train_batch_size x gradient_accumulation_steps), which cannot "
            f"be shared out over {processes} processes. Take a number of processes that divides {rows}."
        )
    share = rows // processes
    largest = min(share, split_of_step(args)[0])
    batch = next(size for size in range(largest, 0, -1) if share % size == 0)
    return {**args, "per_device_train_batch_size": batch, "gradient_accumulation_steps": share // batch}


def my_share(items: Sequence[Item]) -> list[tuple[Item, bool]]:
    """The items of this rank, each with whether it counts: all ranks get equally many, so some repeat the first.

    Where weights are sharded, a forward is one of all ranks together, and a rank without an item would be missed.
    """
    mine = [(item, True) for item in items[rank() :: ranks()]]
    missing = -(-len(items) // ranks()) - len(mine)
    return mine + [(items[0], False)] * missing


def from_all_ranks(mine: Sequence[Item]) -> list[Item]:
    """What all ranks found, on each of them; in no order that means anything."""
    if ranks() == 1:
        return list(mine)
    from accelerate.utils import gather_object

    return list(gather_object(list(mine)))


def first_ranks(value: Item | None) -> Item:
    """The first rank's value, on all of them."""
    if ranks() == 1:
        return cast("Item", value)
    from accelerate.utils import broadcast_object_list

    return cast("Item", broadcast_object_list([value if is_first() else None])[0])


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all ranks, on each of them."""
    if ranks() > 1:
        import torch

        torch.distributed.all_reduce(values)
    return values
