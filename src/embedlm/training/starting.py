"""A plan's start, from its fields: which models and data it takes, and whether their widths fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedlm.data import Records, read_records
from embedlm.errors import InputError
from embedlm.readout.new_projection import asked_projection
from embedlm.schema.plan import Plan, Ridge
from embedlm.schema.recipe import Recipe
from embedlm.schema.tuning import Data
from embedlm.training.finished import saved_dtype
from embedlm.training.plan import LocatedPlan, find_data, find_model
from embedlm.training.starts import RidgeStart, ridge_teacher, wants_ridge
from embedlm.training.widths import check_widths

__all__ = ["check_start", "ridge_start"]


def check_start(source: LocatedPlan, data: str | Path | None) -> str | None:
    """Return the teacher of a projection that starts by ridge regression; None: there is none.

    Raises:
        InputError: no teacher, data that are no texts, or a teacher of another width.
    """
    plan = source.plan
    distils = any(one.kind == "embedding_distill" for s in plan.stages for one in s.objective)
    if not (distils or plan.ridge is not None or _may_start(source)):
        return None
    model, recipe = find_model(plan.model, source.folder, data), source.recipe(data)
    asked = asked_projection(recipe)
    if plan.ridge is not None and (asked is None or asked.init != "ridge"):
        raise InputError(
            "the plan has `ridge`, and its recipe has no projection that starts so; add change: "
            "{heads: [{dense: {projection: {width: N, init: ridge}}}]}, or leave it out"
        )
    teacher = ridge_teacher(plan) if wants_ridge(recipe, model) else None
    check_widths(plan, (model, recipe), lambda name: find_model(name, source.folder, data), teacher)
    if teacher is not None:
        _check_data(plan)
    return None if teacher is None else find_model(teacher, source.folder, data)


def _may_start(source: LocatedPlan) -> bool:
    """Tell whether a plan's own fields may ask for a projection; what they name is read later."""
    plan = source.plan
    fields: Any = (plan.recipe, plan.change)
    return isinstance(plan.recipe, str) or "projection" in str(fields)


def _check_data(plan: Plan) -> None:
    own = plan.ridge.data if plan.ridge is not None else ()
    for entry in own:
        senseless = sorted(entry.model_fields_set & {"weight", "in_batch_negatives", "adapter"})
        if senseless:
            raise InputError(
                f"ridge.data: {senseless[0]} says nothing for a regression, which reads each text "
                "once; leave it out"
            )
    if not own and not plan.stages:
        raise InputError("ridge: there are no texts; name them: ridge: {data: [{source: FILE}]}")


def ridge_start(
    source: LocatedPlan,
    base: tuple[str, Recipe],
    teacher: str,
    sets: list[list[Records]],
    data: str | Path | None,
    *,
    lm_head: bool,
    device: Any,
) -> RidgeStart:
    """Return the start of a plan's projection, with its texts read.

    Raises:
        InputError: data are missing.
    """
    plan = source.plan
    settings = plan.ridge or Ridge()
    entries: tuple[Data, ...] = settings.data or plan.stages[0].data
    records = (
        [
            read_records(find_data(entry.source, source.folder, data), entry.max_records)
            for entry in entries
        ]
        if settings.data
        else sets[0]
    )
    model, recipe = base
    first = plan.stages[0].attention if plan.stages else None
    if first is not None:
        recipe = recipe.override({"backbone.attention": first})
    return RidgeStart(
        settings,
        (model, recipe),
        teacher,
        records,
        entries,
        lm_head=lm_head,
        save_dtype=None if plan.stages else saved_dtype(plan),
        device=device,
        precision=plan.precision,
    )
