"""Scores embedders that read the same token states from one pass over each text.

They share a network and a prompt, and differ in what is read: the layer, the pooling, a linear
layer after it, the width and precision of vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from embedlm.embedder import Embedder
from embedlm.encode.call import Gathered, check_finite
from embedlm.encode.inputs import check_texts
from embedlm.encode.options import Options
from embedlm.encode.precision import finish_vectors
from embedlm.evaluation.results import Cache, Result
from embedlm.evaluation.subject import Subject
from embedlm.evaluation.suite import Task
from embedlm.evaluation.tasks import Run
from embedlm.readout.each_layer import EachLayer

__all__ = ["FORM", "Sweep", "score_together"]

FORM = ("dim", "precision", "normalize")
"""The options of `encode` that change vectors after they are gathered."""


@dataclass
class Sweep:
    """The vectors of texts by several embedders; a list of texts is run once for all of them."""

    embedders: Sequence[Embedder]
    """Of one network and one prompt, each with a dense head alone."""
    _kept: dict[Any, Gathered] = field(default_factory=dict)

    def vectors(
        self, number: int, texts: Sequence[str], role: str | None = None, **options: Any
    ) -> npt.NDArray[Any]:
        """Return the dense vectors of texts by one of the embedders, (n, dim).

        All embedders' vectors of the texts are kept, until the sweep is dropped: a number of 4
        bytes for each text, embedder and dimension.

        Args:
            number: of the embedder.
            texts: in any order.
            role: see `Embedder.encode`, as the options.
            **options: instruction, dim, precision, normalize, ...
        """
        parts, call = check_texts(texts).parts, Options(role=role, **options)
        passed = sorted((name, value) for name, value in options.items() if name not in FORM)
        key = tuple(texts), role, repr(passed)
        if key not in self._kept:
            readout = EachLayer([embedder.readout for embedder in self.embedders])
            self._kept[key] = self.embedders[0].gather(readout, parts, call)
        embedder = self.embedders[number]
        value_nD = self._kept[key].value(number)
        check_finite({"dense": value_nD}, parts, embedder.backbone)
        statistics = embedder.readout.statistics
        return finish_vectors(value_nD, embedder.recipe, statistics, call, embedder.ranges)


@dataclass(frozen=True)
class _Swept(Subject):
    """An embedder under test, whose vectors come from a sweep."""

    sweep: Sweep | None = None
    number: int = 0

    def vectors(self, texts: list[str], role: str | None, options: Mapping[str, Any]) -> Any:
        """Return the embedder's vectors."""
        assert self.sweep is not None
        return self.sweep.vectors(self.number, texts, role, **options)


def score_together(
    embedders: Sequence[Embedder],
    options: Sequence[Mapping[str, Any]],
    tasks: Mapping[str, Task],
    paths: Mapping[str, Mapping[str, Path]],
    *,
    words: int | None = None,
    cache: Cache | None = None,
    restart: bool = False,
) -> Iterator[tuple[int, Result]]:
    """Yield the number of each embedder and its result, task after task, as evaluate computes it.

    Args:
        embedders: see `Sweep`.
        options: of `Embedder.encode`, of each embedder.
        tasks: by name.
        paths: the files of each task.
        words: embed only the first so many words of each document; None: all.
        cache: finished results, under the keys of `embedlm evaluate`; what it holds is not run.
        restart: score again what the cache holds.

    Raises:
        InputError: an unknown option.
        RecordError: a file that cannot be used, with its line.
        NotFiniteError: an embedder gave NaN or infinity.
    """
    for name, task in tasks.items():
        sweep = Sweep(embedders)  # another for each task, so that the vectors can go
        for number, (embedder, own) in enumerate(zip(embedders, options, strict=True)):
            run = Run(
                embedder,
                {name: task},
                {name: paths[name]},
                words,
                dict(own),
                cache,
                restart,
                partial(_Swept, sweep=sweep, number=number),
            )
            for result in run.results():
                yield number, result
