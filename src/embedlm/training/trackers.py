"""What happens in a run, told to TensorBoard, Weights & Biases or MLflow (accelerate)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedlm.errors import MissingExtraError, require
from embedlm.schema.plan import Plan
from embedlm.training.devices import rank

__all__ = ["Say", "tracked"]

Say = Callable[[str, dict[str, Any]], None]
"""Is told what happens, "stage", "step" or "dev", with its numbers."""


@contextmanager
def tracked(plan: Plan, folder: Path, say: Say | None) -> Iterator[Say]:
    """Open the plan's trackers in the first process and yield what tells them and `say`.

    Raises:
        MissingExtraError: a tracker's package is not installed.
    """
    trackers = _opened(plan, folder) if rank() == 0 else []
    before = last = 0

    def told(kind: str, values: dict[str, Any]) -> None:
        nonlocal before, last
        if say is not None:
            say(kind, values)
        if kind == "stage":
            before = last  # a stage's steps come after those of the stages before
            return
        last = before + int(values["step"])
        place = values["stage"] if kind == "step" else f"{values['stage']}/dev"
        numbers = {
            f"{place}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and name not in ("step", "of")
        }
        for tracker in trackers:
            tracker.log(numbers, step=last)

    try:
        yield told
    finally:
        for tracker in trackers:
            tracker.finish()


def _opened(plan: Plan, folder: Path) -> Sequence[Any]:
    opened: list[Any] = []
    for name in plan.trackers:
        tracking = require("accelerate.tracking", "train")
        kind = tracking.LOGGER_TYPE_TO_CLASS[name]
        place = (str(folder / "trackers"),) if kind.requires_logging_directory else ()
        try:
            tracker = kind(plan.name, *place)
            tracker.start()
        except ImportError as error:
            raise MissingExtraError(
                f"tracker {name!r} cannot be opened: {error}. Install it: pip install {name}"
            ) from error
        tracker.store_init_configuration({"model": plan.model, "stages": len(plan.stages)})
        opened.append(tracker)
    return opened
