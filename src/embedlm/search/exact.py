"""The exact store: every query is compared with every document, in memory.

Shapes: Q queries, N documents.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
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
from embedlm.search.forms import VECTOR_FORMS, vector_form
from embedlm.search.store import HeadVectors, Match

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
    ) -> None:
        """Make an empty store.

        Args:
            similarity: between dense vectors.
            length_normalize: divide MaxSim by the number of query tokens.
        """
        self.similarity = similarity
        self.length_normalize = length_normalize
        self._ids: list[str] = []
        self._vectors: dict[str, Any] = {}
        """By head; dense vectors that are compared by cosine are kept at length 1."""
        self._by_id: npt.NDArray[np.int64] | None = None
        """Rows in the order of their ids, once a search has needed it."""

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Sequence[str], vectors: Mapping[str, HeadVectors]) -> None:
        """Add documents; see `Store.add`."""
        if len(set(ids)) < len(ids):
            raise InputError("an id is repeated; give each document once")
        if not vectors or (self._vectors and vectors.keys() != self._vectors.keys()):
            raise InputError(
                f"vectors of the heads {', '.join(vectors) or 'none'} were given; give those of "
                f"{', '.join(self._vectors) or 'at least one head'}"
            )
        added = {head: self._prepared(head, rows) for head, rows in vectors.items()}
        for head, rows in added.items():
            if (count := vector_form(rows).count(rows)) != len(ids):
                raise InputError(f"{count} {head} vectors were given for {len(ids)} ids")
        self.delete(ids)
        if self._vectors:
            kept = self._vectors
            added = {head: vector_form(rows).join(kept[head], rows) for head, rows in added.items()}
        self._vectors = added
        self._ids = [*self._ids, *ids]
        self._by_id = None

    def search(self, head: str, queries: HeadVectors, top_k: int = 10) -> list[list[Match]]:
        """Return the best documents for each query; see `Store.search`."""
        if top_k < 1:
            raise InputError(f"top_k is {top_k}; give a number above 0")
        prepared = self._prepared(head, queries)
        count = vector_form(prepared).count(prepared)
        if not self._ids:
            return [[] for _ in range(count)]
        if head not in self._vectors:
            raise InputError(
                f"the store holds no vectors of the head {head!r}; it holds those of "
                f"{', '.join(self._vectors)}"
            )
        if self._by_id is None:
            self._by_id = np.argsort(np.array(self._ids, dtype=object), kind="stable")
        documents = self._vectors[head]
        matches: list[list[Match]] = []
        step = max(1, BLOCK // len(self._ids))
        for start in range(0, count, step):
            block = prepared[start : start + step]
            for i, scores_N in enumerate(self._scores(block, documents)):
                matches.append(self._best(block[i : i + 1], documents, scores_N, top_k))
        return matches

    def _best(
        self, query: Any, documents: Any, scores_N: npt.NDArray[np.float32], top_k: int
    ) -> list[Match]:
        """Return the best documents for one query.

        A matrix product rounds differently for the last rows of a block than for others, so that
        equal documents may differ in `scores_N`. Those that may be among the best are scored again,
        each by itself.
        """
        assert self._by_id is not None
        rows = self._by_id
        if top_k < len(rows):
            worst = np.partition(scores_N, -top_k)[-top_k]
            rows = rows[scores_N[rows] >= worst - ROUNDING * np.abs(scores_N).max()]
        form = vector_form(documents)
        queries = form.take(query, [0] * len(rows))
        exact = self._scores(queries, form.take(documents, rows.tolist()), pairwise=True)
        order = np.argsort(-exact, kind="stable")[:top_k]
        return [Match(self._ids[rows[i]], float(exact[i])) for i in order.tolist()]

    def delete(self, ids: Sequence[str]) -> None:
        """Remove documents; ids that are not present are ignored."""
        removed = set(ids)
        kept = [i for i, id_ in enumerate(self._ids) if id_ not in removed]
        if len(kept) == len(self._ids):
            return
        self._ids = [self._ids[i] for i in kept]
        self._vectors = {h: vector_form(rows).take(rows, kept) for h, rows in self._vectors.items()}
        self._by_id = None

    def save(self, path: Path) -> None:
        """Write one file, whole or not at all."""
        forms = {head: vector_form(rows) for head, rows in self._vectors.items()}
        header = {
            "format": FORMAT,
            "similarity": self.similarity,
            "length_normalize": self.length_normalize,
            "forms": {head: form.name for head, form in forms.items()},
            "ids": self._ids,
        }
        arrays: dict[str, Any] = {
            "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
        }
        for head, form in forms.items():
            for name, array in form.pack(self._vectors[head]).items():
                arrays[f"{head}.{name}"] = array
        write_file(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Return the store that was saved at `path`.

        Raises:
            InputError: the file is missing or is not an exact store.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            header = json.loads(arrays.pop("header").tobytes())
            if header["format"] != FORMAT or header["similarity"] not in DENSE:
                raise ValueError(header["format"], header["similarity"])
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{str(path)!r} is not a store that ExactStore.save wrote ({error}); give one"
            ) from error
        store = cls(similarity=header["similarity"], length_normalize=header["length_normalize"])
        store._ids = header["ids"]
        for head, form in header["forms"].items():
            parts = {
                name.removeprefix(f"{head}."): array
                for name, array in arrays.items()
                if name.startswith(f"{head}.")
            }
            store._vectors[head] = VECTOR_FORMS[form].unpack(parts)
        return store

    def _prepared(self, head: str, vectors: HeadVectors) -> Any:
        """Return vectors as the store compares them, refusing those that it cannot compare."""
        form = vector_form(vectors)
        checked = form.check(vectors)
        stored = self._vectors.get(head)
        if stored is not None:
            if form is not vector_form(stored):
                raise InputError(
                    f"{form.name} vectors were given for the head {head!r}; give "
                    f"{vector_form(stored).name} ones"
                )
            width, kept = form.width(checked), form.width(stored)
            if None not in (width, kept) and width != kept:
                raise InputError(
                    f"{head} vectors have the width {width}, but those of the store have {kept}"
                )
        if form is VECTOR_FORMS["dense"] and self.similarity == "cosine":
            return normalize(checked)
        return checked

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
