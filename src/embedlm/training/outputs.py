"""The folder of a run: what it may hold before, and what is read may not lie where it writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from embedlm.backbone.adapter_files import split_adapters
from embedlm.errors import InputError
from embedlm.jobs.names import check_apart, check_name
from embedlm.schema.plan import Plan
from embedlm.training.objectives import TEACHERS
from embedlm.training.plan import LocatedPlan, find_data, find_model

__all__ = ["LOCK", "check_target"]

LOCK = ".lock"
"""File in every folder that was trained in."""


def check_target(target: Path, source: LocatedPlan, data: str | Path | None) -> None:
    """Refuse an output folder in which a run would overwrite what no run has written, or an input.

    Args:
        target: the folder.
        source: the plan, and where it lies.
        data: folder of the data sets; None takes $EMBEDLM_DATA.

    Raises:
        InputError: a file, or a folder that holds a model or stages and was not trained in; or
            data are missing, or a model or a data set lies where the run writes, or around it.
    """
    check_name(target, "output")
    if target.is_file():
        raise InputError(f"{str(target)!r} is a file; give a folder to train in")
    written = [target / "model", *target.glob("stage-*")]
    held = [path.name for path in written if path.exists()]
    if held and not (target / LOCK).is_file():
        raise InputError(
            f"{str(target)!r} holds {held[0]!r}, which no training run has written and which would "
            "be overwritten; give another folder"
        )
    inputs = list(_inputs(source, data))
    for path in written:
        check_apart(path, inputs)


def _inputs(source: LocatedPlan, data: str | Path | None) -> Iterator[Path]:
    """Yield the folders of the models, and the files of the data sets, that a plan names."""
    plan = source.plan
    for name in _models(plan):
        base, adapters = split_adapters(find_model(name, source.folder, data))
        yield from map(Path, (base, *adapters))
    read = [entry for stage in plan.stages for entry in stage.data]
    for start in (plan.ridge, plan.prune):
        read += start.data if start is not None else ()
    for entry in (*read, *([plan.dev] if plan.dev is not None else ())):
        yield find_data(entry.source, source.folder, data)


def _models(plan: Plan) -> Iterator[str]:
    """Yield the names of the model that a plan trains and of all teachers."""
    yield plan.model
    if plan.ridge is not None and plan.ridge.teacher is not None:
        yield plan.ridge.teacher
    for loss in (loss for stage in plan.stages for loss in stage.objective):
        for named in (loss.options.get(option) for option in TEACHERS):
            yield from map(str, named if isinstance(named, list) else [named] if named else [])
