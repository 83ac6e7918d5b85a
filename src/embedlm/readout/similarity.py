"""Scores between embeddings: cosine, dot, sparse dot, MaxSim, and their mixtures.

Shapes: n and m texts, D width, Q and T tokens of a query and of all documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix, diags_array
from scipy.spatial.distance import cdist

from embedlm.backbone.prepacked import product
from embedlm.errors import InputError

__all__ = [
    "DENSE",
    "SPARSE",
    "cosine",
    "dot",
    "euclidean",
    "manhattan",
    "maxsim",
    "maxsim_pairwise",
    "normalize",
    "signs_of",
    "sparse_dot",
]

Floats = npt.NDArray[np.float32]


def normalize(vectors: npt.NDArray[Any]) -> Floats:
    """Return vectors of length 1; a zero vector stays zero."""
    values = np.asarray(vectors, dtype=np.float32)
    with np.errstate(over="ignore"):
        norms = np.linalg.norm(values, axis=-1, keepdims=True)
    if not np.isfinite(norms).all():  # squares of large numbers overflow
        norms = np.linalg.norm(values.astype(np.float64), axis=-1, keepdims=True)
    found: Floats = np.asarray(values / np.maximum(norms, 1e-12), dtype=np.float32)
    return found


def _same_width(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(
            f"vectors of shapes {a.shape} and {b.shape} cannot be compared; give (n, D) and (m, D)"
        )


def dot(a: npt.NDArray[Any], b: npt.NDArray[Any], *, pairwise: bool = False) -> Floats:
    """Inner products: (n, m), or (n,) for pairs."""
    a, b = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
    _same_width(a, b)
    if pairwise:
        _same_count(len(a), len(b))
        return np.asarray((a * b).sum(axis=1), dtype=np.float32)
    # torch's product takes two thirds of the time of NumPy's; it wants arrays that it may write to.
    if all(one.ndim == 2 and one.flags.c_contiguous and one.flags.writeable for one in (a, b)):
        return product(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    return np.asarray(a @ b.T, dtype=np.float32)


def signs_of(vectors: npt.NDArray[Any]) -> Floats | None:
    """Return 1 and -1 for rows whose entries have all one size, as packed bits stand for them.

    None: other rows; most are told from the first one.
    """
    values = np.asarray(vectors, dtype=np.float32)
    if values.ndim != 2 or not values.size:
        return None
    for rows in (values[:1], values):
        sizes = np.abs(rows)
        if not (sizes == sizes[:, :1]).all() or not (sizes[:, 0] > 0).all():
            return None
    return np.sign(values)


def cosine(a: npt.NDArray[Any], b: npt.NDArray[Any], *, pairwise: bool = False) -> Floats:
    """Cosines: (n, m), or (n,) for pairs; 0 where a vector is zero.

    Those of sign vectors are 1 - 2 h / D for h signs that differ, exactly: equal distances tie.
    """
    a_signs, b_signs = signs_of(a), signs_of(b)
    if a_signs is not None and b_signs is not None:
        count = np.float32(a_signs.shape[1])
        return np.asarray(dot(a_signs, b_signs, pairwise=pairwise) / count, dtype=np.float32)
    return dot(normalize(a), normalize(b), pairwise=pairwise)


def euclidean(a: npt.NDArray[Any], b: npt.NDArray[Any], *, pairwise: bool = False) -> Floats:
    """Euclidean distances below zero, so that the nearest score highest: (n, m), or (n,)."""
    return _negative_distance(a, b, "euclidean", pairwise=pairwise)


def manhattan(a: npt.NDArray[Any], b: npt.NDArray[Any], *, pairwise: bool = False) -> Floats:
    """Manhattan distances below zero, so that the nearest score highest: (n, m), or (n,)."""
    return _negative_distance(a, b, "cityblock", pairwise=pairwise)


def _negative_distance(
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    metric: Literal["euclidean", "cityblock"],
    *,
    pairwise: bool,
) -> Floats:
    a, b = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
    _same_width(a, b)
    if not pairwise:
        return np.asarray(-cdist(a, b, metric), dtype=np.float32)
    _same_count(len(a), len(b))
    order = 2 if metric == "euclidean" else 1
    return np.asarray(-np.linalg.norm(a - b, ord=order, axis=1), dtype=np.float32)


DENSE = {"cosine": cosine, "dot": dot, "euclidean": euclidean, "manhattan": manhattan}
"""How dense vectors are compared, by the name in recipes."""


def sparse_dot(a: csr_matrix, b: csr_matrix, *, pairwise: bool = False) -> Floats:
    """Inner products of sparse vectors: (n, m), or (n,) for pairs."""
    _same_terms(a, b)
    if pairwise:
        _same_count(a.shape[0], b.shape[0])
        return np.asarray(a.multiply(b).sum(axis=1), dtype=np.float32).ravel()
    return np.asarray((a @ b.T).toarray(), dtype=np.float32)


def _same_terms(a: csr_matrix, b: csr_matrix) -> None:
    if a.shape[1] != b.shape[1]:
        raise InputError(f"sparse vectors over {a.shape[1]} and {b.shape[1]} terms: not the same")


def _sparse_cosine(a: csr_matrix, b: csr_matrix, *, pairwise: bool = False) -> Floats:
    return sparse_dot(_sparse_unit(a), _sparse_unit(b), pairwise=pairwise)


def _sparse_unit(rows: csr_matrix) -> csr_matrix:
    length_n = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    unit: csr_matrix = diags_array(1 / np.maximum(length_n, 1e-12)).astype(np.float32) @ rows
    return unit


def _sparse_distance(metric: Literal["euclidean", "cityblock"]) -> Callable[..., Floats]:
    def compare(a: csr_matrix, b: csr_matrix, *, pairwise: bool = False) -> Floats:
        _same_terms(a, b)
        terms = np.union1d(a.indices, b.indices)  # of the others both have none
        left, right = (rows[:, terms].toarray() for rows in (a, b))
        return _negative_distance(left, right, metric, pairwise=pairwise)

    return compare


SPARSE: dict[str, Callable[..., Floats]] = {
    "dot": sparse_dot,
    "cosine": _sparse_cosine,
    "euclidean": _sparse_distance("euclidean"),
    "manhattan": _sparse_distance("cityblock"),
}
"""How weights over the vocabulary are compared, by the name in recipes."""


def _same_count(n: int, m: int) -> None:
    if n != m:
        raise InputError(f"pairwise scores need as many on both sides; given {n} and {m}")


def maxsim(
    queries: Sequence[Floats], documents: Sequence[Floats], *, length_normalize: bool = False
) -> Floats:
    """Late interaction, (n, m): sum over query tokens of the best document token's dot product.

    Khattab and Zaharia, ColBERT, SIGIR 2020. `length_normalize` divides by the query's tokens.
    """
    out = np.zeros((len(queries), len(documents)), dtype=np.float32)
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    widths = {np.shape(one)[-1] for one in (*queries, *documents) if len(one)}
    if len(widths) > 1:
        raise InputError(
            f"token vectors are {' and '.join(map(str, sorted(widths)))} wide, and cannot be "
            "compared; give those of one model"
        )
    filled = np.flatnonzero(lengths)
    if not len(filled):
        return out
    tokens_TD = np.concatenate([documents[i] for i in filled.tolist()])
    starts = np.cumsum(lengths[filled]) - lengths[filled]
    for row, query_QD in enumerate(queries):
        if len(query_QD) == 0:
            continue
        best = np.maximum.reduceat(np.asarray(query_QD) @ tokens_TD.T, starts, axis=1)
        out[row, filled] = best.sum(axis=0) / (len(query_QD) if length_normalize else 1)
    return out


def maxsim_pairwise(
    queries: Sequence[Floats], documents: Sequence[Floats], *, length_normalize: bool = False
) -> Floats:
    """MaxSim of queries[i] with documents[i], (n,)."""
    _same_count(len(queries), len(documents))
    pairs = zip(queries, documents, strict=True)
    found = [maxsim([q], [d], length_normalize=length_normalize)[0, 0] for q, d in pairs]
    return np.array(found, dtype=np.float32)
