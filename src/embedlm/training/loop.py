"""The training loop of a stage: optimiser, schedule, dev scores, checkpoints, early stopping."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from embedlm.backbone.memory import free_memory, is_out_of_memory
from embedlm.errors import JobError
from embedlm.jobs.json_files import append_json
from embedlm.schema.tuning import Stage
from embedlm.training.batches import Batches
from embedlm.training.checkpoint import Checkpoints, StageProgress, trained_parameters
from embedlm.training.dev import DevSet, dev_score
from embedlm.training.devices import process_rank, sum_gradients, wait_for_all
from embedlm.training.fsdp import clip_gradients, local_part
from embedlm.training.loss_scale import adjusted, loss_scale, unscale
from embedlm.training.schedule import learning_rate
from embedlm.training.step import Stepper
from embedlm.training.trackers import EventHandler

__all__ = ["Intervals", "run_steps", "steps_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Numbers of steps after which a run logs, scores the dev set, and saves a checkpoint."""

    log: int = 10
    evaluate: int | None = None
    checkpoint: int = 200
    keep: Literal["best", "last"] = "best"
    """Weights that a stage ends with if there is a dev set."""
    patience: int | None = None
    """Evaluations without a better score after which the stage ends early; None: never."""


def steps_of(stage: Stage, batches: Batches) -> int:
    """Return the number of steps of a stage, from its `steps` or its `epochs`."""
    if stage.optimizer.steps is not None:
        return stage.optimizer.steps
    epochs = stage.optimizer.epochs or 1.0
    queries = batches.size * stage.batching.accumulate
    return max(1, math.ceil(epochs * batches.total / queries))


def run_steps(
    stepper: Stepper,
    batches: Batches,
    checkpoints: Checkpoints,
    every: Intervals,
    dev: DevSet | None,
    on_event: EventHandler,
) -> StageProgress:
    """Train a stage from its last checkpoint, and leave the best weights in the model.

    Args:
        stepper: computes the gradient of a batch.
        batches: the stage's batches, at their first step.
        checkpoints: the checkpoints of the stage's folder.
        every: how often the run logs, scores the dev set and saves.
        dev: held-out records, or None.
        on_event: receives "resume", "step" and "dev" events with their values.

    Raises:
        JobError: the loss or the gradient is not finite, or a checkpoint cannot be written.
    """
    stage, modules = stepper.stage, stepper.model.modules()
    steps, parameters = steps_of(stage, batches), trained_parameters(modules)
    torch.manual_seed(stepper.seed + process_rank())
    optimizer = _optimizer(stage, parameters)
    _check_memory(stage, parameters, stepper.model.backbone.device)
    progress = checkpoints.load(parameters, optimizer) or StageProgress()
    loop = _Loop(
        stepper, batches, checkpoints, every, dev, on_event, steps, parameters, optimizer, progress
    )
    loop.begin()
    begun = progress.step
    while progress.step < steps and not loop.ended:
        loop.step()
    if begun < progress.step and not loop.learns:
        log.warning(
            "stage %r has learnt nothing: the gradient was 0 in all %d steps; look at its data",
            stage.name,
            progress.step - begun,
        )
    modules.eval()
    wait_for_all()
    best = every.keep == "best" and progress.best_step in checkpoints.steps()
    if best and progress.best_step is not None:
        checkpoints.restore(progress.best_step, parameters)
    return progress


