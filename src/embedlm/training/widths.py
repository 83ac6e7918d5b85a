"""Widths of vectors, told by configs alone: a teacher of another width is refused unloaded."""

from __future__ import annotations

from collections.abc import Callable

from embedlm.backbone.adapter_files import split_adapters
from embedlm.errors import InputError, ModelError, UnsupportedError
from embedlm.persistence import derive_recipe, layout_folder, network_config
from embedlm.readout.new_projection import asked_projection
from embedlm.readout.pooling import kinds_of
from embedlm.readout.projection import projected_width
from embedlm.schema.heads import Dense
from embedlm.schema.plan import Plan
from embedlm.schema.recipe import Recipe
from embedlm.training.objectives import head_of

__all__ = ["check_widths", "dense_width"]


def dense_width(source: str, recipe: Recipe) -> int | None:
    """Return the width of a model's dense vectors, uncut; None where its configs do not say.

    Args:
        source: folder or hub id, of which small files alone are read.
        recipe: how the model is read.
    """
    asked = asked_projection(recipe)
    if asked is not None:
        return asked.width
    head = next((head for head in recipe.heads if isinstance(head, Dense)), None)
    try:
        if head is not None and head.projection == "auto":
            projected = projected_width(layout_folder(source))
            if projected is not None:
                return projected
        config = network_config(split_adapters(source)[0])
        width = getattr(config and config.get_text_config(), "hidden_size", None)
    except (ModelError, UnsupportedError):
        return None  # loading says what is wrong
    return width * len(kinds_of(recipe.pooling.kind)) if isinstance(width, int) else None


def check_widths(
    plan: Plan, student: tuple[str, Recipe], teachers: Callable[[str], str], ridge: str | None
) -> None:
    """Refuse a plan whose student and teacher have vectors of different widths, where that counts.

    Args:
        plan: its losses name the teachers.
        student: the model and its recipe.
        teachers: the folder or hub id of a teacher's name.
        ridge: the teacher of a projection that starts by ridge regression.

    Raises:
        InputError: names both widths, and the projection that makes them equal.
    """
    named: list[tuple[str, str | None]] = [("the start by ridge regression", ridge)]
    for stage in plan.stages:
        for loss in stage.objective:
            if loss.kind == "embedding_distill" and head_of(loss) == "dense":
                named.append((f"stage {stage.name!r}: {loss.kind}", loss.options.get("teacher")))
    taught = [(what, name) for what, name in named if name is not None]
    own = dense_width(*student) if taught else None
    for what, name in taught:
        if own is None:
            return
        teacher = teachers(str(name))
        recipe = derive_recipe(teacher)
        width = recipe.dim or dense_width(teacher, recipe)
        if width is not None and width != own:
            raise InputError(
                f"{what} compares vectors of the teacher {name!r}, which are {width} numbers wide, "
                f"with the student's of {own}; give the student a projection, change: "
                f"{{heads: [{{dense: {{projection: {{width: {width}, init: ridge}}}}}}]}}"
            )
