"""The heads of a recipe: what is read from token states.

Also the names of segments, which heads and pooling choose from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from embedlm.errors import RecipeError, closest
from embedlm.schema.base import Part, validated

__all__ = [
    "SEGMENTS",
    "Dense",
    "Head",
    "MultiVector",
    "NewProjection",
    "Over",
    "Sparse",
    "dump_head",
    "head_schema",
    "parse_head",
]

SegmentName = Literal[
    "special", "literal", "instruction", "demonstrations", "text", "repeat", "eos", "mask", "image"
]
SEGMENTS: tuple[str, ...] = get_args(SegmentName)
"""What a token can belong to; `repeat` is the second (or later) `{text}` of a template."""


def _segments(value: Any) -> Any:
    """One segment may stand without a list."""
    return (value,) if isinstance(value, str) and value != "all" else value


Over = Annotated[
    Literal["all"] | Annotated[tuple[SegmentName, ...], Field(min_length=1)],
    BeforeValidator(_segments),
]
"""Segments that are read: all, one, or a list."""


class NewProjection(Part):
    """A linear layer after the pooling, which any model can be given."""

    width: int = Field(gt=0, le=65_536, description="Numbers that come out.")
    bias: bool = True
    init: Literal["ridge", "orthogonal", "identity"] | None = Field(
        None,
        description="What it begins as where the checkpoint has none. ridge: regression to a "
        "teacher's vectors, in a plan; orthogonal: a rotation, always the same; identity: the "
        "first numbers. None: a rotation in a plan, and refused elsewhere.",
    )


class Dense(Part):
    """One vector a text."""

    kind: Literal["dense"] = "dense"
    projection: Literal["none", "auto"] | NewProjection = Field(
        "none",
        description="auto: through the linear layers that the checkpoint has after its pooling "
        "(sentence-transformers' Dense modules), where it has any. {width: 384}: through one, "
        "which is made where the checkpoint has none.",
    )


class Sparse(Part):
    """Weights over the vocabulary: of the language-model head, or of a text's own tokens."""

    kind: Literal["sparse"] = "sparse"
    weights: Literal["lm_head", "token", "static"] = Field(
        "lm_head",
        description="token: a layer of the checkpoint gives each token of the text its weight "
        "(BGE-M3). static: so does a table (the queries of sparse models without inference).",
    )
    over: Over | None = Field(
        None,
        description="With weights token and static: the segments that are read; None: the "
        "pooling's.",
    )
    activation: Literal["relu", "log1p_relu"] = Field(
        "relu",
        description="With weights lm_head: what logits pass through before the logarithm; "
        "log1p_relu takes it twice, log(1 + log(1 + relu(logits))).",
    )
    similarity: Literal["dot", "cosine", "euclidean", "manhattan"] = Field(
        "dot", description="How two texts' weights are compared."
    )
    top_k: int | None = Field(None, gt=0, description="Keep the largest k weights.")
    restrict: Literal["none", "text"] = Field(
        "none", description="text: only tokens of the text's own words (PromptReps)."
    )
    stop_words: Literal["short", "english", "none"] = Field(
        "short", description="With restrict text: the list of words left out (readout/words.py)."
    )
    reduce: Literal["auto", "pool", "last", "max", "sum"] = Field(
        "auto",
        description="pool: logits of the pooled state; last, max, sum: over the pooled tokens; "
        "auto: last where the pooling is last, else max.",
    )
    fallback_top_k: int = Field(
        10, gt=0, description="With restrict text: weights kept when the text has no valid word."
    )
    expand: int = Field(
        0, ge=0, description="With restrict text: best other word-like tokens added."
    )

    @model_validator(mode="after")
    def _reads_what_is_asked(self) -> Sparse:
        fields = type(self).model_fields
        changed = {name for name, field in fields.items() if getattr(self, name) != field.default}
        if self.weights != "lm_head":
            unread = changed - {"kind", "weights", "over", "similarity", "top_k"}
            for name in sorted(unread):
                raise ValueError(f"{name} is that of the language-model head; leave it out")
        elif self.over is not None:
            raise ValueError("over is of token weights; the language-model head reads pooling.over")
        elif self.expand and self.restrict != "text":
            raise ValueError("expand adds to a text's own words; it needs restrict: text")
        return self

    @field_validator("restrict", mode="before")
    @classmethod
    def _no_restriction(cls, value: Any) -> Any:
        return "none" if value is None else value


