"""Scores every layer of a model from one pass over each text, and names the best on dev sets.

A layer's vectors are those of the recipe with `pooling.layer` set to it. What a layer knows differs
by task, and peaks well below the last one in most language models (Skean et al., "Layer by Layer",
arXiv:2502.02013).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.backbone.layers import layer_index
from embedlm.embedder import Embedder
from embedlm.encode.call import Gathered, check_finite
from embedlm.encode.inputs import check_texts
from embedlm.encode.options import Options
from embedlm.encode.precision import finish_vectors
from embedlm.errors import InputError, UnsupportedError, closest
from embedlm.evaluation.results import Cache, Result
from embedlm.evaluation.subject import Subject
from embedlm.evaluation.suite import Task
from embedlm.evaluation.tasks import Run
from embedlm.readout.each_layer import EachLayer, norms_of_layers
from embedlm.readout.heads import requested_heads
from embedlm.schema.recipe import Recipe

__all__ = ["POOLINGS", "LayerScore", "Reading", "Sweep", "best", "readings_of", "score_layers"]

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
        UnsupportedError: a model without layers, or a recipe that weighs tokens by their frequency.
    """
    names = list(POOLINGS if poolings is None else dict.fromkeys(poolings))
    for name in names:
        if name not in POOLINGS:
            raise InputError(
                f"{name!r} is no pooling of layers; allowed: {', '.join(POOLINGS)}."
                + closest(name, list(POOLINGS))
            )
    if model.recipe.pooling.weights != "none":
        raise UnsupportedError(
            f"recipe {model.recipe.name!r} weighs tokens by their frequency in a corpus, which is "
            "counted for one layer at a time; set pooling.weights to none"
        )
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


@dataclass
class Sweep:
    """The vectors of texts by several readings; a list of texts is run once for all of them."""

    model: Embedder
    readings: Sequence[Reading]
    _kept: dict[Any, Gathered] = field(default_factory=dict)

    def vectors(
        self, number: int, texts: Sequence[str], role: str | None = None, **options: Any
    ) -> npt.NDArray[Any]:
        """Return the dense vectors of texts by one of the readings, (n, dim).

        All readings' vectors of the texts are kept, until the sweep is dropped: a number of 4
        bytes for each text, reading and dimension.

        Args:
            number: of the reading.
            texts: in any order.
            role: see `Embedder.encode`, as the options.
            **options: instruction, dim, precision, normalize, ...
        """
        parts, call = check_texts(texts).parts, Options(role=role, **options)
        key = tuple(texts), role, repr(sorted(options.items()))
        if key not in self._kept:
            readout = EachLayer([reading.embedder.readout for reading in self.readings])
            self._kept[key] = self.model.gather(readout, parts, call)
        embedder = self.readings[number].embedder
        value_nD = self._kept[key].value(number)
        check_finite({"dense": value_nD}, parts, embedder.backbone)
        statistics = embedder.readout.statistics
        return finish_vectors(value_nD, embedder.recipe, statistics, call, embedder.ranges)


@dataclass(frozen=True)
class _Swept(Subject):
    """A reading under test, whose vectors come from a sweep."""

    sweep: Sweep | None = None
    number: int = 0

    def vectors(self, texts: list[str], role: str | None, options: Mapping[str, Any]) -> Any:
        """Return the reading's vectors."""
        assert self.sweep is not None
        return self.sweep.vectors(self.number, texts, role, **options)


def score_layers(
    model: Embedder,
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
        model: the embedder of the readings.
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
    for name, task in tasks.items():
        sweep = Sweep(model, readings)  # another for each task, so that the vectors can go
        for number, reading in enumerate(readings):
            run = Run(
                reading.embedder,
                {name: task},
                {name: paths[name]},
                words,
                dict(options or {}),
                cache,
                restart,
                partial(_Swept, sweep=sweep, number=number),
            )
            for result in run.results():
                yield LayerScore(name, reading, result)


def best(scores: Sequence[LayerScore], task: str) -> LayerScore:
    """Return the reading with the highest score on a task; of equal ones, that of lower layers."""
    found = [score for score in scores if score.task == task]
    values = np.array([score.result.score for score in found])
    return found[int(values.argmax())]
