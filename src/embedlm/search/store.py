"""The interface of a store of vectors, which an index is built on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

from embedlm.errors import InputError
from embedlm.search.filters import Filter
from embedlm.search.forms import vector_form

__all__ = [
    "FirstStage",
    "HeadVectors",
    "Match",
    "SparseParts",
    "Store",
    "StoredPoint",
    "check_added",
    "check_count",
    "check_head",
    "check_top_k",
    "checked_rows",
]

HeadVectors = npt.NDArray[Any] | csr_matrix | Sequence[npt.NDArray[np.float32]]
"""One head's output for n texts: an array (n, D), a sparse matrix (n, V) or n (tokens, D)."""


class Match(NamedTuple):
    """A stored document and its score for a query."""

    id: str
    score: float


class SparseParts(NamedTuple):
    """One sparse vector: the places of its numbers, and the numbers."""

    indices: list[int]
    values: list[float]


class StoredPoint(NamedTuple):
    """A document as a store keeps it, which another store can take."""

    key: str
    vectors: dict[str, Any]
    """By head: a list, a list of lists, or indices and values."""
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class FirstStage:
    """A cheap search that finds candidates, whose full vectors are then compared.

    Only dense vectors have one. Binary keeps the sign of each number (Yamada et al.,
    arXiv:2106.00882); short keeps the first numbers of Matryoshka vectors (arXiv:2205.13147).
    """

    kind: Literal["binary", "short"]
    dim: int | None = None
    """Numbers that a short vector has."""
    oversampling: int = 8
    """Candidates for each match asked for."""

    def __post_init__(self) -> None:
        """Refuse values that make no first stage."""
        if self.kind not in ("binary", "short"):
            raise InputError(f"first stage {self.kind!r} is not known; allowed: binary, short:DIM")
        if (self.kind == "short") != (self.dim is not None) or self.dim == 0:
            raise InputError(
                f"first stage {self.kind!r} with dim={self.dim}; write binary, or short:DIM with a "
                "number above 0"
            )
        if self.oversampling < 1:
            raise InputError(f"oversampling is {self.oversampling}; give a number above 0")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what `binary` or `short:64` says."""
        kind, _, dim = text.partition(":")
        number = int(dim) if dim.isdecimal() else None
        if bool(dim) != (number is not None) or kind not in ("binary", "short"):
            raise InputError(f"first stage {text!r} is not known; allowed: binary, short:DIM")
        return cls("binary" if kind == "binary" else "short", number)


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

    def add(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, HeadVectors],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add documents, or replace those whose ids are present.

        Args:
            ids: one for each document, without repetition.
            vectors: by head; row i belongs to ids[i]. Every call gives the same heads.
            metadata: of each document, for filters; None: none.

        Raises:
            InputError: repeated ids; another number of vectors than ids; other heads or another
                width than the store holds; or values that are not finite. Nothing is added then.
        """

    def search(
        self,
        head: str,
        queries: HeadVectors,
        top_k: int = 10,
        *,
        where: Filter | None = None,
        exact: bool = False,
    ) -> list[list[Match]]:
        """Return the best documents for each query.

        Args:
            head: which vectors of the documents are compared.
            queries: of the same head, one row (or array) for each query.
            top_k: matches for each query, at most.
            where: only documents whose metadata pass this filter, see `search.filters`.
            exact: compare with every document's full vector, whatever index or first stage the
                store has.

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


# -- what every store refuses -------------------------------------------------------------------


def check_added(
    ids: Sequence[str],
    heads: Collection[str],
    metadata: Sequence[Mapping[str, Any]] | None,
    held: Collection[str],
) -> None:
    """Refuse documents that a store cannot add, whatever their vectors.

    Args:
        ids: of the documents.
        heads: of which vectors are given.
        metadata: of the documents.
        held: heads of which the store holds vectors; none where it is empty.

    Raises:
        InputError: repeated ids, other heads, or another number of metadata than ids.
    """
    if metadata is not None and len(metadata) != len(ids):
        raise InputError(f"{len(metadata)} metadata were given for {len(ids)} ids")
    if len(set(ids)) < len(ids):
        raise InputError("an id is repeated; give each document once")
    if not heads or (held and set(heads) != set(held)):
        raise InputError(
            f"vectors of the heads {', '.join(heads) or 'none'} were given; give those of "
            f"{', '.join(held) or 'at least one head'}"
        )


def checked_rows(head: str, vectors: HeadVectors, kept: tuple[str, int | None] | None) -> Any:
    """Return one head's vectors in float32.

    Args:
        head: its name.
        vectors: of documents or of queries.
        kept: form and width of those that the store holds; None: it holds none.

    Raises:
        InputError: vectors of another form or width, or that are not finite.
    """
    form = vector_form(vectors)
    rows = form.check(vectors)
    if kept is None:
        return rows
    if form.name != kept[0]:
        raise InputError(
            f"{form.name} vectors were given for the head {head!r}; give {kept[0]} ones"
        )
    width = form.width(rows)
    if None not in (width, kept[1]) and width != kept[1]:
        raise InputError(
            f"{head} vectors have the width {width}, but those of the store have {kept[1]}"
        )
    return rows


def check_count(head: str, rows: Any, ids: Sequence[str]) -> None:
    """Refuse another number of vectors than ids."""
    if (count := vector_form(rows).count(rows)) != len(ids):
        raise InputError(f"{count} {head} vectors were given for {len(ids)} ids")


def check_top_k(top_k: int) -> None:
    """Refuse to look for less than one match."""
    if top_k < 1:
        raise InputError(f"top_k is {top_k}; give a number above 0")


def check_head(head: str, held: Collection[str]) -> None:
    """Refuse a head of which a store holds no vectors."""
    if head not in held:
        raise InputError(
            f"the store holds no vectors of the head {head!r}; it holds those of {', '.join(held)}"
        )
