"""The interface of a store of vectors, which an index is built on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

__all__ = ["HeadVectors", "Match", "Store"]

HeadVectors = npt.NDArray[Any] | csr_matrix | Sequence[npt.NDArray[np.float32]]
"""One head's output for n texts: an array (n, D), a sparse matrix (n, V) or n (tokens, D)."""


class Match(NamedTuple):
    """A stored document and its score for a query."""

    id: str
    score: float


@runtime_checkable
class Store(Protocol):
    """Vectors of documents by id, searched by vectors; it knows neither texts nor models.

    A document has one vector (or one array of token vectors) for each head, as the heads of
    recipes give them. Every store guarantees:

    - Ids are strings, and one id names one document: adding an id again replaces its vectors.
    - Order: the best score first. Equal float32 scores are ordered by id, ascending, so that a
      search gives the same result whenever and in whatever order documents were added.
    - Number: `min(top_k, len(store))` matches. Only a sparse search may leave out documents with
      score 0, since an inverted index never sees them.
    - Scores: cosine or dot product (chosen when the store is made) for dense vectors, dot product
      for sparse ones, MaxSim for token vectors. An approximate store gives the true score of what
      it finds; it may miss documents, which its documentation must say.
    - What `save` has written is what `open` gives back: the same ids and scores.
    """

    def __len__(self) -> int:
        """Return the number of documents."""

    def add(self, ids: Sequence[str], vectors: Mapping[str, HeadVectors]) -> None:
        """Add documents, or replace those whose ids are present.

        Args:
            ids: one for each document, without repetition.
            vectors: by head; row i belongs to ids[i]. Every call gives the same heads.

        Raises:
            InputError: repeated ids; another number of vectors than ids; other heads or another
                width than the store holds; or values that are not finite. Nothing is added then.
        """

    def search(self, head: str, queries: HeadVectors, top_k: int = 10) -> list[list[Match]]:
        """Return the best documents for each query.

        Args:
            head: which vectors of the documents are compared.
            queries: of the same head, one row (or array) for each query.
            top_k: matches for each query, at most.

        Raises:
            InputError: a head or width that the store does not hold, or top_k below 1.
        """

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents; ids that are not present are ignored."""

    def save(self, path: Path) -> None:
        """Write the store; an interruption leaves what was at `path` before."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the store that was saved at `path`.

        Raises:
            InputError: `path` is not a store of this kind.
        """
