"""Several processes at one job: each loads the model and encodes blocks; a lost one is replaced.

A worker gets its next block when it has given its last, so that no more blocks are in memory than
there are workers. The block of a worker that was killed is done again by another.
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

from embedlm.bulk.blocks import Worker
from embedlm.data.source import Record
from embedlm.errors import InputError, JobError
from embedlm.jobs.job import Block

if TYPE_CHECKING:
    from embedlm.embedder import Embedder
    from embedlm.encode.compiling import Mode

__all__ = ["Crew", "Duty", "Processes", "Task", "crew_of", "work"]

TRIES = 3
"""How often a block may end its worker before the job gives up."""
Ranges = npt.NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Task:
    """A block that is to be encoded."""

    index: int
    records: Sequence[Record]
    digest: npt.NDArray[np.uint8]
    name: str
    """Of the file they are of."""
    ranges: Ranges = None
    kernels: Mode = "off"

    def done_by(self, worker: Worker) -> Block:
        """Return the block of these records."""
        return {**worker(self.records, self.name), "digest": self.digest}


@dataclass(frozen=True, slots=True)
class Duty:
    """What a worker needs to do any task of a job; it can be sent to another process."""

    load: Callable[[], Embedder]
    options: dict[str, Any] = field(default_factory=dict)
    set_aside: bool = False
    threads: int | None = None
    device: str | None = None
    """Which accelerator the worker's process sees; None: all."""

    def begin(self) -> Callable[[Task], Block]:
        """Load the model and return what encodes a task's records."""
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        model = self.load()
        worker = Worker(model, self.options, set_aside=self.set_aside)

        def run(task: Task) -> Block:
            worker.ranges = task.ranges
            with model.executor.fixed(task.kernels):
                return task.done_by(worker)

        return run


class Crew(Protocol):
    """Workers of one kind."""

    size: int
    idle: list[Any]
    """Workers without a task."""

    def hire(self) -> Any:
        """Start a worker."""

    def give(self, worker: Any, task: Task) -> None:
        """Send a worker its task."""

    def finished(self, workers: Sequence[Any]) -> list[tuple[Any, Block | Exception | None]]:
        """Wait for some of the workers; None stands for one that is gone."""

    def close(self) -> None:
        """Dismiss all workers."""


def work(crew: Crew, tasks: Iterator[Task]) -> Iterator[tuple[int, Block]]:
    """Yield each task's index and block, in the order in which they are finished.

    Raises:
        JobError: a block ends one worker after the other.
    """
    busy: dict[Any, Task] = {}
    lost: Counter[int] = Counter()
    try:
        while True:
            while len(busy) < crew.size and (task := next(tasks, None)) is not None:
                worker = crew.idle.pop() if crew.idle else crew.hire()
                crew.give(worker, task)
                busy[worker] = task
            if not busy:
                return
            for worker, found in crew.finished(list(busy)):
                task = busy.pop(worker)
                if isinstance(found, Exception):
                    raise found
                if found is not None:
                    crew.idle.append(worker)
                    yield task.index, found
                    continue
                lost[task.index] += 1
                if lost[task.index] >= TRIES:
                    first, last = task.records[0].place, task.records[-1].place
                    raise JobError(
                        f"the records {first} to {last} ended {TRIES} workers one after the other "
                        "(out of memory?); take fewer workers, a smaller --block or --batch-tokens"
                    )
                tasks = chain([task], tasks)
    finally:
        if busy:  # stopped in the middle: nobody waits for what they are at
            crew.close()


class _Process:
    """A worker in a process of this machine."""

    def __init__(self, duty: Duty) -> None:
        context = get_context("spawn")
        self.pipe, inner = context.Pipe()
        self.process = context.Process(target=_serve, args=(duty, inner), daemon=True)
        self.process.start()
        inner.close()


def _serve(duty: Duty, pipe: Connection) -> None:
    """Do tasks until the other end is closed."""
    try:
        run = duty.begin()
    except Exception as error:
        pipe.send(error)
        return
    with suppress(EOFError):
        while True:
            task: Task = pipe.recv()
            try:
                found: Block | Exception = run(task)
            except Exception as error:
                found = error
            pipe.send(found)


class Processes:
    """A crew on this machine, a process a device, or so many on a CPU."""

    def __init__(self, duties: Sequence[Duty]) -> None:
        self.size = len(duties)
        self.idle: list[_Process] = []
        self._free = list(duties)
        self._at: dict[_Process, Duty] = {}

    def hire(self) -> _Process:
        """Start a worker with the next free duty."""
        duty = self._free.pop()
        worker = _Process(duty)
        self._at[worker] = duty
        return worker

    def give(self, worker: _Process, task: Task) -> None:
        """Send a worker its task."""
        with suppress(BrokenPipeError, ConnectionResetError):  # `finished` tells that it is gone
            worker.pipe.send(task)

    def finished(self, workers: Sequence[_Process]) -> list[tuple[Any, Block | Exception | None]]:
        """Wait for some of the workers; None stands for one that is gone."""
        by_pipe = {worker.pipe: worker for worker in workers}
        found: list[tuple[Any, Block | Exception | None]] = []
        for pipe in wait(list(by_pipe)):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                found.append((worker, worker.pipe.recv()))
            except (EOFError, ConnectionResetError):
                worker.process.join()
                self._free.append(self._at.pop(worker))
                found.append((worker, None))
        return found

    def close(self) -> None:
        """End all workers."""
        for worker, duty in self._at.items():
            worker.pipe.close()
            worker.process.terminate()
            worker.process.join()
            self._free.append(duty)
        self._at.clear()
        self.idle.clear()


@contextmanager
def crew_of(duty: Duty, workers: int | None, ray: str | None) -> Iterator[Crew | None]:
    """Yield the workers of a job, who are dismissed at the end; None: this process alone.

    Args:
        duty: of each.
        workers: how many; None: one a GPU where there are any, with `ray` all of the cluster's.
        ray: "local" or a cluster's address.

    Raises:
        InputError: a number below 1.
    """
    import torch

    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}; give a number above 0")
    if ray is not None:
        from embedlm.bulk.ray_actors import RayActors

        crew: Crew = RayActors(duty, workers, ray)
    elif workers is None or workers == 1:
        yield None
        return
    elif cards := torch.cuda.device_count():
        crew = Processes([replace(duty, device=str(i % cards)) for i in range(workers)])
    else:
        each = max(1, torch.get_num_threads() // workers)
        crew = Processes([replace(duty, threads=each)] * workers)
    try:
        yield crew
    finally:
        crew.close()
