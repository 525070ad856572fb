"""One stage on several processes: the world size, this process's rank, its share of a step, and the collectives.

A recipe means the same on one process and on many. The recipe fixes the rows of each optimizer step, their order and
their pairing; each process (rank) takes its share of every step. `accelerate launch` starts the ranks and tells each of
them its number through the environment, before anything heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from core.errors import RecipeError
from core.steps import rows_per_step, split_of_step

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


def world_size() -> int:
    """Number of processes that work together; 1 if nothing launched them."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this process has rank 0, and so writes files and prints."""
    return rank() == 0


def share_of_step(args: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """A recipe's ``args`` for one of ``processes`` ranks; together they take the recipe's step.

    A micro-batch has the recipe's size, or the next smaller size that divides a rank's share of the step. Raises
    RecipeError if the step cannot be divided among the processes.
    """
    rows = rows_per_step(args)
    if processes == 1:
        return dict(args)
    if rows % processes:
        raise RecipeError(
            f"args: a step has {rows} rows (per_device_train_batch_size x gradient_accumulation_steps), so it cannot "
            f"be shared out over {processes} processes. Use a number of processes that divides {rows}."
        )
    share = rows // processes
    largest = min(share, split_of_step(args)[0])
    batch = next(size for size in range(largest, 0, -1) if share % size == 0)
    return {**args, "per_device_train_batch_size": batch, "gradient_accumulation_steps": share // batch}


def my_share(items: Sequence[Item]) -> list[tuple[Item, bool]]:
    """The items of this rank, each with whether it counts.

    All ranks get equally many, so some repeat the first item, which then does not count. If weights are sharded, all
    ranks run each forward together, and a rank without an item would leave the others waiting.
    """
    share = [(item, True) for item in items[rank() :: world_size()]]
    missing = -(-len(items) // world_size()) - len(share)
    return share + [(items[0], False)] * missing


def from_all_ranks(items: Sequence[Item]) -> list[Item]:
    """The items of all ranks, on each rank. Their order has no meaning."""
    if world_size() == 1:
        return list(items)
    from accelerate.utils import gather_object

    return list(gather_object(list(items)))


def first_ranks(value: Item | None) -> Item:
    """The first rank's value, on each rank."""
    if world_size() == 1:
        return cast("Item", value)
    from accelerate.utils import broadcast_object_list

    return cast("Item", broadcast_object_list([value if is_first() else None])[0])


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over all ranks, on each rank."""
    if world_size() > 1:
        import torch

        torch.distributed.all_reduce(values)
    return values
