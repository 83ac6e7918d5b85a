"""Reports of a run, sent to TensorBoard, Weights & Biases or MLflow through accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedlm.errors import MissingExtraError, require
from embedlm.schema.plan import Plan
from embedlm.training.devices import process_rank

__all__ = ["EventHandler", "tracked"]

EventHandler = Callable[[str, dict[str, Any]], None]
"""A function that receives an event's kind ("stage", "resume", "step" or "dev") and its values."""


@contextmanager
def tracked(plan: Plan, folder: Path, on_event: EventHandler | None) -> Iterator[EventHandler]:
    """Open the plan's trackers in the first process; yield a handler that serves all of them.

    The handler calls `on_event` too. Trackers count the steps of all stages in one row.

    Raises:
        MissingExtraError: a tracker's package is not installed.
    """
    trackers = _opened(plan, folder) if process_rank() == 0 else []
    steps_before = last_step = 0

    def report(kind: str, values: dict[str, Any]) -> None:
        nonlocal steps_before, last_step
        if on_event is not None:
            on_event(kind, values)
        if kind == "stage":
            steps_before = last_step
        if kind not in ("step", "dev"):
            return
        last_step = steps_before + int(values["step"])
        prefix = values["stage"] if kind == "step" else f"{values['stage']}/dev"
        numbers = {
            f"{prefix}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and name not in ("step", "of")
        }
        for tracker in trackers:
            tracker.log(numbers, step=last_step)

    try:
        yield report
    finally:
        for tracker in trackers:
            tracker.finish()


def _opened(plan: Plan, folder: Path) -> Sequence[Any]:
    trackers: list[Any] = []
    for name in plan.trackers:
        tracking = require("accelerate.tracking", "train")
        kind = tracking.LOGGER_TYPE_TO_CLASS[name]
        log_folder = (str(folder / "trackers"),) if kind.requires_logging_directory else ()
        try:
            tracker = kind(plan.name, *log_folder)
            tracker.start()
        except ImportError as error:
            raise MissingExtraError(
                f"tracker {name!r} cannot be opened: {error}. Install it: pip install {name}"
            ) from error
        tracker.store_init_configuration({"model": plan.model, "stages": len(plan.stages)})
        trackers.append(tracker)
    return trackers
