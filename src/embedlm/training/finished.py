"""What a stage was trained from, and whether a finished stage is of the same plan and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedlm.data import Records
from embedlm.errors import JobError
from embedlm.jobs.json_files import write_json
from embedlm.jobs.manifest import change_of, json_values
from embedlm.schema.plan import Plan
from embedlm.schema.recipe import Recipe
from embedlm.schema.tuning import Stage
from embedlm.training.checkpoint import StageProgress
from embedlm.training.dev import DevSet
from embedlm.training.objectives import TEACHERS
from embedlm.training.teacher_vectors import identity_of

__all__ = ["fingerprint", "is_finished", "manifest_of", "saved_dtype", "write_finished"]

_MANIFEST = "manifest.json"


def manifest_of(
    plan: Plan,
    number: int,
    base: tuple[str, Recipe],
    sets: list[Records],
    dev: DevSet | None,
    shards: int,
    find: Callable[[str], str],
) -> dict[str, Any]:
    """Return what a stage's weights depend on.

    Models and data are told by their content, so that a run goes on after folders have moved.

    Args:
        plan: the run's.
        number: of the stage.
        base: the model from which the stage starts, and its recipe.
        sets: the stage's data.
        dev: held-out records, by which a stage may end early or choose its best step.
        shards: processes over which the weights are spread; 1: none.
        find: returns the folder or hub id of a model that the plan names.
    """
    model, recipe = base
    save_dtype = saved_dtype(plan) if number == len(plan.stages) - 1 else None
    stored: dict[str, Any] = {} if save_dtype is None else {"save_dtype": save_dtype}
    if plan.precision != "float32":
        stored["precision"] = plan.precision
    if plan.dev is not None and plan.dev.model_fields_set & {"every", "patience"}:
        stored["dev_scores"] = [plan.dev.every, plan.dev.patience]
    return stored | {
        "stage": _stage_facts(plan.stages[number], find),
        "model": identity_of(model),
        "recipe": recipe.model_dump(mode="json"),
        "seed": plan.seed,
        "data": [fingerprint(records) for records in sets],
        "dev": None if dev is None else [dev.role, *fingerprint(dev.records)],
        "shards": shards,
    }


def _stage_facts(stage: Stage, find: Callable[[str], str]) -> dict[str, Any]:
    """Return a stage's fields, with the content of the models that it names for their names."""
    facts: dict[str, Any] = stage.model_dump(mode="json")
    for entry in facts["data"]:
        del entry["source"]  # the records' own fingerprint tells more
    for loss in facts["objective"]:
        for option in TEACHERS:
            named = loss["options"].get(option)
            if isinstance(named, list):
                loss["options"][option] = [identity_of(find(str(one))) for one in named]
            elif named is not None:
                loss["options"][option] = identity_of(find(str(named)))
    return facts


def saved_dtype(plan: Plan) -> str | None:
    """Return the numbers of a plan's last model; None: float32, in which every stage trains.

    Stages in between keep float32, so that the next one goes on from what was trained.
    """
    dtype = plan.save_dtype or plan.precision
    return None if dtype == "float32" else dtype


def fingerprint(records: Records) -> list[Any]:
    """Return a data set's name, its size, and a hash of its records."""
    digest = hashlib.sha256()
    for item in records.items:
        digest.update(json.dumps(item, sort_keys=True, default=str).encode())
    return [records.name, len(records.items), digest.hexdigest()[:16]]


def write_finished(folder: Path, manifest: dict[str, Any], progress: StageProgress) -> None:
    """Write how a finished stage went, and what it was trained from."""
    summary = {
        "steps": progress.step,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "dev": progress.history,
    }
    write_json(folder / "summary.json", summary)
    write_json(folder / _MANIFEST, json_values(manifest))


def is_finished(folder: Path, manifest: dict[str, Any]) -> bool:
    """Tell whether a stage was trained to its end, from the same plan and data.

    Raises:
        JobError: it was trained from others.
    """
    if not (folder / "model" / "config.json").is_file():
        return False
    if not (folder / _MANIFEST).is_file():
        return False  # stopped between the model and the manifest: the checkpoints are still there
    change = change_of(folder / _MANIFEST, json_values(manifest))
    if change:
        raise JobError(
            f"{folder} was trained by another plan or from other data: {change}. Give another "
            "output folder, or --restart to start again"
        )
    return True
