"""Scores every layer of a model from one pass over each text, and names the best on dev sets.

A layer's vectors are those of the recipe with `pooling.layer` set to it. What a layer knows differs
by task, and peaks well below the last one in most language models (Skean et al., "Layer by Layer",
arXiv:2502.02013).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedlm.backbone.layers import layer_index
from embedlm.embedder import Embedder
from embedlm.errors import InputError, UnsupportedError, closest
from embedlm.evaluation.results import Cache, Result
from embedlm.evaluation.suite import Task
from embedlm.readout.each_layer import norms_of_layers
from embedlm.readout.heads import requested_heads
from embedlm.schema.recipe import Recipe
from embedlm.studies.one_pass import score_together

__all__ = ["POOLINGS", "LayerScore", "Reading", "best", "readings_of", "score_layers"]

POOLINGS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "mean": {"pooling.kind": "mean", "pooling.exclude_sink": False},
    "mean-no-sink": {"pooling.kind": "mean", "pooling.exclude_sink": "norm"},
    "last": {"pooling.kind": "last", "pooling.exclude_sink": False},
}
"""What each changes of the recipe: nothing, or the pooling's kind and whether it meets a sink."""


@dataclass(frozen=True)
class Reading:
    """A layer, counted from 0 (the embeddings), and how its states are pooled."""

    pooling: str
    layer: int
    embedder: Embedder
    """The model by a recipe that reads this layer so."""
    changes: dict[str, Any]
    """What differs in that recipe from the model's own."""


@dataclass(frozen=True)
class LayerScore:
    """How a reading does on a task."""

    task: str
    reading: Reading
    result: Result


def readings_of(
    model: Embedder, layers: Sequence[int] | None = None, poolings: Sequence[str] | None = None
) -> list[Reading]:
    """Return each layer by each pooling.

    Args:
        model: the embedder; it is not changed.
        layers: indices into the hidden states, -1 the last; None: all.
        poolings: names of `POOLINGS`; None: all, of which two that are the same count once.

    Raises:
        InputError: a pooling that is not known, or a layer that the model does not have.
        UnsupportedError: a model without layers, or a recipe that reads what is learnt from a
            corpus.
    """
    names = list(POOLINGS if poolings is None else dict.fromkeys(poolings))
    for name in names:
        if name not in POOLINGS:
            raise InputError(
                f"{name!r} is no pooling of layers; allowed: {', '.join(POOLINGS)}."
                + closest(name, list(POOLINGS))
            )
    if model.recipe.pooling.reads_statistics:
        raise UnsupportedError(
            f"recipe {model.recipe.name!r} weighs tokens by their frequency in a corpus, or takes "
            "out what its vectors have in common, which is learnt for one layer at a time; set "
            "pooling.weights to none and pooling.remove_components to 0"
        )
    model.check_one_route("scored layer by layer")
    readout = model.readout.with_norms(norms_of_layers(model.backbone))
    (dense,) = requested_heads("dense", model.recipe, several=False, trained=readout.trained)
    recipe = model.recipe.override({"heads": [dense]})
    pooled = {name: recipe.override(POOLINGS[name]) for name in names}
    # Of two names of one pooling the later one says more than "recipe".
    distinct = {own.model_dump_json(): name for name, own in pooled.items()}.values()
    count = model.backbone.layer_count
    chosen = range(count + 1) if layers is None else [layer_index(i, count) for i in layers]
    found = []
    for layer in chosen:
        for name in distinct:
            own = readout.with_recipe(pooled[name].override({"pooling.layer": layer}))
            embedder = Embedder(own, model.executor, name=model.name, generator=model.generator)
            found.append(Reading(name, layer, embedder, _changes(recipe, own.recipe)))
    return found


def _changes(before: Recipe, after: Recipe) -> dict[str, Any]:
    """Return the fields of the pooling that differ, as `Recipe.override` takes them."""
    fields = ("layer", "kind", "exclude_sink")
    values = {name: getattr(after.pooling, name) for name in fields}
    return {
        f"pooling.{name}": value
        for name, value in values.items()
        if value != getattr(before.pooling, name)
    }


def score_layers(
    readings: Sequence[Reading],
    tasks: Mapping[str, Task],
    paths: Mapping[str, Mapping[str, Path]],
    *,
    words: int | None = None,
    options: Mapping[str, Any] | None = None,
    cache: Cache | None = None,
    restart: bool = False,
) -> Iterator[LayerScore]:
    """Yield the score of each reading on each task, as `embedlm.evaluate` computes it.

    Args:
        readings: see `readings_of`.
        tasks: by name.
        paths: the files of each task.
        words: embed only the first so many words of each document; None: all.
        options: of `Embedder.encode`.
        cache: finished results, under the keys of `embedlm evaluate`; what it holds is not run.
        restart: score again what the cache holds.

    Raises:
        InputError: an unknown option.
        RecordError: a file that cannot be used, with its line.
        NotFiniteError: a layer gave NaN or infinity.
    """
    embedders = [reading.embedder for reading in readings]
    found = score_together(
        embedders,
        [dict(options or {})] * len(readings),
        tasks,
        paths,
        words=words,
        cache=cache,
        restart=restart,
    )
    for number, result in found:
        yield LayerScore(result.task, readings[number], result)


def best(scores: Sequence[LayerScore], task: str) -> LayerScore:
    """Return the reading with the highest score on a task; of equal ones, that of lower layers."""
    found = [score for score in scores if score.task == task]
    values = np.array([score.result.score for score in found])
    return found[int(values.argmax())]
