"""Several processes at one job: each loads the model and encodes blocks; a lost one is replaced.

A worker gets its next block when it has returned its last, so that no more blocks are in memory
than there are workers. The block of a worker that was killed is done again by another.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from embedlm.bulk.blocks import Block, BlockEncoder
from embedlm.data import Record
from embedlm.errors import InputError, JobError

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.encode.compiling import Mode

__all__ = ["BlockRequest", "Pool", "ProcessPool", "WorkerSettings", "open_pool", "run_requests"]

TRIES = 3
"""How often a block may end its worker before the job gives up."""
Ranges = npt.NDArray[np.float32] | None
Answer = Block | Exception | None
"""What a worker returns: a block, an error, or nothing because it is gone."""


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """A block that is to be encoded."""

    index: int
    records: Sequence[Record]
    digest: npt.NDArray[np.uint8]
    """Of the records; it is stored in the block."""
    file: str
    """The name of the input."""
    ranges: Ranges = None
    kernels: Mode = "off"

    def run(self, encoder: BlockEncoder) -> Block:
        """Return the block of these records."""
        return {**encoder(self.records, self.file), "digest": self.digest}


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker needs to encode any block of a job; it can be sent to another process."""

    load: Callable[[], Embedder]
    options: dict[str, Any] = field(default_factory=dict)
    """As for `Embedder.encode`."""
    keep_rejects: bool = False
    threads: int | None = None
    device: str | None = None
    """Which accelerator the worker's process sees; None: all."""

    def start(self) -> Callable[[BlockRequest], Block]:
        """Load the model and return what encodes a block."""
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model = self.load()
        encoder = BlockEncoder(model, self.options, keep_rejects=self.keep_rejects)

        def encode(request: BlockRequest) -> Block:
            encoder.ranges = request.ranges
            with model.executor.fixed(request.kernels):
                return request.run(encoder)

        return encode


class Pool(Protocol):
    """Workers of one kind."""

    size: int
    idle: list[Any]
    """Workers without a request."""

    def start(self) -> Any:
        """Start a worker."""

    def submit(self, worker: Any, request: BlockRequest) -> None:
        """Send a worker a request."""

    def collect(self, workers: Sequence[Any]) -> list[tuple[Any, Answer]]:
        """Wait for some of the workers and return their answers."""

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
            for worker, answer in pool.collect(list(running)):
                request = running.pop(worker)
                if isinstance(answer, Exception):
                    raise answer
                if answer is not None:
                    pool.idle.append(worker)
                    yield request.index, answer
                    continue
                losses[request.index] += 1
                if losses[request.index] >= TRIES:
                    first, last = request.records[0].place, request.records[-1].place
                    raise JobError(
                        f"the records {first} to {last} ended {TRIES} workers one after the other "
                        "(out of memory?); take fewer workers, a smaller --block or --batch-tokens"
                    )
                requests = chain([request], requests)
    finally:
        if running:  # stopped in the middle: nobody waits for what they are at
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
    try:
        encode = settings.start()
    except Exception as error:
        pipe.send(error)
        return
    with suppress(EOFError):
        while True:
            request: BlockRequest = pipe.recv()
            try:
                answer: Answer = encode(request)
            except Exception as error:
                answer = error
            pipe.send(answer)


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
        with suppress(BrokenPipeError, ConnectionResetError):  # `collect` tells that it is gone
            worker.pipe.send(request)

    def collect(self, workers: Sequence[_Process]) -> list[tuple[Any, Answer]]:
        """Wait for some of the workers and return their answers."""
        by_pipe = {worker.pipe: worker for worker in workers}
        answers: list[tuple[Any, Answer]] = []
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                answers.append((worker, worker.pipe.recv()))
            except (EOFError, ConnectionResetError):
                worker.process.join()
                self._workers.remove(worker)
                self._free.append(worker.settings)
                answers.append((worker, None))
        return answers

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.pipe.close()
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
        settings: of each worker.
        workers: how many; None: this process alone, with `ray` one for each GPU (or node).
        ray: "local" or a cluster's address.

    Raises:
        InputError: a number below 1.
    """
    import torch

    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; give a number above 0")
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
