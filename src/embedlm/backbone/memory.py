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

__all__ = [
    "bound_kernel_caches",
    "free_memory",
    "give_back",
    "is_out_of_memory",
    "keep_freed",
    "put",
]

KERNELS = 128
"""How many shapes' kernels are kept. Texts bring ever new shapes; by default 1,024 kernels are
kept, each of some 600 kB, and a job's memory grows until they are there. Making one takes 0.2 to
0.4 ms, some 4 % of the time of small batches of unlike texts."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST = 256 << 20, (64 << 20, 32 << 20)
"""Bytes that the allocator keeps though they are free, and the largest block among them: the first
that it takes."""
_ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")
"""Variables by which users choose or set the allocator."""


def bound_kernel_caches() -> None:
    """Bound oneDNN's two caches of kernels; what the user has set stays. Before the first of them.

    The first is oneDNN's own, the second that of ideep, PyTorch's layer over it.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


@lru_cache(maxsize=2)
def _of_glibc(name: str) -> Any:
    """Return a function of glibc's allocator; None where there is another one."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        return getattr(ctypes.CDLL(None), name)
    return None


@lru_cache(maxsize=1)
def keep_freed() -> None:
    """Have the allocator keep what a pass has freed for the next one; the user's settings stay.

    By default it gives blocks of megabytes back at once, and the system clears each page anew when
    the next product asks for it: 15 % of the time of short texts. `give_back` ends it.
    """
    set_by_user = any(name in os.environ for name in _ALLOCATOR)
    mallopt = None if set_by_user else _of_glibc("mallopt")
    # An older glibc refuses such a block; alone, the other setting would fix it at 128 kB.
    if mallopt is not None and any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST):
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back() -> None:
    """Return freed memory to the system, where the allocator would keep it."""
    trim = _of_glibc("malloc_trim")
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
