"""Plans as training reads them: from a file or a recipe, with all defaults filled in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from embedlm.backbone import gguf_folder
from embedlm.backbone.builtin import BUILTIN
from embedlm.backbone.devices import bfloat16_is_fast, choose_device
from embedlm.data import existing
from embedlm.errors import InputError, RecipeError
from embedlm.persistence import derive_recipe
from embedlm.schema.base import Part, validated
from embedlm.schema.plan import Plan
from embedlm.schema.recipe import Recipe, recipes
from embedlm.schema.tuning import Adapter, Loss
from embedlm.schema.yaml_files import read_mapping
from embedlm.training.objectives import EMBEDDING, TEACHERS

__all__ = ["LocatedPlan", "find_data", "find_model", "load_plan", "shown_name", "tiny"]


Fields = TypeVar("Fields", bound=Part)


@dataclass(frozen=True, slots=True)
class LocatedPlan:
    """A plan and the folder that its relative paths start from."""

    plan: Plan
    folder: Path

    def recipe(self, data: str | Path | None = None) -> Recipe:
        """Return the plan's recipe with its changes.

        A plan that names no recipe takes the one of its model: the recipe saved in the model's
        folder or derived from its files, else plain-mean. A relative recipe file lies beside the
        plan.

        Args:
            data: the data folder, in which the model is looked for too.
        """
        if "recipe" not in self.plan.model_fields_set:
            recipe = derive_recipe(find_model(self.plan.model, self.folder, data))
            return recipe.override(self.plan.change) if self.plan.change else recipe
        source: Any = self.plan.recipe
        if isinstance(source, str) and (self.folder / source).is_file():
            source = self.folder / source
        recipe = Recipe.load(source)
        return recipe.override(self.plan.change) if self.plan.change else recipe


def load_plan(source: str | Path | Mapping[str, Any] | Plan) -> LocatedPlan:
    """Return the plan in a file or a mapping, or the plan that a recipe's tuning part makes.

    Raises:
        RecipeError: there is no such plan, or it has an unknown field or an invalid value.
    """
    if isinstance(source, Plan):
        return _filled(source, Path())
    if isinstance(source, Mapping):
        return _filled(validated(Plan, source, str(source.get("name", "plan"))), Path())
    name = str(source)
    if name in recipes():
        base = Recipe.load(name).backbone.base or "builtin-base"
        return _filled(Plan(name=name, model=base, recipe=name), Path())
    path = Path(name)
    hint = "give a .yaml file, or the name of a recipe with a tuning part"
    data = read_mapping(path, "plan", hint)
    return _filled(validated(Plan, {"name": path.stem, **data}, path.name), path.parent)


def _filled(plan: Plan, folder: Path) -> LocatedPlan:
    """Return the plan with its stages, and with the data and the teacher of each stage."""
    stages, precision = plan.stages, plan.precision
    if not stages:
        recipe = LocatedPlan(plan, folder).recipe()
        starts = plan.ridge is not None or plan.prune is not None
        if recipe.tuning is None and starts:
            return LocatedPlan(plan, folder)
        if recipe.tuning is None:
            raise RecipeError(
                f"recipe {recipe.name!r} has no tuning part; write `stages:` in the plan (the "
                "examples folder shows how), or name a recipe that has one"
            )
        stages = recipe.tuning.stages
        if "precision" not in plan.model_fields_set:
            precision = recipe.tuning.precision
    names = [stage.name for stage in stages]
    for name in plan.data:
        if name not in names:
            raise RecipeError(
                f"data: the plan has no stage {name!r}; its stages: {', '.join(names)}"
            )
    filled = []
    for stage in stages:
        if stage.data and stage.name in plan.data:
            raise RecipeError(
                f"data: stage {stage.name!r} has data of its own, so that data.{stage.name} would "
                "not be read; leave one of them out"
            )
        data = stage.data or plan.data.get(stage.name, ())
        losses = tuple(_taught(loss, plan.teacher) for loss in stage.objective)
        filled.append(stage.model_copy(update={"data": data, "objective": losses}))
    whole: dict[str, Any] = {"stages": tuple(filled), "precision": precision, "data": {}}
    complete = plan.model_copy(update=whole)
    return LocatedPlan(complete, folder)


def _taught(loss: Loss, teacher: str | None) -> Loss:
    """Return a loss with the plan's teacher if it needs a teacher and names none."""
    needs = EMBEDDING.get(loss.kind)
    takes = needs is not None and (needs.teacher or needs.guide)
    if teacher is None or not takes or set(TEACHERS) & set(loss.options):
        return loss
    return loss.model_copy(update={"options": {**loss.options, "teacher": teacher}})


