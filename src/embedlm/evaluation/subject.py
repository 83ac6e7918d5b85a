"""The model under test, and what a task gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from embedlm.embedder import Embedder
from embedlm.evaluation.sample import Sample
from embedlm.evaluation.suite import Task
from embedlm.readout.quantized import in_floats
from embedlm.readout.similarity import DENSE

__all__ = ["Scored", "Subject", "drawn", "pair_scores"]

_CORPORA = 2
"""Corpora whose vectors are kept."""


@dataclass(frozen=True)
class Scored:
    """What came of a task."""

    metrics: dict[str, float]
    sample: Sample
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A model with the options under which all of its texts are encoded."""

    model: Embedder
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `Embedder.encode`: dim, precision, normalize, ..."""
    words: int | None = None
    """Words of a document that are embedded; None: all."""
    kept: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """The vectors of the corpora embedded last: tasks of one run often share theirs."""

    def fitted(self, texts: Sequence[str]) -> Subject:
        """Return the subject fitted to texts, where its recipe reads what is learnt from a corpus.

        One that was fitted before keeps what it learnt. The caller's model stays as it is, so that
        tasks do not depend on each other.
        """
        reads = self.model.recipe.pooling.reads_statistics
        if not (reads and self.model.readout.unfitted):
            return self
        copy = self.model.with_recipe(self.model.recipe)
        return Subject(copy.fit(texts), self.options, self.words)

    def encode(self, texts: Sequence[str], task: Task, role: str | None, **more: Any) -> Any:
        """Return the vectors of texts, told the task's instruction where the prompt takes one.

        Options of the call are before those of the subject, an instruction before the task's.
        """
        told = task.told(role)
        if told is not None and self.model.takes_instruction(role):
            more.setdefault("instruction", told)
        return self.vectors(list(texts), role, {**self.options, **more})

    def vectors(self, texts: list[str], role: str | None, options: Mapping[str, Any]) -> Any:
        """Return what the model gives for texts under options of `Embedder.encode`."""
        return self.model.encode(texts, role=role, **options)

    def corpus(self, texts: Sequence[str], task: Task, heads: list[str] | None = None) -> Any:
        """Return the vectors of a corpus's documents, which the run's next task may take too.

        Args:
            texts: of the documents.
            task: says the instruction.
            heads: None: those of the recipe.
        """
        names = heads or [head.kind for head in self.model.recipe.heads]
        key = (tuple(texts), tuple(names), task.told("document"))
        if key not in self.kept:
            while len(self.kept) >= _CORPORA:
                self.kept.pop(next(iter(self.kept)))
            more = {} if heads is None else {"heads": heads}
            self.kept[key] = self.encode(texts, task, "document", **more)
        return self.kept[key]

    def dense(self, texts: Sequence[str], task: Task, **more: Any) -> npt.NDArray[Any]:
        """Return dense vectors of texts without a role, (n, dim)."""
        vectors: npt.NDArray[Any] = self.encode(texts, task, None, heads=["dense"], **more)
        return vectors

    def floats(self, texts: Sequence[str], task: Task) -> npt.NDArray[np.float32]:
        """Return dense vectors as numbers that a classifier can read."""
        return np.asarray(in_floats(self.dense(texts, task)), dtype=np.float32)


def pair_scores(
    subject: Subject, pairs: Sequence[tuple[str, str]], task: Task
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the similarity of pairs: "similarity", which is the recipe's, and all others."""
    vectors = subject.dense([text for pair in pairs for text in pair], task)
    a, b = vectors[::2], vectors[1::2]
    plain = in_floats(vectors)
    scores = {name: score(plain[::2], plain[1::2], pairwise=True) for name, score in DENSE.items()}
    return {"similarity": subject.model.similarity_pairwise(a, b), **scores}


def drawn(count: int, task: Task, seed: int) -> npt.NDArray[np.int64]:
    """Return which units are scored, in order: all, or the task's sample."""
    if task.sample is None or task.sample >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, task.sample, replace=False))
