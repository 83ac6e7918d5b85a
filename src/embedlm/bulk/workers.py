"""Several processes work on one job: each loads the model and encodes blocks.

A worker gets its next block when it has returned its last, so that there are never more blocks in
memory than workers. When a worker is killed, another process takes its place and its block.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from embedlm.bulk.blocks import Block
from embedlm.bulk.requests import BlockRequest, WorkerResult, WorkerSettings
from embedlm.errors import InputError, JobError

__all__ = ["Pool", "ProcessPool", "open_pool", "run_requests"]

MOST = 1024
"""Workers of a job."""
TRIES = 3
"""Workers that one block may end before the job gives up."""
ENDING = 5.0
"""Seconds that an idle worker is given to end by itself."""


class Pool(Protocol):
    """Workers of one kind."""

    size: int
    idle: list[Any]
    """Workers without a request."""

    def start(self) -> Any:
        """Start a worker."""

    def submit(self, worker: Any, request: BlockRequest) -> None:
        """Send a worker a request."""

    def collect(self, workers: Sequence[Any]) -> list[tuple[Any, WorkerResult]]:
        """Wait for some of the workers and return what they have finished."""

    def close(self) -> None:
        """End all workers."""


def run_requests(pool: Pool, requests: Iterator[BlockRequest]) -> Iterator[tuple[int, Block]]:
    """Yield each request's index and block, in the order in which they are finished.

    Raises:
        JobError: a block ends one worker after the other.
    """
    running: dict[Any, BlockRequest] = {}
    losses: Counter[int] = Counter()
    try:
        while True:
            while len(running) < pool.size and (request := next(requests, None)) is not None:
                worker = pool.idle.pop() if pool.idle else pool.start()
                pool.submit(worker, request)
                running[worker] = request
            if not running:
                return
            for worker, result in pool.collect(list(running)):
                request = running.pop(worker)
                if isinstance(result, Exception):
                    raise result
                if result is not None:
                    pool.idle.append(worker)
                    yield request.index, result
                    continue
                losses[request.index] += 1
                if losses[request.index] >= TRIES:
                    first, last = request.records[0].line, request.records[-1].line
                    raise JobError(
                        f"the records {first} to {last} ended {TRIES} workers, one after another "
                        "(out of memory?); take fewer workers, a smaller --block or --batch-tokens"
                    )
                requests = chain([request], requests)
    finally:
        if running:  # stopped in the middle: nobody will collect what these workers are encoding
            pool.close()


class _Process:
    """A worker in a process of this machine."""

    def __init__(self, settings: WorkerSettings) -> None:
        context = get_context("spawn")
        self.settings = settings
        self.pipe, inner = context.Pipe()
        self.process = context.Process(target=_serve, args=(settings, inner), daemon=True)
        self.process.start()
        inner.close()


def _serve(settings: WorkerSettings, pipe: Connection) -> None:
    """Answer requests until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first ends us
    try:
        encode = settings.start()
    except Exception as error:
        pipe.send(error)
        return
    with suppress(EOFError):
        while True:
            request: BlockRequest = pipe.recv()
            try:
                result: WorkerResult = encode(request)
            except Exception as error:
                result = error
            pipe.send(result)


class ProcessPool:
    """Workers on this machine: one process for each of the settings."""

    def __init__(self, settings: Sequence[WorkerSettings]) -> None:
        self.size = len(settings)
        self.idle: list[_Process] = []
        self._free = list(settings)
        self._workers: list[_Process] = []

    def start(self) -> _Process:
        """Start a worker with the next free settings."""
        worker = _Process(self._free.pop())
        self._workers.append(worker)
        return worker

    def submit(self, worker: _Process, request: BlockRequest) -> None:
        """Send a worker a request."""
        with suppress(BrokenPipeError, ConnectionResetError):  # `collect` reports that it is gone
            worker.pipe.send(request)

    def collect(self, workers: Sequence[_Process]) -> list[tuple[Any, WorkerResult]]:
        """Wait for some of the workers and return what they have finished."""
        by_pipe = {worker.pipe: worker for worker in workers}
        results: list[tuple[Any, WorkerResult]] = []
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                results.append((worker, worker.pipe.recv()))
            except (EOFError, ConnectionResetError):
                worker.process.join()
                self._workers.remove(worker)
                self._free.append(worker.settings)
                results.append((worker, None))
        return results

    def close(self) -> None:
        """End all workers: idle ones by themselves, busy ones at once."""
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            # A process that ends by itself gives back what it holds of the system (semaphores).
            worker.process.join(ENDING if worker in self.idle else 0)
            worker.process.terminate()
            worker.process.join()
            self._free.append(worker.settings)
        self._workers.clear()
        self.idle.clear()


@contextmanager
def open_pool(
    settings: WorkerSettings, workers: int | None, ray: str | None
) -> Iterator[Pool | None]:
    """Yield the workers of a job and end them afterwards; None: this process works alone.

    Args:
        settings: the settings that every worker starts with.
        workers: the number of workers; None: this process alone, or with `ray` one for each GPU
            of the cluster (each node, where there is no GPU).
        ray: "local" or the address of a Ray cluster; None: no cluster.

    Raises:
        InputError: too few or too many workers.
    """
    import torch

    if workers is not None and not 1 <= workers <= MOST:
        raise InputError(f"workers is {workers}; give a number above 0, at most {MOST:,}")
    if ray is not None:
        from embedlm.bulk.ray_actors import RayPool

        pool: Pool = RayPool(settings, workers, ray)
    elif workers is None or workers == 1:
        yield None
        return
    elif gpus := torch.cuda.device_count():
        pool = ProcessPool([replace(settings, device=str(i % gpus)) for i in range(workers)])
    else:
        threads = max(1, torch.get_num_threads() // workers)
        pool = ProcessPool([replace(settings, threads=threads)] * workers)
    try:
        yield pool
    finally:
        pool.close()
