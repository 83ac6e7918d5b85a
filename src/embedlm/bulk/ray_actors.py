"""A job's workers as actors of a Ray cluster, one a GPU or so many on CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from embedlm.bulk.workers import Duty, Task
from embedlm.errors import JobError, require
from embedlm.jobs.job import Block

__all__ = ["RayActors"]


class _Actor:
    """Runs in the cluster."""

    def __init__(self, duty: Duty) -> None:
        self.run = duty.begin()

    def encode(self, task: Task) -> Block:
        """Return a task's block."""
        return self.run(task)


class RayActors:
    """A crew of Ray actors; the model's folder must be readable where they run.

    Raises:
        MissingExtraError: ray is not installed.
        JobError: the cluster cannot be reached.
    """

    def __init__(self, duty: Duty, workers: int | None, address: str) -> None:
        ray = self._ray = require("ray", "ray")
        if not ray.is_initialized():
            place = {"address": "local", "include_dashboard": False}
            try:
                ray.init(
                    **(place if address == "local" else {"address": address}),
                    log_to_driver=False,
                    logging_level="ERROR",
                )
            except Exception as error:  # ConnectionError, ValueError and its own
                raise JobError(f"the Ray cluster {address!r} cannot be reached: {error}") from error
        found = ray.cluster_resources()
        cards, cores = int(found.get("GPU", 0)), max(1, int(found.get("CPU", 1)))
        self.size = workers or cards or max(1, len(ray.nodes()))
        if cards:
            share = {"num_gpus": min(1.0, cards / self.size)}
        else:
            each = max(1, cores // self.size)
            share, duty = {"num_cpus": each}, replace(duty, threads=each)
        self._actor = ray.remote(**share)(_Actor)
        self._duty = ray.put(duty)
        self.idle: list[Any] = []
        self._refs: dict[Any, Any] = {}
        self._actors: list[Any] = []

    def hire(self) -> Any:
        """Start an actor."""
        actor = self._actor.remote(self._duty)
        self._actors.append(actor)
        return actor

    def give(self, worker: Any, task: Task) -> None:
        """Send an actor its task."""
        self._refs[worker.encode.remote(task)] = worker

    def finished(self, workers: Sequence[Any]) -> list[tuple[Any, Block | Exception | None]]:
        """Wait for some of the actors; None stands for one that is gone."""
        ray = self._ray
        done, _ = ray.wait(list(self._refs), num_returns=1)
        found: list[tuple[Any, Block | Exception | None]] = []
        for ref in done:
            worker = self._refs.pop(ref)
            try:
                found.append((worker, ray.get(ref)))
            except ray.exceptions.RayTaskError as error:
                found.append((worker, getattr(error, "cause", None) or error))
            except ray.exceptions.RayActorError as error:
                if "__init__" in str(error):  # it could not even begin
                    found.append((worker, getattr(error, "cause", None) or JobError(str(error))))
                    continue
                self._actors.remove(worker)
                found.append((worker, None))
        return found

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        self._refs.clear()
        self.idle.clear()
