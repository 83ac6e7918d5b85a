"""What a run reads, all of it before anything is loaded: the data of its stages and the dev set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedlm.data import Records, read_records
from embedlm.errors import EmbedLMError, InputError
from embedlm.schema.plan import Plan
from embedlm.schema.recipe import Recipe
from embedlm.schema.tuning import Stage
from embedlm.training.batches import Batches
from embedlm.training.dev import DevSet
from embedlm.training.fsdp import check_sharding
from embedlm.training.named_adapters import check_adapters, check_stages
from embedlm.training.objective_checks import check_objective
from embedlm.training.objectives import reads_scores
from embedlm.training.parameters import check_packages
from embedlm.training.plan import LocatedPlan, find_data
from embedlm.training.room import check_room, renderer_of
from embedlm.training.stage_checks import check_dev, check_prompt, check_stage

__all__ = ["batches_of", "read_inputs"]


def read_inputs(
    source: LocatedPlan, data: str | Path | None
) -> tuple[list[list[Records]], DevSet | None]:
    """Return the records of every stage, and the dev set.

    Args:
        source: the plan, and where it lies.
        data: folder of the data sets; None takes $EMBEDLM_DATA.

    Raises:
        InputError: data are missing, an objective cannot learn from them, or a setting would have
            no effect.
        MissingExtraError: a package is missing that a stage trains with.
    """
    if not source.plan.stages:
        for name in ("dev", "data"):
            if getattr(source.plan, name):
                raise InputError(f"{name} has no effect: the plan has no stages; leave it out")
        return [], None
    check_stages(source.plan.stages)
    recipe = source.recipe(data)
    sets = [_sets(stage, source, data, recipe) for stage in source.plan.stages]
    held_out = _held_out(source, data, recipe)
    renderer = renderer_of(source, recipe, data)  # asks the hub where the model is named by its id
    for stage, records in zip(source.plan.stages, sets, strict=True):
        if renderer is not None:
            check_room(stage, renderer, records[0].kind)
    return sets, held_out


def _held_out(source: LocatedPlan, data: str | Path | None, recipe: Recipe) -> DevSet | None:
    """Return the dev set of a plan that has one."""
    dev = source.plan.dev
    if dev is None:
        return None
    held_out = DevSet.read(find_data(dev.source, source.folder, data), dev.max_records, dev.role)
    check_dev(source.plan, recipe, held_out.records.kind)
    return held_out


def _sets(
    stage: Stage, source: LocatedPlan, data: str | Path | None, recipe: Recipe
) -> list[Records]:
    """Read a stage's data; refuse before the first step what a stage cannot learn from."""
    check_packages(stage)
    if not stage.data:
        raise InputError(
            f"stage {stage.name!r} has no data. A recipe's own tuning names none: write a plan "
            f"with `recipe: NAME` and `data: {{{stage.name}: [{{source: FILE}}]}}`"
        )
    sets = [
        read_records(find_data(entry.source, source.folder, data), entry.max_records)
        for entry in stage.data
    ]
    batches = batches_of(stage, sets, source.plan)
    check_adapters(stage, batches.kind)
    if source.plan.sharding == "full":
        check_sharding(stage)
    try:
        check_objective(stage.objective, batches)
    except EmbedLMError as error:
        raise type(error)(f"stage {stage.name!r}: {error}") from error
    check_stage(stage, batches, source.plan)
    check_prompt(stage, recipe, batches.kind)
    return sets


def batches_of(stage: Stage, sets: Sequence[Records], plan: Plan) -> Batches:
    """Return the batches of a stage, at their first step."""
    scored = reads_scores(stage.objective)
    return Batches(
        sets, stage.data, stage.batching, plan.seed, stage.dynamic_negatives, scored=scored
    )
