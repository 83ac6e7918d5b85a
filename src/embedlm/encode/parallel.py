"""Several packs at once, each on a core of its own.

A product of a small model keeps two cores busy for a millisecond at most, and they wait for each
other at its end. Packs on a core each wait for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

__all__ = ["on_cores", "submitted"]

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
    pool = ThreadPoolExecutor(cores, "embedlm-core", _alone)
    try:
        _begin(pool, cores)
        for item in items:
            waiting.append(submitted(pool, on_one, item))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _alone() -> None:
    """Have this thread run alone; asked first, or its number would be set anew when it runs."""
    torch.get_num_threads()
    torch.set_num_threads(1)


def _begin(pool: ThreadPoolExecutor, cores: int) -> None:
    """Begin a pool's threads, and have threads that begin after them run as this one does.

    What one thread sets holds for all that have not run anything yet.
    """
    begun = Barrier(cores + 1)
    try:
        for _ in range(cores):
            pool.submit(begun.wait)
        begun.wait()
    except RuntimeError:  # no thread may begin any more
        pass
    finally:
        begun.abort()  # none waits for one that never came
    torch.set_num_threads(torch.get_num_threads())


def submitted(
    pool: ThreadPoolExecutor, call: Callable[[Given], Made], given: Given
) -> Future[Made]:
    """Have a pool call something; where it may begin no thread, it is called here.

    While an interpreter ends, threads that still run may begin no others.
    """
    try:
        return pool.submit(call, given)
    except RuntimeError:
        pass
    done: Future[Made] = Future()
    try:
        done.set_result(call(given))
    except Exception as error:
        done.set_exception(error)
    return done
