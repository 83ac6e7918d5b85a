"""Stores of Qdrant: Edge, inside this process, and a server or cluster, by URL.

Both hold the same points, are asked the same questions and are fused by our own formulas, so that
an index gives the same hits in either. Each point has the id that a hash of the document's id
gives, since Qdrant takes numbers and UUIDs alone; the id itself is in its payload.

Shapes: Q queries, n documents, D width.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from embedlm.errors import InputError, UnsupportedError
from embedlm.readout.similarity import normalize
from embedlm.search.filters import (
    Filter,
    check_filter,
    field_name,
    flat,
    kept_value,
    qdrant_filter,
)
from embedlm.search.forms import vector_form
from embedlm.search.store import (
    FirstStage,
    HeadVectors,
    Match,
    StoredPoint,
    check_added,
    check_count,
    check_head,
    check_top_k,
    checked_rows,
)

__all__ = ["SLICE", "QdrantPoints", "point_id"]

SLICE = 256
"""Points written at once; Edge holds Python's lock for the whole call."""
MARGIN = 32
"""Further matches that are asked for, so that equal scores are ordered by id."""
FIRST = "dense_first"
"""The name under which short vectors are kept."""
_NAMESPACE = uuid.UUID("6d2b6c0e-6f0f-5d3c-9c57-0d5a1c7e4b11")