class MultiVector(Part):
    """One vector a token, for late interaction."""

    kind: Literal["multi_vector"] = "multi_vector"
    over: Over = Field("all", description="The segments whose states are kept.")
    normalize: bool = True
    projection: Literal["none", "auto"] = Field(
        "none", description="auto: through the checkpoint's layer for token vectors, if it has one."
    )
    score: Literal["sum", "mean"] = Field(
        "sum", description="MaxSim: the sum or the mean over the query's tokens."
    )
    skip: tuple[str, ...] = Field(
        (), description="Tokens without a vector, except under role query (ColBERT's skip list)."
    )


Head = Dense | Sparse | MultiVector
"""The options of any head."""
_HEADS: dict[str, type[Any]] = {head.model_fields["kind"].default: head for head in get_args(Head)}


def parse_head(value: str | Mapping[str, Any] | Head, base: tuple[Head, ...] | None = None) -> Head:
    """Return the head that a name or `{name: options}` asks for.

    Args:
        value: the name or the options.
        base: of a call, the recipe's heads, whose options hold where the call gives none; None: it
            is the recipe itself that is read.

    Raises:
        RecipeError: no such head, an option that it lacks, or one that a call has no use for.
    """
    if isinstance(value, get_args(Head)):
        head = cast(Head, value)
        name, given = str(head.kind), frozenset(head.model_fields_set)
    else:
        name, options = _named_options(value)
        if name not in _HEADS:
            raise RecipeError(
                f"heads: {name!r} is not a head; allowed: {', '.join(_HEADS)}."
                + closest(name, list(_HEADS))
            )
        defaults = next((h.model_dump() for h in base or () if h.kind == name), {})
        head = validated(_HEADS[name], {**defaults, **options}, f"heads.{name}")
        given = frozenset(options)
    if base is not None:
        own = next((h for h in base if h.kind == name), _HEADS[name]())
        _check_of_call(head, given, own)
    return head


def _check_of_call(head: Head, given: frozenset[str], own: Head) -> None:
    """Refuse options of a call that change none of its outputs.

    Args:
        head: what the call asks for.
        given: the options that it names.
        own: the recipe's head of that kind.
    """
    for name in sorted(given & {"similarity", "score"}):
        if getattr(head, name) != getattr(own, name):
            raise RecipeError(
                f"heads.{head.kind}.{name} says how outputs are compared, which `similarity` does "
                "by the model's recipe; change it there, with_recipe(m.recipe.override("
                f"{{'heads.{head.kind}.{name}': {getattr(head, name)!r}}})), or leave it out"
            )
    unread = sorted(given & {"stop_words", "fallback_top_k"})
    if unread and isinstance(head, Sparse) and head.restrict != "text":
        raise RecipeError(
            f"heads.sparse.{unread[0]} is read with restrict: text alone; add it, or leave "
            f"{unread[0]} out"
        )


def _named_options(value: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping) and "kind" in value:
        return str(value["kind"]), {k: v for k, v in value.items() if k != "kind"}
    if isinstance(value, Mapping) and len(value) == 1:
        name, options = next(iter(value.items()))
        if options is None or isinstance(options, Mapping):
            return str(name), options or {}
    raise RecipeError(
        f"heads: {value!r} is not a head; give a name ({', '.join(_HEADS)}) or {{name: options}}"
    )


def dump_head(head: Head) -> Any:
    """Return the head as a recipe file writes it: its name, or `{name: options}`."""
    options = json.loads(head.model_dump_json(exclude_defaults=True))
    return {head.kind: options} if options else head.kind


def head_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file's `heads`."""
    options = {
        name: {"anyOf": [{"$ref": f"#/$defs/{head.__name__}"}, {"type": "null"}]}
        for name, head in _HEADS.items()
    }
    one: dict[str, Any] = {
        "anyOf": [
            {"enum": list(_HEADS)},
            {
                "type": "object",
                "properties": options,
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ]
    }
    several = {"type": "array", "items": one, "minItems": 1}
    return {"anyOf": [several, one], "default": ["dense"], "title": "Heads"}
