"""Several packs at once, each on a core of its own.

A product of a small model keeps two cores busy for a millisecond at most, and they wait for each
other at its end. Packs on a core each wait for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["on_cores"]

Given = TypeVar("Given")
Made = TypeVar("Made")


def on_cores(call: Callable[[Given], Made], items: Iterable[Given], cores: int) -> Iterator[Made]:
    """Yield what a call gives for each item, in their order, on so many cores, without gradients.

    Raises:
        Exception: the first that a call raises; what came after its item is dropped.
    """

    def on_one(item: Given) -> Made:
        with torch.inference_mode():
            return call(item)

    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(cores, "embedlm-core", lambda: torch.set_num_threads(1))
    try:
        for item in items:
            waiting.append(pool.submit(on_one, item))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
