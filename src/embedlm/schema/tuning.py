"""The tuning part of a recipe: what a stage trains, on which data, with which objective.

Only the schema lives here; training reads it. Field names follow the published scripts, so that a
paper's table of hyper-parameters can be typed in as it stands.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from embedlm.schema.base import Name, Part

__all__ = [
    "Adapter",
    "Batching",
    "Data",
    "DynamicNegatives",
    "Loss",
    "Optimizer",
    "Stage",
    "Tuning",
]


_BY_ADAPTER = ("adapter", "query_encoder")
"""Ways to train that add an adapter."""


class Loss(Part):
    """One objective and its constants."""

    kind: str = Field(description="Name of a function of embedlm.losses.")
    weight: float = Field(1.0, description="Factor in the sum of a stage's losses.")
    temperature: float | None = Field(None, gt=0, description="Divides the scores.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the loss."
    )
    matryoshka: tuple[PositiveInt, ...] = Field(
        (),
        description="Smaller widths at which the loss is applied too.",
    )


class Data(Part):
    """Where a stage's records come from."""

    source: str = Field(description="A file, beside the plan or in the data folder.")
    weight: float | None = Field(None, gt=0, description="Share in the mixture; None: by size.")
    instruction: str | None = Field(None, description="Instruction for the queries of this set.")
    document_instruction: str | None = Field(None, description="Instruction for its documents.")
    in_batch_negatives: bool = Field(True, description="Off where a task has few labels.")
    max_records: int | None = Field(None, gt=0)
    adapter: str | dict[str, str] | None = Field(
        None, description="Switchable adapter that its texts train: one for all, or by role."
    )


class DynamicNegatives(Part):
    """When a record's hard negatives are replaced by further ones of its list (Conan-embedding)."""

    every: int = Field(100, gt=0, description="Steps between two checks of a record.")
    factor: float = Field(1.15, gt=0, description="They are easy once factor * score < the first,")
    below: float = Field(0.8, description="and the score is below this.")


class Adapter(Part):
    """A low-rank adapter (LoRA and its kin)."""

    kind: Literal["lora", "qlora", "dora", "bitfit"] = "lora"
    rank: int = Field(16, gt=0)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Batching(Part):
    """How records become batches."""

    size: int = Field(256, gt=0, description="Queries a step, over all devices.")
    chunk_tokens: int | None = Field(None, gt=0, description="GradCache chunk; None: no cache.")
    group_size: int = Field(2, gt=0, description="Passages a query: one positive, the rest hard.")
    homogeneous: bool = Field(False, description="Each batch from one data set.")
    mixture_temperature: float = Field(1.0, gt=0, description="p ~ size ** (1 / temperature).")
    demonstrations: int = Field(0, ge=0, description="In-context examples a query, at most.")
    accumulate: int = Field(1, gt=0, description="Batches whose mean gradient makes a step.")


class Optimizer(Part):
    """The constants of AdamW and of its learning-rate schedule."""

    learning_rate: float = Field(2e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.1, ge=0, description="Steps if above 1, else a share of all steps.")
    steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    max_grad_norm: float | None = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _one_length(self) -> Optimizer:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs both say how long a stage trains; give one of them")
        return self


def _by_role(lengths: dict[str, int]) -> dict[str, int]:
    unknown = sorted(set(lengths) - {"query", "document", "default"})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no role; there are query, document and default")
    return lengths


class Stage(Part):
    """One stage of a plan."""

    name: Name
    objective: tuple[Loss, ...] = Field(min_length=1)
    data: tuple[Data, ...] = ()
    train: Literal["all", "adapter", "heads", "bias", "query_encoder"] = "all"
    adapter: Adapter | None = None
    attention: Literal["causal", "bidirectional", "native"] | None = None
    batching: Batching = Batching()
    optimizer: Optimizer = Optimizer()
    max_length: (
        PositiveInt
        | Annotated[dict[str, PositiveInt], Field(min_length=1), AfterValidator(_by_role)]
        | None
    ) = Field(None, description="Of a text in tokens: for all, or by role; default: without one.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Attention dropout (SimCSE views).")
    denoise: bool | None = Field(
        None, description="Replaces the recipe's pooling.denoise while the stage trains."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute layers again in the backward pass: less memory, more time."
    )
    keep: Literal["best", "last"] | None = Field(
        None,
        description="Weights it ends with: the best on the dev set, or the last. None: the last of "
        "language modelling, else the best.",
    )
    mask_probability: float | None = Field(None, gt=0, lt=1, description="For masked objectives.")
    dynamic_negatives: DynamicNegatives | None = Field(
        None, description="Replace hard negatives that have become easy; None: draw at random."
    )

    @model_validator(mode="after")
    def _adapter_is_trained(self) -> Stage:
        if self.adapter is not None and self.train not in _BY_ADAPTER:
            raise ValueError(
                f"adapter is for train: {' or '.join(_BY_ADAPTER)}, and train is {self.train!r}; "
                "change train, or leave adapter out"
            )
        if self.adapter is not None and self.adapter.kind == "bitfit":
            raise ValueError("adapter.kind bitfit is `train: bias`, without an adapter")
        return self


class Tuning(Part):
    """The stages that made a system, in order."""

    stages: tuple[Stage, ...] = Field(min_length=1)
    precision: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    notes: str | None = None
