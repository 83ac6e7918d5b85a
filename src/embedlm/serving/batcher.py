"""Dynamic batching: what waits runs together, at once when nothing runs.

One thread runs the models, or several processes do (`processes.py`). While they run, requests
gather; who is free takes as many tokens as a budget allows, from all who wait in turn (`fair.py`),
and gives each group of like requests to one call of the library, which sorts them by length and
packs them. At light load a request runs when it comes, and at heavy load the batches fill by
themselves, and each process has its next one before it has ended the last; the one timer is that of
requests which are just being read (`_GATHER`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from embedlm.backbone.memory import give_back
from embedlm.serving.cores import move_to
from embedlm.serving.exchange import EndedError
from embedlm.serving.failures import EndingError, OverloadedError
from embedlm.serving.fair import FairQueue, Group, Job, Piece
from embedlm.serving.outcomes import Outcome, deliver, outcomes_of
from embedlm.serving.processes import IDLE, Process, UnknownModelError
from embedlm.serving.settings import Limits

__all__ = ["Batch", "Batcher"]

log = logging.getLogger(__name__)

_FIRST_RATE = 2000.0
"""Tokens a second that are taken for the rate before one is measured."""
_WEIGHT = 0.2
"""Of the newest batch in the measured rate."""
_LITTLE = 64
"""Tokens that must wait for each process before the work is divided: less is done sooner by all
threads together."""
_GATHER = 0.025
"""Seconds that a free process waits at most for requests that come, while another one runs."""
_QUIET = 0.001
"""Seconds without one after which it waits no longer."""
_PATIENCE = 30.0
"""Seconds for which a process may still run work after the time of all of it is over."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that was run, for the metrics."""

    items: int
    tokens: int
    seconds: float


@dataclass(eq=False, slots=True)
class _Run:
    """A batch that runs, or waits in a process for the one before it."""

    runner: Process | None
    """None: this process."""
    pieces: list[Piece]
    start: float = 0.0
    """When it began, by time.perf_counter."""

    def began(self, clock: Callable[[], float]) -> None:
        """Note that it runs from now on, unless it did before; `clock` is the event loop's."""
        if not self.start:
            self.start = time.perf_counter()
            for piece in self.pieces:
                piece.job.started = piece.job.started or clock()


