"""On which core something runs."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any

__all__ = ["move_to", "this_core"]


@lru_cache(maxsize=1)
def _getcpu() -> Any:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            return ctypes.CDLL(None).sched_getcpu
    return lambda: -1


def this_core() -> int:
    """Return the number of the core that this runs on; -1: the system does not tell."""
    return int(_getcpu()())


def move_to(core: int) -> None:
    """Have this thread go on on a core, if it may run there; later it runs wherever it is put.

    One that is woken while all cores work stays where it was. The scheduler leaves it there, beside
    who works on, for milliseconds after another core has become free.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            allowed = os.sched_getaffinity(0)
            if core in allowed and len(allowed) > 1:
                os.sched_setaffinity(0, {core})
                os.sched_setaffinity(0, allowed)
