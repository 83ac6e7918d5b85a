"""Several processes as one: every rank embeds its share of a batch and knows the others'.

Each rank computes the loss of the whole batch, with a graph through its own rows only. The sum of
all ranks' gradients is then the gradient of the whole batch, whatever the loss.

Shapes: N rows of a rank, W ranks, X columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["gather_rows", "rank", "share", "sum_gradients", "world"]

T = TypeVar("T")


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's place among them."""
    return dist.get_rank() if world() > 1 else 0


def share(rows: Sequence[T]) -> Sequence[T]:
    """Return this rank's rows of a batch, cut into as many even pieces as there are ranks.

    Rows that cannot be dealt out evenly are left out: the ranks must be in step.
    """
    each = len(rows) // world()
    return rows[rank() * each : (rank() + 1) * each]


def gather_rows(x_NX: Tensor) -> Tensor:
    """Return all ranks' rows in rank order, this rank's own with their graph."""
    if world() == 1:
        return x_NX
    parts = [torch.empty_like(x_NX) for _ in range(world())]
    dist.all_gather(parts, x_NX.detach().contiguous())
    parts[rank()] = x_NX
    return torch.cat(parts)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up the gradients of all ranks in place."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