@dataclass(slots=True)
class _Loop:
    """The state of a stage that is being trained."""

    stepper: Stepper
    batches: Batches
    checkpoints: Checkpoints
    every: Intervals
    dev: DevSet | None
    on_event: EventHandler
    steps: int
    """Steps of the whole stage."""
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    progress: StageProgress
    start: float = field(default_factory=time.perf_counter)
    learns: bool = False
    """Whether any step had a gradient."""

    @property
    def ended(self) -> bool:
        """Whether the stage has gone on for long enough without a better score."""
        patience = self.every.patience
        return patience is not None and self.progress.stale >= patience

    def begin(self) -> None:
        """Go to the step of the checkpoint; score the dev set before the first step of all."""
        progress, batches = self.progress, self.batches
        if progress.step:
            self.on_event("resume", {"step": progress.step, "of": self.steps})
        if batches.hardness is not None:
            batches.hardness.restore(progress.negatives)
        batches.skip(progress.step * self.stepper.stage.batching.accumulate)
        if self.dev is not None and not progress.history:
            _evaluate(self.stepper, self.dev, progress, self.on_event)
            self.checkpoints.save(progress, self.parameters, self.optimizer)
        self.start = time.perf_counter()

    def step(self) -> None:
        """Make a step, and log, score and save what is due after it."""
        progress, modules = self.progress, self.stepper.model.modules()
        modules.train()
        rate = learning_rate(self.stepper.stage.optimizer, progress.step, self.steps)
        values = _step(
            self.stepper,
            self.batches,
            self.optimizer,
            self.parameters,
            rate,
            progress,
            self.checkpoints,
        )
        progress.step += 1
        self.learns = self.learns or values["norm"] > 0
        last, better = progress.step == self.steps, False
        if last or progress.step % self.every.log == 0:
            spent = time.perf_counter() - self.start
            facts = {"step": progress.step, "of": self.steps, "rate": rate, **values, "s": spent}
            self.on_event("step", facts)
        if self.dev is not None and (last or _due(progress.step, self.every.evaluate)):
            modules.eval()
            better = _evaluate(self.stepper, self.dev, progress, self.on_event)
        if better or last or self.ended or _due(progress.step, self.every.checkpoint):
            if self.batches.hardness is not None:
                progress.negatives = self.batches.hardness.state()
            self.checkpoints.save(progress, self.parameters, self.optimizer)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _optimizer(stage: Stage, parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return AdamW, without weight decay for vectors (biases and norms)."""
    rate = stage.optimizer.weight_decay
    groups = [
        {
            "params": [
                p
                for p in parameters.values()
                if (p.ndim > 1) is decays and isinstance(p, DTensor) is sharded
            ],
            "weight_decay": rate if decays else 0.0,
        }
        for sharded in (False, True)
        for decays in (True, False)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=stage.optimizer.learning_rate
    )


def _step(
    stepper: Stepper,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    rate: float,
    progress: StageProgress,
    checkpoints: Checkpoints,
) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    scale = loss_scale(progress, stepper.precision)
    try:
        values = _gradient(stepper, batches, scale)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise JobError(
            f"stage {stepper.stage.name!r} ran out of memory at step {progress.step + 1}; "
            f"{_last_good(checkpoints)}. Set batching.chunk_tokens (it is "
            f"{stepper.stage.batching.chunk_tokens}) or make it smaller, shorten texts "
            "(max_length), or set gradient_checkpointing: true"
        ) from error
    sum_gradients(parameters.values())
    limit = stepper.stage.optimizer.max_grad_norm
    unscale(parameters.values(), scale)
    norm = clip_gradients(parameters.values(), limit)
    if not adjusted(progress, scale, finite=math.isfinite(norm)) and math.isfinite(values["loss"]):
        return {**values, "norm": 0.0, "skipped": 1.0}
    collapsed = norm == 0 and values["loss"] > 0  # every text has the same vector
    if collapsed or not math.isfinite(values["loss"]) or not math.isfinite(norm):
        raise JobError(
            f"stage {stepper.stage.name!r} diverged at step {progress.step + 1}: the loss is "
            f"{values['loss']}, the gradient's norm {norm}. The weights were not changed; "
            f"{_last_good(checkpoints)}. Take a smaller learning rate or a longer warm-up"
        )
    optimizer.step()
    return {**values, "norm": norm}


def _last_good(checkpoints: Checkpoints) -> str:
    kept = checkpoints.steps()
    where = f"step {kept[-1]} in {checkpoints.folder}" if kept else "none yet"
    return f"the last good checkpoint: {where}"


def _check_memory(stage: Stage, parameters: dict[str, nn.Parameter], device: torch.device) -> None:
    """Refuse a stage whose gradients and optimiser do not fit in memory beside the model.

    Raises:
        JobError: it says how much is needed and how much is free.
    """
    free = free_memory(device)
    # A gradient and AdamW's two moments, in the parameters' own dtype.
    needs = sum(3 * local_part(p).numel() * p.element_size() for p in parameters.values())
    if free is not None and needs > free:
        raise JobError(
            f"stage {stage.name!r} needs {needs / 2**30:.1f} GiB for gradients and the optimiser "
            f"beside the model, and {free / 2**30:.1f} GiB of {device} are free; train an adapter "
            "(train: adapter), or split the model over several devices (sharding: full)"
        )


def _gradient(stepper: Stepper, batches: Batches, scale: float = 1.0) -> dict[str, float]:
    """Add the mean gradient of a step's batches, scaled; return the means of their losses."""
    count = stepper.stage.batching.accumulate
    mean: dict[str, float] = {}
    for _ in range(count):
        batch = batches.next()
        for name, value in stepper.backward(batch, scale / count).items():
            mean[name] = mean.get(name, 0.0) + value / count
        if batches.hardness is not None and stepper.negatives_BG is not None:
            batches.hardness.look(batch.rows, stepper.negatives_BG, batch.step)
    return mean


def _evaluate(
    stepper: Stepper,
    dev: DevSet,
    progress: StageProgress,
    on_event: EventHandler,
) -> bool:
    """Score the dev set; tell whether this is the best score so far, the start's included."""
    score = dev_score(stepper.model.embedder, dev.records, stepper.stage, dev.role)
    progress.history.append({"step": progress.step, "score": score})
    on_event("dev", {"step": progress.step, "metric": dev.metric, "score": score})
    better = progress.best_score is None or score > progress.best_score
    if better:
        progress.best_score, progress.best_step = score, progress.step
        progress.stale = 0
    else:
        progress.stale += 1
    return better


def write_log(path: Path, kind: str, values: dict[str, Any]) -> None:
    """Append a line to a stage's log."""
    append_json(path, {"kind": kind, **values})