def find_data(source: str, folder: Path, data: str | Path | None) -> Path:
    """Return the file of a data set.

    Args:
        source: the data set's file name, with or without .gz, .xz or .zst.
        folder: the plan's folder, searched first.
        data: the data folder, searched next; None takes $EMBEDLM_DATA.

    Raises:
        InputError: there is no such file.
    """
    paths = _candidates(source, folder, data)
    for path in paths:
        file = existing(path)
        if file is not None and file.is_file():
            return file
    looked = ", ".join(str(path) for path in paths)
    raise InputError(
        f"the data set {source!r} is not there (looked for {looked}, also with .gz, .xz and "
        ".zst); put the file there, or name the data folder with --data or $EMBEDLM_DATA"
    )


def find_model(name: str, folder: Path, data: str | Path | None) -> str:
    """Return a model's folder beside the plan or in the data folder, else the name as it is.

    "builtin" and "builtin-base" are the folders of the built-in models.
    """
    if (built_in := BUILTIN.get(name)) is not None:
        return str(built_in)
    there = (str(path) for path in _candidates(name, folder, data) if path.exists())
    return gguf_folder(next(there, name))


def shown_name(model: str) -> str:
    """Return what a report calls a model: "builtin" or "builtin-base" for the folder of one."""
    folders = {find_model(name, Path(), None): name for name in BUILTIN}
    return folders.get(model, model)


def _candidates(name: str, folder: Path, data: str | Path | None) -> list[Path]:
    root = data or os.environ.get("EMBEDLM_DATA")
    return [folder / name, *([Path(root) / name] if root else [])]


def tiny(plan: Plan, device: Any = None) -> Plan:
    """Return a plan with the same stages and objectives that two CPU cores can train.

    It trains the built-in base model. A stage has at most 30 steps of 32 queries and 128 tokens (90
    steps if examples stand before the queries, which the model learns more slowly) and a learning
    rate for a small model. An adapter's base stays in whole numbers. Where the plan trains the
    biases, all weights are trained, because the built-in model has no biases.
    """
    stages = []
    for stage in plan.stages:
        most = 90 if stage.batching.demonstrations else 30
        less = {
            "size": min(stage.batching.size, 32),
            "group_size": min(stage.batching.group_size, 3),
            "chunk_tokens": stage.batching.chunk_tokens and min(stage.batching.chunk_tokens, 2048),
            "demonstrations": min(stage.batching.demonstrations, 2),
        }
        batching = _changed(stage.batching, less)
        optimizer = stage.optimizer.model_copy(
            update={
                "steps": min(stage.optimizer.steps or most, most),
                "epochs": None,
                "warmup": 0.1,
                "learning_rate": max(
                    stage.optimizer.learning_rate, 1e-3 if stage.train == "adapter" else 2e-4
                ),
            }
        )
        stages.append(
            stage.model_copy(
                update={
                    "batching": batching,
                    "optimizer": optimizer,
                    "max_length": _shorter(
                        stage.max_length, 384 if stage.batching.demonstrations else 128
                    ),
                    "train": "all" if stage.train == "bias" else stage.train,
                    "gradient_checkpointing": False,
                    "adapter": stage.adapter and _plain(stage.adapter),
                }
            )
        )
    dev = plan.dev and _changed(
        plan.dev, {"every": min(plan.dev.every, 15), "max_records": min(plan.dev.max_records, 300)}
    )
    return plan.model_copy(
        update={
            "model": "builtin-base",
            "stages": tuple(stages),
            "precision": "bfloat16" if bfloat16_is_fast(choose_device(device)) else "float32",
            "dev": dev,
        }
    )


def _changed(part: Fields, values: Mapping[str, Any]) -> Fields:
    """Return fields with these values; one that has its value already stays as it was given."""
    new = {name: value for name, value in values.items() if value != getattr(part, name)}
    return part.model_copy(update=new)


def _plain(adapter: Adapter) -> Adapter:
    """Return an adapter for a base in whole numbers."""
    return adapter.model_copy(update={"kind": "lora"}) if adapter.kind == "qlora" else adapter


def _shorter(limit: int | dict[str, int] | None, most: int) -> int | dict[str, int]:
    """Return a limit in tokens, or one by role, that is no more than `most`."""
    if isinstance(limit, dict):
        return {role: min(length, most) for role, length in limit.items()}
    return min(limit or most, most)
