"""A job's workers as actors of a Ray cluster: one for each GPU, or several that share the CPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from embedlm.bulk.blocks import Block
from embedlm.bulk.requests import BlockRequest, WorkerResult, WorkerSettings
from embedlm.errors import JobError, require

__all__ = ["RayPool"]


class _Actor:
    """A worker in the cluster."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._encode = settings.start()

    def encode(self, request: BlockRequest) -> Block:
        """Return the encoded block."""
        return self._encode(request)


class RayPool:
    """Workers that are Ray actors; each must be able to read the model's folder on its machine.

    Raises:
        MissingExtraError: ray is not installed.
        JobError: the cluster cannot be reached.
    """

    def __init__(self, settings: WorkerSettings, workers: int | None, address: str) -> None:
        ray = self._ray = require("ray", "ray")
        if not ray.is_initialized():
            local = {"address": "local", "include_dashboard": False}
            try:
                ray.init(
                    **(local if address == "local" else {"address": address}),
                    log_to_driver=False,
                    logging_level="ERROR",
                )
            except Exception as error:  # ConnectionError, ValueError and its own
                raise JobError(f"the Ray cluster {address!r} cannot be reached: {error}") from error
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
        self.size = workers or gpus or max(1, len(ray.nodes()))
        if gpus:
            share = {"num_gpus": min(1.0, gpus / self.size)}
        else:
            threads = max(1, cores // self.size)
            share, settings = {"num_cpus": threads}, replace(settings, threads=threads)
        self._actor = ray.remote(**share)(_Actor)
        self._settings = ray.put(settings)
        self.idle: list[Any] = []
        self._refs: dict[Any, Any] = {}
        self._actors: list[Any] = []

    def start(self) -> Any:
        """Start an actor."""
        actor = self._actor.remote(self._settings)
        self._actors.append(actor)
        return actor

    def submit(self, worker: Any, request: BlockRequest) -> None:
        """Send an actor a request."""
        self._refs[worker.encode.remote(request)] = worker

    def collect(self, workers: Sequence[Any]) -> list[tuple[Any, WorkerResult]]:
        """Wait for some of the actors and return what they have finished."""
        ray = self._ray
        done, _ = ray.wait(list(self._refs), num_returns=1)
        results: list[tuple[Any, WorkerResult]] = []
        for ref in done:
            worker = self._refs.pop(ref)
            try:
                results.append((worker, ray.get(ref)))
            except ray.exceptions.RayTaskError as error:
                results.append((worker, getattr(error, "cause", None) or error))
            except ray.exceptions.RayActorError as error:
                if "__init__" in str(error):  # it could not even start
                    results.append((worker, getattr(error, "cause", None) or JobError(str(error))))
                    continue
                self._actors.remove(worker)
                results.append((worker, None))
        return results

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors.clear()
        self._refs.clear()
        self.idle.clear()
