"""How much memory is free, which errors are of too little of it, and giving back what is kept."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

__all__ = ["bound_kernel_caches", "free_memory", "give_back", "is_out_of_memory", "put"]

KERNELS = 64
"""How many shapes' kernels are kept. Texts bring ever new shapes; by default 1,024 kernels are
kept, each of some 100 kB, and a job's memory grows until they are there. Making one is cheap."""


def bound_kernel_caches() -> None:
    """Bound oneDNN's two caches of kernels; what the user has set stays. Before the first of them.

    The first is oneDNN's own, the second that of ideep, PyTorch's layer over it.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


@lru_cache(maxsize=1)
def _trim() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        return ctypes.CDLL(None).malloc_trim  # glibc's
    return None


def give_back() -> None:
    """Return freed memory to the system, where the allocator would keep it."""
    trim = _trim()
    if trim is not None:
        trim(0)


def put(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device, without waiting for what is being run there."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is of memory; on a CPU torch's has no class of its own."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator" in str(error)


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes a device has left; None where nothing says so."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    file = Path("/proc/meminfo")
    if device.type != "cpu" or not file.is_file():
        return None
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
