"""How much memory is free, and which errors are of too little of it."""

from __future__ import annotations

from pathlib import Path

import torch

__all__ = ["free_memory", "is_out_of_memory"]


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