class Batcher:
    """Runs the work of all requests, in one thread or by processes."""

    def __init__(
        self,
        limits: Limits,
        budget: int,
        told: Callable[[Batch], object] = lambda _: None,
        processes: Sequence[Process] = (),
        pack: int | None = None,
    ) -> None:
        """Make one; `start` runs it.

        Args:
            limits: of the queue.
            budget: tokens of a batch.
            told: is told of each batch.
            processes: that run models, too; they are ended with the batcher.
            pack: tokens that a model runs at once; None: as many as a batch has.
        """
        self.limits, self.budget, self.pack = limits, budget, min(budget, pack or budget)
        self.queue = FairQueue()
        self.rate = _FIRST_RATE
        """Tokens a second, as measured."""
        self._told = told
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedlm-run")
        self._processes = list(processes)
        self._changed = asyncio.Event()
        self._running: dict[_Run, asyncio.Task[None]] = {}
        self.ended = False
        """Whether nothing more is run."""
        self._coming = self._come = 0
        """Requests that are being read, and that have come so far."""
        self._task: asyncio.Task[None] | None = None

    @property
    def workers(self) -> int:
        """Processes that run models and have not ended."""
        return sum(not process.ended for process in self._processes)

    async def start(self) -> None:
        """Begin to run what comes."""
        for process in self._processes:
            await process.begin()
        self._task = asyncio.get_running_loop().create_task(self._serve())

    async def stop(self) -> None:
        """Run what someone still waits for, and end."""
        while (self.queue or self._running) and not self.ended:
            self.queue.purge()
            for run in self._running:
                if run.runner is not None and self._is_over(run.runner):
                    run.runner.kill()
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for process in [*self._processes]:
            await self._leave(process)
        self._thread.shutdown(wait=not self.ended)

    def end(self) -> None:
        """Drop what runs and what waits; who waits for it is told. What runs here goes on."""
        self.ended = True
        for process in self._processes:
            process.kill()
        for run in self._running:
            for piece in run.pieces:
                deliver(piece, EndingError())
        self.queue.refuse(EndingError())

    # -- what comes in ------------------------------------------------------------------------

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Count a request that is being read, and will be submitted when that is done."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

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
            EndingError: the server ends at once.
        """
        if self.ended:
            raise EndingError()
        self.check_room(sum(costs))
        self._come += 1
        loop = asyncio.get_running_loop()
        job = Job(key, group, items, costs, loop.create_future(), loop.time())
        if items:
            self.queue.put(job)
            self._changed.set()
        else:
            job.future.set_result([])
        return job

    # -- what runs ----------------------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            if not self._running:
                await self._rest()
            await self._changed.wait()
            self._changed.clear()
            await self._gather()
            while (free := self._free()) is not None:
                runner, budget = free
                if not (pieces := self.queue.take(budget)):
                    break
                run = _Run(runner, pieces)
                ahead = sum(other.runner is runner for other in self._running)
                self._running[run] = asyncio.ensure_future(self._through(run, ahead))

    async def _rest(self) -> None:
        """Wait for work; return freed memory to the system where none comes for a while."""
        try:
            async with asyncio.timeout(IDLE):
                await self._changed.wait()
        except TimeoutError:
            await asyncio.get_running_loop().run_in_executor(self._thread, give_back)

    async def _gather(self) -> None:
        """Let what is being read come in time to fill the next pack, while another one runs.

        The answers of a batch bring the next requests of those who waited for it.
        """
        end, before = time.perf_counter() + _GATHER, -1
        while self._running and (self._coming or self._come > before):
            if self.queue.tokens >= self.pack or time.perf_counter() > end:
                return
            before = self._come
            await asyncio.sleep(_QUIET)

    def _free(self) -> tuple[Process | None, int] | None:
        """Return who runs what waits next, and up to how many tokens; None: nobody is free.

        Processes divide what waits. What cannot be divided, or hardly pays, runs here on all
        threads, and then nothing else does. A process takes a batch ahead, if that fills a pack: it
        would wait for the answers of the last to be written, and for the next to be formed.
        """
        queue, count = self.queue, len(self._processes)
        runners = [run.runner for run in self._running]
        if not queue or None in runners:
            return None
        if not runners and not (count and queue.divides(count, _LITTLE)):
            return None, self.budget
        for batches, least in ((0, _LITTLE), (1, self.pack)):
            free = [one for one in self._processes if runners.count(one) == batches]
            share = -(-queue.tokens // max(1, len(free)))
            if free and (not batches or share >= least):
                first = min(free, key=runners.index) if batches else free[0]
                return first, self._whole(min(self.budget, max(least, share)))
        return None

    def _whole(self, tokens: int) -> int:
        """Return how many tokens of so many make whole packs; fewer than one are no pack.

        What is a little more than a pack would be run as two halves, each at a lower rate.
        """
        return tokens - tokens % self.pack if tokens > self.pack else tokens

    async def _through(self, run: _Run, ahead: int) -> None:
        """Run a batch, for whose runner so many are ahead of it, and hand out what it gave."""
        loop = asyncio.get_running_loop()
        late = None
        try:
            if run.runner is None:
                outcomes = await outcomes_of(run.pieces, partial(self._here, run))
            else:
                patience = (1 + ahead) * (self.limits.timeout + _PATIENCE)
                late = loop.call_later(patience, _give_up, run.runner, patience)
                outcomes = await outcomes_of(run.pieces, partial(self._by, run.runner, run))
                if sum(other.runner is run.runner for other in self._running) == 1:
                    move_to(run.runner.core)  # which waits for what comes of these answers
            self._finish(run.pieces, outcomes, time.perf_counter() - run.start)
        finally:
            if late is not None:
                late.cancel()
            del self._running[run]
            self._changed.set()

    def _is_over(self, process: Process) -> bool:
        """Tell whether no one waits for anything that a process runs."""
        return all(_over(run.pieces) for run in self._running if run.runner is process)

    async def _here(self, run: _Run, group: Group, items: Sequence[Any]) -> Sequence[Any]:
        """Return what a group gives for items, by this process's own models."""
        loop = asyncio.get_running_loop()

        def call() -> Sequence[Any]:
            run.began(loop.time)
            return group.run(items)

        return await loop.run_in_executor(self._thread, call)

    async def _by(
        self, process: Process, run: _Run, group: Group, items: Sequence[Any]
    ) -> Sequence[Any]:
        """Return what a process gives for a group's items; this one does what that cannot.

        Raises:
            EndedError: the process has ended, and no one waits for what it had any longer.
            EndingError: the server ends at once.
        """
        began = partial(run.began, asyncio.get_running_loop().time)
        try:
            return await process.run(group, items, began)
        except UnknownModelError:
            pass
        except EndedError as error:
            await self._without(process, error)
            if self.ended:
                raise EndingError() from error
            if _over(run.pieces):
                raise
        return await self._here(run, group, items)

    async def _without(self, process: Process, error: EndedError) -> None:
        """Go on without a process that has ended; each of its batches finds that."""
        if process in self._processes:
            self._processes.remove(process)
            log.warning("%s; its work is done by the server's own", error)
            await self._leave(process)

    async def _leave(self, process: Process) -> None:
        """End a process that nothing is asked of any more."""
        process.leave()
        await asyncio.get_running_loop().run_in_executor(None, process.wait)

    def _finish(self, pieces: list[Piece], outcomes: list[Outcome], seconds: float) -> None:
        tokens = sum(piece.tokens for piece in pieces)
        items = sum(piece.stop - piece.start for piece in pieces)
        if seconds > 0:
            rate = len({run.runner for run in self._running}) * tokens / seconds
            self.rate += _WEIGHT * (rate - self.rate)
        self._told(Batch(items, tokens, seconds))
        for job in {id(piece.job): piece.job for piece in pieces}.values():
            job.run_seconds += seconds
        for piece, outcome in outcomes:
            deliver(piece, outcome)


def _give_up(process: Process, seconds: float) -> None:
    """End a process that has not answered in so long: it may be stopped, or wait for ever."""
    log.warning("process %d has not answered in %g seconds; it is ended", process.pid, seconds)
    process.kill()


def _over(pieces: Sequence[Piece]) -> bool:
    """Tell whether no one waits for any of them."""
    return all(piece.job.over for piece in pieces)
