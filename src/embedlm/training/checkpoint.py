"""Where a stage stands, written so that a kill at any moment loses no more than the last steps."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from embedlm.errors import JobError
from embedlm.jobs.json_files import read_json
from embedlm.training.devices import rank, wait
from embedlm.training.gradcache import RandomState
from embedlm.training.shards import load_local_state, local, local_state, put_weights

__all__ = ["Checkpoints", "Progress", "identity", "trainable"]

KEEP = 2
"""Checkpoints kept beside the best one."""


@dataclass(slots=True)
class Progress:
    """What a stage has done."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    stale: int = 0
    """Evaluations without a better score."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Dev scores: step, score."""
    negatives: dict[str, list[float]] = field(default_factory=dict)
    """How hard each record's negatives were (`dynamic_negatives`)."""


def identity(*parts: Any) -> str:
    """Return what tells a stage's settings and data from others."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Checkpoints:
    """The checkpoints of a stage's folder."""

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        folder.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            for left in folder.glob(".part-*"):
                shutil.rmtree(left, ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints that are there, in order."""
        return sorted(int(p.name.removeprefix("step-")) for p in self.folder.glob("step-*"))

    def save(
        self,
        progress: Progress,
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> Path:
        """Write a checkpoint under its final name only when it is whole.

        Raises:
            JobError: the disk is full, or cannot be written.
        """
        part, target = self.folder / f".part-{progress.step}", self._place(progress.step)
        try:
            part.mkdir(exist_ok=True)
            self._write(part, weights, optimizer)
            wait()
            if rank() == 0:
                facts = {"identity": self.identity, **asdict(progress)}
                (part / "progress.json").write_text(json.dumps(facts), encoding="utf-8")
                if target.exists():
                    shutil.rmtree(target)
                os.replace(part, target)
            wait()
        except (OSError, RuntimeError) as error:  # torch's writer raises the second
            shutil.rmtree(part, ignore_errors=True)
            last = self.steps()
            kept = f"; the checkpoint of step {last[-1]} is whole" if last else ""
            raise JobError(
                f"the checkpoint of step {progress.step} cannot be written to {self.folder}: "
                f"{error}{kept}. Make room and run the same command again"
            ) from error
        if rank() == 0:
            self._prune(progress)
        return target

    def _write(
        self, part: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        """Write what is this process's own: its random numbers, and its shards."""
        state, own = RandomState.now(), self._own(weights)
        torch.save({"cpu": state.cpu, "cuda": list(state.cuda)}, part / f"random-{rank()}.pt")
        if own == rank():
            torch.save(
                {n: local(w).detach().cpu() for n, w in weights.items()}, part / f"weights-{own}.pt"
            )
            torch.save(local_state(optimizer), part / f"optimizer-{own}.pt")

    def _own(self, weights: Mapping[str, Tensor]) -> int:
        """Return whose weights this process reads: its own shards, or those of the first."""
        return rank() if any(isinstance(w, DTensor) for w in weights.values()) else 0

    def load(
        self, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> Progress | None:
        """Put the last whole checkpoint back and return where it stands; None: there is none.

        Raises:
            JobError: it belongs to other settings or other data.
        """
        steps = self.steps()
        if not steps:
            return None
        place = self._place(steps[-1])
        facts = read_json(place / "progress.json")
        if facts.pop("identity", None) != self.identity:
            raise JobError(
                f"{place} is a checkpoint of another plan or of other data; give another output "
                "folder, or --restart to begin anew"
            )
        self.restore(steps[-1], weights)
        options = {"map_location": "cpu", "weights_only": True}
        own = self._own(weights)
        load_local_state(optimizer, torch.load(place / f"optimizer-{own}.pt", **options))  # type: ignore[arg-type]
        random = torch.load(place / f"random-{rank()}.pt", **options)  # type: ignore[arg-type]
        RandomState(random["cpu"], tuple(random["cuda"])).restore()
        return Progress(**facts)

    def restore(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Put the weights of a checkpoint back."""
        file = self._place(step) / f"weights-{self._own(weights)}.pt"
        found = torch.load(file, map_location="cpu", weights_only=True)
        put_weights(weights, found)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def _prune(self, progress: Progress) -> None:
        for step in self.steps()[:-KEEP]:
            if step != progress.best_step:
                shutil.rmtree(self._place(step), ignore_errors=True)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name; shared ones once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
