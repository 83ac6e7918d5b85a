"""Plans as training takes them: read from a file or a recipe, with every gap filled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedlm.backbone.devices import bfloat16_is_fast, choose_device
from embedlm.data import existing
from embedlm.errors import InputError, RecipeError
from embedlm.schema.base import validated
from embedlm.schema.plan import Plan
from embedlm.schema.recipe import Recipe, recipes
from embedlm.schema.tuning import Loss
from embedlm.schema.yaml_files import read_mapping
from embedlm.training.objectives import EMBEDDING, TEACHERS

__all__ = ["LocatedPlan", "find_data", "find_model", "load_plan", "tiny"]


@dataclass(frozen=True, slots=True)
class LocatedPlan:
    """A plan and the folder against which its relative paths are read."""

    plan: Plan
    folder: Path

    def recipe(self) -> Recipe:
        """Return the plan's recipe with its changes; a relative file lies beside the plan."""
        source: Any = self.plan.recipe
        if isinstance(source, str) and (self.folder / source).is_file():
            source = self.folder / source
        recipe = Recipe.load(source)
        return recipe.override(self.plan.change) if self.plan.change else recipe


def load_plan(source: str | Path | Mapping[str, Any] | Plan) -> LocatedPlan:
    """Return the plan of a file or a mapping, or of a recipe's own tuning part.

    Raises:
        RecipeError: no such plan, or one with an unknown field or a value that is not allowed.
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
    """Return the plan with its stages, each with its data and its teacher."""
    stages, precision = plan.stages, plan.precision
    if not stages:
        recipe = LocatedPlan(plan, folder).recipe()
        if recipe.tuning is None:
            raise RecipeError(
                f"recipe {recipe.name!r} has no tuning part; write the plan's stages: see the "
                "examples folder"
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
        data = stage.data or plan.data.get(stage.name, ())
        losses = tuple(_taught(loss, plan.teacher) for loss in stage.objective)
        filled.append(stage.model_copy(update={"data": data, "objective": losses}))
    complete = plan.model_copy(update={"stages": tuple(filled), "precision": precision})
    return LocatedPlan(complete, folder)


def _taught(loss: Loss, teacher: str | None) -> Loss:
    """Return a loss with the plan's teacher, if it takes one and names none."""
    needs = EMBEDDING.get(loss.kind)
    takes = needs is not None and (needs.teacher or needs.guide)
    if teacher is None or not takes or set(TEACHERS) & set(loss.options):
        return loss
    return loss.model_copy(update={"options": {**loss.options, "teacher": teacher}})


def find_data(source: str, folder: Path, data: str | Path | None) -> Path:
    """Return the file of a data set.

    Args:
        source: the data set's file name; .gz, .xz or .zst may follow it on the disk.
        folder: of the plan; looked in first.
        data: the data folder, looked in next; None takes $EMBEDLM_DATA.

    Raises:
        InputError: no such file.
    """
    paths = _candidates(source, folder, data)
    for path in paths:
        file = existing(path)
        if file is not None and file.is_file():
            return file
    looked = ", ".join(str(path) for path in paths)
    raise InputError(
        f"the data set {source!r} is not there (looked for {looked}, also with .gz, .xz and "
        ".zst); put it there, or name the data folder with --data or $EMBEDLM_DATA"
    )


def find_model(name: str, folder: Path, data: str | Path | None) -> str:
    """Return a model's folder beside the plan or in the data folder, or else the name itself."""
    return next((str(p) for p in _candidates(name, folder, data) if p.is_dir()), name)


def _candidates(name: str, folder: Path, data: str | Path | None) -> list[Path]:
    root = data or os.environ.get("EMBEDLM_DATA")
    return [folder / name, *([Path(root) / name] if root else [])]


def tiny(plan: Plan, device: Any = None) -> Plan:
    """Return a plan of the same stages and objectives at a size for two cores.

    The model is the built-in one. A stage has at most 30 steps of 32 queries and 128 tokens (90
    steps with demonstrations before the queries, which take longer to learn) and a learning rate
    for a small model. All weights are trained where the plan trains the biases, as the built-in
    model has none.
    """
    stages = []
    for stage in plan.stages:
        most = 90 if stage.batching.demonstrations else 30
        batching = stage.batching.model_copy(
            update={
                "size": min(stage.batching.size, 32),
                "group_size": min(stage.batching.group_size, 3),
                "chunk_tokens": stage.batching.chunk_tokens and 2048,
                "demonstrations": min(stage.batching.demonstrations, 2),
            }
        )
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
                    "max_length": 384 if stage.batching.demonstrations else 128,
                    "train": "all" if stage.train == "bias" else stage.train,
                    "gradient_checkpointing": False,
                    "adapter": stage.adapter and stage.adapter.model_copy(update={"kind": "lora"}),
                }
            )
        )
    dev = plan.dev and plan.dev.model_copy(update={"every": 15, "max_records": 300})
    return plan.model_copy(
        update={
            "model": "builtin-base",
            "stages": tuple(stages),
            "precision": "bfloat16" if bfloat16_is_fast(choose_device(device)) else "float32",
            "dev": dev,
        }
    )
