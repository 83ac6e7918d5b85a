"""A queue that serves those who wait in turn, so that a large job of one delays no other.

Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995): each key in its turn may take as many
tokens as its credit, which grows by a quantum a turn.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["FairQueue", "Group", "Job", "Piece"]

QUANTUM = 512
"""Tokens by which a key's credit grows in its turn."""


class Group(Protocol):
    """What runs the items of jobs that may run together; equal groups are one."""

    def __hash__(self) -> int: ...

    def run(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return what was asked for of each item."""
        ...


@dataclass(eq=False, slots=True)
class Job:
    """The work of one request."""

    key: Hashable
    """Whose it is."""
    group: Group
    items: Sequence[Any]
    costs: Sequence[int]
    """Of each item, in tokens."""
    future: asyncio.Future[list[Any]]
    arrived: float
    """On the event loop's clock."""
    started: float | None = None
    run_seconds: float = 0.0
    """For how long the passes took that its items were in."""
    taken: int = 0
    """How many of its items have left the queue."""
    results: list[Any] = field(default_factory=list)
    left: int = 0
    """How many of its items have no result yet."""

    def __post_init__(self) -> None:
        self.results = [None] * len(self.items)
        self.left = len(self.items)

    @property
    def waiting(self) -> int:
        """Tokens of its items that are still in the queue."""
        return sum(self.costs[self.taken :])

    @property
    def over(self) -> bool:
        """Whether no one waits for it any longer."""
        return self.future.done()


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of a job's items, from `start` to before `stop`."""

    job: Job
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """Their cost."""
        return sum(self.job.costs[self.start : self.stop])


class FairQueue:
    """Jobs by key."""

    def __init__(self, quantum: int = QUANTUM) -> None:
        self._quantum = quantum
        self._jobs: OrderedDict[Hashable, deque[Job]] = OrderedDict()
        self._credit: dict[Hashable, int] = {}
        self.tokens = 0
        """That wait."""
        self.count = 0
        """Jobs that wait."""

    def __bool__(self) -> bool:
        return self.count > 0

    def divides(self, parts: int, least: int) -> bool:
        """Tell whether what waits makes so many parts: an item for each, and `least` tokens."""
        if self.tokens < parts * least:
            return False
        items = 0
        for jobs in self._jobs.values():
            for job in jobs:
                items += len(job.items) - job.taken
                if items >= parts:
                    return True
        return False

    def put(self, job: Job) -> None:
        """Append a job."""
        self._jobs.setdefault(job.key, deque()).append(job)
        self._credit.setdefault(job.key, 0)
        self.tokens += job.waiting
        self.count += 1

    def take(self, budget: int) -> list[Piece]:
        """Return what runs next, of `budget` tokens at most; a larger item comes alone.

        Jobs that no one waits for are dropped.
        """
        pieces: list[Piece] = []
        room = budget
        blocked: set[Hashable] = set()
        while room > 0 and len(blocked) < len(self._jobs):
            key, jobs = next(iter(self._jobs.items()))
            self._drop(jobs)
            if not jobs:
                self._forget(key)
                continue
            self._jobs.move_to_end(key)
            if key in blocked:
                continue
            cost = jobs[0].costs[jobs[0].taken]
            if cost > room and pieces:
                blocked.add(key)
                continue
            self._credit[key] += self._quantum
            credit = self._credit[key]
            # An item above the budget waits for its credit too, and has the batch for itself.
            most = min(room, credit) if cost <= room else cost if cost <= credit else 0
            taken = self._from(jobs, most, pieces)
            self._credit[key] -= taken
            room -= taken
            if not jobs:
                self._forget(key)
        return pieces

    def purge(self) -> None:
        """Drop all jobs that no one waits for."""
        for key, jobs in list(self._jobs.items()):
            for job in [job for job in jobs if job.over]:
                jobs.remove(job)
                self._leave(job)
            if not jobs:
                self._forget(key)

    def refuse(self, error: Exception) -> None:
        """Drop all jobs; those who wait for one get the error."""
        for job in [job for jobs in self._jobs.values() for job in jobs]:
            if not job.over:
                job.future.set_exception(error)
        self.purge()

    def _forget(self, key: Hashable) -> None:
        del self._jobs[key], self._credit[key]

    def _drop(self, jobs: deque[Job]) -> None:
        while jobs and jobs[0].over:
            self._leave(jobs.popleft())

    def _leave(self, job: Job) -> None:
        self.tokens -= job.waiting
        self.count -= 1

    def _from(self, jobs: deque[Job], room: int, pieces: list[Piece]) -> int:
        """Take items from one key's jobs; return how many tokens they have."""
        taken = 0
        while jobs:
            self._drop(jobs)
            if not jobs:
                break
            job = jobs[0]
            start = stop = job.taken
            while stop < len(job.items) and taken + job.costs[stop] <= room:
                taken += job.costs[stop]
                stop += 1
            if stop == start:
                break
            piece = Piece(job, start, stop)
            pieces.append(piece)
            job.taken = stop
            self.tokens -= piece.tokens
            if stop == len(job.items):
                self.count -= 1
                jobs.popleft()
        return taken
