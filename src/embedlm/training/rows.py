"""The rows of a batch: records with the documents that were chosen for a step."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Batch", "BatchRow"]


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One record of a batch."""

    source: int
    """Index of the data set that holds the record."""
    query: str
    documents: tuple[str, ...] = ()
    """The positive and then the hard negatives; the second text of a pair."""
    score: float = 0.0
    """The score of a pair."""
    teacher: tuple[float, ...] = ()
    """A teacher's score for each document."""
    index: int = -1
    """Index of the record in its data set."""
    positives: frozenset[str] = frozenset()
    """All texts that the stage's data name as a positive of the query."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The records of one step."""

    rows: tuple[BatchRow, ...]
    step: int
    in_batch: bool = True
    """Whether documents of other queries may serve as negatives."""
