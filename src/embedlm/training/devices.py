"""Several processes as one: every rank embeds its share of a batch and knows the others'.

Each rank computes the loss of the whole batch, with a graph through its own rows only. The sum of
all ranks' gradients is then the gradient of the whole batch, whatever the loss.

Shapes: N rows of a rank, W ranks, X columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = [
    "gather_rows",
    "max_over_processes",
    "own_rows",
    "process_count",
    "process_rank",
    "processes",
    "sum_gradients",
    "sum_over_processes",
    "wait_for_all",
]

T = TypeVar("T")


def process_count() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Return this process's place among them."""
    return dist.get_rank() if process_count() > 1 else 0


@contextmanager
def processes(device: Any = None) -> Iterator[None]:
    """Join the processes that torchrun has started, if it has, and leave them at the end."""
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if joins:
        cuda = torch.cuda.is_available() and (device is None or "cuda" in str(device))
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        if joins:
            dist.destroy_process_group()


def wait_for_all() -> None:
    """Go on only when all processes are here."""
    if process_count() > 1:
        dist.barrier()


def sum_over_processes(count: int) -> int:
    """Return the sum of the processes' counts."""
    return _reduced(count, dist.ReduceOp.SUM)


def max_over_processes(count: int) -> int:
    """Return the largest of the processes' counts."""
    return _reduced(count, dist.ReduceOp.MAX)


def _reduced(count: int, how: Any) -> int:
    if process_count() == 1:
        return count
    found = torch.tensor(count, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(found, how)
    return int(found)


def own_rows(rows: Sequence[T]) -> Sequence[T]:
    """Return this rank's rows of a batch, cut into as many even pieces as there are ranks.

    Rows that cannot be dealt out evenly are left out: the ranks must be in step.
    """
    each = len(rows) // process_count()
    return rows[process_rank() * each : (process_rank() + 1) * each]


def gather_rows(x_NX: Tensor) -> Tensor:
    """Return all ranks' rows in rank order, this rank's own with their graph."""
    if process_count() == 1:
        return x_NX
    parts = [torch.empty_like(x_NX) for _ in range(process_count())]
    dist.all_gather(parts, x_NX.detach().contiguous())
    parts[process_rank()] = x_NX
    return torch.cat(parts)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up the gradients of all ranks in place; what none has one for keeps none."""
    if process_count() == 1:
        return
    every = [p for p in parameters if not isinstance(p, DTensor)]  # shards are added up already
    device = every[0].device if every else None
    has = torch.tensor([parameter.grad is not None for parameter in every], device=device).int()
    dist.all_reduce(has)
    for parameter, count in zip(every, has.tolist(), strict=True):
        if not count:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
