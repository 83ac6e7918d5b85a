"""Distributed training: every process embeds its share of a batch and gathers the others'.

Each process computes the loss of the whole batch, with a graph through its own rows only. The sum
of all processes' gradients is then the gradient of the whole batch, whatever the loss.

Shapes: N rows of a process, X columns.
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
    """Return the rank of this process, 0 if it is alone."""
    return dist.get_rank() if process_count() > 1 else 0


@contextmanager
def processes(device: Any = None) -> Iterator[None]:
    """Join the process group if torchrun started this process, and leave it at the end."""
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
    """Wait until all processes get here."""
    if process_count() > 1:
        dist.barrier()


def sum_over_processes(count: int) -> int:
    """Return the sum of a count over all processes."""
    return _reduced(count, dist.ReduceOp.SUM)


def max_over_processes(count: int) -> int:
    """Return the maximum of a count over all processes."""
    return _reduced(count, dist.ReduceOp.MAX)


def _reduced(count: int, operation: Any) -> int:
    if process_count() == 1:
        return count
    total = torch.tensor(count, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(total, operation)
    return int(total)


def own_rows(rows: Sequence[T]) -> Sequence[T]:
    """Return this process's rows of a batch, which is cut into equal parts in rank order.

    Rows that would make the parts unequal are left out: the processes must stay in step.
    """
    each = len(rows) // process_count()
    return rows[process_rank() * each : (process_rank() + 1) * each]


def gather_rows(x_NX: Tensor) -> Tensor:
    """Return all processes' rows in rank order; only those of this process carry gradients."""
    if process_count() == 1:
        return x_NX
    parts = [torch.empty_like(x_NX) for _ in range(process_count())]
    dist.all_gather(parts, x_NX.detach().contiguous())
    parts[process_rank()] = x_NX
    return torch.cat(parts)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add up gradients over all processes, in place; a parameter without any stays without."""
    if process_count() == 1:
        return
    every = [p for p in parameters if not isinstance(p, DTensor)]  # FSDP has reduced shards already
    device = every[0].device if every else None
    has = torch.tensor([parameter.grad is not None for parameter in every], device=device).int()
    dist.all_reduce(has)
    for parameter, count in zip(every, has.tolist(), strict=True):
        if not count:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
