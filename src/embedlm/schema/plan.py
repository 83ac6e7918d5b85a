"""A plan: which model becomes which system, by which stages, on which data.

Only the schema lives here; `embedlm.training` reads it.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat

from embedlm.schema.base import Name, Part, SaveDtype
from embedlm.schema.tuning import Data, Stage

__all__ = ["Dev", "Plan", "Prune", "Ridge"]


class Dev(Part):
    """Held-out records that say how training goes; never a test set."""

    source: str = Field(description="A file of scored pairs, or of queries with positives.")
    every: int = Field(100, gt=0, description="Steps between two scores.")
    patience: int | None = Field(
        None, gt=0, description="Scores without a better one before a stage ends early."
    )
    max_records: int = Field(1000, gt=0)
    role: str | None = Field(None, description="Of the texts of scored pairs.")


class Ridge(Part):
    """How a projection with `init: ridge` is started (training/ridge.py has the formula)."""

    teacher: str | None = Field(
        None, description="Model whose vectors it learns. None: the plan's, or its losses'."
    )
    data: tuple[Data, ...] = Field((), description="None: those of the first stage.")
    strengths: tuple[PositiveFloat, ...] = Field(
        (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        min_length=1,
        description="Strengths that are tried, as shares of the pooled states' mean variance.",
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="Share of the texts on which the strength is chosen."
    )
    max_length: int | None = Field(None, gt=0, description="Of a text in tokens.")


class Prune(Part):
    """What is kept of the model before anything is trained."""

    layers: int | None = Field(None, gt=0, description="The first ones; None: all.")
    vocabulary: int | None = Field(
        None, gt=0, description="Tokens that are used most often; None: all."
    )
    intermediate: int | None = Field(
        None, gt=0, description="Neurons of each layer's feed-forward block; None: all."
    )
    data: tuple[Data, ...] = Field(
        (),
        description="Texts that tokens are counted in and neurons are measured on. None: those of "
        "the first stage, or of `ridge` where there is no stage.",
    )


class Plan(Part):
    """Everything a training run is told."""

    name: Name = "plan"
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
    prune: Prune | None = None
    ridge: Ridge | None = Field(
        None, description="How a projection with init: ridge is started; None: by these defaults."
    )
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    save_dtype: SaveDtype | None = Field(
        None,
        description="Numbers of the last model's weights; int8: matrices by row. None: precision.",
    )
    seed: int = Field(0, ge=0, lt=1 << 63)
    sharding: Literal["none", "full"] = Field(
        "none", description="full: split weights and optimiser over the processes (FSDP2)."
    )
    dev: Dev | None = None
    checkpoint_every: int = Field(200, gt=0, description="Steps between two checkpoints.")
    log_every: int = Field(10, gt=0, description="Steps between two lines of the log.")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
