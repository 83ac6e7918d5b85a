"""Dynamic batching: what waits runs together, at once when nothing runs.

One thread runs the models. While it runs, requests gather; when it is free, it takes as many tokens
as its budget allows, from all who wait in turn (`fair.py`), and gives each group of like requests
to one call of the library, which sorts them by length and packs them. Nothing ever waits for a
timer: at light load a request runs when it comes, and at heavy load the batches fill by themselves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from embedlm.serving.failures import OverloadedError
from embedlm.serving.fair import FairQueue, Group, Job, Piece
from embedlm.serving.settings import Limits

__all__ = ["Batch", "Batcher"]

log = logging.getLogger(__name__)

_FIRST_RATE = 2000.0
"""Tokens a second that are taken for the rate before one is measured."""
_WEIGHT = 0.2
"""Of the newest batch in the measured rate."""

Outcome = tuple[Piece, Sequence[Any] | BaseException]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that was run, for the metrics."""

    items: int
    tokens: int
    seconds: float


class Batcher:
    """Runs the work of all requests in one thread."""

    def __init__(
        self,
        limits: Limits,
        budget: int,
        told: Callable[[Batch], object] = lambda _: None,
    ) -> None:
        """Make one; `start` runs it.

        Args:
            limits: of the queue.
            budget: tokens of a batch.
            told: is told of each batch.
        """
        self.limits, self.budget = limits, budget
        self.queue = FairQueue()
        self.rate = _FIRST_RATE
        """Tokens a second, as measured."""
        self._told = told
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedlm-run")
        self._filled = asyncio.Event()
        self._running: list[Piece] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to run what comes."""
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def stop(self) -> None:
        """Run what still waits, and end."""
        while self.queue or self._running:
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()

    # -- what comes in ------------------------------------------------------------------------

    def check_room(self, tokens: int = 0) -> None:
        """Refuse more work than the queue takes.

        Raises:
            OverloadedError: with the time after which there will be room.
        """
        queue, limits = self.queue, self.limits
        if queue.count >= limits.queue_requests or queue.tokens + tokens > limits.queue_tokens:
            queue.purge()
        if queue.count >= limits.queue_requests:
            raise OverloadedError(
                f"{queue.count} requests wait, and {limits.queue_requests} may; try again later",
                self._seconds(queue.tokens),
            )
        if queue.tokens and queue.tokens + tokens > limits.queue_tokens:
            raise OverloadedError(
                f"{queue.tokens:,} tokens wait, and with these there would be more than "
                f"{limits.queue_tokens:,}; try again later",
                self._seconds(queue.tokens + tokens - limits.queue_tokens),
            )

    def _seconds(self, tokens: int) -> float:
        return tokens / max(self.rate, 1.0)

    def submit(
        self, key: Hashable, group: Group, items: Sequence[Any], costs: Sequence[int]
    ) -> Job:
        """Queue the items of a request; the job's future gives a result for each.

        A future that is cancelled takes its items out of the queue.

        Raises:
            OverloadedError: there is no room.
        """
        self.check_room(sum(costs))
        loop = asyncio.get_running_loop()
        job = Job(key, group, items, costs, loop.create_future(), loop.time())
        if items:
            self.queue.put(job)
            self._filled.set()
        else:
            job.future.set_result([])
        return job

    # -- what runs ----------------------------------------------------------------------------

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            self._running = pieces = self.queue.take(self.budget)
            if not pieces:
                self._filled.clear()
                continue
            now = loop.time()
            for piece in pieces:
                piece.job.started = piece.job.started or now
            start = time.perf_counter()
            outcomes = await loop.run_in_executor(self._thread, _run, pieces)
            self._finish(pieces, outcomes, time.perf_counter() - start)
            self._running = []

    def _finish(self, pieces: list[Piece], outcomes: list[Outcome], seconds: float) -> None:
        tokens = sum(piece.tokens for piece in pieces)
        items = sum(piece.stop - piece.start for piece in pieces)
        if seconds > 0:
            self.rate += _WEIGHT * (tokens / seconds - self.rate)
        self._told(Batch(items, tokens, seconds))
        for job in {id(piece.job): piece.job for piece in pieces}.values():
            job.run_seconds += seconds
        for piece, outcome in outcomes:
            _deliver(piece, outcome)


def _deliver(piece: Piece, outcome: Sequence[Any] | BaseException) -> None:
    job = piece.job
    if job.over:
        return
    if isinstance(outcome, BaseException):
        job.future.set_exception(outcome)
        return
    job.results[piece.start : piece.stop] = outcome
    job.left -= piece.stop - piece.start
    if job.left == 0:
        job.future.set_result(job.results)


def _run(pieces: list[Piece]) -> list[Outcome]:
    """Run a batch, each group at once; what fails there is run anew, each request alone."""
    groups: dict[Group, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.job.group, []).append(piece)
    outcomes: list[Outcome] = []
    for group, members in groups.items():
        found = _attempt(group, members)
        if isinstance(found[0][1], BaseException) and len(members) > 1:
            found = [_attempt(group, [piece])[0] for piece in members]
        outcomes += found
    return outcomes


def _attempt(group: Group, pieces: list[Piece]) -> list[Outcome]:
    items = [item for piece in pieces for item in piece.job.items[piece.start : piece.stop]]
    try:
        results = group.run(items)
    except Exception as error:  # a fault of ours must end neither the thread nor other requests
        return [(piece, error) for piece in pieces]
    outcomes: list[Outcome] = []
    at = 0
    for piece in pieces:
        size = piece.stop - piece.start
        outcomes.append((piece, results[at : at + size]))
        at += size
    return outcomes