class QdrantPoints(ABC):
    """What the stores of Qdrant have in common; see `Store` for the contract.

    Equal scores are ordered by id among the best `top_k + 32`. A document without token vectors is
    not found by a search of these. Without `exact` a search may miss documents once an index is
    built; scores are always those of full vectors.
    """

    def __init__(
        self,
        api: Any,
        *,
        similarity: Literal["cosine", "dot", "euclidean", "manhattan"] = "cosine",
        length_normalize: bool = False,
        first: FirstStage | None = None,
    ) -> None:
        self.similarity: Any = similarity
        self.length_normalize = length_normalize
        self.first = first
        self._api = api
        self._widths: dict[str, tuple[str, int | None]] = {}
        """The form and width of each head's vectors."""

    # -- what an engine does ------------------------------------------------------------------

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of documents."""

    @abstractmethod
    def _create(self) -> None:
        """Make an empty collection of the heads in `_widths`."""

    @abstractmethod
    def _upsert(self, points: list[Any]) -> None: ...

    @abstractmethod
    def _delete(self, points: list[str]) -> None: ...

    @abstractmethod
    def _replace(self, head: str, values: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _query(self, query: Any, using: str, limit: int, more: Mapping[str, Any]) -> list[Any]: ...

    @abstractmethod
    def _point(self, id: str, vectors: dict[str, Any], payload: dict[str, Any]) -> Any: ...

    @abstractmethod
    def scroll(self) -> Iterator[StoredPoint]:
        """Yield all documents with their vectors, in the order of their points."""

    # -- writing ------------------------------------------------------------------------------

    def add(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, HeadVectors],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        extra: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add documents; see `Store.add`.

        Args:
            ids: one for each document.
            vectors: by head.
            metadata: for filters.
            extra: further fields of each payload (text, say), which nothing here reads.
        """
        check_added(ids, vectors, metadata, self._widths)
        checked = {head: self._checked(head, rows) for head, rows in vectors.items()}
        for head, rows in checked.items():
            check_count(head, rows, ids)
            if vector_form(rows).name == "dense" and self.similarity == "cosine":
                _refuse_zeros(rows, ids)
        if not self._widths:
            self._begin(checked)
        for start in range(0, len(ids), SLICE):
            rows_at = range(start, min(start + SLICE, len(ids)))
            self._upsert(
                [
                    self._point(
                        point_id(ids[i]),
                        self._vectors_of(checked, i),
                        _payload(ids[i], metadata[i] if metadata else {}, extra and extra[i]),
                    )
                    for i in rows_at
                ]
            )

    def _begin(self, checked: Mapping[str, Any]) -> None:
        widths: dict[str, tuple[str, int | None]] = {}
        for head, rows in checked.items():
            form = vector_form(rows)
            width = form.width(rows)
            if width is None or (width == 0 and form.name != "sparse"):
                raise InputError(f"no {head} vector has a width; add a document with one first")
            widths[head] = (form.name, width)
        if self.first is not None and "dense" not in widths:
            raise InputError("a first stage is for dense vectors, and there are none")
        if self.first is not None and (self.first.dim or 0) > (widths["dense"][1] or 0):
            raise InputError(
                f"the short vectors have {self.first.dim} numbers, and the full ones only "
                f"{widths['dense'][1]}; give a smaller number"
            )
        self._widths = widths
        self._create()

    def heads(self) -> dict[str, tuple[str, int | None]]:
        """Return the form and the width of each head's vectors."""
        return dict(self._widths)

    def prepare(self, heads: Mapping[str, tuple[str, int | None]]) -> None:
        """Make the collection for vectors of these heads, or check that it takes them.

        Raises:
            InputError: it is there, and holds vectors of other heads or widths.
        """
        if not self._widths:
            self._widths = dict(heads)
            self._create()
            return
        for head in {*heads, *self._widths}:
            here, there = heads.get(head), self._widths.get(head)
            both = here is not None and there is not None and here[0] == there[0]
            if not both or (here[1] != there[1] and "sparse" not in (here[0], there[0])):  # type: ignore[index]
                raise InputError(
                    f"the collection holds vectors of another kind ({head}: {there}, and {here} "
                    "are given); give another collection"
                )

    def _checked(self, head: str, vectors: HeadVectors) -> Any:
        rows = checked_rows(head, vectors, self._widths.get(head))
        dense = vector_form(rows).name == "dense"
        return normalize(rows) if dense and self.similarity == "cosine" else rows

    def _vectors_of(self, checked: Mapping[str, Any], row: int) -> dict[str, Any]:
        """Return one document's vectors as a point holds them; empty ones are left out."""
        found: dict[str, Any] = {}
        for head, rows in checked.items():
            value = self._plain(head, rows, row)
            if value is not None:
                found[head] = value
        if self.first is not None and self.first.kind == "short":
            found[FIRST] = normalize(checked["dense"][row : row + 1, : self.first.dim])[0].tolist()
        return found

    def _plain(self, head: str, rows: Any, row: int) -> Any:
        form = vector_form(rows).name
        if form == "dense":
            return rows[row].tolist()
        if form == "tokens":
            return rows[row].tolist() or None
        one = rows[row]
        if not one.nnz:
            return None
        return self._api.SparseVector(
            indices=one.indices.tolist(), values=one.data.astype(float).tolist()
        )

    def replace(self, head: str, ids: Sequence[str], vectors: HeadVectors) -> None:
        """Give documents new vectors of one head; ids that are not present are not allowed."""
        rows = self._checked(head, vectors)
        for start in range(0, len(ids), SLICE):
            some = range(start, min(start + SLICE, len(ids)))
            values = {point_id(ids[i]): self._plain(head, rows, i) for i in some}
            self._replace(head, values)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents; ids that are not present are ignored."""
        if self._widths and ids:
            for start in range(0, len(ids), SLICE):
                self._delete([point_id(one) for one in ids[start : start + SLICE]])

    # -- searching ----------------------------------------------------------------------------

    def search(
        self,
        head: str,
        queries: HeadVectors,
        top_k: int = 10,
        *,
        where: Filter | None = None,
        exact: bool = False,
    ) -> list[list[Match]]:
        """Return the best documents for each query; see `Store.search`."""
        check_top_k(top_k)
        more: dict[str, Any] = {}
        if where is not None:
            more["filter"] = qdrant_filter(check_filter(where), self._api)
        rows = self._checked(head, queries)
        count = vector_form(rows).count(rows)
        if not self._widths:
            return [[] for _ in range(count)]
        check_head(head, self._widths)
        return [self._one(head, rows, row, top_k, more, exact) for row in range(count)]

    def _one(
        self, head: str, rows: Any, row: int, top_k: int, more: dict[str, Any], exact: bool
    ) -> list[Match]:
        query = self._plain(head, rows, row)
        if query is None:
            return []
        limit = top_k + MARGIN
        if head == "dense":
            more = {**more, **self._staged(rows, row, limit, more, exact)}
        found = self._query(query, head, limit, more)
        sign = -1.0 if head == "dense" and self.similarity in ("euclidean", "manhattan") else 1.0
        share = 1.0
        if self.length_normalize and self._widths[head][0] == "tokens":
            share = 1 / len(query)
        matches = [Match(str(p.payload["id"]), sign * share * float(p.score)) for p in found]
        if self._widths[head][0] == "sparse":  # a local client also gives those without a term
            matches = [match for match in matches if match.score != 0]
        return sorted(matches, key=lambda match: (-np.float32(match.score), match.id))[:top_k]

    def _staged(
        self, rows: Any, row: int, limit: int, more: Mapping[str, Any], exact: bool
    ) -> dict[str, Any]:
        """Return the parameters of a dense search: exact, in two stages, or as indexed."""
        api, first = self._api, self.first
        if exact:
            return {"params": api.SearchParams(exact=True, quantization=_ignored(api))}
        if first is None:
            return {}
        if first.kind == "binary":
            rescored = api.QuantizationSearchParams(
                rescore=True, oversampling=float(first.oversampling)
            )
            return {"params": api.SearchParams(quantization=rescored)}
        short = normalize(rows[row : row + 1, : first.dim])[0].tolist()
        return {"first": (short, limit * first.oversampling, more.get("filter"))}

    def save(self, path: Path) -> None:
        """Write what is not yet on the disk; such a store is always at its place."""
        raise UnsupportedError(f"{type(self).__name__} is written as it is filled; call close()")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the store at `path`."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections."""


def point_id(key: str) -> str:
    """Return the id of a document's point: a UUID of version 5."""
    return str(uuid.uuid5(_NAMESPACE, key))


def _ignored(api: Any) -> Any:
    return api.QuantizationSearchParams(ignore=True)


def _payload(key: str, metadata: Mapping[str, Any], extra: Any) -> dict[str, Any]:
    meta = {field_name(name): kept_value(value) for name, value in flat(metadata).items()}
    return {**(extra or {}), "id": key, "meta": meta}


def _refuse_zeros(rows: Any, ids: Sequence[str]) -> None:
    zero = np.flatnonzero(~np.asarray(rows).any(axis=1))
    if len(zero):
        raise InputError(
            f"the dense vector of {ids[zero[0]]!r} is zero, which has no direction to compare by "
            "cosine; give another one"
        )
