"""Checkpoints of a stage: a run that is killed loses only the steps since the last one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from embedlm.errors import JobError
from embedlm.jobs.atomic import TEMPORARY, disk_errors, replace_folder
from embedlm.jobs.json_files import read_json, write_json
from embedlm.jobs.manifest import change_of, json_values
from embedlm.training.devices import process_rank, wait_for_all
from embedlm.training.fsdp import load_local_state, local_part, local_state, put_weights
from embedlm.training.gradcache import RandomState

__all__ = ["Checkpoints", "StageProgress", "trained_parameters"]

_MANIFEST, _PROGRESS = "manifest.json", "progress.json"
KEEP = 2
"""Number of last checkpoints that are kept beside the best one."""


@dataclass(slots=True)
class StageProgress:
    """How far a stage has come."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    stale: int = 0
    """Consecutive evaluations without a better score."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Dev scores, each with its step."""
    negatives: dict[str, list[float]] = field(default_factory=dict)
    """State of each record's hard negatives (`dynamic_negatives`)."""
    loss_scale: float | None = None
    """Factor of the loss, in float16."""
    steps_at_scale: int = 0
    """Steps since the factor was changed."""


class Checkpoints:
    """The checkpoints in a stage's folder.

    Args:
        folder: folder of the checkpoints; it is created if needed.
        manifest: settings and data of the stage; checkpoints with other ones are refused.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder, self.manifest = folder, json_values(manifest)
        folder.mkdir(parents=True, exist_ok=True)
        if process_rank() == 0:
            for left in folder.glob(f".*{TEMPORARY}"):
                shutil.rmtree(left, ignore_errors=True)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in order."""
        return sorted(int(p.name.removeprefix("step-")) for p in self.folder.glob("step-*"))

    def save(
        self,
        progress: StageProgress,
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> Path:
        """Write a checkpoint; it gets its final name only when it is complete.

        Raises:
            JobError: the disk is full or cannot be written to.
        """
        target = self._path(progress.step)
        # All processes write into this folder, so its name must not be random.
        unfinished = target.with_name(f".{target.name}{TEMPORARY}")
        last = self.steps()
        kept = f"The checkpoint of step {last[-1]} is complete. " if last else ""
        advice = f"{kept}Make room and run the same command again"
        try:
            with disk_errors(target, advice, also=(RuntimeError,)):  # torch's writer raises that
                unfinished.mkdir(exist_ok=True)
                self._write(unfinished, weights, optimizer)
                wait_for_all()
                if process_rank() == 0:
                    write_json(unfinished / _MANIFEST, self.manifest)
                    write_json(unfinished / _PROGRESS, asdict(progress))
                    replace_folder(unfinished, target)
                wait_for_all()
        except JobError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if process_rank() == 0:
            self._prune(progress)
        return target

    def _write(
        self, folder: Path, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        """Write the random state and the shards of this process."""
        state, owner = RandomState.now(), self._owner(weights)
        torch.save(
            {"cpu": state.cpu, "cuda": list(state.cuda)}, folder / f"random-{process_rank()}.pt"
        )
        if owner == process_rank():
            tensors = {name: local_part(weight).detach().cpu() for name, weight in weights.items()}
            torch.save(tensors, folder / f"weights-{owner}.pt")
            torch.save(local_state(optimizer), folder / f"optimizer-{owner}.pt")

    def _owner(self, weights: Mapping[str, Tensor]) -> int:
        """Return the rank whose weights this process reads: its own if sharded, else the first."""
        return process_rank() if any(isinstance(w, DTensor) for w in weights.values()) else 0

    def load(
        self, weights: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> StageProgress | None:
        """Restore the last checkpoint and return its progress; None if there is no checkpoint.

        Raises:
            JobError: the checkpoint belongs to other settings or other data.
        """
        steps = self.steps()
        if not steps:
            return None
        folder = self._path(steps[-1])
        change = change_of(folder / _MANIFEST, self.manifest)
        if change:
            raise JobError(
                f"{folder} is a checkpoint of another plan or of other data: {change}. Give "
                "another output folder, or --restart to start again"
            )
        progress = read_json(folder / _PROGRESS, JobError)
        self.restore(steps[-1], weights)
        options = {"map_location": "cpu", "weights_only": True}
        owner = self._owner(weights)
        load_local_state(optimizer, torch.load(folder / f"optimizer-{owner}.pt", **options))  # type: ignore[arg-type]
        random = torch.load(folder / f"random-{process_rank()}.pt", **options)  # type: ignore[arg-type]
        RandomState(random["cpu"], tuple(random["cuda"])).restore()
        return StageProgress(**progress)

    def restore(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Restore the weights of a checkpoint."""
        file = self._path(step) / f"weights-{self._owner(weights)}.pt"
        put_weights(weights, torch.load(file, map_location="cpu", weights_only=True))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    def _prune(self, progress: StageProgress) -> None:
        for step in self.steps()[:-KEEP]:
            if step != progress.best_step:
                shutil.rmtree(self._path(step), ignore_errors=True)


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that require gradients, by name; a shared one appears once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
