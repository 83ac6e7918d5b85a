"""The exact store: every query is compared with every document, in memory.

Shapes: Q queries, N documents.
"""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from embedlm.errors import InputError
from embedlm.jobs import write_file
from embedlm.readout.embeddings import finite_scores
from embedlm.readout.similarity import (
    DENSE,
    dot,
    maxsim,
    maxsim_pairwise,
    normalize,
    signs_of,
    sparse_dot,
)
from embedlm.search.filters import Filter, check_filter, field_name, fits, flat, kept_value
from embedlm.search.forms import (
    VECTOR_FORMS,
    pack_heads,
    unpack_header,
    unpack_heads,
    vector_form,
)
from embedlm.search.store import (
    FirstStage,
    HeadVectors,
    Match,
    SparseParts,
    StoredPoint,
    check_added,
    check_count,
    check_head,
    check_top_k,
    checked_rows,
)

__all__ = ["ExactStore"]

FORMAT = "embedlm exact store 1"
BLOCK = 1 << 24
"""Scores computed at once: 64 MiB of float32."""
ROUNDING = 1e-5
"""Two scores that differ by less, relative to the largest, may be equal."""


class ExactStore:
    """A `Store` that finds the true best, in time linear in the number of documents."""

    def __init__(
        self,
        *,
        similarity: Literal["cosine", "dot", "euclidean", "manhattan"] = "cosine",
        length_normalize: bool = False,
        first: FirstStage | None = None,
    ) -> None:
        """Make an empty store.

        Args:
            similarity: between dense vectors.
            length_normalize: divide MaxSim by the number of query tokens.
            first: the cheap search that finds candidates among dense vectors; None: all are
                compared.
        """
        self.first = first
        self.similarity = similarity
        self.length_normalize = length_normalize
        self._ids: list[str] = []
        self._metadata: list[dict[str, Any]] = []
        """Of each document, without nesting."""
        self._vectors: dict[str, Any] = {}
        """By head; dense vectors that are compared by cosine are kept at length 1."""
        self._by_id: npt.NDArray[np.int64] | None = None
        """Rows in the order of their ids, once a search has needed it."""
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: all but the lock, and nothing that a change would touch."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `__getstate__` gave."""
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def _as_it_is(self) -> Self:
        """Return the store as it is now, which later changes leave alone: they replace its parts.

        So other threads may search it while one adds or deletes documents.
        """
        with self._lock:
            if self._by_id is None:
                self._by_id = np.argsort(np.array(self._ids, dtype=object), kind="stable")
            return copy(self)

    def __len__(self) -> int:
        return len(self._ids)

    def add(
        self,
        ids: Sequence[str],
        vectors: Mapping[str, HeadVectors],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add documents; see `Store.add`."""
        check_added(ids, vectors, metadata, self._vectors)
        added = {head: self._prepared(head, rows) for head, rows in vectors.items()}
        for head, rows in added.items():
            check_count(head, rows, ids)
        told = [{} for _ in ids] if metadata is None else list(map(flat, metadata))
        with self._lock:
            self.delete(ids)
            if kept := self._vectors:
                added = {
                    one: vector_form(rows).join(kept[one], rows) for one, rows in added.items()
                }
            self._vectors = added
            self._ids = [*self._ids, *ids]
            self._metadata = [*self._metadata, *told]
            self._by_id = None

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
        return self._as_it_is()._found(head, queries, top_k, where, exact)

    def _found(
        self, head: str, queries: HeadVectors, top_k: int, where: Filter | None, exact: bool
    ) -> list[list[Match]]:
        allowed = None if where is None else self._passing(check_filter(where))
        prepared = self._prepared(head, queries)
        count = vector_form(prepared).count(prepared)
        if not self._ids or (allowed is not None and not len(allowed)):
            return [[] for _ in range(count)]
        check_head(head, self._vectors)
        assert self._by_id is not None
        rows = self._by_id if allowed is None else self._by_id[np.isin(self._by_id, allowed)]
        documents = self._vectors[head]
        if self.first is not None and not exact and head == "dense":
            return [
                self._best(query, documents, self._candidates(query, documents, rows, top_k), top_k)
                for query in (prepared[i : i + 1] for i in range(count))
            ]
        if allowed is not None:
            return [self._best(prepared[i : i + 1], documents, rows, top_k) for i in range(count)]
        matches: list[list[Match]] = []
        step = max(1, BLOCK // len(self._ids))
        for start in range(0, count, step):
            block = prepared[start : start + step]
            for i, scores_N in enumerate(self._scores(block, documents)):
                near = self._nearest(scores_N, rows, top_k)
                matches.append(self._best(block[i : i + 1], documents, near, top_k))
        return matches

    def _passing(self, where: Filter) -> npt.NDArray[np.int64]:
        """Return the rows of the documents whose metadata pass a filter."""
        passing = [i for i, metadata in enumerate(self._metadata) if fits(where, metadata)]
        return np.array(passing, dtype=np.int64)

    def _candidates(
        self, query: Any, documents: Any, rows: npt.NDArray[np.int64], top_k: int
    ) -> npt.NDArray[np.int64]:
        """Return the rows that the first stage finds for one query, in the order of their ids."""
        assert self.first is not None
        if self.first.kind == "binary":
            signs = [np.where(v > 0, 1, -1).astype(np.float32) for v in (query, documents[rows])]
            scores_N = dot(*signs)[0]
        else:
            short = slice(self.first.dim)
            scores_N = dot(normalize(query[:, short]), normalize(documents[rows, short]))[0]
        order = np.argsort(-scores_N, kind="stable")[: top_k * self.first.oversampling]
        found: npt.NDArray[np.int64] = rows[np.sort(order)]
        return found

    @staticmethod
    def _nearest(
        scores_N: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], top_k: int
    ) -> npt.NDArray[np.int64]:
        """Return the rows that may be among the best, in the order of their ids."""
        if top_k >= len(rows):
            return rows
        worst = np.partition(scores_N, -top_k)[-top_k]
        near = scores_N[rows] >= worst - ROUNDING * np.abs(scores_N).max()
        found: npt.NDArray[np.int64] = rows[near]
        return found

    def _best(
        self, query: Any, documents: Any, rows: npt.NDArray[np.int64], top_k: int
    ) -> list[Match]:
        """Return the best of some documents for one query.

        A matrix product rounds differently for the last rows of a block than for others, so that
        equal documents may differ there. Those that may be among the best are scored again, each by
        itself.
        """
        form = vector_form(documents)
        queries = form.take(query, [0] * len(rows))
        exact = self._scores(queries, form.take(documents, rows.tolist()), pairwise=True)
        order = np.argsort(-exact, kind="stable")[:top_k]
        return [Match(self._ids[rows[i]], float(exact[i])) for i in order.tolist()]

    def replace(self, head: str, ids: Sequence[str], vectors: HeadVectors) -> None:
        """Give documents, which must be all that there are, new vectors of one head."""
        rows = self._prepared(head, vectors)
        place = {id_: i for i, id_ in enumerate(ids)}
        with self._lock:
            if set(self._ids) != set(ids):
                raise InputError(
                    "vectors were given for other documents; give those of all of them"
                )
            taken = vector_form(rows).take(rows, [place[id_] for id_ in self._ids])
            self._vectors = {**self._vectors, head: taken}

    def heads(self) -> dict[str, tuple[str, int | None]]:
        """Return the form and the width of each head's vectors."""
        kept = {head: self._kept(head) for head in self._vectors}
        return {head: form for head, form in kept.items() if form is not None}

    def stored(self, ids: Sequence[str], heads: Sequence[str]) -> dict[str, Any]:
        """Return the vectors of some documents, which are all present, by head."""
        now = self._as_it_is()
        place = {id_: i for i, id_ in enumerate(now._ids)}
        rows = [place[id_] for id_ in ids]
        held = {head: now._vectors[head] for head in heads}
        return {head: vector_form(value).take(value, rows) for head, value in held.items()}

    def scroll(self) -> Iterator[StoredPoint]:
        """Yield all documents with their vectors."""
        held = self._as_it_is()
        for row, id_ in enumerate(held._ids):
            vectors: dict[str, Any] = {}
            for head, rows in held._vectors.items():
                one = rows[row]
                if vector_form(rows).name != "sparse":
                    vectors[head] = one.tolist()
                elif one.nnz:
                    vectors[head] = SparseParts(one.indices.tolist(), one.data.tolist())
            meta = {field_name(k): kept_value(v) for k, v in held._metadata[row].items()}
            yield StoredPoint(id_, vectors, {"id": id_, "meta": meta})

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents; ids that are not present are ignored."""
        removed = set(ids)
        with self._lock:
            kept = [i for i, id_ in enumerate(self._ids) if id_ not in removed]
            if len(kept) == len(self._ids):
                return
            held = self._vectors
            self._vectors = {h: vector_form(rows).take(rows, kept) for h, rows in held.items()}
            self._ids = [self._ids[i] for i in kept]
            self._metadata = [self._metadata[i] for i in kept]
            self._by_id = None

    def save(self, path: Path) -> None:
        """Write one file, whole or not at all."""
        held = self._as_it_is()
        header = {
            "format": FORMAT,
            "similarity": held.similarity,
            "length_normalize": held.length_normalize,
            "ids": held._ids,
            "metadata": held._metadata,
            "first": None if held.first is None else asdict(held.first),
        }
        arrays: dict[str, Any] = pack_heads(held._vectors, header)
        write_file(path, lambda file: np.savez(file, **arrays))

    def close(self) -> None:
        """Do nothing: no file is held."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the store that was saved at `path`.

        Raises:
            InputError: the file is missing or is not an exact store.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            header = unpack_header(arrays)
            if header["format"] != FORMAT or header["similarity"] not in DENSE:
                raise ValueError(header["format"], header["similarity"])
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{str(path)!r} is not a store that ExactStore.save wrote ({error}); give one"
            ) from error
        store = cls(similarity=header["similarity"], length_normalize=header["length_normalize"])
        store._ids = header["ids"]
        store._metadata = header.get("metadata") or [{} for _ in store._ids]
        store.first = FirstStage(**header["first"]) if header.get("first") else None
        store._vectors = unpack_heads(arrays)
        return store

    def _prepared(self, head: str, vectors: HeadVectors) -> Any:
        """Return vectors as the store compares them, refusing those that it cannot compare."""
        rows = checked_rows(head, vectors, self._kept(head))
        dense = vector_form(rows) is VECTOR_FORMS["dense"]
        return normalize(rows) if dense and self.similarity == "cosine" else rows

    def _kept(self, head: str) -> tuple[str, int | None] | None:
        """Return the form and the width of one head's vectors."""
        if head not in self._vectors:
            return None
        form = vector_form(self._vectors[head])
        return form.name, form.width(self._vectors[head])

    def _scores(
        self, queries: Any, documents: Any, *, pairwise: bool = False
    ) -> npt.NDArray[np.float32]:
        """Return the scores of prepared vectors, (Q, N), or (N,) for pairs."""
        form = vector_form(documents)
        with np.errstate(over="ignore", invalid="ignore"):
            if form is VECTOR_FORMS["sparse"]:
                scores = sparse_dot(queries, documents, pairwise=pairwise)
            elif form is VECTOR_FORMS["tokens"]:
                compare = maxsim_pairwise if pairwise else maxsim
                scores = compare(queries, documents, length_normalize=self.length_normalize)
            else:
                signs = self.similarity == "cosine" and signs_of(queries[:1]) is not None
                known = self.similarity != "cosine" or signs
                compare_dense = DENSE[self.similarity] if known else dot
                scores = compare_dense(queries, documents, pairwise=pairwise)
        return finite_scores(scores)
