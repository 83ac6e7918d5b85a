"""A plan: which model becomes which system, by which stages, on which data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from embedlm.backbone.devices import bfloat16_is_fast, choose_device
from embedlm.data import existing
from embedlm.errors import InputError, RecipeError
from embedlm.schema.recipe import Recipe, recipes
from embedlm.schema.tuning import Data, Loss, Stage
from embedlm.schema.validation import validated
from embedlm.training.objectives import EMBEDDING, TEACHERS

__all__ = ["Dev", "Plan", "find_data", "find_model", "load_plan", "tiny"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dev(_Part):
    """Held-out records that say how training goes; never a test set."""

    source: str = Field(description="A file of scored pairs, or of queries with positives.")
    every: int = Field(100, gt=0, description="Steps between two scores.")
    patience: int | None = Field(
        None, gt=0, description="Scores without a better one before a stage ends early."
    )
    max_records: int = Field(1000, gt=0)
    role: str | None = Field(None, description="Of the texts of scored pairs.")


class Plan(_Part):
    """Everything a training run is told."""

    name: str = "plan"
    model: str = Field("builtin-base", description="Folder or hub id of what is trained.")
    recipe: str | dict[str, Any] = Field(
        "plain-mean", description="Prompt, pooling and attention: a name, a file or fields."
    )
    change: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the recipe that are replaced."
    )
    stages: tuple[Stage, ...] = Field((), description="None: those of the recipe's tuning part.")
    data: dict[str, tuple[Data, ...]] = Field(
        default_factory=dict, description="Data sets by the stage's name, for stages without."
    )
    teacher: str | None = Field(
        None, description="Model that distilling losses learn from, where they name none."
    )
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    seed: int = 0
    sharding: Literal["none", "full"] = Field(
        "none", description="full: split weights and optimiser over the processes (FSDP2)."
    )
    dev: Dev | None = None
    checkpoint_every: int = Field(200, gt=0, description="Steps between two checkpoints.")
    log_every: int = Field(10, gt=0, description="Steps between two lines of the log.")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    notes: str | None = None

    def loaded_recipe(self, folder: Path) -> Recipe:
        """Return the recipe; a relative file is looked for beside the plan."""
        given: Any = self.recipe
        if isinstance(given, str) and (folder / given).is_file():
            given = folder / given
        return Recipe.load(given).override(self.change) if self.change else Recipe.load(given)


@dataclass(frozen=True, slots=True)
class Source:
    """A plan and where it stands."""

    plan: Plan
    folder: Path
    """Against which relative paths are read."""


def load_plan(source: str | Path | Mapping[str, Any] | Plan) -> Source:
    """Return the plan of a file, a mapping, or of a recipe's own tuning part.

    Raises:
        RecipeError: no such plan, or one with an unknown field or a value not allowed.
    """
    if isinstance(source, Plan):
        return Source(_filled(source, Path()), Path())
    if isinstance(source, Mapping):
        given = validated(Plan, source, str(source.get("name", "plan")))
        return Source(_filled(given, Path()), Path())
    name = str(source)
    if name in recipes():
        base = Recipe.load(name).backbone.base or "builtin-base"
        return Source(_filled(Plan(name=name, model=base, recipe=name), Path()), Path())
    path = Path(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot read the plan {name!r}: {error}; give a .yaml file, or the name of a recipe "
            "with a tuning part"
        ) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path.name} holds no mapping of fields")
    given = validated(Plan, {"name": path.stem, **data}, path.name)
    return Source(_filled(given, path.parent), path.parent)


def _filled(plan: Plan, folder: Path) -> Plan:
    """Return a plan whose stages are there, each with its data and its teacher."""
    stages, precision = plan.stages, plan.precision
    if not stages:
        recipe = plan.loaded_recipe(folder)
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
                f"data: {name!r} is no stage of the plan; its stages: {', '.join(names)}"
            )
    filled = []
    for stage in stages:
        data = stage.data or plan.data.get(stage.name, ())
        losses = tuple(_taught(loss, plan.teacher) for loss in stage.objective)
        filled.append(stage.model_copy(update={"data": data, "objective": losses}))
    return plan.model_copy(update={"stages": tuple(filled), "precision": precision})


def _taught(loss: Loss, teacher: str | None) -> Loss:
    """Return a loss with the plan's teacher, if it takes one and names none."""
    needs = EMBEDDING.get(loss.kind)
    takes = needs is not None and (needs.teacher or needs.guide)
    if teacher is None or not takes or set(TEACHERS) & set(loss.options):
        return loss
    return loss.model_copy(update={"options": {**loss.options, "teacher": teacher}})


def find_data(source: str, folder: Path, data: str | Path | None) -> Path:
    """Return the file of a data set: beside the plan, or in the data folder.

    Raises:
        InputError: it is nowhere.
    """
    places = _places(source, folder, data)
    for place in places:
        path = existing(place)
        if path is not None and path.is_file():
            return path
    looked = ", ".join(str(place) for place in places)
    raise InputError(
        f"the data set {source!r} is not there (looked for {looked}, also with .gz, .xz and "
        ".zst); put it there, or name the data folder with --data or $EMBEDLM_DATA"
    )


def find_model(name: str, folder: Path, data: str | Path | None) -> str:
    """Return a model's folder beside the plan or in the data folder, or else the name itself."""
    return next((str(p) for p in _places(name, folder, data) if p.is_dir()), name)


def _places(name: str, folder: Path, data: str | Path | None) -> list[Path]:
    root = data or os.environ.get("EMBEDLM_DATA")
    return [folder / name, *([Path(root) / name] if root else [])]


def tiny(plan: Plan, device: Any = None) -> Plan:
    """Return a plan of the same stages and objectives at a size for two cores.

    The model is the built-in one, a stage has at most 30 steps of 32 queries and 128 tokens (90
    with examples before the queries, which take longer to learn), and a learning rate fit for a
    small model. A model without biases trains all weights in their place.
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
